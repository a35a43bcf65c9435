"""What a transaction of the ledger writes about sessions and servers, in every database alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from chucky.server.sessions.log import Event, Progress, SessionRecord
from chucky.server.sessions.mail import Mail
from chucky.server.store import server_rows, session_rows
from chucky.server.store.database import Connection


class SessionTransaction(ABC):
    """See :class:`~chucky.server.sessions.log.LogTransaction`."""

    def __init__(self, statements: Connection) -> None:
        """Take over a connection that is in the transaction."""
        self._statements = statements

    @property
    @abstractmethod
    def now_ms(self) -> int:
        """The time of the transaction."""

    def append_events(
        self, session: SessionRecord, events: Sequence[Event], progress: Progress
    ) -> bool:
        """Write events of a session."""
        return session_rows.append_events(self._statements, self.now_ms, session, events, progress)

    def fork_session(self, copy: SessionRecord, original_id: str) -> None:
        """Write a copy of a session."""
        session_rows.fork_session(self._statements, self.now_ms, copy, original_id)

    def turn_cost(self, session: SessionRecord) -> tuple[int, int]:
        """Add up a turn."""
        return session_rows.turn_cost(self._statements, session)

    def seize(self, session_id: str, owner: str, new_owner: str, seat: str) -> SessionRecord | None:
        """Make a session another owner's."""
        return session_rows.seize(self._statements, self.now_ms, session_id, owner, new_owner, seat)

    def take_seat(self, session_id: str, seat: str) -> str:
        """Note which connection follows a session."""
        return session_rows.take_seat(self._statements, session_id, seat)

    def send_mail(self, server_id: str, mail: Mail) -> None:
        """Tell a server something."""
        server_rows.send(self._statements, server_id, mail)

    def delete_mail(self, mail_ids: Iterable[int]) -> None:
        """Delete what a server was told."""
        server_rows.delete_mail(self._statements, mail_ids)

    def enter(self, owner: str, lease_ms: int, *, is_alone: bool) -> None:
        """Note that a process lives, and forget those that do not."""
        server_rows.enter(self._statements, owner, lease_ms, self.now_ms, is_alone=is_alone)

    def leave(self, owner: str) -> None:
        """Note that a process ends."""
        server_rows.leave(self._statements, owner)
