"""Runs the tools of a session, side by side and beside the reading."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar

from chucky import wire
from chucky.toolanswers import ToolAnswers
from chucky.tools import Tool, ToolResult, call_tool, error_result

MAX_RUNNING_TOOLS = 100

# The call whose tool this code runs in, also in the tasks and threads that the tool starts.
_tool_task: ContextVar[asyncio.Task[None] | None] = ContextVar("chucky_tool_task", default=None)

Start = Callable[[Callable[[], Awaitable[None]]], "asyncio.Task[None]"]
"""Starts work as a task of the session."""


class ToolRunner:
    """Answers the calls of one session."""

    def __init__(self, tools: Mapping[str, Tool], send: Callable[[str], Awaitable[None]]) -> None:
        """Prepare.

        Args:
            tools: The tools by their names.
            send: Sends a frame to the server.
        """
        self._tools = tools
        self._send = send
        self._answers = ToolAnswers()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._closing: asyncio.Task[None] | None = None

    async def take(
        self, call: wire.ToolCall, start: Start, max_bytes: int, *, may_come_again: bool
    ) -> None:
        """Have a call answered; one that is running is left alone.

        Args:
            call: The call.
            start: Starts the tool.
            max_bytes: The largest answer that the server takes.
            may_come_again: Whether it may come again, and is to get the same answer then.
        """
        if call.call_id in self._running:
            return
        if may_come_again and (known := self._answers.known(call)) is not None:
            await self._send(known)  # it was on its way when the connection was lost
            return
        tool = self._tools.get(call.tool_name)
        if tool is None:
            refusal = error_result(f"Unknown tool: {call.tool_name}")
            await self._answer(call, refusal, max_bytes, may_come_again)
        elif len(self._running) >= MAX_RUNNING_TOOLS:
            # Answered by the reader itself, so that a flood of calls does not pile up as tasks.
            refusal = error_result(f"{MAX_RUNNING_TOOLS} tools are running; try again later.")
            await self._answer(call, refusal, max_bytes, may_come_again)
        else:
            task = start(lambda: self._run(tool, call, max_bytes, may_come_again))
            self._running[call.call_id] = task
            task.add_done_callback(lambda _task: self._running.pop(call.call_id, None))

    async def _run(
        self, tool: Tool, call: wire.ToolCall, max_bytes: int, may_come_again: bool
    ) -> None:
        task = asyncio.current_task()
        _tool_task.set(task)
        try:
            result = await call_tool(tool, call.input)
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            # Nobody cancelled this call: the handler waited for something that was cancelled.
            result = error_result(f"Error: tool {tool.name!r} was cancelled.")
        await self._answer(call, result, max_bytes, may_come_again)

    async def _answer(
        self, call: wire.ToolCall, result: ToolResult, max_bytes: int, may_come_again: bool
    ) -> None:
        frame = self._answers.frame(call, result, max_bytes)
        if may_come_again:
            self._answers.remember(call, frame)
        await self._send(frame)

    def forget(self) -> None:
        """Forget the answers of a turn that has ended: no call of it comes again."""
        self._answers.clear()

    def note_closing(self) -> None:
        """Note that the session is being closed: the tool that does it, if one does, runs on."""
        if _tool_task.get() in self._running.values():
            self._closing = _tool_task.get()

    @property
    def is_closing_here(self) -> bool:
        """Whether this is the tool that closes the session."""
        return self._closing is not None and self._closing is _tool_task.get()

    def cancel(self) -> None:
        """Cancel the tools that run."""
        for task in self._running.values():
            if task is not self._closing:
                task.cancel()
