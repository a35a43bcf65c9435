"""The log of a session: everything a client saw and everything the model knows, in order.

Events are numbered from 1 in each session, with a gap after a crash, and are never changed. There
are three kinds:

``input``    a message of the user: its ``content`` and, if it has one, its ``uuid``
``message``  a message of the agent, as a client gets it
``context``  a step by which the conversation that the model sees came about

The log has no commit of its own: what is appended during a turn is written with what the turn
reserves and settles.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from chucky.errors import ChuckyError, SessionError
from chucky.server.sessions.mail import Mail

Kind = Literal["input", "message", "context"]

# A process that dies may have sent messages, fewer than this, that it had yet to write. Their
# numbers are not given out again, so that a client that has them gets what happens later.
LOST_NUMBERS = 1_000_000
# How long a model call waits for what happened before it to be written.
_WRITTEN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        seq: Its number.
        kind: What it is.
        turn_id: The turn it happened in.
        body: What happened, as JSON text.
    """

    seq: int
    kind: Kind
    turn_id: str
    body: str


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What is kept about a session beside its events.

    Attributes:
        session_id: Its id.
        project_id: Its project.
        user_id: Its user.
        forked_from: The session it is a copy of; ``''`` for none.
        model: The model that was granted last.
        created_ms: When it was created, in milliseconds since 1970.
        active_ms: When something happened in it last.
        last_seq: The number of its last event.
        turns: How many turns have ended.
        calls: How often the model answered.
        spent_nanos: What its model calls cost, in nano-dollars.
        turn_id: The turn that runs; ``''`` for none.
        turn_form: The form of its messages: ``flat`` or ``wrapped``.
        owner: The server that writes it; ``''`` for none.
        epoch: How often that has changed. Only who has this number may write.
        seat: The connection by which another server follows it; ``''`` for none.
    """

    session_id: str
    project_id: str
    user_id: str
    forked_from: str = ""
    model: str = ""
    created_ms: int = 0
    active_ms: int = 0
    last_seq: int = 0
    turns: int = 0
    calls: int = 0
    spent_nanos: int = 0
    turn_id: str = ""
    turn_form: str = ""
    owner: str = ""
    epoch: int = 1
    seat: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a session's record says after events were appended.

    Attributes:
        turn_id: The turn that runs then; ``''`` for none.
        turn_form: The form of its messages.
        turns: How many turns have ended with these events.
        calls: How many answers of the model are in them.
        spent_nanos: What they cost.
    """

    turn_id: str = ""
    turn_form: str = ""
    turns: int = 0
    calls: int = 0
    spent_nanos: int = 0


class LogTransaction(Protocol):
    """The log's part of a transaction of the store."""

    def append_events(
        self, session: SessionRecord, events: Sequence[Event], progress: Progress
    ) -> bool:
        """Write events, and the session itself if these are its first.

        Events that were written before are left alone, and nothing happens if the last one was.
        Those of a session that was deleted are not kept.

        Returns:
            False if nothing is written, because somebody else writes the session now.
        """
        ...

    def seize(self, session_id: str, owner: str, new_owner: str, seat: str) -> SessionRecord | None:
        """Make a session another owner's, so that nobody else writes it any more.

        Only one in which no turn runs, or whose turn's server is dead. Such a turn is not ended by
        this.

        Args:
            session_id: The session.
            owner: The server that asks.
            new_owner: Who writes it from now on; ``''`` for nobody.
            seat: The connection that must still be the one that follows it; ``''`` for any.

        Returns:
            What is kept about it; None if it may not be had.
        """
        ...

    def take_seat(self, session_id: str, seat: str) -> str:
        """Note which connection follows a session from another server than its owner's.

        Returns:
            Its owner; ``''`` if it has none.
        """
        ...

    def send_mail(self, server_id: str, mail: Mail) -> None:
        """Tell a server something about a session, unless it is gone."""
        ...

    def delete_mail(self, mail_ids: Iterable[int]) -> None:
        """Delete what a server was told."""
        ...

    def turn_cost(self, session: SessionRecord) -> tuple[int, int]:
        """How often the model was paid for in the turn that a session's record says to run.

        Returns:
            The number of calls that the ledger has booked, and what they cost in nano-dollars.
        """
        ...

    def fork_session(self, copy: SessionRecord, original_id: str) -> None:
        """Write a session that begins with the events of another, up to the copy's last one."""
        ...


