"""The log of a session: everything a client saw and everything the model knows, in order.

Events are numbered from 1 in each session and are never changed. There are three kinds:

``input``    a message of the user: its ``content`` and, if it has one, its ``uuid``
``message``  a message of the agent, as a client gets it
``context``  a step by which the conversation that the model sees came about

The log has no commit of its own: what is appended during a turn is written with what the turn
reserves and settles.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Kind = Literal["input", "message", "context"]


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


@dataclass(frozen=True, slots=True)
class Progress:
    """What changes in a session's record when events are appended.

    Attributes:
        turn_id: The turn that runs from now on; ``''`` for none, None for the one that did.
        turn_form: The form of its messages.
        turns: How many turns have ended with these events.
        calls: How many answers of the model are in them.
        spent_nanos: What they cost.
    """

    turn_id: str | None = None
    turn_form: str = ""
    turns: int = 0
    calls: int = 0
    spent_nanos: int = 0


class LogTransaction(Protocol):
    """The log's part of a transaction of the store."""

    def append_events(
        self, session: SessionRecord, events: Sequence[Event], progress: Progress
    ) -> None:
        """Write events, and the session itself if these are its first."""
        ...

    def fork_session(self, copy: SessionRecord, original_id: str) -> None:
        """Write a session that begins with the events of another, up to the copy's last one."""
        ...

    def delete_session(self, session_id: str) -> None:
        """Delete a session and all that was said in it; what it cost stays in the ledger."""
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

    def sessions(self, project_id: str, user_id: str | None, most: int) -> list[SessionRecord]:
        """Read the sessions of a user or of all users, the latest first."""
        ...

    def interrupted_sessions(self) -> list[SessionRecord]:
        """Read the sessions with a turn that has neither ended nor holds any compute."""
        ...


Write = Callable[[LogTransaction], None]


@dataclass(frozen=True, slots=True)
class Past:
    """A session as it was left, or one that begins.

    Attributes:
        session: What is kept about it.
        steps: How the conversation that its engine knows came about.
        inputs: The uuids of the messages its user has sent.
    """

    session: SessionRecord
    steps: Sequence[dict[str, Any]] = ()
    inputs: Sequence[str] = ()


class SessionLog:
    """The log of an open session, as it grows."""

    def __init__(self, session: SessionRecord, post: Callable[[Write], object]) -> None:
        """Go on with a log.

        Args:
            session: Whose log it is, with the number of its last event.
            post: Has something written with the next commit.
        """
        self._session = session
        self._post = post
        self._last_seq = session.last_seq
        self._turn_id = ""
        self._events: list[Event] = []
        self._progress = Progress()
        self._is_due = False

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
        self._events.append(event)
        self._schedule()
        return event.seq

    def _next_seq(self) -> int:
        self._last_seq += 1
        return self._last_seq

    def begin_turn(self, turn_id: str, form: str) -> None:
        """Say that a turn runs."""
        self._turn_id = turn_id
        self._progress = Progress(turn_id, form)
        self._schedule()

    @property
    def runs_turn(self) -> bool:
        """Whether a turn has begun and not ended."""
        return bool(self._turn_id)

    def end_turn(self) -> tuple[int, Callable[[str, int, int], Write]]:
        """End the turn that runs.

        Returns:
            The number of its result, and what makes, of the result as JSON text, of how often the
            model answered and of what that cost in nano-dollars, what is to be written; that may
            be called in any thread.
        """
        events, seq, turn_id = self._take_events(), self._next_seq(), self._turn_id
        self._turn_id = ""

        def ending(result: str, calls: int, spent_nanos: int) -> Write:
            last = Event(seq, "message", turn_id, result)
            return self._writing([*events, last], Progress("", "", 1, calls, spent_nanos))

        return seq, ending

    def _schedule(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_due = False
        progress, self._progress = self._progress, Progress()
        self._post(self._writing(self._take_events(), progress))

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _writing(self, events: Sequence[Event], progress: Progress) -> Write:
        def write(transaction: LogTransaction) -> None:
            transaction.append_events(self._session, events, progress)

        return write
