"""An event loop in a thread, for a command whose main thread waits for a person."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

_T = TypeVar("_T")

_STOP_SECONDS = 5.0


class BackgroundLoop:
    """Runs coroutines on a loop of its own while used as a context manager."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> BackgroundLoop:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._runner.close()

    def submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Start a coroutine on the loop; the future is for any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, _T], timeout_seconds: float = 30.0) -> _T:
        """Run a coroutine on the loop and wait for its result.

        Raises:
            TimeoutError: It took longer than ``timeout_seconds``.
        """
        return self.submit(work).result(timeout_seconds)
