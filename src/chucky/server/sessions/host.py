"""Where sessions run: also beyond the connection they came on, if their client can come back."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from chucky.errors import ChuckyError
from chucky.server.auth import Identity
from chucky.server.sessions.registry import Registry
from chucky.server.sessions.session import Session

logger = logging.getLogger("chucky.server")


@dataclass(frozen=True, slots=True)
class Running:
    """A session that has begun, and the task in which it answers."""

    session: Session
    answering: asyncio.Task[None]

    async def end(self) -> None:
        """End it now; a turn that is running is interrupted."""
        self.answering.cancel()
        await asyncio.wait([self.answering])


class Host:
    """Runs sessions."""

    def __init__(self, registry: Registry, *, grace_seconds: float) -> None:
        """Make a host.

        Args:
            registry: Where sessions without a connection are entered.
            grace_seconds: How long such a session waits for its client.
        """
        self._registry = registry
        self._grace_seconds = grace_seconds
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End everything that runs."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def start(self, session: Session) -> Running:
        """Let a session answer."""
        return Running(session, self._keep(asyncio.create_task(session.run())))

    def leave(self, running: Running) -> None:
        """Let a session go on whose connection was lost.

        Also one that has nothing to do: what it sent last may not have arrived.
        """
        unattended = _Unattended(running, self._registry, self._grace_seconds)
        unattended.waiting = self._keep(asyncio.create_task(unattended.wait()))

    def take(self, identity: Identity, session_id: str) -> Running | None:
        """Take a session of this user from wherever it runs; None if it runs nowhere."""
        for attached in self._registry.of_user(identity):
            if attached.session_id == session_id and (running := attached.release()) is not None:
                return running
        return None

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Unattended:
    """A session without a connection; see :class:`~...registry.Attached`."""

    def __init__(self, running: Running, registry: Registry, grace_seconds: float) -> None:
        self.identity = running.session.identity
        self.waiting: asyncio.Task[None] | None = None
        self._running = running
        self._registry = registry
        self._grace_seconds = grace_seconds
        self._is_released = False
        self._is_stopped = asyncio.Event()
        registry.enter(self)

    @property
    def is_connected(self) -> bool:
        return False

    @property
    def session_id(self) -> str:
        return self._running.session.session_id

    async def wait(self) -> None:
        """Wait for the client to come back, then end the session with what it still has to do."""
        session = self._running.session
        try:
            try:
                async with asyncio.timeout(self._grace_seconds):
                    await self._is_stopped.wait()
            except TimeoutError:
                logger.info("session %s: its client stays away", session.session_id)
            session.abandon()
            await session.wait_idle()
        finally:
            self._registry.remove(self)
            if not self._is_released:
                await self._running.end()

    def release(self) -> Running | None:
        self._is_released = True
        if self.waiting is not None:
            self.waiting.cancel()
        self._registry.remove(self)
        return self._running

    def stop(self, error: ChuckyError) -> None:
        self._running.session.stop(error)
        self._is_stopped.set()
