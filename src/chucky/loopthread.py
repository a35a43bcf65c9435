"""An event loop in a thread of its own, for callers that wait instead of awaiting."""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeVar

from chucky.errors import SessionError

T = TypeVar("T")

_STOP_SECONDS = 5.0


class LoopThread:
    """Runs coroutines of other threads on one event loop.

    The thread starts with the first work and may be stopped and started again. It is a daemon,
    so it keeps no program from ending. As a context manager it stops at the end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def __enter__(self) -> LoopThread:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether the thread has been started and not stopped."""
        return self._running is not None

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop; the future is for any other thread."""
        with self._lock:
            if self._running is None:
                self._running = _Running()
            return asyncio.run_coroutine_threadsafe(work, self._running.loop)

    def submit_if_running(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T] | None:
        """Start what ``work`` returns, where the thread has been started; else do nothing."""
        with self._lock:
            if self._running is None:
                return None
            return asyncio.run_coroutine_threadsafe(work(), self._running.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for its result.

        When waiting is interrupted (Ctrl-C), the coroutine is cancelled.

        Raises:
            SessionError: Called on this very loop, which would then wait for itself; or the
                thread was stopped meanwhile.
        """
        try:
            self._check_caller()
        except BaseException:  # a warning may be an error, too
            work.close()
            raise
        future: Future[T] | None = None
        try:
            future = self.submit(work)
            wait([future])
        except BaseException:
            if future is not None:
                future.cancel()
            raise
        try:
            return future.result()
        except CancelledError:
            raise SessionError("The client was closed while this call was waiting.") from None

    def stop(self, *, wait: bool = True) -> None:
        """End the thread; what still runs on its loop is cancelled."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.stop(wait=wait)

    def _check_caller(self) -> None:
        running = self._running
        if running is not None and running.thread is threading.current_thread():
            raise SessionError(
                "This call runs on the event loop of its own client, which would wait for itself "
                "for ever; make the tool a plain function (def), which runs in a thread."
            )
        if _is_in_coroutine() and not _is_in_notebook():
            warnings.warn(
                "chucky.sync blocks the event loop that runs here until the answer has come; in "
                "a coroutine use chucky.Chucky and await it.",
                RuntimeWarning,
                stacklevel=4,
            )


class _Running:
    """The thread and its loop, from the start to the end."""

    def __init__(self) -> None:
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._stopped = asyncio.Event()
        self.thread = threading.Thread(
            target=self._serve, args=(started,), name="chucky", daemon=True
        )
        self.thread.start()
        self.loop = started.result()

    def stop(self, *, wait: bool) -> None:
        self.loop.call_soon_threadsafe(self._stopped.set)
        if wait and self.thread is not threading.current_thread():
            self.thread.join(_STOP_SECONDS)

    def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        asyncio.run(self._until_stopped(started))

    async def _until_stopped(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        started.set_result(asyncio.get_running_loop())
        await self._stopped.wait()


def _is_in_coroutine() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _is_in_notebook() -> bool:
    """Whether IPython runs the code: its cells run on a loop, and may block it."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None
