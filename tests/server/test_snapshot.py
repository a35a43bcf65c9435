"""What a database shows at one moment, while others write."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from chucky.errors import ChuckyError
from chucky.server.store import Store
from chucky.server.store.database import Connection, now_ms
from chucky.server.store.opening import open_database


def names(connection: Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM projects").fetchall()}


def test_a_snapshot_stands_still_and_holds_nobody_up(place: Any) -> None:
    with closing(Store.open(place.db)) as store, closing(open_database(place.db)) as database:
        store.create_project("before")
        with database.snapshot() as connection:
            assert names(connection) == {"before"}
            store.create_project("meanwhile")
            assert names(connection) == {"before"}
        with database.snapshot() as connection:
            assert names(connection) == {"before", "meanwhile"}


def test_a_snapshot_that_fails_leaves_the_next_one_usable(place: Any) -> None:
    with closing(open_database(place.db)) as database:
        with pytest.raises(ChuckyError), database.snapshot() as connection:
            connection.execute("SELECT nothing FROM nowhere")
        with database.snapshot() as connection:
            assert names(connection) == set()


def test_a_database_tells_the_time(place: Any) -> None:
    hour_ms = 3_600_000  # the clock of a database server may be another
    with closing(open_database(place.db)) as database:
        assert abs(database.now_ms() - now_ms()) < hour_ms
