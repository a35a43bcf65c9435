"""What a model call may ask for, so that its price is known: everything else is refused by name.

A request field, a kind of content or a tool of the provider that is not listed here may be charged
in ways that nobody here could reserve for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from chucky.errors import ValidationError

_FIELDS = frozenset(
    {
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "output_config",
        "stop_sequences",
        "system",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    }
)
_BLOCKS = frozenset(
    {"document", "image", "redacted_thinking", "text", "thinking", "tool_result", "tool_use"}
)
_SOURCES = frozenset({"base64", "content", "text"})
# Fields of a usage report that are prices' business, or say nothing that is charged for.
_USAGE_FIELDS = frozenset(
    {
        "cache_creation",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "inference_geo",
        "input_tokens",
        "iterations",
        "output_tokens",
        "output_tokens_details",
        "service_tier",
        "speed",
    }
)


def check_priceable(request: Mapping[str, Any]) -> None:
    """Refuse a request that could cost what nobody here can price.

    Raises:
        ValidationError: The sentence names what is in it.
    """
    for name in request:
        if name not in _FIELDS:
            raise _refusal(f"the field {name!r}")
    for tool in request.get("tools", ()):
        if tool.get("type", "custom") != "custom":
            raise _refusal(f"the provider's own tool {tool['type']!r}")
    for block in _blocks(request.get("messages", ())):
        kind = block.get("type")
        if kind not in _BLOCKS:
            raise _refusal(f"content of the type {kind!r}")
        source = block.get("source")
        if isinstance(source, Mapping) and source.get("type") not in _SOURCES:
            raise _refusal(f"a source of the type {source.get('type')!r}")


def unpriced_usage(reported: Mapping[str, Any]) -> str:
    """What a usage report counts that no price is known for; ``''`` for nothing."""
    unknown = {
        name: value
        for name, value in reported.items()
        if name not in _USAGE_FIELDS and _counts_something(value)
    }
    return ", ".join(f"{name!a:.100}: {value!a:.100}" for name, value in sorted(unknown.items()))


def _counts_something(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_counts_something, value.values()))
    return bool(value) and not isinstance(value, str)


def _blocks(messages: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            for block in content:
                yield block
                if block.get("type") == "tool_result":
                    yield from _blocks([block])


def _refusal(what: str) -> ValidationError:
    return ValidationError(
        f"A model call cannot have {what}: what it costs is not known here.",
        reason="not_priceable",
    )
