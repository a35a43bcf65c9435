"""The sessions a server keeps: finding them again, and ending what a dead process left open."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from chucky import wire
from chucky.errors import ChuckyError
from chucky.server.auth import Identity
from chucky.server.ledger.ledger import Ledger
from chucky.server.ledger.operations import Also, Outcome
from chucky.server.model.pricing import nanos_to_dollars
from chucky.server.sessions import past
from chucky.server.sessions.log import Event, LogReader, Past, Progress, SessionRecord, Write
from chucky.server.sessions.past import Resumption


class Archive:
    """Keeps sessions. What is written goes with what the ledger writes."""

    def __init__(self, reader: LogReader, ledger: Ledger) -> None:
        """Make an archive.

        Args:
            reader: Reads sessions.
            ledger: Writes them.
        """
        self._reader = reader
        self._ledger = ledger

    def post(self, write: Write) -> object:
        """Have something written with the next commit."""
        return self._ledger.post(Also(lambda transaction, _: write(transaction)))

    async def recall(
        self,
        identity: Identity,
        asked: Resumption,
        take_over: Callable[[Identity, str], Awaitable[None]],
    ) -> Past:
        """Find a session again, for one connection alone.

        Args:
            identity: Who asks.
            asked: What is asked for.
            take_over: Ends the session on another connection, if it is open there.

        Raises:
            SessionError: There is no such session of this user.
            ChuckyError: The store cannot be read.
        """
        session = await asyncio.to_thread(past.find, self._reader, identity, asked)
        if not asked.forks:
            await take_over(identity, session.session_id)
            # What it still had to write is read below.
            await self._ledger.post(Also(lambda _transaction, _outcomes: None))
        found = await asyncio.to_thread(past.recall, self._reader, session, asked)
        copy = found.session
        if copy.session_id != session.session_id:
            await self._ledger.ask(
                Also(lambda transaction, _: transaction.fork_session(copy, session.session_id))
            )
        return found

    async def complete(self, session_id: str, after_seq: int) -> list[tuple[int, str]]:
        """Read a session's messages behind a number, also those that are being written."""
        await self._ledger.post(Also(lambda _transaction, _outcomes: None))
        events = await asyncio.to_thread(self._reader.events, session_id, after_seq)
        return [(event.seq, event.body) for event in events if event.kind == "message"]

    async def recover(self) -> int:
        """End the turns of a process that died, before this one begins any; return how many.

        The ledger has ended its reservations before.
        """
        interrupted = await asyncio.to_thread(self._reader.interrupted_sessions)
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
    result = {
        "type": "result",
        "subtype": "error_during_execution",
        "is_error": True,
        "result": str(error),
        "errors": [str(error)],
        "num_turns": session.calls,
        "total_cost_usd": nanos_to_dollars(session.spent_nanos),
        "error": {"code": error.code, "reason": error.reason, "message": str(error)},
        "uuid": str(uuid.uuid4()),
        "session_id": session.session_id,
    }
    event = Event(session.last_seq + 1, "message", session.turn_id, wire.message_text(result))

    def write(transaction: Any, _outcomes: Sequence[Outcome]) -> None:
        transaction.append_events(session, [event], Progress("", "", turns=1))

    return write
