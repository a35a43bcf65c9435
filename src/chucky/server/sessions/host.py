"""Where sessions run: also beyond the connection they came on, if their client can come back."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from chucky import wire
from chucky.errors import ChuckyError
from chucky.server.auth import Identity
from chucky.server.sessions.log import taken_over
from chucky.server.sessions.mail import Mail
from chucky.server.sessions.registry import Attached, Registry
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
        await self._leave(running, seat="")

    async def _leave(self, running: Running, seat: str) -> None:
        if self._is_closed:
            await running.end()
            return
        unattended = _Unattended(running, self._registry, seat, self.grace_seconds)
        self._registry.enter(unattended)
        unattended.waiting = self._keep(asyncio.create_task(unattended.wait()))

    async def receive(self, mail: Mail) -> None:
        """Do what another server has to tell about a session that runs here, or did."""
        said = mail.read()
        project_id, user_id = said["user"]
        attached = self._registry.find((project_id, user_id), mail.session_id)
        if attached is None:
            return  # it has ended meanwhile
        if mail.kind == "attached":
            await self._give(attached, said["seat"])
        elif mail.kind == "taken_over":
            if attached.epoch == said["epoch"]:  # not one that was opened here after that
                attached.stop(taken_over())
        elif isinstance(attached, _Unattended):
            attached.receive(mail, said)

    async def _give(self, attached: Attached, seat: str) -> None:
        """Let a turn go on for a client that is at another server, on the connection ``seat``."""
        running = attached.release()
        if running is None:
            return
        await running.session.go_elsewhere()
        if running.session.busy:
            await self._leave(running, seat)
        else:
            await running.end()

    def take(self, identity: Identity, session_id: str) -> Running | None:
        """Take a session of this user from wherever it runs; None if it runs nowhere."""
        for attached in self._registry.of_user(identity):
            if attached.session_id == session_id and (running := attached.release()) is not None:
                return running
        return None

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), ChuckyError):
            logger.info("a session goes on elsewhere or has failed: %s", error)


class _Unattended:
    """A session without a connection here; see :class:`~...registry.Attached`.

    If its client has one at another server, that is its ``seat``.
    """

    def __init__(
        self, running: Running, registry: Registry, seat: str, grace_seconds: float
    ) -> None:
        self.identity = running.session.identity
        self.waiting: asyncio.Task[None] | None = None
        self._seat = seat
        self._grace_seconds = grace_seconds
        self._grace: asyncio.TimerHandle | None = None
        self._running = running
        self._registry = registry
        self._is_wanted = True  # it may be taken up
        self._is_over = asyncio.Event()

    @property
    def is_connected(self) -> bool:
        return False

    @property
    def is_busy(self) -> bool:
        return self._running.session.busy

    @property
    def session_id(self) -> str:
        return self._running.session.session_id

    @property
    def epoch(self) -> int:
        return self._running.session.epoch

    async def wait(self) -> None:
        """Wait for the client to come back, then end the session with what it still has to do.

        One whose client is at another server ends with its turn.
        """
        try:
            if not self._seat:
                self._begin_grace()
                await self._is_over.wait()
            await self._running.wait_idle()
            self._is_wanted = False
            await self._running.end()
        finally:
            if self._grace is not None:
                self._grace.cancel()
            # Only now: who resumes the session waits until all of it is in the log.
            self._registry.remove(self)

    def _begin_grace(self) -> None:
        self._grace = asyncio.get_running_loop().call_later(self._grace_seconds, self._give_up)

    def _give_up(self) -> None:
        logger.info("session %s: its client stays away", self.session_id)
        self._running.session.abandon()
        self._is_over.set()

    def release(self) -> Running | None:
        if not (self._is_wanted and self._running.session.can_be_taken_up):
            return None
        self._is_wanted = False
        if self.waiting is not None:
            self.waiting.cancel()
        self._registry.remove(self)
        return self._running

    def receive(self, mail: Mail, said: dict[str, Any]) -> None:
        """Take what the client says at the other server, or that it is there no more."""
        session = self._running.session
        if mail.kind == "answer":
            session.deliver(wire.ToolReply(said["callId"], said["result"]))
        elif mail.kind == "interrupt":
            session.interrupt(said["turnId"])
        elif said["seat"] != self._seat:
            return  # it is on another connection meanwhile
        elif mail.kind == "left":
            self._running.answering.cancel()
        elif mail.kind == "detached" and self._grace is None:
            self._begin_grace()

    def stop(self, error: ChuckyError, *, patience_seconds: float = 0.0) -> None:
        self._running.session.stop(error, patience_seconds=patience_seconds)
        self._is_over.set()
