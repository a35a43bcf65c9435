"""Durable commits of one small row each: what a ledger cannot do without."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory


class BareCommits:
    """A database file of the kind that the server has, with one table. A context manager."""

    def __init__(self) -> None:
        """Make the file."""
        self._directory = TemporaryDirectory()
        file = Path(self._directory.name) / "bare.db"
        self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE row (number INTEGER)")

    def __enter__(self) -> BareCommits:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._directory.cleanup()

    def _commit(self) -> None:
        self._connection.execute("INSERT INTO row VALUES (1)")

    def one_after_the_other_ms(self, count: int) -> list[float]:
        """Make commits in a loop; how long each took, in milliseconds."""
        timed = []
        for _ in range(count):
            started_at = time.perf_counter()
            self._commit()
            timed.append((time.perf_counter() - started_at) * 1000)
        return timed

    def apart_ms(self, count: int, pause_ms: float) -> list[float]:
        """Have a thread make commits for an event loop, with a pause before each.

        Returns:
            How long the event loop waited for each, in milliseconds.
        """
        return asyncio.run(self._apart_ms(count, pause_ms))

    async def _apart_ms(self, count: int, pause_ms: float) -> list[float]:
        loop, timed = asyncio.get_running_loop(), []
        with ThreadPoolExecutor(1) as thread:
            for _ in range(count):
                await asyncio.sleep(pause_ms / 1000)
                started_at = time.perf_counter()
                await loop.run_in_executor(thread, self._commit)
                timed.append((time.perf_counter() - started_at) * 1000)
        return timed
