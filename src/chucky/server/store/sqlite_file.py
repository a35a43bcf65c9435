"""The SQLite file of a server on one machine: opening, migrating, transactions, faults.

The only module that imports ``sqlite3``. What is in the file is told by ``schema.sql``; how a file
of an earlier version gets there, by the numbered files in ``migrations/``. What is read from and
written to it is the business of the modules beside this one.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Final

from chucky.errors import ChuckyError, ValidationError
from chucky.server.store.files import create_private_file, prepare_place

Connection = sqlite3.Connection

BUSY_TIMEOUT_SECONDS: Final = 5.0
_OLDEST_SQLITE: Final = (3, 37, 0)  # the first with STRICT tables
_APPLICATION_ID: Final = int.from_bytes(b"Chck", "big")
_MIGRATION_PATTERN: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_COUNT_TABLES: Final = "SELECT count(*) FROM sqlite_schema"
_HAS_MIGRATIONS: Final = "SELECT count(*) FROM sqlite_schema WHERE name = 'schema_migrations'"
_APPLIED_VERSION: Final = "SELECT coalesce(max(version), 0) FROM schema_migrations"
_RECORD_MIGRATION: Final = (
    "INSERT INTO schema_migrations (version, name, applied_ms) VALUES (?, ?, ?)"
)


def open_file(path: Path) -> Connection:
    """Open a database file, creating it (readable by its owner only) if there is none.

    A file of an earlier version is brought up to date first.

    Raises:
        ValidationError: The file cannot be used; the sentence says why.
    """
    _require_sqlite()
    prepare_place(path)
    create_private_file(path)
    with faults(path, ValidationError):
        connection = connect(path)
        try:
            _refuse_foreign(connection, path)
            _use_wal(connection, path)
            _migrate(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def connect(path: Path) -> Connection:
    """Open one more connection to a file that :func:`open_file` has prepared."""
    # isolation_level=None: transactions begin and end where this module says so, nowhere else.
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Write: all of it, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk may have ended the transaction already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _refuse_foreign(connection: Connection, path: Path) -> None:
    # Both answers out of one read transaction: another process may be creating the file.
    connection.execute("BEGIN")
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    table_count = connection.execute(_COUNT_TABLES).fetchone()[0]
    connection.execute("COMMIT")
    if application_id == _APPLICATION_ID:
        return
    if application_id != 0 or table_count:
        raise ValidationError(
            f"The file {str(path)!r} is a database of another program; name another file with --db."
        )


def _use_wal(connection: Connection, path: Path) -> None:
    # Two processes that switch a new file at the same time get SQLITE_BUSY at once, without
    # the busy time-out; the loser tries again and finds it done.
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise ValidationError(
            f"The database {str(path)!r} cannot use a write-ahead log where it is; move it to a "
            f"local disk."
        )


def _migrate(connection: Connection, path: Path) -> None:
    migrations = _migrations()
    newest = migrations[-1][0]
    if _applied_version(connection) == newest:
        return
    with transaction(connection):
        # Asked again: another process may have migrated while this one waited to begin.
        applied = _applied_version(connection)
        if applied > newest:
            raise ValidationError(
                f"The database {str(path)!r} was written by a newer version of chucky (its schema "
                f"is {applied}, this version knows {newest}); upgrade chucky, or name another "
                f"file with --db."
            )
        for version, name, script in migrations:
            if version > applied:
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute(_RECORD_MIGRATION, (version, name, now_ms()))


def _applied_version(connection: Connection) -> int:
    if not connection.execute(_HAS_MIGRATIONS).fetchone()[0]:
        return 0
    return int(connection.execute(_APPLIED_VERSION).fetchone()[0])


def _migrations() -> list[tuple[int, str, str]]:
    """Return (version, file name, SQL) of every migration, in order."""
    found = []
    for file in (resources.files(__package__) / "migrations").iterdir():
        match = _MIGRATION_PATTERN.fullmatch(file.name)
        if match:
            found.append((int(match[1]), file.name, file.read_text(encoding="utf-8")))
    return sorted(found)


def _statements(script: str) -> Iterator[str]:
    """Split a script, because ``executescript`` would commit the transaction it is run in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement


def _require_sqlite() -> None:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        oldest = ".".join(map(str, _OLDEST_SQLITE))
        raise ValidationError(
            f"This Python has SQLite {sqlite3.sqlite_version}, and the store needs {oldest} or "
            f"newer; use a Python built with a newer SQLite."
        )


def now_ms() -> int:
    """The time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


_WHAT_TO_DO: Final = {
    "SQLITE_NOTADB": "is not a chucky database; name another file with --db",
    "SQLITE_CORRUPT": "is damaged; restore it from a backup",
    "SQLITE_BUSY": "is locked by another process; try again, or stop that process",
    "SQLITE_LOCKED": "is locked by another process; try again, or stop that process",
    "SQLITE_READONLY": "is read-only; make the file and its directory writable",
    "SQLITE_CANTOPEN": "cannot be opened; make the file and its directory readable and writable",
    "SQLITE_PERM": "cannot be accessed; make the file and its directory readable and writable",
    "SQLITE_FULL": "cannot be written because the disk is full; free some space",
    "SQLITE_IOERR": "cannot be read or written; check the disk it is on",
}


def _result_word(error: sqlite3.Error) -> str:
    """Return the primary result code, e.g. SQLITE_IOERR for SQLITE_IOERR_WRITE."""
    name = getattr(error, "sqlite_errorname", "")
    return "_".join(str(name).split("_")[:2])


def _is_busy(error: sqlite3.Error) -> bool:
    return _result_word(error) in ("SQLITE_BUSY", "SQLITE_LOCKED")


def store_error(message: str) -> ChuckyError:
    """The error of a database that fails while it is used."""
    return ChuckyError(message, code="STORE_ERROR")


@contextmanager
def faults(path: Path, error_class: Callable[[str], ChuckyError]) -> Iterator[None]:
    """Turn what SQLite raises into one sentence that names the file and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        advice = _WHAT_TO_DO.get(_result_word(error), f"cannot be used ({error})")
        raise error_class(f"The database {str(path)!r} {advice}.") from error
