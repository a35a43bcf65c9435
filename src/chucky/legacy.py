"""Message classes of version 0.2.0 that its streams never yielded.

They stay importable and usable as data, so that code which imports them for annotations or in
its own tests goes on working. Why no stream of ours yields them either is written down in
``docs/decisions/0003-what-0.2.0-left-behind.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict


@dataclass
class TextBlock:
    """A text block of a message."""

    text: str
    type: Literal["text"] = "text"


@dataclass
class ThinkingBlock:
    """A thinking block of a message."""

    thinking: str
    signature: str
    type: Literal["thinking"] = "thinking"


@dataclass
class ToolUseBlock:
    """A tool call in a message."""

    id: str
    name: str
    input: dict[str, Any]
    type: Literal["tool_use"] = "tool_use"


@dataclass
class ToolResultBlock:
    """A tool's result in a message."""

    tool_use_id: str
    content: str | list[dict[str, Any]] | None = None
    is_error: bool | None = None
    type: Literal["tool_result"] = "tool_result"


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock


@dataclass
class UserMessage:
    """A user's message."""

    content: str | list[ContentBlock]
    type: Literal["user"] = "user"


@dataclass
class AssistantMessage:
    """An assistant's message."""

    content: list[ContentBlock]
    model: str
    type: Literal["assistant"] = "assistant"


@dataclass
class SystemMessage:
    """A system message."""

    subtype: str
    data: dict[str, Any]
    type: Literal["system"] = "system"


@dataclass
class ResultMessage:
    """The result of a turn."""

    subtype: str
    duration_ms: int
    duration_api_ms: int
    is_error: bool
    num_turns: int
    session_id: str
    total_cost_usd: float | None = None
    usage: dict[str, Any] | None = None
    result: str | None = None
    type: Literal["result"] = "result"


class SDKMessage(TypedDict, total=False):
    """The keys any message may have."""

    type: str
    subtype: str
    session_id: str
    message: dict[str, Any]
    result: str
    total_cost_usd: float
    duration_ms: int
    num_turns: int
