"""Running one call of a tool: whatever happens, the model gets a result."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from typing import Any

from chucky.tools.binding import BoundCall
from chucky.tools.definition import Tool
from chucky.tools.problems import ArgumentsError
from chucky.tools.results import ToolResult, as_tool_result, encodable, error_result
from chucky.tools.signature import Function
from chucky.tools.threads import DaemonThreads

_logger = logging.getLogger("chucky.tools")

# For all sessions together. Far more than one model asks for at once; it is there so that
# handlers that never return cannot take all of the system's threads.
_THREADS = DaemonThreads(limit=64)


async def call_tool(tool: Tool, arguments: object) -> ToolResult:
    """Run a tool once and return what the model is told.

    The arguments are validated before the handler runs. An async handler runs on the loop; any
    other one runs in a daemon thread, with the caller's context variables, so that it may block.
    When the tool's time is up, an async handler is cancelled; a thread cannot be stopped, so
    its handler runs on and what it returns is dropped.

    Args:
        tool: The tool.
        arguments: The input the model gave; None counts as an empty object.

    Returns:
        The handler's result. Wrong arguments, an exception in the handler, an exceeded time
        limit and a return value that cannot be sent are results with ``is_error``.

    Raises:
        asyncio.CancelledError: The caller was cancelled, or the handler said it was.
    """
    try:
        function, bound = tool.bind(arguments)
    except ArgumentsError as error:
        return error_result(encodable(error.sentence(tool.name)))
    except Exception as error:  # validators in the caller's types may raise anything
        return _failed(tool, error)
    try:
        async with asyncio.timeout(tool.timeout_seconds) as limit:
            value = await _run(function, bound)
    except (Exception, SystemExit) as error:
        # A handler may raise anything, and one that calls argparse or sys.exit() must not end
        # the whole program; the model is told.
        if isinstance(error, TimeoutError) and limit.expired():
            return error_result(
                f"Error: tool {tool.name!r} did not finish within {tool.timeout_seconds:g} seconds."
            )
        return _failed(tool, error)
    return as_tool_result(value, tool.name)


async def _run(function: Function, bound: BoundCall) -> Any:
    positional, keywords = bound
    call = functools.partial(function, *positional, **keywords)
    value = call() if _is_async(function) else await _THREADS.run(call)
    # Also a plain function may return an awaitable: a decorator around an async one does.
    return await value if inspect.isawaitable(value) else value


def _is_async(function: Function) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        type(function).__call__
    )


def _failed(tool: Tool, error: BaseException) -> ToolResult:
    _logger.info("tool %r failed", tool.name, exc_info=error)
    try:
        text = str(error)
    except Exception:  # a __str__ of the caller's own, in an exception of the caller's own
        text = ""
    kind = type(error).__name__
    return error_result(encodable(f"Error: {kind}: {text}" if text else f"Error: {kind}"))
