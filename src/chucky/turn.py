"""The messages of one turn on their way from the connection to the application."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .errors import SessionError
from .messages import Message

# What a turn may hold that nobody has read yet. Partial messages beyond the limit are dropped,
# since the complete message follows them; losing anything else would corrupt the turn, so that
# ends it with an error instead.
MAX_UNREAD_MESSAGES = 10_000


class Turn:
    """One user message and the answer to it.

    The session's reader puts messages in, one :class:`TurnStream` takes them out. It ends with
    a result or with an error, exactly once.
    """

    def __init__(self, frame: str) -> None:
        self.frame = frame
        self.ended = False
        self._abandoned = False
        self._error: Exception | None = None
        self._unread: deque[Message] = deque()
        self._changed = asyncio.Event()
        self._over = asyncio.Event()

    async def wait_ended(self) -> None:
        """Wait until the turn has ended, whatever way."""
        await self._over.wait()

    def put(self, message: Message) -> None:
        """Add a message; it is dropped when the reader of this turn has left."""
        if self._abandoned or self.ended:
            return
        if len(self._unread) >= MAX_UNREAD_MESSAGES:
            if message.get("type") != "stream_event":
                self.fail(
                    SessionError(
                        f"{MAX_UNREAD_MESSAGES} messages of this turn were not read; iterate "
                        "stream() after send()."
                    )
                )
            return
        self._unread.append(message)
        self._changed.set()

    def end(self) -> None:
        """Nothing follows any more."""
        self.ended = True
        self._changed.set()
        self._over.set()

    def fail(self, error: Exception) -> None:
        """End the turn: reading on past what has come raises ``error``."""
        if not self.ended:
            self._error = error
            self.end()

    def abandon(self) -> None:
        """Forget what is unread, and whatever still comes."""
        self._abandoned = True
        self._unread.clear()

    async def next(self) -> Message | None:
        """Wait for the next message; None at the end of the turn."""
        while not self._unread:
            if self._error is not None:
                raise self._error
            if self.ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._unread.popleft()


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
            self._turn.abandon()

    def __del__(self) -> None:
        # `break` out of `async for` drops the iterator without telling it; what is left of its
        # turn must not pile up in memory.
        if self._turn is not None:
            self._turn.abandon()
