"""Servers that share a database, and what they tell each other about sessions, as rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from chucky.server.sessions.mail import Mail
from chucky.server.store.database import Connection

_FOREVER_MS: Final = 2**62
_RENEW: Final = """
INSERT INTO servers (server_id, lease_ms) VALUES (?, ?)
ON CONFLICT (server_id) DO UPDATE SET lease_ms = excluded.lease_ms
"""
_FORGET_DEAD: Final = "DELETE FROM servers WHERE server_id <> ? AND lease_ms <= ?"
_LEAVE: Final = "DELETE FROM servers WHERE server_id = ?"
# Nobody reads the mail of a server that is gone.
_SEND: Final = """
INSERT INTO session_mail (server_id, session_id, kind, body)
SELECT server_id, ?, ?, ? FROM servers WHERE server_id = ?
"""
_MAIL: Final = """
SELECT mail_id, session_id, kind, body FROM session_mail WHERE server_id = ? ORDER BY mail_id
"""
_DELETE_MAIL: Final = "DELETE FROM session_mail WHERE mail_id = ?"


def renew_lease(connection: Connection, server_id: str, lease_ms: int) -> None:
    """Say until when a server is taken to live."""
    connection.execute(_RENEW, (server_id, lease_ms))


def enter(
    connection: Connection, server_id: str, lease_ms: int, now_ms: int, *, is_alone: bool
) -> None:
    """Note that a server lives, and forget those that do not, with their mail: all if it is alone.

    A server that is forgotten although it lives is there again when it renews its lease.
    """
    connection.execute(_FORGET_DEAD, (server_id, _FOREVER_MS if is_alone else now_ms))
    renew_lease(connection, server_id, lease_ms)


def leave(connection: Connection, server_id: str) -> None:
    """Forget a server that stops."""
    connection.execute(_LEAVE, (server_id,))


def send(connection: Connection, server_id: str, mail: Mail) -> None:
    """Tell a server something, if it is still there."""
    connection.execute(_SEND, (mail.session_id, mail.kind, mail.body, server_id))


def read_mail(connection: Connection, server_id: str) -> list[tuple[int, Mail]]:
    """Read what a server is told, in order, each with its number."""
    rows = connection.execute(_MAIL, (server_id,)).fetchall()
    return [(row[0], Mail(*row[1:])) for row in rows]


def delete_mail(connection: Connection, mail_ids: Iterable[int]) -> None:
    """Delete what a server was told. One with a smaller number may be yet to come."""
    for mail_id in mail_ids:
        connection.execute(_DELETE_MAIL, (mail_id,))
