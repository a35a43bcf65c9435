"""A conversation of several turns over one connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVarTuple

from chucky import wire
from chucky.errors import (
    ChuckyConnectionError,
    ChuckyError,
    ChuckyTimeoutError,
    SessionError,
    error_from_wire,
)
from chucky.inquiries import Inquiries
from chucky.introduction import Introduction
from chucky.link import Link
from chucky.messages import Message, PromptResult, result_from_error, result_from_wire
from chucky.options import ChuckyOptions, PromptOptions, chosen, init_options
from chucky.outputformat import OutputFormat
from chucky.sessionlog import SessionLog
from chucky.toolrunner import ToolRunner
from chucky.toolservers import ToolServers
from chucky.turn import Turn, TurnStream
from chucky.usermessage import Content, check_size, user_frame

if TYPE_CHECKING:
    from chucky.connection import Connection

Args = TypeVarTuple("Args")

MAX_WAITING_TURNS = 100
INTERRUPT_TIMEOUT_SECONDS = 10.0
STOP_TIMEOUT_SECONDS = 5.0


class Session:
    """A conversation: :meth:`send` a message, then iterate :meth:`stream` for the answer.

    Made by ``client.create_session()``; it connects on the first ``send()``. As an asynchronous
    context manager it closes itself.

    A second ``send()`` before the first answer is complete queues a second turn; each
    ``stream()`` yields one turn, in order. Tools run concurrently, beside the reading.
    """

    def __init__(
        self,
        options: ChuckyOptions,
        session_options: PromptOptions | None = None,
        debug: bool = False,
        *,
        on_close: Callable[[Session], None] | None = None,
    ) -> None:
        """Prepare a session; nothing is connected yet.

        Raises:
            ValidationError: An option or a tool is wrong.
        """
        self.options = options
        self.session_options = session_options or PromptOptions()
        self.options.check()
        self.session_options.check()
        servers = ToolServers.of(
            chosen("mcp_servers", options, self.session_options), self.session_options.tools
        )
        self._tools = ToolRunner(servers.tools, self._send)
        self._init = {
            **init_options(options, self.session_options),
            **({"mcpServers": servers.definitions} if servers.definitions else {}),
            "capabilities": list(wire.CAPABILITIES),
        }
        output_format = chosen("output_format", options, self.session_options)
        self._output_format = None if output_format is None else OutputFormat.of(output_format)
        self._on_close = on_close
        self._log = SessionLog()
        self._session_id = ""
        self._server = Introduction()
        self._link = Link(options, self._init, self._log, debug=debug)
        self._silence: ChuckyTimeoutError | None = None
        self._inquiries = Inquiries(options.timeout)
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Timeout | None = None
        self._runner: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._current: Turn | None = None
        self._interrupted: Turn | None = None
        self._queued: deque[Turn] = deque()
        self._untaken: deque[Turn] = deque()
        self._failure: ChuckyError | None = None
        self._closed = False
        self._is_resting = False

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    @property
    def debug(self) -> bool:
        """Whether every frame is logged, from the next connection on."""
        return self._link.debug

    @debug.setter
    def debug(self, debug: bool) -> None:
        self._link.debug = debug

    @property
    def session_id(self) -> str:
        """The session's id, as the server gave it; ``''`` before the first connection."""
        return self._session_id

    async def send(self, message: Content) -> None:
        """Send a user message; :meth:`stream` yields the answer.

        Args:
            message: The text, or a list of content blocks (``text``, ``image``, ``document``).

        Raises:
            ValidationError: The message is empty or not text.
            ChuckyConnectionError: The server cannot be reached, or the connection was lost.
            ChuckyTimeoutError: Connecting took longer than the client's ``timeout``.
            AuthenticationError: The server refused the token.
            SessionError: The session is closed, or too many messages wait already.
        """
        frame = user_frame(message, self._session_id)
        self._check_usable()
        await self._connect()
        check_size(frame, self._server.max_frame_bytes)
        if max(len(self._queued), len(self._untaken)) >= MAX_WAITING_TURNS:
            raise SessionError(
                f"The answers to {MAX_WAITING_TURNS} messages are waiting; read them with "
                "stream() before sending more."
            )
        turn = Turn(frame)
        self._untaken.append(turn)
        self._queued.append(turn)
        await self._start_next()

    def stream(self) -> TurnStream:
        """Return the messages of the oldest turn that no stream has yielded yet.

        The last message is the result. A failed turn yields a message of type ``error`` and
        then a result whose ``subtype`` is ``'error'``.

        Raises (while iterating):
            ChuckyConnectionError: The connection was lost.
            ChuckyTimeoutError: The server fell silent, or the turn took longer than
                ``turn_timeout``.
            SessionError: There is no turn to read: nothing was sent.
        """
        return TurnStream(self._take_turn)

    def receive(self) -> TurnStream:
        """Do the same as :meth:`stream`, by the name the Agent SDK uses."""
        return self.stream()

    async def history(self) -> list[Message]:
        """Return what was said in this session so far, on earlier connections too.

        Complete messages in their order: the user's, which have the type ``user`` as well, and
        everything that :meth:`stream` has yielded or would have, but for partial messages.

        Raises:
            SessionError: There is no such session, or this server cannot tell.
            ChuckyConnectionError, ChuckyTimeoutError, AuthenticationError: As :meth:`send`.
        """
        messages: list[Message] = []
        after: int | None = 0
        while after is not None:
            page, after = await self._inquire(wire.HISTORY, after=after)
            messages += map(_as_yielded, page)
        return messages

    async def _inquire(self, action: str, **data: Any) -> tuple[list[dict[str, Any]], int | None]:
        """Ask the server something beside the turns; ``client.list_sessions()`` does."""
        self._check_usable()
        await self._connect()
        await self._server.wait()
        self._check_usable()
        if wire.SESSIONS not in self._server.capabilities:
            raise SessionError("This server cannot tell about sessions (the hosted one cannot).")
        return await self._inquiries.ask(self._send, action, data)

    async def interrupt(self) -> None:
        """Stop the running turn; its stream ends with a result that says so.

        Does nothing when no turn is running.

        Raises:
            SessionError: This server cannot interrupt a turn (the hosted one cannot).
        """
        self._check_loop()
        turn = self._current
        if turn is not None:
            await self._server.wait()
        if turn is None or turn is not self._current:
            return
        if wire.INTERRUPT not in self._server.capabilities:
            raise SessionError("This server cannot interrupt a turn; close the session to stop it.")
        self._interrupted = turn
        await self._send(wire.control_frame("interrupt"))

    async def close(self) -> None:
        """Close the session; a running turn is stopped. May be called more than once.

        Running tools are cancelled. Only a tool that itself closes the session runs on, and
        for it ``close()`` returns without waiting for the end.

        Raises:
            SessionError: The session is in use on another event loop.
        """
        if self._loop is not None and self._loop.is_closed():
            self._leave()  # all that ran has ended with its loop
            return
        self._check_loop()
        if not self._closed:
            self._leave()
            self._fail(SessionError("The session was closed."))
            await self._stop()
        await self._wait_stopped()

    def _leave(self) -> None:
        self._closed = True
        if self._on_close is not None:
            self._on_close(self)

    async def _stop(self) -> None:
        """Close the connection, or end connecting; everything else ends with it."""
        self._tools.note_closing()
        await self._close_connection()

    async def _wait_stopped(self) -> None:
        if self._runner is None:
            return
        if self._tools.is_closing_here:
            return  # the runner waits for this tool
        _done, pending = await asyncio.wait([self._runner], timeout=STOP_TIMEOUT_SECONDS)
        if pending:
            self._log.warning("session %s: a tool does not end; it is left", self._session_id)

    def _check_usable(self) -> None:
        if self._closed:
            raise SessionError("This session is closed; make a new one with create_session().")
        self._check_loop()
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def _check_loop(self) -> None:
        """Refuse another event loop than the first: what is awaited there might never come."""
        running = asyncio.get_running_loop()
        self._loop = self._loop or running
        if self._loop is not running:
            raise SessionError(
                "This session belongs to the event loop it was first used on, and this is another "
                "one; do all with a session in one asyncio.run(), or use chucky.sync."
            )

    async def _connect(self) -> None:
        async with self._connecting:
            self._check_usable()
            if self._connection is not None:
                return
            connection = await self._opened(self._link.open())
            self._connection, self._is_resting, self._silence = connection, False, None
            running = asyncio.Event()
            self._runner = asyncio.create_task(self._run(connection, running))
            await running.wait()
        self._check_usable()

    async def _opened(self, opening: Awaitable[Connection]) -> Connection:
        try:
            # close() lets this time-out expire, so that it ends connecting at once.
            async with asyncio.timeout(None) as self._opening:
                connection = await opening
        except TimeoutError:
            self._check_usable()
            raise
        finally:
            self._opening = None
        if self._failure is not None:  # it was opened in the moment the session ended
            await connection.close()
        self._check_usable()
        return connection

    async def _run(self, connection: Connection, running: asyncio.Event) -> None:
        """Read until the session ends; what runs beside the reading ends with it."""
        async with asyncio.TaskGroup() as self._tasks:
            running.set()
            try:
                await self._watch(self._serve, connection)
            finally:
                if not self._is_resting:
                    self._fail(SessionError("The session was cancelled."))
                self._tools.cancel()
                await self._close_connection()

    async def _serve(self, connection: Connection) -> None:
        """Read from one connection after the other, as long as a lost one can be taken up."""
        while True:
            try:
                await self._read(connection)
            except ChuckyConnectionError as lost:
                await connection.close()
                error = self._silence or lost
                self._inquiries.fail(error)
                is_wanted = not self._closed and self._failure is None
                if not is_wanted or not self._link.can_be_taken_up(lost):
                    raise error from None
                if self._current is None and not self._queued:
                    # Nothing is missed: the next message makes the next connection.
                    self._is_resting, self._connection = True, None
                    return
                connection = await self._take_up(error)

    async def _take_up(self, error: ChuckyError) -> Connection:
        """Connect again, and go on where the lost connection ended.

        Raises:
            ChuckyError: The server refuses, or cannot be reached for too long.
        """
        async with self._connecting:  # whoever wants a connection waits for this one
            self._connection = None
            self._log.info("session %s: the connection was lost (%s)", self._session_id, error)
            connection = await self._opened(self._link.open_again(error))
            self._connection, self._silence = connection, None
        if self._current is not None:
            # If the server has it already, it does not begin a second turn.
            await connection.send(self._current.frame)
        if self._interrupted is not None:
            await connection.send(wire.control_frame("interrupt"))
        await self._start_next()
        return connection

    async def _watch(self, work: Callable[[*Args], Awaitable[None]], *args: *Args) -> None:
        """Do a part of the background work; when it fails, the session ends.

        Open turns fail at once, whatever still has to end in the background.
        """
        try:
            await work(*args)
        except ChuckyError as error:
            self._fail(error)
        except Exception as error:  # a fault of ours must reach the application, not vanish
            self._log.exception("session %s: the client failed", self._session_id)
            self._fail(SessionError(f"The client failed: {error!r}"))
        else:
            return
        await self._close_connection()  # which ends the reading, and that everything else

    async def _read(self, connection: Connection) -> None:
        assert self._tasks is not None
        keep_alive = self._tasks.create_task(self._watch(self._keep_alive, connection))
        try:
            while True:
                await self._handle(await connection.receive())
        finally:
            keep_alive.cancel()

    async def _keep_alive(self, connection: Connection) -> None:
        try:
            await connection.keep_alive(lambda: self._current is not None)
        except ChuckyTimeoutError as silence:
            self._silence = silence  # the reading has ended, and says so for another reason

    def _fail(self, error: ChuckyError) -> None:
        """Make ``error`` what everything from now on raises; only the first one counts."""
        if self._failure is None:
            self._failure = error
        self._server.end()
        self._inquiries.fail(self._failure)
        for turn in [self._current, *self._queued]:
            if turn is not None:
                turn.fail(self._failure)
                turn.end()
        self._current = None
        self._queued.clear()

    def _take_turn(self) -> Turn:
        self._check_loop()
        if not self._untaken:
            self._check_usable()
            raise SessionError("There is nothing to stream: call send() first.")
        return self._untaken.popleft()

    async def _start_next(self) -> None:
        """Send the next message, once the turn before it has ended.

        The messages wait here and not at the server, because only some servers queue them.
        """
        if self._current is not None or not self._queued or self._connection is None:
            return
        turn = self._current = self._queued.popleft()
        if self.options.turn_timeout is not None and self._tasks is not None:
            self._tasks.create_task(self._watch(self._limit, turn, self.options.turn_timeout))
        await self._connection.send(turn.frame)

    async def _limit(self, turn: Turn, seconds: float) -> None:
        """Fail a turn that takes too long, and stop it at the server."""
        if await turn.ends_within(seconds):
            return
        error = ChuckyTimeoutError(f"The turn took longer than turn_timeout ({seconds:g} s).")
        turn.fail(error)
        if wire.INTERRUPT in self._server.capabilities:
            await self.interrupt()
            if await turn.ends_within(INTERRUPT_TIMEOUT_SECONDS):
                return
        raise error

    async def _handle(self, frame: wire.ServerFrame) -> None:
        match frame:
            case wire.SdkMessage(message):
                await self._on_message(message)
            case wire.ToolCall():
                await self._on_tool_call(frame)
            case wire.ErrorFrame(payload):
                await self._on_error(error_from_wire(payload))
            case wire.Control(action, data):
                self._on_control(action, data)
            case wire.Unknown(kind):
                self._log.debug("session %s: ignored a frame of type %r", self._session_id, kind)

    async def _on_message(self, message: dict[str, Any]) -> None:
        self._server.end()
        self._learn_id(message.get("session_id"))
        if self._link.was_seen(message):
            return
        turn = self._current
        if turn is None:
            self._log.debug("session %s: a message outside any turn", self._session_id)
        elif message.get("type") == "result":
            result = result_from_wire(message)
            if self._output_format is not None:
                result = self._output_format.read(result)
            await self._end_turn(turn, result)
        else:
            turn.put(Message(message))

    def _learn_id(self, session_id: object) -> None:
        if isinstance(session_id, str) and session_id:
            self._session_id = self._log.session_id = self._link.session_id = session_id

    async def _end_turn(self, turn: Turn, result: PromptResult) -> None:
        if result.get("subtype") == "error":
            turn.put(Message(type="error", error=result["error"]))
        turn.put(result)
        turn.end()
        self._current = self._interrupted = None
        self._tools.forget()
        await self._start_next()

    async def _on_error(self, error: ChuckyError) -> None:
        """An error ends the running turn; between turns it is why the session ends."""
        if self._current is None:
            self._failure = self._failure or error
        else:
            await self._end_turn(self._current, result_from_error(error, self._session_id))

    def _on_control(self, action: str, data: dict[str, Any]) -> None:
        if action == "session_info":
            self._learn_id(data.get("sessionId"))
            self._server.take(data)
            if wire.REPLAY in self._server.capabilities:
                self._link.begin_at(data.get("seq"))
        elif action in (wire.LIST_SESSIONS, wire.HISTORY):
            self._inquiries.answer(action, data)
        elif action == "close":
            raise self._link.closed_on_purpose()

    async def _on_tool_call(self, call: wire.ToolCall) -> None:
        if (tasks := self._tasks) is None:
            return

        def start(work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
            return tasks.create_task(self._watch(work))

        replayed = self._link.is_replayed
        await self._tools.take(call, start, self._server.max_frame_bytes, may_come_again=replayed)

    async def _send(self, frame: str) -> None:
        if self._connection is not None:
            await self._connection.send(frame)

    async def _close_connection(self) -> None:
        """Close the connection, or end connecting."""
        if self._opening is not None:
            self._opening.reschedule(asyncio.get_running_loop().time())
        if self._connection is not None:
            await self._connection.close(knows_codes=self._link.is_replayed)


def _as_yielded(message: dict[str, Any]) -> Message:
    return result_from_wire(message) if message.get("type") == "result" else Message(message)
