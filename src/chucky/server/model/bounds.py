"""How many tokens the input of a call has at most, before anybody has counted them.

A token of text has at least one byte, and JSON spells a text with at least as many bytes as it has
itself, so the length of a request's JSON is a bound for its text, usually three to five times too
high. A tokenizer may normalize a text before it cuts it up, as the published one of early models
does (NFKC: https://github.com/anthropics/anthropic-tokenizer-typescript), by which a character can
become eighteen; so each character counts with the longer of both. What is not text, and what a
provider adds by itself, is bounded by what its pages say:
https://platform.claude.com/docs/en/build-with-claude/vision (an image is scaled down to less than
5,000 tokens), https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview (tools bring a
system prompt of some hundred tokens). A PDF may hold more text than bytes; it is bounded by the
model's context, beyond which no request is accepted.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any, Literal

from chucky.server.model.catalog import Model
from chucky.server.model.pricing import Price, Usage
from chucky.server.model.upstream import ModelRequest

_IMAGE_TOKENS = 5_000
_SYSTEM_TOKENS = 1_000  # what a provider adds for tools and schemas
_BYTES_PER_TOKEN = 3
_LARGEST_CONTEXT_TOKENS = 1_000_000
_REMEMBERED_CHARACTERS = 65_536

_Form = Literal["NFKC", "NFKD"]


@dataclass(frozen=True, slots=True)
class InputSize:
    """How large the input of a request is, as far as can be seen without counting tokens.

    Attributes:
        length: Of its JSON, in bytes, normalized where that is longer, without the data of images.
        images: How many images are in it.
        has_binary_documents: Whether there are documents in it that are not text.
    """

    length: int
    images: int
    has_binary_documents: bool

    @classmethod
    def of(cls, request: ModelRequest) -> InputSize:
        """Measure a request. What is in it beside the input is short, and counts too."""
        media = list(_media(request.fields.get("messages", ())))
        images = [block for block in media if block["type"] == "image"]
        return cls(
            _length(request.body)
            - sum(len(block.get("source", {}).get("data", "")) for block in images),
            len(images),
            any(block["type"] == "document" and _is_binary(block) for block in media),
        )

    def bound(self, context_tokens: int) -> int:
        """The most tokens it can have, if no more than the context are accepted."""
        if self.has_binary_documents:
            return context_tokens
        tokens = self.length + self.images * _IMAGE_TOKENS + _SYSTEM_TOKENS
        return min(tokens, context_tokens)

    def estimate(self, context_tokens: int) -> int:
        """About how many tokens it has: for a call that nobody lived to count."""
        tokens = -(-self.length // _BYTES_PER_TOKEN) + self.images * _IMAGE_TOKENS
        return min(tokens, context_tokens)


def largest_context(model: Model, betas: Sequence[str]) -> int:
    """How many tokens of input a call is accepted with at most; a beta may widen the context."""
    return max(model.context_tokens, _LARGEST_CONTEXT_TOKENS if betas else 0)


def input_nanos_bound(request: Mapping[str, Any], price: Price, tokens: int) -> int:
    """What so many tokens of input cost at most: at the dearest kind the request can incur."""
    lifetimes = set(_cache_lifetimes(request))
    usages = [Usage(input_tokens=tokens)]
    if lifetimes:
        usages += [Usage(cache_write_5m_tokens=tokens), Usage(cache_read_tokens=tokens)]
    if "1h" in lifetimes:
        usages.append(Usage(cache_write_1h_tokens=tokens))
    return max(price.dearest_cost_nanos(usage) for usage in usages)


def _length(body: bytes) -> int:
    """The bytes of a text, or of what normalizing makes of it: the more at each character.

    It is not normalized as a whole, because that takes a time with the square of a run of combining
    marks, and a user may send any text.
    """
    if body.isascii():
        return len(body)
    text = body.decode()
    characters = set(text)
    # Marks that are put in another order can keep a character from being put together again.
    form: _Form = "NFKD" if any(map(unicodedata.combining, characters)) else "NFKC"
    growing = {each: growth for each in characters if (growth := _growth(each, form)) > 0}
    return len(body) + (sum(map(growing.get, text, repeat(0))) if growing else 0)


@lru_cache(_REMEMBERED_CHARACTERS)
def _growth(character: str, form: _Form) -> int:
    return len(unicodedata.normalize(form, character).encode()) - len(character.encode())


def _media(value: Any) -> Iterable[Mapping[str, Any]]:
    """The images and documents in messages and in the results of tools."""
    for message in value:
        content = message.get("content")
        if isinstance(content, list):
            for block in content:
                if block.get("type") in ("image", "document"):
                    yield block
                elif block.get("type") == "tool_result":
                    yield from _media([block])


def _is_binary(document: Mapping[str, Any]) -> bool:
    return bool(document.get("source", {}).get("type") != "text")


def _cache_lifetimes(request: Mapping[str, Any]) -> Iterable[str]:
    for blocks in (
        request.get("system", ()),
        request.get("tools", ()),
        *(message.get("content", ()) for message in request.get("messages", ())),
    ):
        for block in blocks if isinstance(blocks, list) else ():
            mark = block.get("cache_control")
            if mark is not None:
                yield mark.get("ttl", "5m")
