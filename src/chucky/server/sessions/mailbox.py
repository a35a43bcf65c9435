"""Where a session's frames go: to the connection it has, and into a tail for the one it gets next.

For clients that named ``replay`` every message has a number, that of its event in the log, and
every partial message the number of the message before it and a count. A client that comes back says
the last it has, and gets all that came after: from the tail, or, what has fallen out of that, from
the log, which has complete messages only. So does a client that reads too slowly: nobody waits for
it, and once it reads again it gets what it has missed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple, Protocol

from chucky import wire

# So many bytes of frames are kept for a connection that comes back.
TAIL_BYTES = 1_048_576
# What a frame costs besides its characters; most are small.
_FRAME_OVERHEAD_BYTES = 250


class Position(NamedTuple):
    """The place of a frame: the number of a message, and how many partial ones came after it."""

    seq: int
    delta: int = 0


class Outbox(Protocol):
    """Where frames go."""

    @property
    def is_full(self) -> bool:
        """Whether the client has yet to read what was sent before, so that sending would wait."""
        ...

    async def send(self, frame: str) -> None:
        """Send one frame; waits while the client is slow, for as long as the edge allows."""
        ...

    def fall_behind(self, catch_up: Callable[[], Awaitable[None]]) -> None:
        """Have ``catch_up`` called as soon as the client reads again."""
        ...


class _Kept(NamedTuple):
    position: Position
    frame: str


Complete = Callable[[int], Awaitable[list[tuple[int, str]]]]
"""Reads the next complete messages behind a number out of the log: numbers and JSON texts."""

Again = Callable[[], Awaitable[None]]
"""Sends again what a connection that has caught up may have missed."""


class Mailbox:
    """Sends the frames of one session."""

    def __init__(self, outbox: Outbox) -> None:
        """Begin with a connection; frames are numbered only after :meth:`keep`."""
        self._outbox: Outbox | None = outbox
        self._catching_up: Outbox | None = None
        self._complete: Complete | None = None
        self._again: Again | None = None
        self._last = Position(0)
        self._tail: deque[_Kept] | None = None  # most sessions are idle, and an empty one is large
        self._tail_bytes = 0
        self._fallen_out = Position(0)
        self._left_out_after: int | None = None

    def keep(self, last_seq: int, complete: Complete, again: Again) -> None:
        """Number frames and keep them, for a client that may come back, or read slowly.

        Args:
            last_seq: The number of the last event in the log.
            complete: Reads the log.
            again: Called when a connection has caught up; see :meth:`send_passing`.
        """
        self._complete, self._again = complete, again
        self._last = self._fallen_out = Position(last_seq)

    async def send(self, frame: str) -> None:
        """Send a frame that is of use to this connection only."""
        if self._outbox is not None:
            await self._outbox.send(frame)

    async def send_passing(self, frame: str) -> None:
        """Send a frame that is sent again when a connection has caught up."""
        if self._complete is None:
            await self.send(frame)
        else:
            await self._send_now(frame, self._last)

    async def deliver(self, frame: str, seq: int | None) -> None:
        """Send a complete message.

        Args:
            frame: Its frame.
            seq: Its number in the log; None if there is no log.
        """
        if self._complete is None or seq is None:
            await self.send(frame)
            return
        await self._deliver(Position(seq), wire.numbered(frame, seq))

    async def deliver_delta(self, frame: str) -> None:
        """Send a partial message."""
        if self._complete is None:
            await self.send(frame)
            return
        position = Position(self._last.seq, self._last.delta + 1)
        await self._deliver(position, wire.numbered(frame, *position))

    async def _deliver(self, position: Position, frame: str) -> None:
        before, self._last = self._last, position
        if self._tail is None:
            self._tail = deque()
        self._tail.append(_Kept(position, frame))
        self._tail_bytes += _size(frame)
        while self._tail_bytes > TAIL_BYTES:
            oldest = self._tail.popleft()
            self._tail_bytes -= _size(oldest.frame)
            self._fallen_out = oldest.position
        if not self._is_left_out(position):
            await self._send_now(frame, before)

    async def _send_now(self, frame: str, before: Position) -> None:
        """Send a frame to a client that reads; another one gets everything from here on later.

        Args:
            frame: The frame.
            before: The last it has been sent.
        """
        outbox = self._outbox
        if outbox is None:
            return
        if not outbox.is_full:
            await outbox.send(frame)  # which does not wait
            return
        if before.seq == self._left_out_after:
            before = Position(before.seq)  # of these pieces it got none
        self._outbox, self._catching_up = None, outbox
        outbox.fall_behind(partial(self._catch_up, outbox, before))

    def forget(self) -> None:
        """Keep nothing more of what was sent so far: whoever still wants it reads the log."""
        self._tail = None
        self._tail_bytes = 0
        self._fallen_out = self._last

    def detach(self, outbox: Outbox) -> None:
        """Send to this connection no more."""
        if self._outbox is outbox:
            self._outbox = None
        if self._catching_up is outbox:
            self._catching_up = None

    async def attach(self, outbox: Outbox, after: Position) -> None:
        """Go on with another connection, which first gets what it has not seen.

        When yet another one comes meanwhile, it is that one's turn, and this one gets no more.

        Args:
            outbox: The connection.
            after: The last it has seen.
        """
        self._outbox, self._catching_up = None, outbox
        await self._catch_up(outbox, after)

    async def _catch_up(self, outbox: Outbox, after: Position) -> None:
        assert self._again is not None
        self._left_out_after = None
        while self._catching_up is outbox:
            if after < self._fallen_out:
                after = await self._send_complete(outbox, after)
                continue  # more is left, or has fallen out meanwhile
            missed = [each for each in self._tail or () if each.position > after]
            for position, frame in missed:
                if self._catching_up is not outbox:
                    return
                if not self._is_left_out(position):
                    await outbox.send(frame)
                after = position
            if not missed:
                self._outbox, self._catching_up = outbox, None
                await self._again()

    async def _send_complete(self, outbox: Outbox, after: Position) -> Position:
        """Send some of what is only in the log; return where to go on."""
        assert self._complete is not None
        # More may fall out of the tail while this is read and sent; that is for the next time.
        fallen_out = self._fallen_out
        messages = await self._complete(after.seq)
        for seq, text in messages:
            if self._catching_up is not outbox:
                return after
            await outbox.send(wire.numbered(text, seq))
            after = Position(seq)
        if not messages and self._catching_up is outbox:
            # The beginning of a message that is on its way is lost: so are all its pieces.
            self._left_out_after = fallen_out.seq
            return fallen_out
        return after

    def _is_left_out(self, position: Position) -> bool:
        return position.delta > 0 and position.seq == self._left_out_after


def _size(frame: str) -> int:
    return len(frame) + _FRAME_OVERHEAD_BYTES
