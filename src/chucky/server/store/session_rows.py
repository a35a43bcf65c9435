"""Sessions and their events as rows: the statements, and what is made of them.

What happens in sessions is written within transactions of the ledger's. What is deleted is not: it
goes in small steps of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chucky.server.sessions.log import Event, Progress, SessionRecord
from chucky.server.sessions.mail import Mail
from chucky.server.store import server_rows
from chucky.server.store.database import Connection, Database

_COLUMNS: Final = (
    "session_id, project_id, user_id, forked_from, model, created_ms, active_ms, last_seq, turns, "
    "calls, spent_nanos, turn_id, turn_form, owner, epoch, seat"
)
_SESSIONS: Final = f"SELECT {_COLUMNS} FROM sessions"
_LATEST_FIRST: Final = "ORDER BY active_ms DESC, session_id LIMIT ?"
_SESSION: Final = f"{_SESSIONS} WHERE session_id = ? AND project_id <> ''"
_SESSIONS_OF_USER: Final = f"{_SESSIONS} WHERE project_id = ? AND user_id = ? {_LATEST_FIRST}"
_SESSIONS_OF_PROJECT: Final = f"{_SESSIONS} WHERE project_id = ? {_LATEST_FIRST}"
# A turn that runs, and whose server does not: the ledger ends its reservations first.
_IS_LEFT: Final = """
turn_id <> '' AND owner <> ? AND NOT EXISTS (
    SELECT 1 FROM servers WHERE server_id = sessions.owner AND lease_ms > ?
) AND NOT EXISTS (
    SELECT 1 FROM ledger_reservations AS held
    WHERE held.project_id = sessions.project_id AND held.user_id = sessions.user_id
        AND held.turn_id = sessions.turn_id
)
"""
# All who end turns take the rows in this order, so that none waits for one that waits for it.
_LEFT_SESSIONS: Final = f"""
SELECT session_id FROM sessions WHERE {_IS_LEFT} AND project_id <> '' ORDER BY session_id LIMIT 100
"""
# A connection that follows the session keeps its place where only a turn is ended.
_SEIZE: Final = f"""
UPDATE sessions SET epoch = epoch + 1, owner = ?,
    seat = CASE WHEN CAST(? AS TEXT) = '' THEN seat ELSE '' END
WHERE session_id = ? AND project_id <> '' AND CAST(? AS TEXT) IN ('', seat)
    AND (turn_id = '' OR ({_IS_LEFT}))
RETURNING {_COLUMNS}
"""
_TAKE_SEAT: Final = """
UPDATE sessions SET seat = ? WHERE session_id = ? AND project_id <> '' RETURNING owner
"""
_EVENTS: Final = """
SELECT seq, kind, turn_id, body FROM session_events WHERE session_id = ? AND seq > ? ORDER BY seq
"""
_MESSAGES: Final = """
SELECT seq, kind, turn_id, body FROM (
    SELECT seq, kind, turn_id, body, sum(length(body)) OVER (ORDER BY seq) - length(body) AS earlier
    FROM (
        SELECT seq, kind, turn_id, body FROM session_events
        WHERE session_id = ? AND seq > ? AND kind IN ('input', 'message') ORDER BY seq LIMIT ?
    ) AS page
) AS counted WHERE earlier < ? ORDER BY seq
"""
_ADD_SESSION: Final = """
INSERT INTO sessions (session_id, project_id, user_id, forked_from, model, created_ms, active_ms,
    last_seq, turns, calls, spent_nanos, turn_id, turn_form, owner, epoch)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, '', '', ?, ?) ON CONFLICT DO NOTHING
"""
# Another owner may have given the number to something else, in another turn.
_HAS_EVENT: Final = "SELECT 1 FROM session_events WHERE session_id = ? AND seq = ? AND turn_id = ?"
# What comes late says nothing about what runs now.
_ADVANCE_SESSION: Final = """
UPDATE sessions SET
    model = ?,
    active_ms = ?,
    turns = turns + ?,
    calls = calls + ?,
    spent_nanos = spent_nanos + ?,
    turn_id = CASE WHEN last_seq < ? THEN ? ELSE turn_id END,
    turn_form = CASE WHEN last_seq < ? THEN ? ELSE turn_form END,
    last_seq = CASE WHEN last_seq < ? THEN ? ELSE last_seq END
