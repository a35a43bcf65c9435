"""What a server must not lose."""

from __future__ import annotations

from chucky.server.settings import Settings
from chucky.server.store.files import require_database
from chucky.server.store.lock import ServeLock
from chucky.server.store.sqlite import SqliteStore

__all__ = ["ServeLock", "SqliteStore", "open_store"]


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
