"""A message of the model, put together from the events of its stream."""

from __future__ import annotations

import json
from typing import Any

from chucky.errors import ChuckyError
from chucky.jsontext import with_whole_characters
from chucky.server.model.events import Event
from chucky.server.model.payment import CutShortError

# What a delta adds to, and the key it carries it under.
_TEXT_DELTAS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
}

# What clients are shown of a block: docs/protocol.md lists these shapes and no others.
_SHOWN_KEYS = {
    "text": ("type", "text"),
    "thinking": ("type", "thinking", "signature"),
    "tool_use": ("type", "id", "name", "input"),
}


class Reply:
    """The model's message so far.

    Attributes:
        stop_reason: Why the model stopped; None while it writes.
        complete: Whether the stream came to its proper end.
        context_tokens: What it and everything before it take of the model's window.
        cut_short: Set when it ended because no more of it was paid for.
    """

    def __init__(self) -> None:
        self.stop_reason: str | None = None
        self.complete = False
        self.context_tokens = 0
        self.cut_short: CutShortError | None = None
        self._blocks: list[dict[str, Any]] = []
        self._pieces: dict[tuple[int, str], list[str]] = {}
        self._input_json: dict[int, list[str]] = {}

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """Its content blocks, as they go back to the model in the next request."""
        # Joined when somebody looks: text that grew with each of its deltas would be copied so
        # often.
        for (index, key), pieces in self._pieces.items():
            self._blocks[index][key] = "".join(pieces)
        self._pieces.clear()
        return self._blocks

    def feed(self, event: Event) -> None:
        """Take in one event.

        Raises:
            ChuckyError: The event makes no sense; the provider broke its protocol.
        """
        try:
            if event.delta is not None:
                self._add_piece(*event.delta)
            else:
                self._apply(event.fields)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ChuckyError(
                f"The model's stream had an event that makes no sense ({error!r}).",
                code="MODEL_ERROR",
                reason="stream_malformed",
            ) from error

    def _apply(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "content_block_start":
                self.blocks.insert(event["index"], dict(event["content_block"]))
            case "content_block_delta":
                self._add(event["index"], event["delta"])
            case "content_block_stop":
                self._close(event["index"])
            case "message_delta":
                self.stop_reason = event["delta"].get("stop_reason") or self.stop_reason
            case "message_stop":
                self.complete = True
            case _:
                pass  # message_start holds nothing but usage; unknown events must be ignored

    def _add(self, index: int, delta: dict[str, Any]) -> None:
        kind = delta["type"]
        if kind == "input_json_delta":
            self._input_json.setdefault(index, []).append(delta["partial_json"])
        elif kind == "citations_delta":
            block = self._blocks[index]
            block["citations"] = [*(block.get("citations") or []), delta["citation"]]
        elif key := _TEXT_DELTAS.get(kind):
            self._add_piece(index, key, delta[key])

    def _add_piece(self, index: int, key: str, piece: str) -> None:
        pieces = self._pieces.get((index, key))
        if pieces is None:
            pieces = self._pieces[index, key] = [_text(self._blocks[index].get(key) or "")]
        pieces.append(_text(piece))

    def _close(self, index: int) -> None:
        pieces = self._input_json.pop(index, None)
        if pieces and (text := "".join(pieces)):
            self.blocks[index]["input"] = _loads_or_none(text)

    def text(self) -> str:
        """The text blocks, concatenated."""
        return "".join(block["text"] for block in self.blocks if block.get("type") == "text")

    def tool_uses(self) -> list[dict[str, Any]]:
        """The complete calls of tools; one that was cut off has no usable input and is none."""
        return [
            block
            for block in self.blocks
            if block.get("type") == "tool_use" and isinstance(block.get("input"), dict)
        ]

    def has_broken_tool_use(self) -> bool:
        """Whether a call of a tool was cut off, or its arguments were not an object."""
        calls = sum(block.get("type") == "tool_use" for block in self.blocks)
        return bool(self._input_json) or calls > len(self.tool_uses())

    def shown(self) -> list[dict[str, Any]]:
        """The blocks as clients see them."""
        return [
            {key: block[key] for key in keys if key in block}
            for block in self.blocks
            if (keys := _SHOWN_KEYS.get(str(block.get("type"))))
        ]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.50} is no text")
    return value


def _loads_or_none(text: str) -> Any:
    try:
        return json.loads(with_whole_characters(text))
    except ValueError:
        return None
