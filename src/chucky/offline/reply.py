"""An answer as content blocks, and the limits every answer keeps: stop sequences, max_tokens."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from chucky.jsontext import write_json
from chucky.offline.request import MessagesRequest
from chucky.offline.tokens import CHARACTERS_PER_TOKEN, tokens_for

CACHE_CREATION = "cache_creation_input_tokens"
CACHE_READ = "cache_read_input_tokens"
CACHE_5M = "ephemeral_5m_input_tokens"
CACHE_1H = "ephemeral_1h_input_tokens"

_WORD_WITH_SPACE = re.compile(r"\s*\S{1,40}\s?|\s+")
_CHUNK_CHARACTERS = 12
_MAX_CHUNKS = 1_000


def new_id(prefix: str) -> str:
    """Make an id that nobody can guess, e.g. ``msg_1f…`` for the prefix ``"msg"``."""
    return f"{prefix}_{secrets.token_hex(12)}"


def split_text(text: str) -> tuple[str, ...]:
    """Split a text into the small pieces it is streamed in: a few words each, spaces kept."""
    size = max(_CHUNK_CHARACTERS, len(text) // _MAX_CHUNKS)
    chunks: list[str] = []
    current = ""
    for word in _WORD_WITH_SPACE.findall(text):
        current += word
        if len(current) >= size:
            chunks.append(current)
            current = ""
    return (*chunks, current) if current else tuple(chunks)


@dataclass(frozen=True, slots=True)
class Text:
    """A text block; each chunk becomes one delta of a stream."""

    chunks: tuple[str, ...]

    @property
    def size(self) -> int:
        """Its length in characters."""
        return sum(map(len, self.chunks))

    def content(self) -> dict[str, Any]:
        """The block as a complete message shows it."""
        return {"type": "text", "text": "".join(self.chunks)}


@dataclass(frozen=True, slots=True)
class Thinking:
    """A thinking block, signed with a hash of its text (nobody checks the signature)."""

    chunks: tuple[str, ...]

    @property
    def size(self) -> int:
        """Its length in characters; the signature does not count."""
        return sum(map(len, self.chunks))

    @property
    def signature(self) -> str:
        """What the API wants sent back with the block."""
        digest = hashlib.sha256("".join(self.chunks).encode()).digest()
        return base64.b64encode(digest).decode()

    def content(self) -> dict[str, Any]:
        """The block as a complete message shows it."""
        text = "".join(self.chunks)
        return {"type": "thinking", "thinking": text, "signature": self.signature}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A call of one of the offered tools."""

    name: str
    input: Mapping[str, Any]
    id: str = field(default_factory=lambda: new_id("toolu"))

    @property
    def chunks(self) -> tuple[str, ...]:
        """The input as JSON text, in the pieces it is streamed in."""
        return split_text(write_json(self.input))

    @property
    def size(self) -> int:
        """The length of its name and its input in characters."""
        return len(self.name) + len(write_json(self.input))

    def content(self) -> dict[str, Any]:
        """The block as a complete message shows it."""
        return {"type": "tool_use", "id": self.id, "name": self.name, "input": dict(self.input)}


ReplyBlock: TypeAlias = Text | Thinking | ToolUse


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one answer; cached input is not in ``input_tokens``, as in the API."""

    input_tokens: int
    output_tokens: int
    cache_creation_5m_tokens: int = 0
    cache_creation_1h_tokens: int = 0
    cache_read_tokens: int = 0

    @property
    def total_input_tokens(self) -> int:
        """All input, cached or not: what ``count_tokens`` counts."""
        cached = self.cache_creation_5m_tokens + self.cache_creation_1h_tokens
        return self.input_tokens + cached + self.cache_read_tokens

    def as_dict(self) -> dict[str, Any]:
        """The ``usage`` object of a message."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            CACHE_CREATION: self.cache_creation_5m_tokens + self.cache_creation_1h_tokens,
            CACHE_READ: self.cache_read_tokens,
            "cache_creation": {
                CACHE_5M: self.cache_creation_5m_tokens,
                CACHE_1H: self.cache_creation_1h_tokens,
            },
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished answer."""

    blocks: tuple[ReplyBlock, ...]
    stop_reason: str
    stop_sequence: str | None
    usage: Usage
    model: str
    id: str = field(default_factory=lambda: new_id("msg"))

    def message(self) -> dict[str, Any]:
        """The answer as the API's complete message."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [block.content() for block in self.blocks],
            "stop_reason": self.stop_reason,
            "stop_sequence": self.stop_sequence,
            "usage": self.usage.as_dict(),
        }


def finish_reply(
    request: MessagesRequest,
    blocks: Sequence[ReplyBlock],
    usage: Usage,
    *,
    output_tokens: int | None = None,
    overrun: bool = False,
) -> Reply:
    """Make an answer of content blocks, within the limits the request sets.

    Args:
        request: The request that is answered.
        blocks: What is to be said.
        usage: Its input side; the output is counted here.
        output_tokens: The output tokens to report instead of counted ones. If they are above
            ``max_tokens``, the answer is cut by the same proportion.
        overrun: Do not stop at ``max_tokens``.

    Returns:
        The answer. Where it stopped early, its stop reason is ``"stop_sequence"`` or
        ``"max_tokens"``; tool calls after that point, or not complete before it, are left out.
    """
    kept, stop_sequence = _stop_at_sequence(blocks, request.stop_sequences)
    size = sum(block.size for block in kept)
    wanted = max(1, tokens_for(size)) if output_tokens is None else output_tokens
    if wanted > request.max_tokens and not overrun:
        if output_tokens is None:
            size_limit = request.max_tokens * CHARACTERS_PER_TOKEN
        else:
            size_limit = size * request.max_tokens // output_tokens
        kept = _cut(kept, size_limit)
        wanted, stop_reason, stop_sequence = request.max_tokens, "max_tokens", None
    elif stop_sequence is not None:
        stop_reason = "stop_sequence"
    else:
        calls = any(isinstance(block, ToolUse) for block in kept)
        stop_reason = "tool_use" if calls else "end_turn"
    usage = replace(usage, output_tokens=wanted)
    return Reply(tuple(kept), stop_reason, stop_sequence, usage, request.model)


def _stop_at_sequence(
    blocks: Sequence[ReplyBlock], sequences: Sequence[str]
) -> tuple[list[ReplyBlock], str | None]:
    kept: list[ReplyBlock] = []
    for block in blocks:
        if isinstance(block, Text) and sequences:
            text = "".join(block.chunks)
            hits = [(at, each) for each in sequences if (at := text.find(each)) >= 0]
            if hits:
                end, sequence = min(hits)
                return [*kept, *_cut([block], end)], sequence
        kept.append(block)
    return kept, None


def _cut(blocks: Sequence[ReplyBlock], size_limit: int) -> list[ReplyBlock]:
    kept: list[ReplyBlock] = []
    left = size_limit
    for block in blocks:
        if block.size <= left:
            kept.append(block)
            left -= block.size
            continue
        if not isinstance(block, ToolUse) and left > 0:
            kept.append(replace(block, chunks=_cut_chunks(block.chunks, left)))
        break
    return kept


def _cut_chunks(chunks: Sequence[str], size_limit: int) -> tuple[str, ...]:
    kept: list[str] = []
    left = size_limit
    for chunk in chunks:
        if left <= 0:
            break
        kept.append(chunk[:left])
        left -= len(chunk)
    return tuple(kept)
