"""The connections of one session, one after the other: the next goes on where the last was lost."""

from __future__ import annotations

import asyncio
import random
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from chucky.errors import ChuckyConnectionError, ChuckyError, ChuckyTimeoutError
from chucky.options import ChuckyOptions
from chucky.sessionlog import FrameLog, SessionLog

if TYPE_CHECKING:
    from chucky.connection import Connection

# How long a lost connection is tried to be taken up again, and with which pauses.
RECONNECT_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
# A server that closes with another code means it: it refuses the token, or another connection of
# this session has taken over.
_PASSING_CLOSE_CODES = (None, 1001, 1006, 1011, 1012, 1013)
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

    @property
    def is_replayed(self) -> bool:
        """Whether the server sends again what was lost with a connection."""
        return self._seen is not None

    def begin_at(self, seq: object) -> None:
        """Take note that the server numbers the messages of this session, and from where on."""
        if self._seen is None or self._seen_of != self.session_id:
            self._seen = (seq if isinstance(seq, int) else 0, 0)
            self._seen_of = self.session_id

    def was_seen(self, message: dict[str, Any]) -> bool:
        """Whether a message came before; its number, which nobody else needs, is taken out."""
        seq, delta = message.pop("seq", None), message.pop("delta", 0)
        if self._seen is None or not isinstance(seq, int) or not isinstance(delta, int):
            return False
        if (seq, delta) <= self._seen:
            return True
        self._seen = (seq, delta)
        self._may_be_unknown &= message.get("type") != "result"
        return False

    def can_be_taken_up(self, lost: ChuckyConnectionError) -> bool:
        """Whether another connection can go on where this one was lost."""
        return self.is_replayed and lost.close_code in _PASSING_CLOSE_CODES

    async def open(self) -> Connection:
        """Connect; see :meth:`~chucky.connection.Connection.open` for what it raises."""
        connection_class = await self._load_networking()
        return await connection_class.open(
            url=self._options.url,
            token=self._options.token,
            init=self._init if self._seen is None else self._init_again(*self._seen),
            timeout=self._options.timeout,
            keepalive_interval=self._options.keepalive_interval,
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

        Raises:
            ChuckyConnectionError: The server could not be reached in that time.
            ChuckyError: The server refuses.
        """
        limit = asyncio.timeout(RECONNECT_SECONDS)
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
            raise given_up from None

    async def _keep_opening(self) -> Connection:
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            # The jitter keeps the clients of a server that was lost from all coming at once.
            await asyncio.sleep(random.uniform(0, pause_seconds))  # noqa: S311 - no secret
            try:
                return await self.open()
            except (ChuckyConnectionError, ChuckyTimeoutError) as error:
                self._log.info("session %s: not connected again yet: %s", self.session_id, error)
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
