"""Counting tokens by one simple rule: four characters of text are one token, begun ones count.

A real model counts otherwise; the rule is here so that budgets, limits and usage add up, and so
that a reader can check a number by hand. An image or a document counts as a fixed number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from chucky.jsontext import write_json
from chucky.offline.request import Block, MessagesRequest

CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MEDIUM = 1_600


def tokens_for(characters: int) -> int:
    """How many tokens a text of this many characters has."""
    return -(-characters // CHARACTERS_PER_TOKEN)


def count_input_tokens(request: MessagesRequest) -> int:
    """Count what a request sends: system prompt, tools and messages; at least 1."""
    characters = len(request.system)
    for tool in request.tools:
        characters += len(tool.name) + len(tool.description)
        characters += len(write_json(tool.input_schema)) if tool.input_schema else 0
    blocks = [block for message in request.messages for block in message.blocks]
    media = _media_in(blocks)
    characters += sum(_characters_in(block) for block in blocks)
    return max(1, tokens_for(characters) + media * TOKENS_PER_MEDIUM)


def _characters_in(block: Block) -> int:
    match block["type"]:
        case "text":
            return len(block["text"])
        case "thinking":
            return len(block["thinking"])
        case "tool_use":
            return len(block["name"]) + len(write_json(block["input"]))
        case "tool_result":
            return _characters_in_result(block.get("content"))
        case _:
            return 0


def _characters_in_result(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(block["text"]) for block in content or [] if block.get("type") == "text")


def _media_in(blocks: Iterable[Block]) -> int:
    count = 0
    for block in blocks:
        content = block.get("content") if block["type"] == "tool_result" else None
        inner = content if isinstance(content, list) else []
        kinds = [block["type"], *(each.get("type") for each in inner)]
        count += sum(kind in ("image", "document") for kind in kinds)
    return count
