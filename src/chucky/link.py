"""The connections of one session, one after the other: the next goes on where the last was lost."""

from __future__ import annotations

import asyncio
import random
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from chucky.errors import (
    ChuckyConnectionError,
    ChuckyError,
    ChuckyTimeoutError,
    ConcurrencyLimitError,
)
from chucky.options import ChuckyOptions
from chucky.sessionlog import FrameLog, SessionLog

if TYPE_CHECKING:
    from chucky.connection import Connection

# How long a lost connection is tried to be taken up again, and with which pauses.
RECONNECT_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
# One attempt of many may hang, where the network comes and goes; it must not take all the time.
ATTEMPT_SECONDS = 15.0
# A server that closes with another code means it: it refuses the token, or another connection of
# this session has taken over.
_PASSING_CLOSE_CODES = (None, 1001, 1005, 1006, 1011, 1012, 1013)
# What `init` says of another session only when this one begins.
_OPTIONS_OF_BEGINNING = ("continue", "forkSession", "resume", "resumeSessionAt", "sessionId")


class Link:
    """Opens connections, and knows the last message that came over them.

    Attributes:
        session_id: The session, as soon as the server has named it.
        debug: Whether every frame is logged.
    """

    _connection_class: ClassVar[type[Connection] | None] = None

    def __init__(
        self, options: ChuckyOptions, init: dict[str, Any], log: SessionLog, *, debug: bool
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            options: Where to connect to, and how.
            init: What `init` says on the first connection.
            log: Where it is logged that a connection was lost.
            debug: Whether every frame is logged.
        """
        self.session_id = ""
        self.debug = debug
        self._options = options
        self._init = init
        self._log = log
        self._seen: tuple[int, int] | None = None  # a message, and the partial ones after it
        self._seen_of = ""
        # Until its first result a server that dies may not have kept a session that it began.
        self._may_be_unknown = not any(name in init for name in _OPTIONS_OF_BEGINNING)
        self._last_problem: Exception | None = None
        self._opened_at = 0.0
        self._give_up_at: float | None = None
        self._pause_seconds = FIRST_PAUSE_SECONDS

    @property
    def is_replayed(self) -> bool:
        """Whether the server sends again what was lost with a connection."""
        return self._seen is not None

    def begin_at(self, seq: object) -> None:
        """Take note that the server numbers the messages of this session, and its last number.

        A smaller one than that of a message that came is that of a server which has lost that
        message, and gives its number to another one.
        """
        last = seq if isinstance(seq, int) else 0
        if self._seen is None or self._seen_of != self.session_id:
            self._seen, self._seen_of = (last, 0), self.session_id
        elif isinstance(seq, int) and seq < self._seen[0]:
            self._log.warning("session %s: the server has lost messages", self.session_id)
            self._seen = (seq, 0)

    def was_seen(self, message: dict[str, Any]) -> bool:
        """Whether a message came before; its number, which nobody else needs, is taken out."""
        seq, delta = message.pop("seq", None), message.pop("delta", 0)
        if self._seen is None or not isinstance(seq, int) or not isinstance(delta, int):
            return False
        if (seq, delta) <= self._seen:
            return True
        self._seen, self._give_up_at = (seq, delta), None
        self._may_be_unknown &= message.get("type") != "result"
        return False

    def can_be_taken_up(self, lost: ChuckyConnectionError) -> bool:
        """Whether another connection can go on where this one was lost."""
        return self.is_replayed and lost.close_code in _PASSING_CLOSE_CODES

    def closed_on_purpose(self) -> ChuckyConnectionError:
        """The error of a connection that is not to be taken up again: the server says so."""
        closed = ChuckyConnectionError("The server closed the session.")
        closed.close_code = 1000
        return closed

    async def open(self, timeout: float | None = None) -> Connection:
        """Connect; see :meth:`~chucky.connection.Connection.open` for what it raises.

        Args:
            timeout: Another one, in seconds, than that of the options.
        """
        connection_class = await self._load_networking()
        return await connection_class.open(
            url=self._options.url,
            token=self._options.token,
            init=self._init if self._seen is None else self._init_again(*self._seen),
            timeout=timeout or self._options.timeout,
            keepalive_interval=self._options.keepalive_interval,
            comes_back_for=self.session_id if self._seen is not None else "",
            frame_log=FrameLog(self._log) if self.debug else None,
        )

    @classmethod
    async def _load_networking(cls) -> type[Connection]:
        """Import what only connections need, with the first one.

        It takes as long as the rest of the SDK; in a thread, so that the program's other work
        goes on meanwhile.
        """
        if cls._connection_class is None:
            module = await asyncio.to_thread(import_module, "chucky.connection")
            cls._connection_class = module.Connection
        return cls._connection_class

    def _init_again(self, seq: int, delta: int) -> dict[str, Any]:
        options = {k: v for k, v in self._init.items() if k not in _OPTIONS_OF_BEGINNING}
        seen = {"seq": seq, "delta": delta, "mayBeUnknown": self._may_be_unknown}
        return {**options, "resume": self.session_id, "lastSeen": seen}

    async def open_again(self, lost: ChuckyError) -> Connection:
        """Connect after a connection was lost, trying for a while.

        Connections that come to nothing, one after the other, count as one attempt that fails.

        Raises:
            ChuckyConnectionError: The server could not be reached in that time.
            ChuckyError: The server refuses.
        """
        now = asyncio.get_running_loop().time()
        has_lasted = now - self._opened_at > LONGEST_PAUSE_SECONDS
        if self._give_up_at is None or has_lasted:
            self._give_up_at = now + RECONNECT_SECONDS
            self._pause_seconds = FIRST_PAUSE_SECONDS
        limit = asyncio.timeout_at(self._give_up_at)
        try:
            async with limit:
                return await self._keep_opening()
        except TimeoutError:
            if not limit.expired():
                raise
            given_up = ChuckyConnectionError(
                f"{lost} It could not be taken up again within {RECONNECT_SECONDS:g} s; resume the "
                "session (session_id) when the server can be reached."
            )
            given_up.session_id = self.session_id
            raise given_up from self._last_problem

    async def _keep_opening(self) -> Connection:
        while True:
            # The jitter keeps the clients of a server that was lost from all coming at once.
            await asyncio.sleep(random.uniform(0, self._pause_seconds))  # noqa: S311 - no secret
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
            try:
                connection = await self.open(min(self._options.timeout, ATTEMPT_SECONDS))
            except Exception as error:
                if not _may_pass(error):
                    raise
                self._last_problem = error
                self._log.info("session %s: not connected again yet: %s", self.session_id, error)
                self._pause_seconds = max(self._pause_seconds, _wish(error))
            else:
                self._opened_at = asyncio.get_running_loop().time()
                return connection


def _may_pass(error: Exception) -> bool:
    """Whether a connection that failed may succeed a little later."""
    if isinstance(error, ChuckyConnectionError):
        return error.close_code in _PASSING_CLOSE_CODES
    if isinstance(error, ChuckyTimeoutError | ConcurrencyLimitError):
        return True
    if isinstance(error, ChuckyError):
        return error.reason == "server_stopping"
    # The token function's own: where it gets tokens from may be out of reach as well.
    return True


def _wish(error: Exception) -> float:
    """After how many seconds the server wants to be asked again."""
    wish = error.details.get("retry_after") if isinstance(error, ChuckyError) else None
    return min(wish, LONGEST_PAUSE_SECONDS) if isinstance(wish, int | float) else 0.0
