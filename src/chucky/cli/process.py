"""How a command that runs until it is told to stop is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run_until_signal(
    work: Coroutine[Any, Any, None], on_hangup: Callable[[], None] | None = None
) -> int:
    """Run ``work`` until it is done, or cancel it at the first SIGINT or SIGTERM.

    A second signal is no longer held back, so it ends a clean-up that takes too long.

    Args:
        work: Long-running work that cleans up after itself when it is cancelled.
        on_hangup: What SIGHUP does; without it, it ends the process.

    Returns:
        The exit code: 130 after SIGINT, otherwise 0.
    """
    return asyncio.run(_run_until_signal(work, on_hangup))


async def _run_until_signal(
    work: Coroutine[Any, Any, None], on_hangup: Callable[[], None] | None
) -> int:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    caught: list[int] = []

    def stop(signal_number: int) -> None:
        caught.append(signal_number)
        for each in _STOP_SIGNALS:
            loop.remove_signal_handler(each)
        task.cancel()

    for each in _STOP_SIGNALS:
        loop.add_signal_handler(each, stop, each)
    if on_hangup is not None:
        loop.add_signal_handler(signal.SIGHUP, on_hangup)
    try:
        await task
    except asyncio.CancelledError:
        if not caught:
            raise
    return 130 if signal.SIGINT in caught else 0
