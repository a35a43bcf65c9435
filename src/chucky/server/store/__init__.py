"""What a server must not lose."""

from __future__ import annotations

from collections.abc import Callable

from chucky.server.ledger.rows import LedgerRows
from chucky.server.settings import Settings
from chucky.server.store import opening
from chucky.server.store.database import now_ms
from chucky.server.store.ledger_reports import LedgerReader
from chucky.server.store.lock import ServeLock
from chucky.server.store.opening import missing_migrations, open_database
from chucky.server.store.projects import Store
from chucky.server.store.session_rows import KeptSessions

__all__ = [
    "KeptSessions",
    "ServeLock",
    "Store",
    "missing_migrations",
    "open_ledger",
    "open_reader",
    "open_sessions",
    "open_store",
]


def open_ledger(settings: Settings, clock_ms: Callable[[], int] = now_ms) -> LedgerRows:
    """Open the ledger in the store the settings name. Blocks, for milliseconds as a rule.

    Args:
        settings: Where the store is.
        clock_ms: The time, in milliseconds since 1970, for a ledger in a file; a PostgreSQL server
            has a clock of its own.

    Raises:
        ValidationError: It cannot be opened.
    """
    return opening.open_ledger(settings.db, clock_ms)


def open_reader(settings: Settings) -> LedgerReader:
    """Open the ledger for reports and audits. Blocks, for milliseconds as a rule.

    Raises:
        ValidationError: It cannot be opened, or does not exist.
    """
    return LedgerReader(open_database(settings.db, create=False))


def open_sessions(settings: Settings, *, create: bool = True) -> KeptSessions:
    """Open the sessions in the store the settings name. Blocks, for milliseconds as a rule.

    Args:
        settings: Where the store is.
        create: Whether to create a store that is not there.

    Raises:
        ValidationError: The store cannot be opened, or does not exist and is not to be created.
    """
    return KeptSessions(open_database(settings.db, create=create))


def open_store(settings: Settings, *, create: bool = True) -> Store:
    """Open the store the settings name. Blocks, for milliseconds as a rule.

    Args:
        settings: Where the store is.
        create: Whether to create a file that is not there, or tables in an empty database.

    Raises:
        ValidationError: It cannot be opened, or does not exist and is not to be created.
    """
    return Store.open(settings.db, settings.master_key, create=create)
