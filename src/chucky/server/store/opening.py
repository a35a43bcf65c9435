"""Which database a setting means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chucky.errors import ValidationError
from chucky.server.ledger.rows import LedgerRows
from chucky.server.postgres_url import PostgresUrl
from chucky.server.store import sqlite_file
from chucky.server.store.database import Database
from chucky.server.store.migration import Migration
from chucky.server.store.sqlite_ledger import SqliteLedgerRows


def open_database(db: Path | PostgresUrl, *, create: bool = True) -> Database:
    """Open a database, bringing one of an earlier version up to date first.

    Args:
        db: A file, or the address of a PostgreSQL database.
        create: Whether to create a file that is not there, or tables in an empty database.

    Raises:
        ValidationError: It cannot be used; the sentence says why.
    """
    if isinstance(db, Path):
        return sqlite_file.SqliteFile.open(db, create=create)
    with _driver_needed():
        from chucky.server.store import postgres_database

    return postgres_database.PostgresDatabase.open(db, create=create)


def open_ledger(db: Path | PostgresUrl, clock_ms: Callable[[], int]) -> LedgerRows:
    """Open the ledger in a database, bringing one of an earlier version up to date first.

    Args:
        db: A file, or the address of a PostgreSQL database.
        clock_ms: The time for a file, in milliseconds since 1970.

    Raises:
        ValidationError: It cannot be used; the sentence says why.
    """
    if isinstance(db, Path):
        return SqliteLedgerRows.open(db, clock_ms)
    with _driver_needed():
        from chucky.server.store.postgres_ledger import PostgresLedgerRows

    return PostgresLedgerRows.open(db)


def missing_migrations(db: Path | PostgresUrl) -> list[Migration]:
    """Return the migrations that a database lacks, and leave it as it is.

    Raises:
        ValidationError: It cannot be used; the sentence says why.
    """
    if isinstance(db, Path):
        return sqlite_file.missing_migrations(db)
    with _driver_needed():
        from chucky.server.store import postgres_database

    return postgres_database.missing_migrations(db)


@contextmanager
def _driver_needed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ValidationError(
            f"A PostgreSQL database needs the package psycopg, which cannot be used ({error}): run "
            f"`pip install '.[server,postgres]'` in a checkout of chucky."
        ) from error
