"""The sessions a server keeps: finding them again, and ending what dead servers left open."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from chucky import wire
from chucky.errors import ChuckyError, SessionError
from chucky.server.auth import Identity
from chucky.server.ledger.ledger import BEAT_SECONDS, Ledger
from chucky.server.ledger.operations import Also, Outcome
from chucky.server.model.pricing import nanos_to_dollars
from chucky.server.sessions import past
from chucky.server.sessions.log import (
    LOST_NUMBERS,
    Event,
    LogReader,
    LogTransaction,
    Past,
    Progress,
    SessionRecord,
    Write,
)
from chucky.server.sessions.mail import Kind, Mail
from chucky.server.sessions.past import Resumption
from chucky.server.sessions.registry import TAKE_OVER_SECONDS, session_busy
from chucky.server.sessions.retention import Deletable

logger = logging.getLogger("chucky.server")

# How often a server looks whether a session can be had that another one has to let go of.
_LOOK_SECONDS = 0.1
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

    @property
    def server_id(self) -> str:
        """What this server is called as the owner of sessions."""
        return self._ledger.server_id

    @property
    def is_shared(self) -> bool:
        """Whether other servers use the same sessions."""
        return self._ledger.is_shared

    async def run(self) -> None:
        """End what servers leave open that die while this one runs, until cancelled."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if not self._ledger.may_sweep:
                continue
            try:
                await self.recover()
            except ChuckyError as error:
                logger.warning("the turns of servers that died were not ended yet: %s", error)

    def post(self, session_id: str, write: Write) -> asyncio.Future[Any]:
        """Have something about a session written with the next commit."""
        return self._ledger.post(Also(lambda transaction, _: write(transaction), session_id))

    async def recall(
        self,
        identity: Identity,
        asked: Resumption,
        take_over: Callable[[str], Awaitable[None]],
        *,
        follows: bool = False,
    ) -> Past:
        """Find a session again, for one connection alone, and make it this server's.

        Args:
            identity: Who asks.
            asked: What is asked for.
            take_over: Makes the session that of the connection that asks, for whoever asks next,
                after ending it on another one where it is open.
            follows: Whether a turn that runs at another server is left there; then the session
                stays that server's.

        Raises:
            SessionError: There is no such session of this user, or it is not let go of.
            ChuckyError: The store cannot be read.
        """
        session = await asyncio.to_thread(past.find, self.kept, identity, asked)
        if not asked.forks:
            await take_over(session.session_id)
            await self._ledger.written(session.session_id)
            session = await self.seize(session) or await self._awaited(session, follows=follows)
        found = await asyncio.to_thread(past.recall, self.kept, session, asked)
        if found.session.session_id == session.session_id:
            return found
        copy = replace(found.session, owner=self.server_id, epoch=1)
        await self._ledger.ask(
            Also(lambda transaction, _: transaction.fork_session(copy, session.session_id))
        )
        return replace(found, session=copy)

    async def seize(self, session: SessionRecord, seat: str = "") -> SessionRecord | None:
        """Make a session this server's; whoever had it before writes nothing more.

        Args:
            session: The session, as it was.
            seat: The connection that must still be the one that follows it; ``''`` for any.

        Returns:
            The session as it is now; None while its turn runs at a server that lives.

        Raises:
            ChuckyError: The store cannot be written.
        """
        seized: SessionRecord | None = None

        def write(transaction: LogTransaction, _outcomes: Sequence[Outcome]) -> None:
            nonlocal seized
            seized = transaction.seize(session.session_id, self.server_id, self.server_id, seat)
            if seized is None:
                return
            seized = _with_turn_ended(transaction, seized)
            if session.owner not in ("", self.server_id):
                mail = _mail(session, "taken_over", epoch=session.epoch)
                transaction.send_mail(session.owner, mail)

        await self._ledger.ask(Also(write))
        return seized

    async def own(self, session: SessionRecord, seat: str) -> Past | None:
        """Make a session this server's whose turn has ended elsewhere, and read it.

        Args:
            session: The session.
            seat: The connection that has followed it.

        Returns:
            The session; None if another turn has begun, or another connection follows it.

        Raises:
            ChuckyError: The store failed.
        """
        seized = await self.seize(session, seat)
        if seized is None:
            return None
        asked = Resumption(session.session_id)
        return await asyncio.to_thread(past.recall, self.kept, seized, asked)

    async def events(self, session_id: str, after_seq: int) -> list[Event]:
        """Read what has happened in a session behind a number.

        Raises:
            ChuckyError: The store cannot be read.
        """
        return await asyncio.to_thread(self.kept.events, session_id, after_seq)

    async def _awaited(self, session: SessionRecord, *, follows: bool) -> SessionRecord:
        """A session whose turn runs at another server: as it is, or when that has let go of it."""
        session = await self.session(session.session_id) or session
        if follows:
            return session
        self.tell(session, "taken_over", epoch=session.epoch)
        try:
            async with asyncio.timeout(TAKE_OVER_SECONDS):
                while True:
                    await asyncio.sleep(_LOOK_SECONDS)
                    if (seized := await self.seize(session)) is not None:
                        return seized
        except TimeoutError:
            raise session_busy() from None

    def tell(self, session: SessionRecord, kind: Kind, **more: Any) -> None:
        """Tell the owner of a session something about it."""
        mail = _mail(session, kind, **more)
        self._ledger.post(Also(lambda transaction, _: transaction.send_mail(session.owner, mail)))

    async def mail(self) -> list[tuple[int, Mail]]:
        """What this server is told, in order, each with its number.

        Raises:
            ChuckyError: The store cannot be read.
        """
        return await asyncio.to_thread(self.kept.mail, self.server_id)

    def delete_mail(self, mail_ids: Sequence[int]) -> asyncio.Future[Any]:
        """Have mail deleted."""
        return self._ledger.post(Also(lambda transaction, _: transaction.delete_mail(mail_ids)))

    async def follow(self, session: SessionRecord, seat: str) -> None:
        """Tell the owner of a session that its client is here, on the connection ``seat``.

        Raises:
            ChuckyError: The store cannot be written.
        """

        def write(transaction: LogTransaction, _outcomes: Sequence[Outcome]) -> None:
            owner = transaction.take_seat(session.session_id, seat)
            transaction.send_mail(owner, _mail(session, "attached", seat=seat))

        await self._ledger.ask(Also(write))

    async def session(self, session_id: str) -> SessionRecord | None:
        """Read what is kept about a session.

        Raises:
            ChuckyError: The store cannot be read.
        """
        return await asyncio.to_thread(self.kept.session, session_id)

    async def holds(self, session_id: str) -> bool:
        """Whether a session that is open here is still this server's; nobody follows it then."""
        if not self._ledger.is_shared:
            return True
        try:
            session = await self.session(session_id)
            if session is not None and session.seat and session.owner == self.server_id:
                await self._ledger.ask(
                    Also(lambda transaction, _: transaction.take_seat(session_id, ""))
                )
        except ChuckyError as error:
            # If it is not, nothing can be written in it all the same.
            logger.warning("session %s: its owner cannot be read: %s", session_id, error)
            return True
        return session is None or session.owner == self.server_id

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
        """End the turns whose servers have died; return how many. Also before the ledger runs.

        The ledger ends their reservations before.
        """
        ended: list[str] = []
        while left := await asyncio.to_thread(self.kept.left_sessions, self.server_id):
            count = len(ended)
            await self._ledger.write(*(Also(self._ending(each, ended)) for each in left))
            if len(ended) == count:
                break  # another server does it
        return len(ended)

    def _ending(
        self, session_id: str, ended: list[str]
    ) -> Callable[[LogTransaction, Sequence[Outcome]], None]:
        """What ends a turn, and notes that it did: another server may do so in the same moment."""

        def write(transaction: LogTransaction, _outcomes: Sequence[Outcome]) -> None:
            session = transaction.seize(session_id, self.server_id, "", "")
            if session is not None:
                _with_turn_ended(transaction, session)
                ended.append(session_id)

        return write


