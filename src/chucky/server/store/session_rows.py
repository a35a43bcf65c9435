"""Sessions and their events as rows: the statements, and what is made of them.

What is written is written within a transaction of the ledger's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chucky.server.sessions.log import Event, Progress, SessionRecord
from chucky.server.store.database import Connection, Database

_SESSIONS: Final = """
SELECT session_id, project_id, user_id, forked_from, model, created_ms, active_ms, last_seq, turns,
    calls, spent_nanos, turn_id, turn_form
FROM sessions
"""
_LATEST_FIRST: Final = "ORDER BY active_ms DESC, session_id LIMIT ?"
_SESSION: Final = f"{_SESSIONS} WHERE session_id = ?"
_SESSIONS_OF_USER: Final = f"{_SESSIONS} WHERE project_id = ? AND user_id = ? {_LATEST_FIRST}"
_SESSIONS_OF_PROJECT: Final = f"{_SESSIONS} WHERE project_id = ? {_LATEST_FIRST}"
# A turn that runs has reserved compute.
_WITHOUT_COMPUTE: Final = """
turn_id <> '' AND NOT EXISTS (
    SELECT 1 FROM ledger_reservations
    WHERE ledger_reservations.turn_id = sessions.turn_id AND meter = 'compute'
)
"""
_INTERRUPTED_SESSIONS: Final = f"{_SESSIONS} WHERE {_WITHOUT_COMPUTE}"
_EVENTS: Final = """
SELECT seq, kind, turn_id, body FROM session_events WHERE session_id = ? AND seq > ? ORDER BY seq
"""
_SET_SESSION: Final = """
INSERT INTO sessions (session_id, project_id, user_id, forked_from, model, created_ms, active_ms,
    last_seq, turns, calls, spent_nanos, turn_id, turn_form)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id) DO UPDATE SET
    model = excluded.model,
    active_ms = excluded.active_ms,
    last_seq = CASE WHEN excluded.last_seq > sessions.last_seq
        THEN excluded.last_seq ELSE sessions.last_seq END,
    turns = sessions.turns + excluded.turns,
    calls = sessions.calls + excluded.calls,
    spent_nanos = sessions.spent_nanos + excluded.spent_nanos
"""
_HAS_EVENT: Final = "SELECT 1 FROM session_events WHERE session_id = ? AND seq = ?"
_SET_TURN: Final = "UPDATE sessions SET turn_id = ?, turn_form = ? WHERE session_id = ?"
_ADD_EVENT: Final = """
INSERT INTO session_events (session_id, seq, kind, turn_id, at_ms, body)
VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
_COPY_EVENTS: Final = """
INSERT INTO session_events (session_id, seq, kind, turn_id, at_ms, body)
SELECT ?, seq, kind, turn_id, at_ms, body FROM session_events WHERE session_id = ? AND seq <= ?
"""
_DELETE_EVENTS: Final = "DELETE FROM session_events WHERE session_id = ?"
_DELETE_SESSION: Final = "DELETE FROM sessions WHERE session_id = ?"


def append_events(
    connection: Connection,
    now_ms: int,
    session: SessionRecord,
    events: Sequence[Event],
    progress: Progress,
) -> None:
    """Write events within whatever transaction the connection is in."""
    last_seq = events[-1].seq if events else session.last_seq
    # What is written again, because nobody knew whether it was, is counted once.
    if progress.turns and connection.execute(_HAS_EVENT, (session.session_id, last_seq)).fetchone():
        return
    connection.execute(
        _SET_SESSION,
        (
            session.session_id,
            session.project_id,
            session.user_id,
            session.forked_from,
            session.model,
            now_ms,
            now_ms,
            last_seq,
            progress.turns,
            progress.calls,
            progress.spent_nanos,
            "",
            "",
        ),
    )
    if progress.turn_id is not None:
        values = (progress.turn_id, progress.turn_form, session.session_id)
        connection.execute(_SET_TURN, values)
    for event in events:
        connection.execute(
            _ADD_EVENT,
            (session.session_id, event.seq, event.kind, event.turn_id, now_ms, event.body),
        )


def fork_session(
    connection: Connection, now_ms: int, copy: SessionRecord, original_id: str
) -> None:
    """Write a session that begins with the events of another, up to the copy's last one."""
    append_events(connection, now_ms, copy, (), Progress())
    connection.execute(_COPY_EVENTS, (copy.session_id, original_id, copy.last_seq))


def delete_session(connection: Connection, session_id: str) -> None:
    """Delete a session and all that was said in it; what it cost stays in the ledger."""
    connection.execute(_DELETE_EVENTS, (session_id,))
    connection.execute(_DELETE_SESSION, (session_id,))


class SessionReader:
    """Reads sessions; see :class:`~chucky.server.sessions.log.LogReader`."""

    def __init__(self, database: Database) -> None:
        """Take over an open database."""
        self._database = database

    def close(self) -> None:
        """Close the database. Safe to call again."""
        self._database.close()

    def session(self, session_id: str) -> SessionRecord | None:
        """Read a session."""
        return next(iter(self._sessions(_SESSION, session_id)), None)

    def latest_session(self, project_id: str, user_id: str) -> SessionRecord | None:
        """Read the session of a user in which something happened last."""
        return next(iter(self._sessions(_SESSIONS_OF_USER, project_id, user_id, 1)), None)

    def sessions(self, project_id: str, user_id: str | None, most: int) -> list[SessionRecord]:
        """Read sessions, the latest first."""
        if user_id is None:
            return self._sessions(_SESSIONS_OF_PROJECT, project_id, most)
        return self._sessions(_SESSIONS_OF_USER, project_id, user_id, most)

    def interrupted_sessions(self) -> list[SessionRecord]:
        """Read the sessions with a turn that has neither ended nor holds any compute."""
        return self._sessions(_INTERRUPTED_SESSIONS)

    def events(self, session_id: str, after_seq: int = 0) -> list[Event]:
        """Read a session's events behind one of them."""
        rows = self._database.read(
            lambda connection: connection.execute(_EVENTS, (session_id, after_seq)).fetchall()
        )
        return [Event(*row) for row in rows]

    def _sessions(self, query: str, *parameters: str | int) -> list[SessionRecord]:
        rows = self._database.read(
            lambda connection: connection.execute(query, parameters).fetchall()
        )
        return [SessionRecord(*row) for row in rows]
