"""What a client may ask about sessions beside its turns: the extension ``sessions``."""

from __future__ import annotations

import json
from typing import Any

from chucky import wire
from chucky.errors import ChuckyError, ValidationError
from chucky.server.ledger.windows import iso_time
from chucky.server.model.pricing import nanos_to_dollars
from chucky.server.sessions.archive import Archive
from chucky.server.sessions.log import Event, SessionRecord
from chucky.server.sessions.session import Session

MOST_SESSIONS = 1000


async def answer(archive: Archive | None, session: Session, asked: wire.Control) -> str:
    """Make the frame that answers a question.

    Args:
        archive: The sessions that are kept; None where none are.
        session: The session on whose connection it is asked.
        asked: The question.

    Raises:
        FrameError: It has no id.
    """
    request_id = asked.data.get("requestId")
    if not isinstance(request_id, str) or not 0 < len(request_id) <= 128:
        raise wire.FrameError("payload.data.requestId", "must be a string of 1 to 128 characters")
    try:
        if archive is None:
            raise session_log_off()
        if asked.action == wire.LIST_SESSIONS:
            return await _list(archive, session, request_id, asked.data)
        return await _history(archive, session, request_id, asked.data)
    except ChuckyError as error:
        fault = wire.error_payload(str(error), code=error.code, reason=error.reason)
        return wire.control_frame(asked.action, {"requestId": request_id, "error": fault})


def session_log_off() -> ValidationError:
    """The error of a server that keeps no sessions."""
    return ValidationError(
        "This server keeps no sessions (its setting 'session_log' is off).",
        reason="session_log_off",
    )


async def _list(archive: Archive, session: Session, request_id: str, data: dict[str, Any]) -> str:
    most = _whole_number(data, "limit", least=1, most=MOST_SESSIONS)
    found = await archive.sessions(session.identity, most)
    answered = {"requestId": request_id, "sessions": [_summary(each) for each in found]}
    return wire.control_frame(wire.LIST_SESSIONS, answered)


def _summary(session: SessionRecord) -> dict[str, Any]:
    return {
        "sessionId": session.session_id,
        "forkedFrom": session.forked_from or None,
        "model": session.model,
        "createdAt": iso_time(session.created_ms),
        "lastActivityAt": iso_time(session.active_ms),
        "isRunning": bool(session.turn_id),
        "turns": session.turns,
        "numTurns": session.calls,
        "totalCostUsd": nanos_to_dollars(session.spent_nanos),
    }


async def _history(
    archive: Archive, session: Session, request_id: str, data: dict[str, Any]
) -> str:
    if session.refusal is not None:
        raise session.refusal
    after_seq = _whole_number(data, "after", least=0, most=2**53)
    page = await archive.history(session.session_id, after_seq)
    messages = (_message(session.session_id, event) for event in page.events)
    return wire.history_frame(request_id, messages, page.next_seq)


def _message(session_id: str, event: Event) -> str:
    """A message of the agent as it was sent; one of the user in the same shape."""
    if event.kind == "message":
        return event.body
    said = json.loads(event.body)
    return wire.message_text(
        {
            "type": "user",
            "message": {"role": "user", "content": said["content"]},
            "parent_tool_use_id": None,
            "uuid": said["uuid"],
            "session_id": session_id,
        }
    )


def _whole_number(data: dict[str, Any], name: str, *, least: int, most: int) -> int:
    value = data.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValidationError(
            f"{name!r} must be a whole number from {least} to {most}.", reason="option_invalid"
        )
    return value
