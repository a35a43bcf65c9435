"""What a server must not lose."""

from __future__ import annotations

from collections.abc import Callable

from chucky.server.ledger.rows import LedgerRows
from chucky.server.settings import Settings
from chucky.server.store.files import require_database
from chucky.server.store.lock import ServeLock
from chucky.server.store.sqlite import SqliteStore
from chucky.server.store.sqlite_file import now_ms
from chucky.server.store.sqlite_ledger import SqliteLedgerRows

__all__ = ["ServeLock", "SqliteStore", "open_ledger", "open_store"]


def open_ledger(settings: Settings, clock_ms: Callable[[], int] = now_ms) -> LedgerRows:
    """Open the ledger in the store the settings name. Blocks, for milliseconds as a rule.

    Args:
        settings: Where the store is.
        clock_ms: The time, in milliseconds since 1970.

    Raises:
        ValidationError: It cannot be opened.
    """
    return SqliteLedgerRows.open(settings.db, clock_ms)


def open_store(settings: Settings, *, create: bool = True) -> SqliteStore:
    """Open the store the settings name. Blocks, for milliseconds as a rule.

    Args:
        settings: Where the store is.
        create: Whether to create a database that does not exist.

    Raises:
        ValidationError: It cannot be opened, or does not exist and is not to be created.
    """
    if not create:
        require_database(settings.db)
    return SqliteStore.open(settings.db, settings.master_key)
