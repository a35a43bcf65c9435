"""The SQLite file of a server on one machine: opening, migrating, transactions, faults.

The only module that imports ``sqlite3``. ``schema/sqlite.sql`` tells what is in the file; how a
file of an earlier version gets there, by the scripts in ``migrations/sqlite/``. What is read from
and written to it is the business of the modules beside this one.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chucky.errors import ChuckyError, ValidationError
from chucky.server.store.database import T, now_ms, store_error
from chucky.server.store.files import (
    create_private_file,
    file_identity,
    prepare_place,
    require_database,
)
from chucky.server.store.migration import Migration, apply, migrations, missing_after

Connection = sqlite3.Connection

BUSY_TIMEOUT_SECONDS: Final = 5.0
_OLDEST_SQLITE: Final = (3, 37, 0)  # the first with STRICT tables
_APPLICATION_ID: Final = int.from_bytes(b"Chck", "big")
_COUNT_TABLES: Final = "SELECT count(*) FROM sqlite_schema"
_HAS_MIGRATIONS: Final = "SELECT count(*) FROM sqlite_schema WHERE name = 'schema_migrations'"
_APPLIED_VERSION: Final = "SELECT coalesce(max(version), 0) FROM schema_migrations"


class SqliteFile:
    """A file as a :class:`~chucky.server.store.database.Database`. Made by :meth:`open`.

    Attributes:
        applied: The names of the migrations that opening it applied.
    """

    def __init__(
        self, path: Path, reader: Connection, writer: Connection, applied: tuple[str, ...]
    ) -> None:
        self.applied = applied
        self._path = path
        self._identity = file_identity(path)
        # Two, so that nobody who reads waits for one who waits to write.
        self._reader = reader
        self._reader_lock = threading.Lock()
        self._writer = writer
        self._writer_lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, *, create: bool = True) -> SqliteFile:
        """Open a database file, bringing one of an earlier version up to date first.

        Args:
            path: The file. ``~`` is expanded. Its directory must exist, except that of the
                default database.
            create: Whether to create it (readable by its owner only) if there is none.

        Raises:
            ValidationError: The file cannot be used: its directory is missing, it is not
                readable and writable, not a database, of another program, or of a newer
                version of this one.
        """
        path = path.expanduser().absolute()
        if not create:
            require_database(path)
        writer, applied = _open_and_migrate(path)
        try:
            with faults(path, ValidationError):
                reader = connect(path)
        except BaseException:
            writer.close()
            raise
        return cls(path, reader, writer, applied)

    def close(self) -> None:
        """Close the file; see :class:`~chucky.server.store.database.Database`."""
        with self._reader_lock, self._writer_lock:
            self._reader.close()
            self._writer.close()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Let ``work`` read; see :class:`~chucky.server.store.database.Database`."""
        with self._reader_lock, faults(self._path, store_error):
            self._require_same_file()
            return work(self._reader)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Write; see :class:`~chucky.server.store.database.Database`."""
        with self._writer_lock, faults(self._path, store_error):
            self._require_same_file()
            with transaction(self._writer):
                yield self._writer

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Read at one moment; see :class:`~chucky.server.store.database.Database`."""
        with self._reader_lock, faults(self._path, store_error):
            self._require_same_file()
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                self._reader.execute("ROLLBACK")

    def now_ms(self) -> int:
        """Tell the time; see :class:`~chucky.server.store.database.Database`."""
        return now_ms()

    def _require_same_file(self) -> None:
        """Refuse to go on with a file that others no longer see."""
        if file_identity(self._path) != self._identity:
            raise store_error(
                f"The database {str(self._path)!r} was removed or replaced while in use; put it "
                f"back, or restart the server."
            )


def missing_migrations(path: Path) -> list[Migration]:
    """Return the migrations that a file lacks, and leave it as it is.

    Raises:
        ValidationError: There is no such file, or it cannot be used.
    """
    path = path.expanduser().absolute()
    require_database(path)
    with faults(path, ValidationError):
        connection = connect(path)
        try:
            _refuse_foreign(connection, path)
            return _missing(connection, path)
        finally:
            connection.close()


def open_file(path: Path) -> Connection:
    """Open a database file, creating it (readable by its owner only) if there is none.

    A file of an earlier version is brought up to date first.

    Raises:
        ValidationError: The file cannot be used; the sentence says why.
    """
    return _open_and_migrate(path)[0]


def _open_and_migrate(path: Path) -> tuple[Connection, tuple[str, ...]]:
    _require_sqlite()
    prepare_place(path)
    create_private_file(path)
    with faults(path, ValidationError):
        connection = connect(path)
        try:
            _refuse_foreign(connection, path)
            _use_wal(connection, path)
            return connection, _migrate(connection, path)
        except BaseException:
            connection.close()
            raise


def connect(path: Path) -> Connection:
    """Open one more connection to a file that :func:`open_file` has prepared."""
    # isolation_level=None: transactions begin and end where this module says so, nowhere else.
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        # Pages that are written often are copied out of the log once in a while (16 MB), and those
        # that are looked at often stay in memory (up to 16 MB).
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA cache_size = -16000")
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


def _migrate(connection: Connection, path: Path) -> tuple[str, ...]:
    if not _missing(connection, path):
        return ()

    def run_script(script: str) -> None:
        for statement in _statements(script):
            connection.execute(statement)

    with transaction(connection):
        # Asked again: another process may have migrated while this one waited to begin.
        return apply(_missing(connection, path), connection, run_script)


def _missing(connection: Connection, path: Path) -> list[Migration]:
    applied = 0
    if connection.execute(_HAS_MIGRATIONS).fetchone()[0]:
        applied = int(connection.execute(_APPLIED_VERSION).fetchone()[0])
    return missing_after(applied, migrations("sqlite"), str(path))


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


@contextmanager
def faults(path: Path, error_class: Callable[[str], ChuckyError]) -> Iterator[None]:
    """Turn what SQLite raises into one sentence that names the file and what to do."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise  # what the schema refuses is a fault of ours, and the file is in order
    except sqlite3.Error as error:
        advice = _WHAT_TO_DO.get(_result_word(error), f"cannot be used ({error})")
        raise error_class(f"The database {str(path)!r} {advice}.") from error
