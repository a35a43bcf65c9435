"""The sessions a server keeps: finding them again, and ending what a dead process left open."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from chucky import wire
from chucky.errors import ChuckyError, SessionError
from chucky.server.auth import Identity
from chucky.server.ledger.ledger import Ledger
from chucky.server.ledger.operations import Also, Outcome
from chucky.server.model.pricing import nanos_to_dollars
from chucky.server.sessions import past
from chucky.server.sessions.log import (
    LOST_NUMBERS,
    Event,
    LogReader,
    Past,
    Progress,
    SessionRecord,
    Write,
)
from chucky.server.sessions.past import Resumption
from chucky.server.sessions.retention import Deletable

# A page of a session's messages has so many, and ends when it has so many characters.
_PAGE_EVENTS = 200
_PAGE_CHARACTERS = 262_144


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the messages of a session, in order.

    Attributes:
        events: The messages.
        next_seq: Behind which event the next page begins; None after the last.
    """

    events: Sequence[Event]
    next_seq: int | None


class Kept(LogReader, Deletable, Protocol):
    """Where sessions are kept: they are read and deleted there."""


class Archive:
    """Keeps sessions. What is written goes with what the ledger writes.

    Attributes:
        kept: Where the sessions are.
    """

    def __init__(self, kept: Kept, ledger: Ledger) -> None:
        """Make an archive.

        Args:
            kept: Where the sessions are.
            ledger: Writes what happens in them.
        """
        self.kept = kept
        self._ledger = ledger

    def post(self, session_id: str, write: Write) -> asyncio.Future[Any]:
        """Have something about a session written with the next commit."""
        return self._ledger.post(Also(lambda transaction, _: write(transaction), session_id))

    async def recall(
        self,
        identity: Identity,
        asked: Resumption,
        take_over: Callable[[str], Awaitable[None]],
    ) -> Past:
        """Find a session again, for one connection alone.

        Args:
            identity: Who asks.
            asked: What is asked for.
            take_over: Makes the session that of the connection that asks, for whoever asks next,
                after ending it on another one where it is open.

        Raises:
            SessionError: There is no such session of this user.
            ChuckyError: The store cannot be read.
        """
        session = await asyncio.to_thread(past.find, self.kept, identity, asked)
        if not asked.forks:
            await take_over(session.session_id)
            await self._ledger.written(session.session_id)
        found = await asyncio.to_thread(past.recall, self.kept, session, asked)
        copy = found.session
        if copy.session_id != session.session_id:
            await self._ledger.ask(
                Also(lambda transaction, _: transaction.fork_session(copy, session.session_id))
            )
        return found

    async def complete(self, session_id: str, after_seq: int) -> list[tuple[int, str]]:
        """Read a session's next messages behind a number, also those that are being written.

        Returns:
            Some of them, with their numbers; none when there are no more.

        Raises:
            ChuckyError: The store cannot be read, or what was said last cannot be written.
        """
        while True:
            page = await self.history(session_id, after_seq)
            messages = [each for each in page.events if each.kind == "message"]
            if messages or page.next_seq is None:
                return [(event.seq, event.body) for event in messages]
            after_seq = page.next_seq

    async def reread(self, session_id: str) -> Past:
        """Read again what a session knows that is open and has left memory.

        Raises:
            SessionError: It was deleted meanwhile.
            ChuckyError: The store cannot be read, or what was said last cannot be written.
        """
        await self._ledger.written(session_id)
        session = await asyncio.to_thread(self.kept.session, session_id)
        if session is None:
            raise SessionError(
                "The session was deleted; begin another one.", reason="session_not_found"
            )
        return await asyncio.to_thread(past.recall, self.kept, session, Resumption(session_id))

    async def sessions(self, identity: Identity, most: int) -> list[SessionRecord]:
        """The sessions of a user, the latest first.

        Raises:
            ChuckyError: The store cannot be read.
        """
        return await asyncio.to_thread(
            self.kept.sessions, identity.project_id, identity.user_id, most
        )

    async def history(self, session_id: str, after_seq: int) -> Page:
        """What was said in a session behind one of its events: inputs and messages.

        Raises:
            ChuckyError: The store cannot be read, or what was said last cannot be written.
        """
        await self._ledger.written(session_id)
        events = await asyncio.to_thread(
            self.kept.messages, session_id, after_seq, _PAGE_EVENTS, _PAGE_CHARACTERS
        )
        is_full = len(events) == _PAGE_EVENTS or (
            sum(len(event.body) for event in events) >= _PAGE_CHARACTERS
        )
        return Page(events, events[-1].seq if is_full else None)

    async def recover(self) -> int:
        """End the turns of a process that died, before this one begins any; return how many.

        The ledger has ended its reservations before.
        """
        interrupted = await asyncio.to_thread(self.kept.interrupted_sessions)
        if interrupted:
            await self._ledger.write(*(Also(_ending(session)) for session in interrupted))
        return len(interrupted)


def _ending(session: SessionRecord) -> Callable[[Any, Sequence[Outcome]], None]:
    """What writes that a turn was interrupted, in the words of its result."""
    error = ChuckyError(
        "The server stopped before the turn had ended; the session can go on.",
        code="INTERRUPTED",
        reason="server_died",
    )

    def write(transaction: Any, _outcomes: Sequence[Outcome]) -> None:
        calls, spent_nanos = transaction.turn_cost(session)
        result = {
            "type": "result",
            "subtype": "error_during_execution",
            "is_error": True,
            "result": str(error),
            "errors": [str(error)],
            "num_turns": session.calls + calls,
            "total_cost_usd": nanos_to_dollars(session.spent_nanos + spent_nanos),
            "error": {"code": error.code, "reason": error.reason, "message": str(error)},
            "uuid": str(uuid.uuid4()),
            "session_id": session.session_id,
        }
        text = wire.message_text(result)
        seq = session.last_seq + LOST_NUMBERS
        event = Event(seq, "message", session.turn_id, text)
        progress = Progress(turns=1, calls=calls, spent_nanos=spent_nanos)
        transaction.append_events(session, [event], progress)

    return write
