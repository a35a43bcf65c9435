"""Frames: the JSON text on the socket, and the objects both halves work with.

Two generations of the protocol are in use and both are understood. In the *wrapped* one a
message of the agent travels inside an envelope (``{"type": "sdk_message", "payload": …}``), in
the *flat* one the message itself is the frame. Everything else (init, control, tool calls,
errors, pings) has an envelope in both. ``docs/protocol.md`` describes every frame.

This module does no I/O. ``parse_client_frame`` is what a server does with what a client sent,
``parse_server_frame`` the other way round; each returns a frame or raises :class:`FrameError`.
The functions that make frames return the text to send.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from chucky.errors import ProtocolError
from chucky.jsontext import read_json

# Extensions of ours. Each travels only after both sides have named it: the client in
# `init.payload.capabilities`, the server in `session_info.data.capabilities`.
INTERRUPT = "interrupt"  # the client may send control `interrupt` during a turn
ERROR_FRAMES = "error_frames"  # the server may send `error` frames between turns
RESULT_DETAILS = "result_details"  # results carry `error`, `model`, `stop_reason`, `turn_cost_usd`
REPLAY = "replay"  # messages are numbered, and a lost connection can be taken up again
SESSIONS = "sessions"  # the client may send control `list_sessions` and `history`
CAPABILITIES = (INTERRUPT, ERROR_FRAMES, RESULT_DETAILS, REPLAY, SESSIONS)

# The questions of `sessions`; each is answered by a control frame of the same name.
LIST_SESSIONS = "list_sessions"
HISTORY = "history"

# Bounds the memory one frame may take in a client. Images and long tool results make frames of
# several MiB.
MAX_FRAME_BYTES = 64 * 1024 * 1024

FLAT_MESSAGE_TYPES = frozenset({"system", "assistant", "user", "result", "stream_event"})
CONTENT_BLOCK_TYPES = frozenset({"text", "image", "document"})


class FrameError(ProtocolError):
    """A frame cannot be understood.

    Attributes:
        field: The path of the field that is wrong, e.g. ``"payload.callId"``; ``""`` when it is
            the frame as a whole.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field or 'The frame'} {problem}.")
        self.field = field


class Form(Enum):
    """How messages of the agent travel: in an envelope, or as frames of their own."""

    WRAPPED = "wrapped"
    FLAT = "flat"


@dataclass(frozen=True, slots=True)
class Init:
    """The first frame of a client: the session's options."""

    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class UserInput:
    """One user message, which starts a turn.

    Attributes:
        content: Text, or a list of content blocks (``text``, ``image``, ``document``).
        form: The form the answer must have, the one the input came in.
        uuid: The client's name for this input, or None.
        options: Options sent along (version 0.2.0 repeats three of init's here).
    """

    content: str | list[dict[str, Any]]
    form: Form
    uuid: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Control:
    """``ready``, ``session_info``, ``close``, ``end_input``, ``interrupt``, questions, answers."""

    action: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ping:
    """A keep-alive; the answer echoes its timestamp."""

    timestamp: Any


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping."""

    timestamp: Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The server asks the client to run one of its tools."""

    call_id: str
    tool_name: str
    input: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolReply:
    """What a client's tool returned; ``result`` is whatever the client made of it."""

    call_id: str
    result: Any