WHERE session_id = ? AND project_id = ? AND epoch = ? RETURNING last_seq
"""
_IS_KEPT: Final = "SELECT 1 FROM sessions WHERE session_id = ? AND project_id <> ''"
_ADD_EVENT: Final = """
INSERT INTO session_events (session_id, seq, kind, turn_id, at_ms, body)
VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
_COPY_EVENTS: Final = """
INSERT INTO session_events (session_id, seq, kind, turn_id, at_ms, body)
SELECT ?, seq, kind, turn_id, at_ms, body FROM session_events WHERE session_id = ? AND seq <= ?
"""
# A late settlement is of a call that is counted.
_TURN_COST: Final = """
SELECT count(CASE WHEN kind <> 'late' THEN 1 END), coalesce(sum(amount), 0) FROM ledger_entries
WHERE project_id = ? AND user_id = ? AND meter = 'ai' AND turn_id = ?
    AND kind IN ('settle', 'expire', 'late')
    AND at_ms >= (SELECT min(at_ms) FROM session_events WHERE session_id = ? AND turn_id = ?)
"""
# A session that is being deleted is nobody's, so that it is gone before all of it is.
_DISOWN: Final = "UPDATE sessions SET project_id = '' WHERE session_id = ? AND project_id <> ''"
_DISOWN_OLD: Final = """
UPDATE sessions SET project_id = '' WHERE session_id IN (
    SELECT session_id FROM sessions
    WHERE project_id = ? AND active_ms < ? AND turn_id = '' LIMIT ?
) RETURNING session_id
"""
_DISOWNED: Final = "SELECT session_id FROM sessions WHERE project_id = '' LIMIT 1"
_DELETE_EVENTS: Final = """
DELETE FROM session_events WHERE session_id = ? AND seq IN (
    SELECT seq FROM session_events WHERE session_id = ? ORDER BY seq LIMIT ?
) RETURNING seq
"""
_DELETE_SESSION: Final = "DELETE FROM sessions WHERE session_id = ? AND project_id = ''"


def append_events(
    connection: Connection,
    now_ms: int,
    session: SessionRecord,
    events: Sequence[Event],
    progress: Progress,
) -> bool:
    """Write events within whatever transaction the connection is in; none is written twice.

    Returns:
        False if nothing is written, because somebody else writes the session now.
    """
    session_id, last_seq = session.session_id, events[-1].seq
    if events[0].seq == 1:
        _add_session(connection, now_ms, session, 0)
    if connection.execute(_HAS_EVENT, (session_id, last_seq, events[-1].turn_id)).fetchone():
        return True
    values = (
        session.model,
        now_ms,
        progress.turns,
        progress.calls,
        progress.spent_nanos,
        last_seq,
        progress.turn_id,
        last_seq,
        progress.turn_form,
        last_seq,
        last_seq,
        session_id,
        session.project_id,
        session.epoch,
    )
    if not connection.execute(_ADVANCE_SESSION, values).fetchall():
        # Of one that was deleted nothing is kept, and whoever has it open goes on.
        return connection.execute(_IS_KEPT, (session_id,)).fetchone() is None
    for event in events:
        row = (session_id, event.seq, event.kind, event.turn_id, now_ms, event.body)
        connection.execute(_ADD_EVENT, row)
    return True


def seize(
    connection: Connection, now_ms: int, session_id: str, owner: str, new_owner: str, seat: str
) -> SessionRecord | None:
    """Make a session another owner's; see :class:`~chucky.server.sessions.log.LogTransaction`."""
    values = (new_owner, new_owner, session_id, seat, owner, now_ms)
    row = connection.execute(_SEIZE, values).fetchone()
    return None if row is None else SessionRecord(*row)