class LogReader(Protocol):
    """Reads logs. Everything here blocks, for milliseconds as a rule, and belongs into a thread."""

    def session(self, session_id: str) -> SessionRecord | None:
        """Read what is kept about a session; None if there is none."""
        ...

    def latest_session(self, project_id: str, user_id: str) -> SessionRecord | None:
        """Read the session of a user in which something happened last."""
        ...

    def events(self, session_id: str, after_seq: int = 0) -> list[Event]:
        """Read a session's events behind one of them, in order."""
        ...

    def messages(
        self, session_id: str, after_seq: int, most: int, most_characters: int
    ) -> list[Event]:
        """Read what was said in a session behind one of its events: inputs and messages.

        Returns:
            So many of them, and no more after those that have so many characters together.
        """
        ...

    def sessions(self, project_id: str, user_id: str | None, most: int) -> list[SessionRecord]:
        """Read the sessions of a user or of all users, the latest first."""
        ...

    def left_sessions(self, owner: str) -> list[str]:
        """Read which sessions run a turn that nobody ends.

        Their owner is another server than the one that asks, its lease is over, and so are the
        turn's reservations.
        """
        ...

    def mail(self, server_id: str) -> list[tuple[int, Mail]]:
        """Read what a server is told, in order, each with its number."""
        ...


Write = Callable[[LogTransaction], bool]
Post = Callable[[str, Write], "asyncio.Future[Any]"]
"""Has something about the session with an id written with the next commit; done when it is."""


@dataclass(frozen=True, slots=True)
class Past:
    """A session as it was left, or one that begins.

    Attributes:
        session: What is kept about it.
        steps: How the conversation that its engine knows came about.
        inputs: The uuids of the messages its user has sent.
        message_count: How many messages these were, with those that have no uuid.
        seen_seq: The number of the last message that a client has which comes back.
    """

    session: SessionRecord
    steps: Sequence[dict[str, Any]] = ()
    inputs: Sequence[str] = ()
    message_count: int = 0
    seen_seq: int = 0

    def numbered_after(self, seq: int) -> Past:
        """The same, with new events numbered behind what a client has that a dead process sent."""
        last_seq = max(self.session.last_seq, min(seq, self.session.last_seq + LOST_NUMBERS))
        return replace(self, session=replace(self.session, last_seq=last_seq), seen_seq=seq)


