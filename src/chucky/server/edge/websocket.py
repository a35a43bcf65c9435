"""The WebSocket at ``/ws``: bytes in, calls on a session out.

``docs/protocol.md`` describes what happens on it, frame by frame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from chucky import wire
from chucky.errors import AuthenticationError, ChuckyError, SessionError
from chucky.server.admission import Grant
from chucky.server.auth import Identity
from chucky.server.edge import opening
from chucky.server.edge.doorkeeper import Doorkeeper
from chucky.server.edge.outlet import Outlet
from chucky.server.sessions.host import Host, Running
from chucky.server.sessions.log import Past
from chucky.server.sessions.past import Resumption
from chucky.server.sessions.registry import Registry
from chucky.server.sessions.session import Session

logger = logging.getLogger("chucky.server")

# How long a client without a token in its request may take to send one in `init`.
TOKEN_WAIT_SECONDS = 10.0
# How long one frame may wait for a client that does not read; then the client is given up.
SEND_TIMEOUT_SECONDS = 30.0
# How long a turn that is stopped from outside may take to end with its result.
STOP_SECONDS = 4.0

NORMAL_CLOSURE = 1000
GOING_AWAY = 1001
PROTOCOL_VIOLATION = 1002
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012
TRY_AGAIN_LATER = 1013
# How a connection is closed for another reason than that its client may not have it.
_CODE_BY_REASON = {
    "server_full": TRY_AGAIN_LATER,
    "server_stopping": SERVICE_RESTART,
    "session_taken_over": NORMAL_CLOSURE,
}
# A client that closes with another code means it. A connection that just ends has 1005 or 1006.
_PASSING_CODES = (1001, 1005, 1006, 1011, 1012, 1013)
# In the upgrade: the session that a client comes back for.
_SESSION_HEADER = "chucky-session"


class WebSocketEdge:
    """Serves sockets."""

    def __init__(
        self,
        doorkeeper: Doorkeeper,
        registry: Registry,
        host: Host,
        *,
        idle_timeout_seconds: float,
    ) -> None:
        self.idle_timeout_seconds = idle_timeout_seconds  # may be changed
        self._doorkeeper = doorkeeper
        self._host = host
        self._registry = registry

    async def endpoint(self, websocket: WebSocket) -> None:
        """Serve one socket from its upgrade to its end.

        The upgrade is accepted whatever the token, because only a frame gets the reason of a
        refusal to every client: a refused upgrade shows as an error of their library.
        """
        await websocket.accept()
        socket = _Socket(
            websocket, self._doorkeeper, self._host, self._registry, self.idle_timeout_seconds
        )
        try:
            identity, options = await self._identify(websocket)
            socket.attach(identity)
            self._registry.add(socket, resumes=websocket.headers.get(_SESSION_HEADER, ""))
        except wire.FrameError as error:
            await socket.refuse_frame(error)
            return
        except ChuckyError as refusal:
            await socket.refuse(refusal)
            return
        except WebSocketDisconnect:
            return
        try:
            await socket.serve(options)
        finally:
            self._registry.remove(socket)

    async def _identify(self, websocket: WebSocket) -> tuple[Identity, dict[str, Any] | None]:
        """Whose socket it is, and the options if they had to be awaited to know."""
        token = opening.token_of_request(websocket)
        if token is not None:
            return await self._doorkeeper.authenticate(token), None
        try:
            async with asyncio.timeout(TOKEN_WAIT_SECONDS):
                frame = wire.parse_client_frame(await _receive(websocket))
        except TimeoutError:
            frame = wire.Unknown("none")
        if not isinstance(frame, wire.Init):
            raise AuthenticationError(
                "No token: send one as ?token=… in the url, in the header 'Authorization: "
                "Bearer …', or as 'token' in the payload of 'init'.",
                reason="token_missing",
            )
        given = frame.options.pop("token", "")
        token = given if isinstance(given, str) else ""
        return await self._doorkeeper.authenticate(token), frame.options


class _Ended(Exception):  # noqa: N818 - not an error, but how a TaskGroup is ended from inside
    """Ends everything that runs for a socket; the reason was told to whom it concerns."""


class _Socket:
    """One socket with its session: an :class:`Outbox`, and an entry of the register."""

    identity: Identity
    _session: Session

    def __init__(
        self,
        websocket: WebSocket,
        doorkeeper: Doorkeeper,
        host: Host,
        registry: Registry,
        idle_timeout_seconds: float,
    ) -> None:
        self._websocket = websocket
        self._outlet: Outlet = websocket.state.outlet
        self._doorkeeper = doorkeeper
        self._host = host
        self._registry = registry
        self._idle_timeout_seconds = idle_timeout_seconds
        self._tasks: asyncio.TaskGroup | None = None
        self._running: Running | None = None
        self._helpers: list[asyncio.Task[None]] = []
        self._gone = False
        self._is_lost = False
        self._has_left = False

    def attach(self, identity: Identity) -> None:
        """Make the session whose frames go through this socket."""
        self.identity = identity
        self._session = self._doorkeeper.open_session(identity, self)

    async def send(self, frame: str) -> None:
        """Send one frame. To a client that is gone nothing is sent, and nothing raised:

        reading notices that it is gone and ends the session, which is where it is dealt with.
        """
        await self._wait_writable()
        if not self._gone:
            self._outlet.send(frame)

    async def _wait_writable(self) -> None:
        """Wait until the client reads; one that does not for long is left."""
        if self._gone or not self._outlet.is_full:
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                await self._outlet.wait_writable()
        except TimeoutError:
            logger.warning("a client did not read for %g s; it is left", SEND_TIMEOUT_SECONDS)
            self._gone = True
            self._outlet.abandon()

    @property
    def is_full(self) -> bool:
        """Whether the client has yet to read what was sent; see :class:`Outbox`."""
        return not self._gone and self._outlet.is_full

    def fall_behind(self, catch_up: Callable[[], Awaitable[None]]) -> None:
        """Let the client have what it has missed as soon as it reads; see :class:`Outbox`."""
        self._help(self._catch_up(catch_up))

    async def _catch_up(self, catch_up: Callable[[], Awaitable[None]]) -> None:
        await self._wait_writable()
        if self._gone:
            return
        try:
            await catch_up()
        except ChuckyError as error:
            await self._lose(error)

    async def _lose(self, error: ChuckyError) -> None:
        """End the connection that cannot get what it missed: its client may try another one."""
        logger.error("session %s: not taken up: %s", self.session_id, error)
        self._is_lost = True
        await self._end(INTERNAL_ERROR, error.reason)

    async def refuse(self, error: ChuckyError, code: int | None = None) -> None:
        """Tell the client why it is not served, and close."""
        await self._tell(error)
        await self._close(code or _close_code(error), error.reason)

    async def _tell(self, error: ChuckyError) -> None:
        await self.send(
            wire.error_frame(
                str(error),
                code=error.code,
                reason=error.reason,
                details=error.details,
            )
        )

    async def refuse_frame(self, error: wire.FrameError) -> None:
        """Name what is wrong with a frame, and close."""
        error.code, error.reason = "VALIDATION_ERROR", "malformed_frame"
        await self.refuse(error, PROTOCOL_VIOLATION)

    @property
    def is_connected(self) -> bool:
        """Whether its client is there; see :class:`Attached`."""
        return True

    @property
    def is_busy(self) -> bool:
        """Whether a turn is running or waiting; see :class:`Attached`."""
        return self._session.busy

    @property
    def session_id(self) -> str:
        """The session's id; see :class:`Attached`."""
        return self._session.session_id

    @property
    def epoch(self) -> int:
        """By which number it is written; see :class:`Attached`."""
        return self._session.epoch

    def stop(self, error: ChuckyError, *, patience_seconds: float = 0.0) -> None:
        """End the session from outside; see :class:`Attached`."""
        self._beside(self._stop(error, patience_seconds))

    async def serve(self, options: dict[str, Any] | None) -> None:
        """Serve the session until the client leaves or is sent away."""
        await self.send(wire.control_frame("ready"))
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await self._read(options)
                self._tasks = None  # there is nothing left to stop
                self._stop_helping()
        except* _Ended:
            pass
        finally:
            self._tasks = None
            await self._leave()

    async def _leave(self) -> None:
        """End the session, or let it go on without this connection."""
        running, self._running = self._running, None
        if running is None:
            return
        session = running.session
        session.detach(self, has_left=self._has_left)
        if self._is_lost and session.can_be_taken_up:
            await self._host.leave(running)
        else:
            await running.end()

    def release(self) -> Running | None:
        """Give the session away; see :class:`Attached`."""
        running = self._running
        if running is None or not running.session.can_be_taken_up:
            return None
        self._running = None
        running.session.detach(self)
        if self._outlet.is_full:
            self._outlet.abandon()  # it would take its time to be closed
        self._gone = True
        self._beside(self._end(NORMAL_CLOSURE, "session_taken_over"))
        return running

    async def _follow(self, running: Running) -> None:
        """Fail with a session that fails by a fault of ours, so that its client is not left."""
        await asyncio.wait([running.answering])
        if self._running is not running or running.answering.cancelled():
            return
        try:
            running.answering.result()
        except ChuckyError as error:
            logger.info("session %s: %s", self.session_id, error)
            code = _CODE_BY_REASON.get(error.reason or "", INTERNAL_ERROR)
            await self._end(code, error.reason)

    def _stop_helping(self) -> None:
        for helper in self._helpers:
            helper.cancel()

    async def _read(self, options: Mapping[str, Any] | None) -> None:
        try:
            if options is not None:
                await self._begin(options)
            while await self._take_frame():
                pass
        except wire.FrameError as error:
            await self.refuse_frame(error)
        except ChuckyError as error:
            await self.refuse(error)
        except WebSocketDisconnect as disconnect:
            self._gone = True
            self._is_lost = disconnect.code in _PASSING_CODES
            self._has_left = not self._is_lost

    async def _take_frame(self) -> bool:
        """Do what the next frame says; whether more can follow.

        A frame may be large, and while the next is awaited nobody holds it any more.
        """
        text = await self._next_frame()
        if text is None:
            return False
        if self._gone:
            return True  # another connection has the session now
        frame = wire.parse_client_frame(text)
        if isinstance(frame, wire.Control) and frame.action == "close":
            self._has_left = True
            await self._close(NORMAL_CLOSURE)
            return False
        await self._handle(frame)
        return True

    async def _next_frame(self) -> str | bytes | None:
        """The next frame's data; None if none came for so long that the connection is closed."""
        while True:
            try:
                async with asyncio.timeout(self._idle_timeout_seconds):
                    return await _receive(self._websocket)
            except TimeoutError:
                if not self._session.busy:
                    # A client that can come back does with its next message.
                    comes_back = self._session.can_be_taken_up
                    await self._close(GOING_AWAY if comes_back else NORMAL_CLOSURE)
                    return None

    async def _handle(self, frame: wire.ClientFrame) -> None:
        session = self._session
        match frame:
            case wire.Init(options):
                if session.begun:
                    raise wire.FrameError("init", "may come only once, and before any message")
                await self._begin(options)
            case wire.UserInput():
                if not session.begun:
                    await self._begin(frame.options)
                self._session.submit(frame)
            case wire.ToolReply():
                session.deliver(frame)
            case wire.Ping(timestamp):
                await self.send(wire.pong_frame(timestamp))
            case wire.Control(action="interrupt") if session.named(wire.INTERRUPT):
                session.interrupt()
            case wire.Control(action=wire.LIST_SESSIONS | wire.HISTORY) if session.named(
                wire.SESSIONS
            ):
                await self.send(await self._doorkeeper.inquire(session, frame))
            case wire.Control() | wire.Unknown():
                logger.info("session %s: ignored %.100r", session.session_id, frame)

    async def _begin(self, options: Mapping[str, Any]) -> None:
        # One SDK names its sandbox in the url; it is an option like any other.
        if vessel := self._websocket.query_params.get("vessel"):
            options = {"vessel": vessel, **options}
        capabilities = opening.capabilities(options)
        after = opening.last_seen(options) if wire.REPLAY in capabilities else None
        taken_up = None if after is None else await self._taken_up(options)
        running = taken_up or await self._begun(options)
        session = self._session = running.session
        self._running = running
        self._help(self._follow(running))
        if after is None or not session.can_be_taken_up:
            return
        try:
            if taken_up is not None:
                await session.take_up(self.identity, capabilities, self, after)
            elif not session.is_new:
                await session.replay(self, after)
        except ChuckyError as error:
            await self._lose(error)

    async def _taken_up(self, options: Mapping[str, Any]) -> Running | None:
        """The session that this connection goes on with, if it still runs here."""
        session_id = options.get("resume") or options.get("sessionId")
        if not isinstance(session_id, str) or not await self._doorkeeper.holds(session_id):
            return None
        return self._host.take(self.identity, session_id)

    async def _begun(self, options: Mapping[str, Any]) -> Running:
        """The session of this connection, begun as the options ask."""
        session = self._session
        grant, past = self._doorkeeper.admit(self.identity, options), None
        if isinstance(grant, Grant):
            try:
                if grant.resumption is not None:
                    past = await self._recalled(grant.resumption, options)
                self._registry.check_room(self)
            except ChuckyError as error:
                grant = error
        await session.begin(grant, opening.capabilities(options), past)
        return self._host.start(session)

    async def _recalled(self, asked: Resumption, options: Mapping[str, Any]) -> Past | None:
        """The session to go on with; None where its server died before anything of it was kept."""
        after = opening.last_seen(options) if wire.REPLAY in opening.capabilities(options) else None
        try:
            past = await self._doorkeeper.recall(self._session, asked, follows=after is not None)
        except SessionError as error:
            if error.reason == "session_not_found" and opening.may_be_unknown(options):
                return None
            raise
        return past if after is None else past.numbered_after(after.seq)

    async def _stop(self, error: ChuckyError, patience_seconds: float) -> None:
        """Let a running turn end, with ``error`` as its result in the end, then close."""
        session, was_busy = self._session, self._session.busy
        session.stop(error, patience_seconds=patience_seconds)
        try:
            async with asyncio.timeout(patience_seconds + STOP_SECONDS):
                await session.wait_idle()
        except TimeoutError:
            pass  # the client does not take its result; it is closed all the same
        code = _close_code(error)
        # To a client that goes on with the next server it is no error.
        goes_on = code == SERVICE_RESTART and session.is_replayed
        if not was_busy and session.named(wire.ERROR_FRAMES) and not goes_on:
            await self._tell(error)
        await self._end(code, error.reason)

    def _beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run ``work`` beside the session, unless that is ending already."""
        try:
            if self._tasks is not None:
                return self._tasks.create_task(work)
        except RuntimeError:
            pass  # the group takes no more tasks: something else has ended it
        work.close()
        return None

    def _help(self, help_: Coroutine[Any, Any, None]) -> None:
        """Run something beside the session that must not outlast it."""
        if (helper := self._beside(help_)) is not None:
            self._helpers = [*(each for each in self._helpers if not each.done()), helper]

    async def _end(self, code: int, reason: str | None) -> None:
        await self._close(code, reason)
        raise _Ended

    async def _close(self, code: int, reason: str | None = None) -> None:
        self._gone = True
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                await self._websocket.close(code, reason)
        except TimeoutError:
            self._outlet.abandon()
        except (WebSocketDisconnect, RuntimeError):
            pass  # it is closed already


def _close_code(error: ChuckyError) -> int:
    return _CODE_BY_REASON.get(error.reason or "", POLICY_VIOLATION)


async def _receive(websocket: WebSocket) -> str | bytes:
    """The next frame's data.

    Raises:
        WebSocketDisconnect: The client has left.
    """
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text: str | None = message.get("text")
    if text is not None:
        return text
    data: bytes = message["bytes"]
    return data