@dataclass(frozen=True, slots=True)
class SdkMessage:
    """A message of the agent (system, assistant, user, result or stream_event)."""

    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ErrorFrame:
    """The server reports an error: ``message``, and mostly ``code`` and ``details``."""

    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A frame of a type this version does not know; to be logged and ignored."""

    type: str


ClientFrame = Init | UserInput | Control | Ping | ToolReply | Unknown
ServerFrame = Control | SdkMessage | ToolCall | ErrorFrame | Pong | Unknown


def parse_client_frame(text: str | bytes) -> ClientFrame:
    """Read a frame that a client sent.

    Raises:
        FrameError: The text is not a frame; ``field`` names what is wrong with it.
    """
    return _parse(text, _CLIENT_PARSERS)


def parse_server_frame(text: str | bytes) -> ServerFrame:
    """Read a frame that a server sent.

    Raises:
        FrameError: The text is not a frame; ``field`` names what is wrong with it.
    """
    return _parse(text, _SERVER_PARSERS)


def init_frame(options: Mapping[str, Any]) -> str:
    """Make the ``init`` frame."""
    return _encode({"type": "init", "payload": options})


def user_frame(content: str | list[dict[str, Any]], *, uuid: str, session_id: str) -> str:
    """Make a user message in the flat form."""
    message = {"role": "user", "content": content}
    return _encode(
        {
            "type": "user",
            "uuid": uuid,
            "session_id": session_id,
            "message": message,
            "parent_tool_use_id": None,
        }
    )


def control_frame(action: str, data: Mapping[str, Any] | None = None) -> str:
    """Make a ``control`` frame."""
    payload: dict[str, Any] = {"action": action}
    if data is not None:
        payload["data"] = data
    return _encode({"type": "control", "payload": payload})


def history_frame(request_id: str, messages: Iterable[str], next_seq: int | None) -> str:
    """Make the ``control`` frame that answers ``history``.

    Args:
        request_id: The question.
        messages: The messages, each as JSON text already.
        next_seq: Behind which event there are more; None if these are the last.
    """
    data = f'"requestId":{_encode(request_id)},"next":{_encode(next_seq)}'
    return (
        f'{{"type":"control","payload":{{"action":"{HISTORY}",'
        f'"data":{{{data},"messages":[{",".join(messages)}]}}}}}}'
    )


def ping_frame(timestamp_ms: int) -> str:
    """Make a ``ping`` frame; ``timestamp_ms`` is milliseconds since 1970."""
    return _encode({"type": "ping", "payload": {"timestamp": timestamp_ms}})


def pong_frame(timestamp: Any) -> str:
    """Make the ``pong`` frame that answers a ping."""
    return _encode({"type": "pong", "payload": {"timestamp": timestamp}})


def tool_call_frame(call: ToolCall) -> str:
    """Make a ``tool_call`` frame."""
    payload = {"callId": call.call_id, "toolName": call.tool_name, "input": call.input}
    return _encode({"type": "tool_call", "payload": payload})


def tool_result_frame(call_id: str, content: list[dict[str, Any]], *, is_error: bool) -> str:
    """Make a ``tool_result`` frame.

    Raises:
        TypeError, ValueError: The content is not JSON.
    """
    result = {"content": content, "isError": is_error}
    return _encode({"type": "tool_result", "payload": {"callId": call_id, "result": result}})


def error_frame(
    message: str,
    *,
    code: str,
    reason: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> str:
    """Make an ``error`` frame."""
    payload = error_payload(message, code=code, reason=reason, details=details)
    return _encode({"type": "error", "payload": payload})


def error_payload(
    message: str,
    *,
    code: str,
    reason: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make what says in a frame what went wrong."""
    more = {} if reason is None else {"details": {**(details or {}), "reason": reason}}
    return {"message": message, "code": code, **more}


def message_text(message: Mapping[str, Any]) -> str:
    """Make the JSON text of a message of the agent, which is its frame in the flat form."""
    return _encode(message)


def message_frame(text: str, form: Form) -> str:
    """Make the frame of a message of the agent, in the form its reader understands.

    Args:
        text: The message, from :func:`message_text`.
        form: The form.
    """
    return f'{{"type":"sdk_message","payload":{text}}}' if form is Form.WRAPPED else text


def numbered(frame: str, seq: int, delta: int = 0) -> str:
    """Add its number to the frame of a flat message.

    Args:
        frame: The frame.
        seq: The number of a complete message, or of the one before a partial message.
        delta: The count of a partial message after that one; 0 for a complete message.
    """
    number = f'"seq":{seq},"delta":{delta}' if delta else f'"seq":{seq}'
    return f"{frame[:-1]},{number}}}"


def stream_event_frame(event_json: str, *, session_id: str, uuid: str, form: Form) -> str:
    """Make the frame of a partial message around an event that is JSON text already.

    A delta is by far the most frequent frame, so it is neither parsed nor rebuilt here.
    """
    flat = (
        f'{{"type":"stream_event","event":{event_json},"parent_tool_use_id":null,'
        f'"uuid":"{uuid}","session_id":"{session_id}"}}'
    )
    return message_frame(flat, form)


# ASCII output, so that any string Python can hold (lone surrogates included) can be sent.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


_Frame = TypeVar("_Frame")


def _parse(
    text: str | bytes, parsers: Mapping[str, Callable[[dict[str, Any]], _Frame]]
) -> _Frame | Unknown:
    frame = _load(text)
    kind = frame.get("type")
    if not isinstance(kind, str) or not kind:
        raise FrameError("type", "must be a non-empty string")
    parser = parsers.get(kind)
    return parser(frame) if parser else Unknown(kind)


def _load(text: str | bytes) -> dict[str, Any]:
    if isinstance(text, bytes):
        raise FrameError("", "must be text, not binary")
    try:
        frame = read_json(text)
    except ValueError as error:
        raise FrameError("", f"must be valid JSON ({error})") from None
    if not isinstance(frame, dict):
        raise FrameError("", "must be a JSON object")
    return frame


def _payload(frame: dict[str, Any]) -> dict[str, Any]:
    payload = frame.get("payload")
    if not isinstance(payload, dict):
        raise FrameError("payload", "must be an object")
    return payload