class SessionLog:
    """The log of an open session, as it grows.

    What is not known to be written is written again with whatever comes after it: a database that
    fails for a while leaves no gap, and in whatever order it catches up, nothing comes out of turn.
    """

    def __init__(
        self, session: SessionRecord, post: Post, lost: Callable[[], None] = lambda: None
    ) -> None:
        """Go on with a log.

        Args:
            session: Whose log it is, with the number of its last event.
            post: Has something written.
            lost: Called when something was not written, because the session is another server's.
        """
        self._lost = lost
        self._is_lost = False
        self._posted: asyncio.Future[Any] | None = None
        self._session = session
        self._post = post
        self._last_seq = session.last_seq
        self._posted_seq = session.last_seq
        self._turn_id = ""
        self._turn_form = ""
        self._unwritten: list[Event] = []
        self._is_due = False

    @property
    def epoch(self) -> int:
        """The number by which it may be written."""
        return self._session.epoch

    @property
    def last_seq(self) -> int:
        """The number of the last event."""
        return self._last_seq

    def append(self, kind: Kind, body: str) -> int:
        """Append an event: what happened, as JSON text. It is written within a moment.

        Returns:
            Its number.
        """
        event = Event(self._next_seq(), kind, self._turn_id, body)
        self._unwritten.append(event)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._flush)
        return event.seq

    def _next_seq(self) -> int:
        self._last_seq += 1
        return self._last_seq

    def begin_turn(self, turn_id: str, form: str, user_input: str) -> None:
        """Say that a turn runs.

        Args:
            turn_id: Its id.
            form: The form of its messages.
            user_input: The message it answers, as JSON text.
        """
        self._turn_id, self._turn_form = turn_id, form
        self.append("input", user_input)

    @property
    def runs_turn(self) -> bool:
        """Whether a turn has begun and not ended."""
        return bool(self._turn_id)

    def end_turn(self) -> Ending:
        """End the turn that runs."""
        ending = Ending(self, tuple(self._unwritten), self._next_seq(), self._turn_id)
        self._posted_seq = ending.seq
        self._turn_id = self._turn_form = ""
        return ending

    def _flush(self) -> None:
        self._is_due = False
        if not self._unwritten or self._unwritten[-1].seq <= self._posted_seq:
            return
        events = tuple(self._unwritten)
        self._posted_seq = events[-1].seq
        progress = Progress(self._turn_id, self._turn_form)
        self.post(self.writing(events, progress), self._posted_seq)

    def writing(self, events: Sequence[Event], progress: Progress) -> Write:
        """What writes events of this log."""

        def write(transaction: LogTransaction) -> bool:
            is_written = transaction.append_events(self._session, events, progress)
            # In the thread of the ledger: whoever waits for this knows it when it is done.
            self._is_lost = self._is_lost or not is_written
            return is_written

        return write

    @property
    def is_lost(self) -> bool:
        """Whether something was not written, because the session is another server's."""
        return self._is_lost

    async def hold(self) -> None:
        """Wait until what has happened is written.

        Raises:
            SessionError: The session is another server's.
            ChuckyError: It is not written in time.
        """
        self._flush()
        if self._posted is not None and not self._posted.done():
            _, unwritten = await asyncio.wait([self._posted], timeout=_WRITTEN_SECONDS)
            if unwritten:
                raise ChuckyError(
                    "What happened before cannot be written at the moment; it will be. Try again; "
                    "the server's log says why.",
                    code="STORE_ERROR",
                    reason="ledger_unavailable",
                )
        if self._is_lost:
            raise taken_over()

    def post(self, write: Write, last_seq: int) -> None:
        """Have events written, up to the one with this number."""
        self._posted = self._post(self._session.session_id, write)
        self._posted.add_done_callback(lambda _written: self.note_written(last_seq))

    def note_written(self, last_seq: int) -> None:
        """Note that everything up to an event is written, or never will be."""
        if self._is_lost:
            self._lost()
        self._unwritten = [event for event in self._unwritten if event.seq > last_seq]


def taken_over() -> SessionError:
    """The error of a session that goes on elsewhere."""
    return SessionError("The session goes on on another connection.", reason="session_taken_over")


class Ending:
    """The end of a turn, on its way into the log."""

    def __init__(self, log: SessionLog, events: Sequence[Event], seq: int, turn_id: str) -> None:
        """Take what is to be written before the result, and the number and turn of that."""
        self.seq = seq
        self._log = log
        self._events = events
        self._turn_id = turn_id

    def writing(self, result: str, calls: int, spent_nanos: int) -> Write:
        """What writes the end of the turn. May be called in any thread.

        Args:
            result: The result, as JSON text.
            calls: How often the model answered.
            spent_nanos: What that cost, in nano-dollars.
        """
        last = Event(self.seq, "message", self._turn_id, result)
        progress = Progress(turns=1, calls=calls, spent_nanos=spent_nanos)
        return self._log.writing([*self._events, last], progress)

    def post(self, write: Write) -> None:
        """Have it written as soon as the database lets it."""
        self._log.post(write, self.seq)

    def note_written(self) -> None:
        """Note that it is written."""
        self._log.note_written(self.seq)
