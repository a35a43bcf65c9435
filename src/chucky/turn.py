"""The messages of one turn on their way from the connection to the application."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from chucky.errors import ChuckyError, SessionError
from chucky.messages import Message

# What a turn may hold that nobody has read yet. Partial messages may fill half of it and are
# dropped beyond that, since the complete message follows them and must find room. Losing
# anything else would corrupt the turn, so that ends it with an error instead.
MAX_UNREAD_MESSAGES = 10_000


class Turn:
    """One user message and the answer to it.

    The session puts messages in, one :class:`TurnStream` takes them out. A turn is over when
    the server is done with it. It may have failed before, for whoever reads it: the messages
    that came until then are still read, and then the error is raised.
    """

    def __init__(self, frame: str) -> None:
        self.frame = frame
        self._unread: deque[Message] = deque()
        self._error: ChuckyError | None = None
        self._is_left = False
        self._changed = asyncio.Event()
        self._over = asyncio.Event()

    def put(self, message: Message) -> None:
        """Add a message; it is dropped when nobody will read it."""
        if self._is_left or self._error is not None or self._over.is_set():
            return
        is_partial = message.get("type") == "stream_event"
        limit = MAX_UNREAD_MESSAGES // 2 if is_partial else MAX_UNREAD_MESSAGES
        if len(self._unread) < limit:
            self._unread.append(message)
            self._changed.set()
        elif not is_partial:
            self.fail(
                SessionError(
                    f"{MAX_UNREAD_MESSAGES} messages of this turn were not read; iterate "
                    "stream() after send()."
                )
            )

    def end(self) -> None:
        """The server is done with the turn: nothing follows any more."""
        self._over.set()
        self._changed.set()

    def fail(self, error: ChuckyError) -> None:
        """Make reading on, past what has come, raise ``error``; only the first one counts."""
        if self._error is None:
            self._error = error
            self._changed.set()

    def leave(self) -> None:
        """Forget what is unread, and whatever still comes."""
        self._is_left = True
        self._unread.clear()

    async def next(self) -> Message | None:
        """Wait for the next message; None at the end of the turn."""
        while not self._unread:
            if self._error is not None:
                # All turns of a session share the error that ended it. Each raising would add
                # to its traceback, which keeps every frame in it alive.
                raise self._error.with_traceback(None)
            if self._over.is_set():
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._unread.popleft()

    async def ends_within(self, seconds: float) -> bool:
        """Wait until the server is done with the turn; False when that takes longer."""
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            pass  # it may have ended in the same moment
        return self._over.is_set()


class TurnStream:
    """The asynchronous iterator that ``session.stream()`` returns.

    It belongs to one turn, the oldest that no other stream has taken, and takes it at the first
    step. Leaving the loop early drops the rest of that turn and of no other.
    """

    def __init__(self, take_turn: Callable[[], Turn]) -> None:
        self._take_turn = take_turn
        self._turn: Turn | None = None
        self._done = False

    def __aiter__(self) -> TurnStream:
        return self

    async def __anext__(self) -> Message:
        if self._done:
            raise StopAsyncIteration
        if self._turn is None:
            self._turn = self._take_turn()
        try:
            message = await self._turn.next()
        except Exception:
            self._done = True
            raise
        if message is None:
            self._done = True
            raise StopAsyncIteration
        return message

    async def aclose(self) -> None:
        """Leave the turn: what is left of it is dropped."""
        self._done = True
        if self._turn is not None:
            self._turn.leave()

    def __del__(self) -> None:
        # `break` out of `async for` drops the iterator without telling it; what is left of its
        # turn must not pile up in memory.
        if self._turn is not None:
            self._turn.leave()