def _string(holder: dict[str, Any], key: str, path: str) -> str:
    value = holder.get(key)
    if not isinstance(value, str) or not value:
        raise FrameError(path, "must be a non-empty string")
    return value


def _parse_init(frame: dict[str, Any]) -> Init:
    payload = frame.get("payload")
    # PHP writes an empty map as [], and "no options" may also be null or absent.
    if payload is None or payload == []:
        return Init({})
    return Init(_payload(frame))


def _parse_user(frame: dict[str, Any]) -> UserInput:
    message = frame.get("message")
    if not isinstance(message, dict):
        raise FrameError("message", "must be an object")
    if message.get("role", "user") != "user":
        raise FrameError("message.role", "must be 'user'")
    content = _content(message.get("content"), "message.content")
    uuid = frame.get("uuid")
    if uuid is not None and (not isinstance(uuid, str) or len(uuid) > 128):
        raise FrameError("uuid", "must be a string of at most 128 characters")
    return UserInput(content, Form.FLAT, uuid or None)


def _parse_prompt(frame: dict[str, Any]) -> UserInput:
    payload = _payload(frame)
    content = _content(payload.get("message"), "payload.message")
    options = payload.get("options")
    return UserInput(content, Form.WRAPPED, options=options if isinstance(options, dict) else {})


def _parse_client_sdk_message(frame: dict[str, Any]) -> UserInput:
    payload = _payload(frame)
    kind = payload.get("type")
    if kind == "user_message":
        return UserInput(_content(payload.get("content"), "payload.content"), Form.WRAPPED)
    if kind != "user":
        raise FrameError("payload.type", "must be 'user' or 'user_message'")
    message = payload.get("message")
    if isinstance(message, dict):
        content = _content(message.get("content"), "payload.message.content")
    else:
        content = _content(message, "payload.message")
    return UserInput(content, Form.WRAPPED)


def _content(content: Any, path: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise FrameError(path, "must be a string or a list of content blocks")
    for index, block in enumerate(content):
        if not isinstance(block, dict) or block.get("type") not in CONTENT_BLOCK_TYPES:
            kinds = ", ".join(sorted(CONTENT_BLOCK_TYPES))
            raise FrameError(f"{path}[{index}]", f"must be a content block of type {kinds}")
    return content


def _parse_control(frame: dict[str, Any]) -> Control:
    payload = _payload(frame)
    data = payload.get("data")
    return Control(
        _string(payload, "action", "payload.action"), data if isinstance(data, dict) else {}
    )


def _timestamp(frame: dict[str, Any]) -> Any:
    payload = frame.get("payload")
    return payload.get("timestamp") if isinstance(payload, dict) else None


def _parse_tool_reply(frame: dict[str, Any]) -> ToolReply:
    payload = _payload(frame)
    return ToolReply(_string(payload, "callId", "payload.callId"), payload.get("result"))


def _parse_tool_call(frame: dict[str, Any]) -> ToolCall:
    payload = _payload(frame)
    arguments = payload.get("input")
    if arguments is not None and not isinstance(arguments, dict):
        raise FrameError("payload.input", "must be an object")
    return ToolCall(
        _string(payload, "callId", "payload.callId"),
        _string(payload, "toolName", "payload.toolName"),
        arguments or {},
    )


def _parse_wrapped_message(frame: dict[str, Any]) -> SdkMessage:
    payload = _payload(frame)
    _string(payload, "type", "payload.type")
    return SdkMessage(payload)


def _parse_flat_message(frame: dict[str, Any]) -> SdkMessage:
    payload = frame.get("payload")
    if frame["type"] == "result" and isinstance(payload, dict):
        # The oldest servers put the result in an envelope of its own and called its text `text`.
        return SdkMessage({"subtype": "success", "result": payload.get("text"), **payload})
    return SdkMessage(frame)


def _parse_error(frame: dict[str, Any]) -> ErrorFrame:
    return ErrorFrame(_payload(frame))


_CLIENT_PARSERS: dict[str, Callable[[dict[str, Any]], ClientFrame]] = {
    "init": _parse_init,
    "prompt": _parse_prompt,
    "user": _parse_user,
    "sdk_message": _parse_client_sdk_message,
    "control": _parse_control,
    "ping": lambda frame: Ping(_timestamp(frame)),
    "tool_result": _parse_tool_reply,
}

_SERVER_PARSERS: dict[str, Callable[[dict[str, Any]], ServerFrame]] = {
    "control": _parse_control,
    "sdk_message": _parse_wrapped_message,
    "tool_call": _parse_tool_call,
    "error": _parse_error,
    "pong": lambda frame: Pong(_timestamp(frame)),
    **dict.fromkeys(FLAT_MESSAGE_TYPES, _parse_flat_message),
}