def _mail(session: SessionRecord, kind: Kind, **more: Any) -> Mail:
    return Mail.write(session.session_id, kind, user=[session.project_id, session.user_id], **more)


def _with_turn_ended(transaction: LogTransaction, session: SessionRecord) -> SessionRecord:
    """Write that a turn was interrupted, if one runs, in the words of its result."""
    if not session.turn_id:
        return session
    error = ChuckyError(
        "The server stopped before the turn had ended; the session can go on.",
        code="INTERRUPTED",
        reason="server_died",
    )
    calls, spent_nanos = transaction.turn_cost(session)
    ended = replace(
        session,
        last_seq=session.last_seq + LOST_NUMBERS,
        turns=session.turns + 1,
        calls=session.calls + calls,
        spent_nanos=session.spent_nanos + spent_nanos,
        turn_id="",
        turn_form="",
    )
    result = {
        "type": "result",
        "subtype": "error_during_execution",
        "is_error": True,
        "result": str(error),
        "errors": [str(error)],
        "num_turns": ended.calls,
        "total_cost_usd": nanos_to_dollars(ended.spent_nanos),
        "error": {"code": error.code, "reason": error.reason, "message": str(error)},
        "uuid": str(uuid.uuid4()),
        "session_id": session.session_id,
    }
    event = Event(ended.last_seq, "message", session.turn_id, wire.message_text(result))
    progress = Progress(turns=1, calls=calls, spent_nanos=spent_nanos)
    transaction.append_events(session, [event], progress)
    return ended
