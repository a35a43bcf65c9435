"""Reading a conversation: whose turn it is, what was said last, which tool results are in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from chucky.jsontext import write_json
from chucky.offline.request import Block, Message

# The Claude CLI puts notes of its own into user messages between these; no user said them.
_NOTE_OPENS = "<system-reminder>"
_NOTE_CLOSES = "</system-reminder>"


@dataclass(frozen=True, slots=True)
class ToolResult:
    """One result of a tool call of the turn; ``name`` is the called tool's, as it was called."""

    name: str
    text: str
    is_error: bool


@dataclass(frozen=True)
class Conversation:
    """A conversation as the model sees it.

    The *turn* starts with the last user message that has a text of its own (messages that only
    bring tool results do not start one), and the *prompt* is the last text in it: agents put
    notes, and prompts that failed, in front of it.
    """

    messages: Sequence[Message]

    @cached_property
    def turn_start(self) -> int | None:
        """Index of the message that started the turn; ``None`` if nobody said anything."""
        for index in range(len(self.messages) - 1, -1, -1):
            message = self.messages[index]
            if message.role == "user" and any(_texts(message)):
                return index
        return None

    @cached_property
    def prompt(self) -> str:
        """The text to answer, ``""`` if there is none."""
        if self.turn_start is None:
            return ""
        return list(_texts(self.messages[self.turn_start]))[-1]

    @cached_property
    def calls_made(self) -> int:
        """How many model calls of this turn were answered, going by the assistant messages."""
        start = -1 if self.turn_start is None else self.turn_start
        roles = [message.role for message in self.messages[start + 1 :] if message.role != "system"]
        while roles and roles[-1] == "assistant":
            roles.pop()  # a prefill: the beginning of the answer that is asked for
        runs = zip(["user", *roles], roles, strict=False)
        return sum(role == "assistant" and before != role for before, role in runs)

    @cached_property
    def pending_results(self) -> list[ToolResult]:
        """The tool results that the next answer is about."""
        start = -1 if self.turn_start is None else self.turn_start
        return list(self._results(self._last_assistant(start) + 1, start))

    @cached_property
    def turn_results(self) -> list[ToolResult]:
        """All tool results of the turn."""
        start = -1 if self.turn_start is None else self.turn_start
        return list(self._results(start + 1, start))

    @cached_property
    def earlier_texts(self) -> list[tuple[str, str]]:
        """Who said what before the prompt, as ``(role, text)``, oldest first."""
        end = len(self.messages) if self.turn_start is None else self.turn_start
        return [(message.role, text) for message in self.messages[:end] for text in _texts(message)]

    def fingerprint(self, user_id: str) -> str:
        """Tell conversations apart by all that led to this turn.

        Cache markers, thinking and notes of the CLI do not count: they change between two calls
        of one turn. Neither does how text is spread over messages of one role.

        Args:
            user_id: ``metadata.user_id`` of the request, which tells sessions apart.

        Returns:
            A hash, equal for all calls of one turn.
        """
        end = 0 if self.turn_start is None else self.turn_start + 1
        said = [
            [message.role, block]
            for message in self.messages[:end]
            for block in _lasting(message.blocks)
        ]
        return hashlib.sha256(write_json([user_id, said]).encode()).hexdigest()

    def _last_assistant(self, start: int) -> int:
        for index in range(len(self.messages) - 1, start, -1):
            if self.messages[index].role == "assistant":
                return index
        return start

    def _results(self, first: int, start: int) -> Iterator[ToolResult]:
        names = {
            block["id"]: block["name"]
            for message in self.messages[max(start, 0) :]
            for block in message.blocks
            if block["type"] == "tool_use"
        }
        for message in self.messages[first:]:
            for block in message.blocks:
                if block["type"] == "tool_result":
                    yield ToolResult(
                        names.get(block["tool_use_id"], "tool"),
                        _result_text(block.get("content")),
                        bool(block.get("is_error")),
                    )


def bare_name(tool_name: str) -> str:
    """Take the server's part off a tool's name: ``mcp__shop__get_order`` is ``get_order``."""
    if not tool_name.startswith("mcp__"):
        return tool_name
    server, separator, name = tool_name[len("mcp__") :].partition("__")
    return name if server and separator and name else tool_name


def _texts(message: Message) -> Iterator[str]:
    for block in message.blocks:
        if block["type"] == "text":
            text = _without_notes(block["text"]).strip()
            if text:
                yield text


def _without_notes(text: str) -> str:
    kept, position = [], 0
    while (opens := text.find(_NOTE_OPENS, position)) >= 0:
        closes = text.find(_NOTE_CLOSES, opens)
        if closes < 0:
            break
        kept.append(text[position:opens])
        position = closes + len(_NOTE_CLOSES)
    return "".join([*kept, text[position:]])


def _result_text(content: Any) -> str:
    if isinstance(content, str):
        return content.strip()
    texts = [block["text"] for block in content or [] if block.get("type") == "text"]
    return "\n".join(texts).strip()


def _lasting(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        if block["type"] in ("thinking", "redacted_thinking"):
            continue
        if block["type"] != "text":
            yield _unmarked(block)
        elif text := _without_notes(block["text"]).strip():
            yield {"type": "text", "text": text}


def _unmarked(block: Block) -> Block:
    kept = {key: value for key, value in block.items() if key != "cache_control"}
    if block["type"] == "tool_result" and isinstance(kept.get("content"), list):
        kept["content"] = [
            {key: value for key, value in inner.items() if key != "cache_control"}
            for inner in kept["content"]
        ]
    return kept
