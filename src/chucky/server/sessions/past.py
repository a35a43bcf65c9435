"""Finding a session again: which one is asked for, whether it may be had, and what it knows."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chucky.errors import SessionError
from chucky.server.auth import Identity
from chucky.server.sessions.log import Event, LogReader, Past, SessionRecord


@dataclass(frozen=True, slots=True)
class Resumption:
    """Which session a client asks to go on with.

    Attributes:
        session_id: The session; None for the one in which something happened last.
        forks: Whether to go on with a copy, under a new id.
        at: The uuid of the message after which to go on; None for the last one.
    """

    session_id: str | None
    forks: bool = False
    at: str | None = None


def find(reader: LogReader, identity: Identity, asked: Resumption) -> SessionRecord:
    """Find the session that is asked for. Blocks.

    Raises:
        SessionError: There is none, or it is somebody else's, which looks the same.
    """
    if asked.session_id is None:
        found = reader.latest_session(identity.project_id, identity.user_id)
    else:
        found = reader.session(asked.session_id)
    if found is None or (found.project_id, found.user_id) != (
        identity.project_id,
        identity.user_id,
    ):
        missing = (
            "to continue; leave out 'continue'"
            if asked.session_id is None
            else f"{asked.session_id[:64]!r}; leave out 'resume'"
        )
        raise SessionError(
            f"There is no session {missing} to begin one.", reason="session_not_found"
        )
    return found


def recall(reader: LogReader, session: SessionRecord, asked: Resumption) -> Past:
    """Read what a session knows. Blocks.

    Raises:
        SessionError: It has no message with the uuid to go on after.
    """
    events = reader.events(session.session_id)
    last_seq = events[-1].seq if events else 0
    if asked.at is not None:
        last_seq = _seq_of(events, asked.at)
        events = [event for event in events if event.seq <= last_seq]
    if asked.forks or asked.at is not None:
        session = replace(
            session,
            session_id=str(uuid.uuid4()),
            forked_from=session.session_id,
            turns=0,
            calls=0,
            spent_nanos=0,
            created_ms=0,
            turn_id="",
            turn_form="",
            seat="",
        )
    session = replace(session, last_seq=last_seq)
    inputs = [json.loads(event.body).get("uuid") for event in events if event.kind == "input"]
    return Past(session, tuple(_steps(events)), tuple(filter(None, inputs)), len(inputs))


def _steps(events: Iterable[Event]) -> Iterable[dict[str, Any]]:
    return (json.loads(event.body) for event in events if event.kind == "context")


def _seq_of(events: Sequence[Event], uuid_: str) -> int:
    for event in events:
        if event.kind == "message" and json.loads(event.body).get("uuid") == uuid_:
            return event.seq
    raise SessionError(
        f"The session has no message {uuid_[:64]!r} to go on after.", reason="message_not_found"
    )