def take_seat(connection: Connection, session_id: str, seat: str) -> str:
    """Note which connection follows a session; return the owner of that, ``''`` for none."""
    row = connection.execute(_TAKE_SEAT, (seat, session_id)).fetchone()
    return "" if row is None else str(row[0])


def _add_session(
    connection: Connection, now_ms: int, session: SessionRecord, last_seq: int
) -> None:
    connection.execute(
        _ADD_SESSION,
        (
            session.session_id,
            session.project_id,
            session.user_id,
            session.forked_from,
            session.model,
            now_ms,
            now_ms,
            last_seq,
            session.owner,
            session.epoch,
        ),
    )


def fork_session(
    connection: Connection, now_ms: int, copy: SessionRecord, original_id: str
) -> None:
    """Write a session that begins with the events of another, up to the copy's last one."""
    _add_session(connection, now_ms, copy, copy.last_seq)
    connection.execute(_COPY_EVENTS, (copy.session_id, original_id, copy.last_seq))


def turn_cost(connection: Connection, session: SessionRecord) -> tuple[int, int]:
    """How many calls of the turn that runs the ledger has booked, and what they cost."""
    values = (
        session.project_id,
        session.user_id,
        session.turn_id,
        session.session_id,
        session.turn_id,
    )
    calls, nanos = connection.execute(_TURN_COST, values).fetchone()
    return int(calls), int(nanos)


class KeptSessions:
    """Reads sessions (see :class:`~chucky.server.sessions.log.LogReader`), and deletes them."""

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

    def left_sessions(self, owner: str) -> list[str]:
        """Read which sessions run a turn whose server, another than this one, does not."""
        values = (owner, self._database.now_ms())
        rows = self._database.read(
            lambda connection: connection.execute(_LEFT_SESSIONS, values).fetchall()
        )
        return [row[0] for row in rows]

    def mail(self, server_id: str) -> list[tuple[int, Mail]]:
        """Read what a server is told, in order, each with its number."""
        return self._database.read(lambda connection: server_rows.read_mail(connection, server_id))

    def events(self, session_id: str, after_seq: int = 0) -> list[Event]:
        """Read a session's events behind one of them."""
        rows = self._database.read(
            lambda connection: connection.execute(_EVENTS, (session_id, after_seq)).fetchall()
        )
        return [Event(*row) for row in rows]

    def messages(
        self, session_id: str, after_seq: int, most: int, most_characters: int
    ) -> list[Event]:
        """Read what was said in a session behind one of its events."""
        values = (session_id, after_seq, most, most_characters)
        rows = self._database.read(
            lambda connection: connection.execute(_MESSAGES, values).fetchall()
        )
        return [Event(*row) for row in rows]

    def disown(self, session_id: str) -> None:
        """Make a session one that does not exist, whoever uses it; :meth:`sweep` deletes it."""
        with self._database.writing() as connection:
            connection.execute(_DISOWN, (session_id,))

    def disown_old(self, project_id: str, before_ms: int, most: int) -> int:
        """Do so with sessions of a project in which nothing happened since; return how many."""
        with self._database.writing() as connection:
            values = (project_id, before_ms, most)
            return len(connection.execute(_DISOWN_OLD, values).fetchall())

    def sweep(self, most_events: int) -> bool:
        """Delete some of what is nobody's, in one transaction; False when there is nothing left.

        What it cost stays in the ledger.
        """
        with self._database.writing() as connection:
            disowned = connection.execute(_DISOWNED).fetchone()
            if disowned is None:
                return False
            values = (disowned[0], disowned[0], most_events)
            if len(connection.execute(_DELETE_EVENTS, values).fetchall()) < most_events:
                connection.execute(_DELETE_SESSION, (disowned[0],))
            return True

    def _sessions(self, query: str, *parameters: str | int) -> list[SessionRecord]:
        rows = self._database.read(
            lambda connection: connection.execute(query, parameters).fetchall()
        )
        return [SessionRecord(*row) for row in rows]
