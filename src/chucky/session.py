"""A conversation of several turns over one connection."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from . import wire
from .connection import CLOSE_TIMEOUT_SECONDS, Connection
from .errors import (
    ChuckyConnectionError,
    ChuckyError,
    ChuckyTimeoutError,
    SessionError,
    ValidationError,
    error_from_wire,
)
from .messages import Message, PromptResult, result_from_error, result_from_wire
from .options import ChuckyOptions, PromptOptions, init_options, session_servers
from .tools import ToolResult, call_tool, collect_tools
from .turn import Turn, TurnStream

logger = logging.getLogger("chucky")

MAX_QUEUED_TURNS = 100
MAX_RUNNING_TOOLS = 100

Content = str | list[dict[str, Any]]


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
        options.check()
        self.options = options
        self.session_options = session_options or PromptOptions()
        self.debug = debug
        servers = session_servers(options, self.session_options)
        self._tools = collect_tools(servers)
        self._init = init_options(options, self.session_options, servers)
        self._on_close = on_close
        self._session_id = ""
        self._server_capabilities: frozenset[str] = frozenset()
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._runner: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._running_tools: dict[str, asyncio.Task[None]] = {}
        self._current: Turn | None = None
        self._queued: deque[Turn] = deque()
        self._untaken: deque[Turn] = deque()
        self._failure: ChuckyError | None = None
        self._closed = False

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

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
        _check_content(message)
        self._check_usable()
        if len(self._queued) >= MAX_QUEUED_TURNS:
            raise SessionError(
                f"{MAX_QUEUED_TURNS} messages are waiting for their turn; read the answers with "
                "stream() before sending more."
            )
        await self._connect()
        turn = Turn(wire.user_frame(message, uuid=str(uuid.uuid4()), session_id=self._session_id))
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

    async def interrupt(self) -> None:
        """Stop the running turn; its stream ends with a result that says so.

        Does nothing when no turn is running.

        Raises:
            SessionError: This server cannot interrupt a turn (the hosted one cannot).
            ChuckyConnectionError: The connection was lost.
        """
        if self._current is None or self._connection is None:
            return
        if wire.INTERRUPT not in self._server_capabilities:
            raise SessionError("This server cannot interrupt a turn; close the session to stop it.")
        await self._connection.send(wire.control_frame("interrupt"))

    async def close(self) -> None:
        """Close the session; a running turn is stopped. May be called more than once."""
        if self._closed:
            return
        self._closed = True
        self._fail_turns(SessionError("The session was closed."))
        if self._on_close is not None:
            self._on_close(self)
        if self._connection is None or self._runner is None:
            return  # a connection that is being made is closed by _connect()
        try:
            await self._connection.close()
            await self._join(self._runner)
        except asyncio.CancelledError:
            self._runner.cancel()
            raise

    async def _join(self, runner: asyncio.Task[None]) -> None:
        """Wait for the background task, which ends by itself once the connection is closed."""
        caller = asyncio.current_task()
        # A tool may close its own session: it is not cancelled, and since the background task
        # waits for it, it must not wait for the background task.
        closed_by_tool = caller in self._running_tools.values()
        for task in self._running_tools.values():
            if task is not caller:
                task.cancel()
        if closed_by_tool:
            return
        _done, pending = await asyncio.wait([runner], timeout=CLOSE_TIMEOUT_SECONDS)
        if pending:
            logger.warning("session %s: a tool does not end; it is left", self._session_id)

    def _check_usable(self) -> None:
        if self._closed:
            raise SessionError("This session is closed; make a new one with create_session().")
        if self._failure is not None:
            raise self._failure

    async def _connect(self) -> None:
        async with self._connecting:
            self._check_usable()
            if self._connection is not None:
                return
            connection = await Connection.open(
                url=self.options.url,
                token=self.options.token,
                init=self._init,
                timeout=self.options.timeout,
                keepalive_interval=self.options.keepalive_interval,
                debug=self.debug,
            )
            if self._closed:
                await connection.close()
                self._check_usable()
            self._connection = connection
            self._tasks = asyncio.TaskGroup()
            self._runner = asyncio.create_task(self._run(connection, self._tasks))

    async def _run(self, connection: Connection, tasks: asyncio.TaskGroup) -> None:
        """Read until the connection ends; whatever ends it is what open turns raise."""
        try:
            async with tasks:
                keep_alive = tasks.create_task(
                    connection.keep_alive(lambda: self._current is not None)
                )
                await self._read(connection)
                keep_alive.cancel()
        except* ChuckyError as errors:
            self._fail(_first(errors))
        except* Exception as errors:  # a fault of ours must reach the application, not vanish
            logger.exception("session %s: reading failed", self._session_id)
            self._fail(SessionError(f"The client failed: {_first(errors)!r}"))
        finally:
            self._fail(SessionError("The session was cancelled."))
            await connection.close()

    async def _read(self, connection: Connection) -> None:
        try:
            async for frame in connection.frames():
                await self._handle(frame)
        except ChuckyConnectionError:
            if not self._closed:
                raise

    def _fail(self, error: ChuckyError) -> None:
        """Make ``error`` what everything from now on raises; only the first one counts."""
        if self._failure is None:
            self._failure = error
        self._fail_turns(self._failure)

    def _fail_turns(self, error: ChuckyError) -> None:
        for turn in [self._current, *self._queued]:
            if turn is not None:
                turn.fail(error)
        self._current = None
        self._queued.clear()

    def _take_turn(self) -> Turn:
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
            self._tasks.create_task(self._limit(turn, self.options.turn_timeout))
        await self._connection.send(turn.frame)

    async def _limit(self, turn: Turn, seconds: float) -> None:
        """Fail a turn that takes too long, and stop it at the server."""
        try:
            async with asyncio.timeout(seconds):
                await turn.wait_ended()
        except TimeoutError:
            error = ChuckyTimeoutError(f"The turn took longer than turn_timeout ({seconds:g} s).")
            turn.fail(error)
            if wire.INTERRUPT not in self._server_capabilities:
                raise error from None
            await self.interrupt()

    async def _handle(self, frame: wire.ServerFrame) -> None:
        match frame:
            case wire.SdkMessage(message):
                await self._on_message(message)
            case wire.ToolCall():
                self._on_tool_call(frame)
            case wire.ErrorFrame(payload):
                await self._on_error(error_from_wire(payload))
            case wire.Control(action, data):
                self._on_control(action, data)
            case wire.Unknown(kind):
                logger.debug("session %s: ignored a frame of type %r", self._session_id, kind)
            case wire.Pong():
                pass

    async def _on_message(self, message: dict[str, Any]) -> None:
        session_id = message.get("session_id")
        if isinstance(session_id, str) and session_id:
            self._session_id = session_id
        turn = self._current
        if turn is None:
            logger.debug("session %s: a message outside any turn", self._session_id)
        elif message.get("type") == "result":
            await self._end_turn(turn, result_from_wire(message))
        else:
            turn.put(Message(message))

    async def _end_turn(self, turn: Turn, result: PromptResult) -> None:
        if result.get("subtype") == "error":
            turn.put(Message(type="error", error=result["error"]))
        turn.put(result)
        turn.end()
        self._current = None
        await self._start_next()

    async def _on_error(self, error: ChuckyError) -> None:
        """An error ends the running turn; between turns it is why the session ends."""
        if self._current is None:
            self._failure = self._failure or error
        else:
            await self._end_turn(self._current, result_from_error(error, self._session_id))

    def _on_control(self, action: str, data: dict[str, Any]) -> None:
        if action == "session_info":
            session_id = data.get("sessionId")
            if isinstance(session_id, str):
                self._session_id = session_id
            named = data.get("capabilities")
            if isinstance(named, list):
                self._server_capabilities = frozenset(map(str, named))
        elif action == "close":
            raise ChuckyConnectionError("The server closed the session.")

    def _on_tool_call(self, call: wire.ToolCall) -> None:
        if call.call_id in self._running_tools or self._tasks is None:
            return
        task = self._tasks.create_task(self._answer_tool_call(call))
        self._running_tools[call.call_id] = task
        task.add_done_callback(lambda _task: self._running_tools.pop(call.call_id, None))

    async def _answer_tool_call(self, call: wire.ToolCall) -> None:
        if self._connection is None:
            return
        result = await self._run_tool(call)
        frame = wire.tool_result_frame(call.call_id, result.content, is_error=result.is_error)
        await self._connection.send(frame)

    async def _run_tool(self, call: wire.ToolCall) -> ToolResult:
        tool = self._tools.get(call.tool_name)
        if tool is None:
            return _tool_error(f"Unknown tool: {call.tool_name}")
        if len(self._running_tools) > MAX_RUNNING_TOOLS:
            return _tool_error(f"More than {MAX_RUNNING_TOOLS} tools are running; try again.")
        return await call_tool(tool, call.input)


def _tool_error(text: str) -> ToolResult:
    return ToolResult(content=[{"type": "text", "text": text}], is_error=True)


def _check_content(message: object) -> None:
    if isinstance(message, str):
        if not message.strip():
            raise ValidationError("The message is empty; send some text.")
        return
    if not isinstance(message, list) or not message:
        raise ValidationError(
            "The message must be text or a non-empty list of content blocks, not "
            f"{type(message).__name__}."
        )
    for block in message:
        if not isinstance(block, dict) or block.get("type") not in wire.CONTENT_BLOCK_TYPES:
            kinds = ", ".join(sorted(wire.CONTENT_BLOCK_TYPES))
            raise ValidationError(f"A content block must have one of the types {kinds}.")


def _first(errors: BaseExceptionGroup[Any]) -> Any:
    """The exception that came first: the others are what it caused."""
    error: Any = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
