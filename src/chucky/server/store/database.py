"""What the store asks of a database, whichever it is, and of a connection to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from chucky.errors import ChuckyError

T = TypeVar("T")


class Rows(Protocol):
    """What a statement found."""

    def fetchone(self) -> Any:
        """The next row, or None after the last."""

    def fetchall(self) -> list[Any]:
        """The rows that are left."""

    def __iter__(self) -> Iterator[Any]:
        """The rows, one by one."""


class Connection(Protocol):
    """Runs statements, within whatever transaction it is in."""

    def execute(self, statement: str, parameters: Sequence[str | int | None] = (), /) -> Rows:
        """Run a statement; each ``?`` in it stands for a parameter."""


class Database(Protocol):
    """An open database. Everything here blocks, and may be called from any thread.

    Attributes:
        applied: The names of the migrations that opening it applied.
    """

    applied: tuple[str, ...]

    def read(self, work: Callable[[Connection], T]) -> T:
        """Let ``work`` read. It is called again if the connection to a server was lost.

        Raises:
            ChuckyError: The database cannot be read.
        """

    def writing(self) -> AbstractContextManager[Connection]:
        """Write: all of it, or nothing. What is read meanwhile stays so until the end.

        Raises:
            ChuckyError: The database cannot be written.
        """

    def snapshot(self) -> AbstractContextManager[Connection]:
        """Read everything as it was at one moment; others go on writing meanwhile.

        Raises:
            ChuckyError: The database cannot be read.
        """

    def now_ms(self) -> int:
        """The time by which leases and windows are judged, in milliseconds since 1970.

        Raises:
            ChuckyError: The database cannot be read.
        """

    def close(self) -> None:
        """Close it. Safe to call again; nothing else may be called afterwards."""


def store_error(message: str) -> ChuckyError:
    """The error of a database that fails while it is used."""
    return ChuckyError(message, code="STORE_ERROR")


def now_ms() -> int:
    """The time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
