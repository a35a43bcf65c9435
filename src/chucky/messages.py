"""What a stream yields: messages, results and events, and the two helpers that read them.

Messages are plain dictionaries in the shape of the Claude Agent SDK, with two conveniences:
their keys are also attributes (``result.result``), and ``str(message)`` is the text a person
would want to read, ``''`` when there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from chucky.errors import CODE_BY_REASON, CODE_BY_SUBTYPE, ChuckyError
from chucky.legacy import AssistantMessage, ResultMessage, TextBlock


class Message(dict[str, Any]):
    """One message of a turn: a dictionary whose keys are also attributes.

    ``message['type']`` is one of ``system``, ``assistant``, ``user`` (tool results),
    ``stream_event`` (a partial message, only when asked for), ``error`` and ``result``.

    >>> message = Message(type='assistant', message={'content': 'Hello'})
    >>> message.type, message.get('subtype'), str(message)
    ('assistant', None, 'Hello')
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            fields = ", ".join(map(repr, self)) or "no fields"
            raise AttributeError(f"this message has no {name!r}; it has {fields}") from None

    def __str__(self) -> str:
        return _text(self)


class PromptResult(Message):
    """The result that ends a turn, as ``prompt()`` returns it.

    Keys (and attributes): ``subtype`` (``'success'`` or ``'error'``), ``is_error``, ``result``
    (the final text, or what went wrong), ``session_id``, ``total_cost_usd`` (US dollars, the
    session's total so far), ``num_turns`` (likewise), ``duration_ms``, ``usage`` and, when the
    turn failed, ``error`` with ``code``, ``reason``, ``subtype`` and ``message``.

    Attributes:
        messages: Every message of the turn, the result last.
    """

    __slots__ = ("messages",)

    def __init__(
        self,
        result: Mapping[str, Any] | str | None = None,
        messages: Iterable[Mapping[str, Any]] = (),
        session_id: str | None = None,
        total_cost_usd: float | None = None,
        duration_ms: int | None = None,
        **fields: Any,
    ) -> None:
        """Wrap a result message, or build one from the five fields version 0.2.0 had."""
        if isinstance(result, Mapping):
            super().__init__(result, **fields)
        else:
            own = {
                "result": result,
                "session_id": session_id,
                "total_cost_usd": total_cost_usd,
                "duration_ms": duration_ms,
            }
            super().__init__(own, **fields)
        self.messages: list[Mapping[str, Any]] = list(messages)


@dataclass
class StreamEvent:
    """One event of ``client.stream()``.

    Attributes:
        type: ``'message'`` (a complete message), ``'tool_use'`` (Claude calls a tool),
            ``'delta'`` (a partial message, only with ``include_partial_messages``),
            ``'error'``, ``'result'`` and, last of all, ``'done'``.
        data: The message; for ``tool_use`` the block with ``id``, ``name`` and ``input``; for
            ``done`` a dictionary with ``sessionId``. ``str(data)`` is its text.
    """

    type: str
    data: Any

    @property
    def name(self) -> str | None:
        """The tool's name as you defined it, on a ``tool_use`` event; otherwise None."""
        if self.type != "tool_use":
            return None
        return bare_tool_name(self.data["name"])


def bare_tool_name(name: str) -> str:
    """Return the name a tool was defined with, from the one Claude sees.

    >>> bare_tool_name('mcp__inline-tools__get_time'), bare_tool_name('get_time')
    ('get_time', 'get_time')
    """
    if not name.startswith("mcp__"):
        return name
    _server, separator, tool = name.removeprefix("mcp__").partition("__")
    return tool if separator else name


def get_assistant_text(message: Any) -> str:
    """Return the text of an assistant message: its text blocks, concatenated.

    Args:
        message: Anything a stream yields, a :class:`StreamEvent` included.

    Returns:
        The text; ``''`` when the message is not an assistant's or says nothing.
    """
    message = _unwrap(message)
    if isinstance(message, AssistantMessage):
        return "".join(block.text for block in message.content if isinstance(block, TextBlock))
    if not isinstance(message, Mapping):
        return ""
    if message.get("type", "assistant") != "assistant":
        return ""
    return _content_text(message.get("message"))


def get_result_text(message: Any) -> str | None:
    """Return the final text of a successful result.

    Args:
        message: Anything a stream yields, a :class:`StreamEvent` included.

    Returns:
        The text, or None when the message is not a result or the turn failed.
    """
    message = _unwrap(message)
    if isinstance(message, ResultMessage):
        return message.result if message.subtype == "success" else None
    if not isinstance(message, Mapping) or message.get("type", "result") != "result":
        return None
    if message.get("subtype") != "success":
        return None
    text = message.get("result")
    return text if isinstance(text, str) else None


def _unwrap(message: Any) -> Any:
    return message.data if isinstance(message, StreamEvent) else message


def _content_text(inner: Any) -> str:
    """The text of the ``message`` member: its content may be a string or a list of blocks."""
    content = inner.get("content") if isinstance(inner, Mapping) else None
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(
        text
        for block in content
        if isinstance(block, Mapping)
        and block.get("type") == "text"
        and isinstance(text := block.get("text"), str)
    )


def _text(message: Mapping[str, Any]) -> str:
    kind = message.get("type")
    if kind in ("assistant", "user"):
        return _content_text(message.get("message"))
    if kind == "stream_event":
        event = message.get("event")
        delta = event.get("delta") if isinstance(event, Mapping) else None
        text = delta.get("text") if isinstance(delta, Mapping) else None
    elif kind == "error":
        error = message.get("error")
        text = error.get("message") if isinstance(error, Mapping) else None
    else:
        text = message.get("result")
    return text if isinstance(text, str) else ""


def result_from_wire(message: Mapping[str, Any]) -> PromptResult:
    """Give a result the form the client page documents.

    A failed result becomes ``subtype: 'error'`` with the text in ``result`` and an ``error``
    object; what the wire said is kept in ``error.subtype``.
    """
    result = PromptResult(message)
    subtype = str(message.get("subtype", ""))
    if subtype == "success" and not message.get("is_error"):
        return result
    said = message.get("error")
    error = Message(said if isinstance(said, Mapping) else {})
    error.setdefault("code", CODE_BY_SUBTYPE.get(subtype, "SESSION_ERROR"))
    error.setdefault("reason", None)
    error["subtype"] = subtype
    error["message"] = _failure_text(message, error)
    result.update(subtype="error", is_error=True, result=error["message"], error=error)
    return result


def _failure_text(message: Mapping[str, Any], error: Mapping[str, Any]) -> str:
    errors = message.get("errors")
    candidates = [message.get("result"), error.get("message")]
    candidates += errors if isinstance(errors, list) else []
    said = next((text for text in candidates if isinstance(text, str) and text), None)
    return said or f"The turn failed ({message.get('subtype')})."


def result_from_error(error: ChuckyError, session_id: str) -> PromptResult:
    """Make the result of a turn that the server ended with an ``error`` frame."""
    said = Message(
        error.details,
        code=CODE_BY_REASON.get(error.code, error.code),
        reason=error.reason,
        subtype="error",
        message=error.message,
    )
    return PromptResult(
        {
            "type": "result",
            "subtype": "error",
            "is_error": True,
            "result": error.message,
            "session_id": session_id,
            "error": said,
        }
    )
