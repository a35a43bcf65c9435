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

    async def wait_idle(self) -> None:
        """Wait until every input has its result, or none will get one."""
        idle = asyncio.create_task(self.session.wait_idle())
        try:
            await asyncio.wait([idle, self.answering], return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()

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
            grace_seconds: How long such a session waits for its client; may be changed.
        """
        self.grace_seconds = grace_seconds
        self._registry = registry
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def close(self) -> None:
        """End everything that runs, and whatever is still begun."""
        self._is_closed = True
        while tasks := [each for each in self._tasks if not each.done()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def start(self, session: Session) -> Running:
        """Let a session answer."""
        answering = self._keep(asyncio.create_task(session.run()))
        if self._is_closed:
            answering.cancel()
        return Running(session, answering)

    async def leave(self, running: Running) -> None:
        """Let a session go on whose connection was lost.

        Also one that has nothing to do: what it sent last may not have arrived.
        """
        if self._is_closed:
            await running.end()
            return
        unattended = _Unattended(running, self._registry)
        self._registry.enter(unattended)
        unattended.waiting = self._keep(asyncio.create_task(unattended.wait(self.grace_seconds)))

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

    def __init__(self, running: Running, registry: Registry) -> None:
        self.identity = running.session.identity
        self.waiting: asyncio.Task[None] | None = None
        self._running = running
        self._registry = registry
        self._is_wanted = True  # it may be taken up
        self._is_stopped = asyncio.Event()

    @property
    def is_connected(self) -> bool:
        return False

    @property
    def is_busy(self) -> bool:
        return self._running.session.busy

    @property
    def session_id(self) -> str:
        return self._running.session.session_id

    async def wait(self, grace_seconds: float) -> None:
        """Wait for the client to come back, then end the session with what it still has to do."""
        try:
            try:
                async with asyncio.timeout(grace_seconds):
                    await self._is_stopped.wait()
            except TimeoutError:
                logger.info("session %s: its client stays away", self.session_id)
                self._running.session.abandon()
            await self._running.wait_idle()
            self._is_wanted = False
            await self._running.end()
        finally:
            # Only now: who resumes the session waits until all of it is in the log.
            self._registry.remove(self)

    def release(self) -> Running | None:
        if not (self._is_wanted and self._running.session.can_be_taken_up):
            return None
        self._is_wanted = False
        if self.waiting is not None:
            self.waiting.cancel()
        self._registry.remove(self)
        return self._running

    def stop(self, error: ChuckyError, *, patience_seconds: float = 0.0) -> None:
        self._running.session.stop(error, patience_seconds=patience_seconds)
        self._is_stopped.set()
