"""Threads for handlers that are plain functions: daemons, and only so many at once.

``asyncio.to_thread`` is not used because its threads belong to the loop's default executor:
``asyncio.run`` joins them when it ends, and the interpreter joins them once more when it exits,
so one handler that never returns would keep the whole program from ending. A daemon thread is
simply left behind.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import inspect
import threading
from collections.abc import Callable
from typing import Any


class _Job:
    """One call on its way through a thread, and the future its caller waits for."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[tuple[Any, BaseException | None]] = self._loop.create_future()

    def execute(self) -> None:
        """Run the function in the current thread and hand its outcome to the loop."""
        value: Any = None
        error: BaseException | None = None
        try:
            value = self._context.run(self._function)
        except BaseException as raised:  # raised again where the caller waits
            error = raised
        try:
            self._loop.call_soon_threadsafe(self._deliver, value, error)
        except RuntimeError:
            # The loop is closed: the program has stopped waiting for anything.
            _discard(value)

    def drop(self) -> None:
        """Give up what was delivered in the very moment the caller was cancelled."""
        if self.done.done() and not self.done.cancelled():
            _discard(self.done.result()[0])

    def _deliver(self, value: Any, error: BaseException | None) -> None:
        if self.done.done():
            _discard(value)
        else:
            # Not `set_exception`: a future refuses to carry StopIteration.
            self.done.set_result((value, error))


def _discard(value: Any) -> None:
    # A coroutine nobody will await warns when it is collected; closing it is how to say so.
    if inspect.iscoroutine(value):
        value.close()


class DaemonThreads:
    """Runs blocking functions in daemon threads, at most ``limit`` at the same time.

    A call beyond the limit waits for a thread to become free, first in, first out. A thread
    without work stays for a while, because starting one costs more than most handlers do.

    Args:
        limit: How many threads there may be.
        idle_seconds: How long a thread stays without work.
    """

    def __init__(self, limit: int, idle_seconds: float = 10.0) -> None:
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._changed = threading.Condition()
        self._waiting: collections.deque[_Job] = collections.deque()
        self._threads = 0
        self._idle = 0

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` in a thread, in a copy of the caller's context.

        When the caller is cancelled, a call that has not begun never will; one that has begun
        cannot be stopped: it keeps its thread until it returns, and what it returns is dropped.

        Returns:
            What the function returned.

        Raises:
            BaseException: Whatever the function raised.
            RuntimeError: The system has no thread left to give.
        """
        job = _Job(function)
        self._submit(job)
        try:
            value, error = await job.done
        except asyncio.CancelledError:
            self._forget(job)
            job.drop()
            raise
        if error is not None:
            raise error
        return value

    def _submit(self, job: _Job) -> None:
        with self._changed:
            self._waiting.append(job)
            if len(self._waiting) <= self._idle:
                self._changed.notify()
                return
            if self._threads >= self._limit:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, name="chucky-tool", daemon=True).start()
        except BaseException:
            self._forget(job)
            with self._changed:
                self._threads -= 1
            raise

    def _forget(self, job: _Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _work(self) -> None:
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        # A frame of its own, so that an idle thread holds on to nothing of its last job.
        job = self._next()
        if job is not None:
            job.execute()
        return job is not None

    def _next(self) -> _Job | None:
        with self._changed:
            self._idle += 1
            while not self._waiting:
                if not self._changed.wait(self._idle_seconds) and not self._waiting:
                    self._idle -= 1
                    self._threads -= 1
                    return None
            self._idle -= 1
            return self._waiting.popleft()
