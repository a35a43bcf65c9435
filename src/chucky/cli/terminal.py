"""What may be written to a terminal, and how a conversation is shown there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.console import Console

from chucky.messages import bare_tool_name, get_assistant_text

_MAX_ARGUMENTS = 200
_CONTROLS: Final = {
    code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


def printable(text: str) -> str:
    """Drop control characters, with which an answer could steer the terminal."""
    return text.translate(_CONTROLS)


class Transcript:
    """Shows the messages of a conversation as they come.

    Text appears as it streams; each tool call has a line of its own; a dim line after each turn
    says what it cost.
    """

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, soft_wrap=True)
        self._at_line_start = True
        self._streamed = False
        self._shown = False
        self._total_cost_usd = 0.0

    def show(self, message: Mapping[str, Any], *, interrupted: bool = False) -> None:
        """Show one message.

        Args:
            message: As a session's stream yields it.
            interrupted: Whether the user has interrupted this turn, so that a failed result is
                no news.
        """
        match message.get("type"):
            case "stream_event":
                self._show_event(message.get("event") or {})
            case "assistant":
                self._show_assistant(message)
            case "result":
                self._show_result(message, interrupted)

    def end_line(self) -> None:
        """Begin a new line unless at the beginning of one."""
        if not self._at_line_start:
            self._write("\n")

    def _show_event(self, event: Mapping[str, Any]) -> None:
        if event.get("type") == "message_start":
            self._streamed = False
        delta = event.get("delta") or {}
        if delta.get("type") == "text_delta":
            self._streamed = True
            self._write(str(delta.get("text", "")))

    def _show_assistant(self, message: Mapping[str, Any]) -> None:
        if not self._streamed:
            self._write(get_assistant_text(message))
        for call in _tool_calls(message):
            self.end_line()
            self._console.print(printable(call), style="cyan")

    def _show_result(self, message: Mapping[str, Any], interrupted: bool) -> None:
        text = str(message.get("result") or "")
        failed = message.get("subtype") == "error"
        if not failed and not self._shown:
            self._write(text)
        self.end_line()
        if failed and interrupted:
            self._console.print("(interrupted)", style="dim")
        elif failed:
            sys.stdout.flush()
            sys.stderr.write(f"Error: {printable(text)}\n")
            sys.stderr.flush()
        self._show_cost(message)
        self._streamed = self._shown = False

    def _show_cost(self, message: Mapping[str, Any]) -> None:
        total = message.get("total_cost_usd")
        if not isinstance(total, int | float):
            return
        cost, self._total_cost_usd = max(0.0, total - self._total_cost_usd), total
        self._console.print(f"(${cost:.4f}, ${total:.4f} in all)", style="dim")

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(printable(text))
            sys.stdout.flush()
            self._shown = True
            self._at_line_start = text.endswith("\n")


def _tool_calls(message: Mapping[str, Any]) -> Iterator[str]:
    content = (message.get("message") or {}).get("content")
    for block in content if isinstance(content, list) else ():
        if isinstance(block, Mapping) and block.get("type") == "tool_use":
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            if len(arguments) > _MAX_ARGUMENTS:
                arguments = f"{arguments[:_MAX_ARGUMENTS]}…"
            yield f"[tool {bare_tool_name(str(block.get('name')))}({arguments})]"
