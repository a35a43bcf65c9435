"""Sessions that are older than their project wants are deleted, a little at a time."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky
from chucky.errors import ChuckyError, ValidationError
from chucky.server.ledger.ledger import Ledger
from chucky.server.ledger.operations import Also
from chucky.server.policy import read_policy
from chucky.server.sessions import retention
from chucky.server.sessions.log import Event, Progress, SessionRecord
from chucky.server.sessions.retention import Retention
from chucky.server.store import session_rows
from chucky.server.store.opening import open_database, open_ledger
from chucky.server.store.session_rows import KeptSessions

if TYPE_CHECKING:
    from tests.server.conftest import Place

WAIT_SECONDS = 20
DAY_MS = 86_400_000
NOW_MS = 100 * DAY_MS


class Store:
    """Kept sessions of a test, written as a server writes them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.rows = open_ledger(place.db, lambda: NOW_MS)
        self.kept = KeptSessions(open_database(place.db))

    def close(self) -> None:
        self.rows.close()
        self.kept.close()

    def add(self, session_id: str, days_old: float, project_id: str = "p", **more: Any) -> None:
        """Write a session in which something happened last so many days ago."""
        session = SessionRecord(session_id, project_id, "user")
        events = [Event(n, "message", "t", '"x"') for n in range(1, 1 + more.get("events", 3))]
        progress = Progress(more.get("turn_id", ""))
        with self.rows.transaction() as transaction:
            transaction.append_events(session, events, progress)  # type: ignore[attr-defined]
        at_ms = NOW_MS - int(days_old * DAY_MS)
        self.place.execute(
            f"UPDATE sessions SET active_ms = {at_ms} WHERE session_id = '{session_id}'"
        )

    def ids(self, table: str = "sessions") -> set[str]:
        return {row[0] for row in self.place.execute(f"SELECT session_id FROM {table}")}


@pytest.fixture
def store(place: Place) -> Any:
    with closing(Store(place)) as opened:
        yield opened


@pytest.mark.parametrize("days", [0, -1, 1.5, "30", True, None])
def test_a_retention_is_a_whole_number_of_days(days: Any) -> None:
    with pytest.raises(ValidationError, match=r"^The policy\.retentionDays "):
        read_policy(json.dumps({"retentionDays": days}))

    assert read_policy('{"retentionDays": 1}').retention_days == 1
    assert read_policy("{}").retention_days is None


async def test_what_is_older_than_its_project_wants_goes_and_everything_else_stays(
    store: Store,
) -> None:
    def fill() -> None:
        store.add("old", 30.01)
        store.add("young", 29.99)
        store.add("running", 31, turn_id="t")
        store.add("kept-for-ever", 1000, "q")
        store.add("of-another", 8, "r")

    await asyncio.to_thread(fill)
    days = {"p": 30, "r": 7}

    assert await Retention(store.kept, lambda: days, lambda: NOW_MS).clean() == 2
    left = {"young", "running", "kept-for-ever"}
    assert await asyncio.to_thread(store.ids) == left
    assert await asyncio.to_thread(store.ids, "session_events") == left
    assert await Retention(store.kept, lambda: days, lambda: NOW_MS).clean() == 0


async def test_no_transaction_deletes_more_than_a_little(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_EVENTS_AT_ONCE", 10)
    monkeypatch.setattr(retention, "_SESSIONS_AT_ONCE", 2)
    monkeypatch.setattr(retention, "_PAUSE_SECONDS", 0)

    def fill() -> None:
        for number in range(5):
            store.add(f"old {number}", 40, events=25)

    await asyncio.to_thread(fill)
    left: list[int] = []
    sweep = store.kept.sweep

    def counting(most_events: int) -> bool:
        is_left = sweep(most_events)
        left.append(store.place.execute("SELECT count(*) FROM session_events")[0][0])
        return is_left

    monkeypatch.setattr(store.kept, "sweep", counting)
    assert await Retention(store.kept, lambda: {"p": 30}, lambda: NOW_MS).clean() == 5
    assert all(0 <= before - after <= 10 for before, after in itertools.pairwise(left))
    assert left[0] == 115
    assert left[-1] == 0
    assert await asyncio.to_thread(store.ids) == set()


def test_looking_for_old_sessions_reads_no_others(tmp_path: Path) -> None:
    database = open_database(tmp_path / "chucky.db")
    with closing(database), database.writing() as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN " + session_rows._DISOWN_OLD, ("p", NOW_MS, 10)
        ).fetchall()
    [found] = [row[-1] for row in plan if "active_ms" in row[-1]]
    assert found.startswith("SEARCH sessions USING INDEX sessions_by_activity")
    assert "active_ms<?" in found


async def test_a_session_is_gone_before_all_of_it_is_deleted(store: Store) -> None:
    await asyncio.to_thread(store.add, "old", 40)
    await asyncio.to_thread(store.kept.disown, "old")

    assert await asyncio.to_thread(store.kept.session, "old") is None
    assert await asyncio.to_thread(store.kept.latest_session, "p", "user") is None
    # What an earlier run or a command has left is deleted whatever projects say.
    assert await Retention(store.kept, dict, lambda: NOW_MS).clean() == 0
    assert await asyncio.to_thread(store.ids) == set()


async def test_nothing_is_written_to_a_session_that_was_deleted(store: Store) -> None:
    ledger = Ledger(store.rows)
    session = SessionRecord("gone", "p", "user")

    def append(seq: int) -> Also:
        event = Event(seq, "message", "t", '"x"')
        return Also(lambda transaction, _: transaction.append_events(session, [event], Progress()))

    await ledger.write(append(1))
    await asyncio.to_thread(store.kept.disown, "gone")
    await ledger.write(append(2))
    while await asyncio.to_thread(store.kept.sweep, 100):
        pass
    await ledger.write(append(3))

    assert await asyncio.to_thread(store.ids) == set()
    assert await asyncio.to_thread(store.ids, "session_events") == set()


async def test_a_database_that_fails_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried_again = asyncio.Event()

    class Failing:
        tries = 0

        def disown_old(self, project_id: str, before_ms: int, most: int) -> int:
            raise AssertionError("no project keeps its sessions for a time")

        def sweep(self, most_events: int) -> bool:
            self.tries += 1
            if self.tries == 1:
                raise ChuckyError("The database is locked.", code="STORE_ERROR")
            loop.call_soon_threadsafe(tried_again.set)
            return False

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(retention, "_INTERVAL_SECONDS", 0)
    running = asyncio.create_task(Retention(Failing(), dict, lambda: NOW_MS).run())
    async with asyncio.timeout(WAIT_SECONDS):
        await tried_again.wait()
    running.cancel()
    await asyncio.wait([running])

    assert "old sessions could not be deleted: The database is locked." in caplog.text


async def test_a_server_deletes_what_is_over_the_retention_of_its_project(
    start_server: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "chucky.server")
    cleaned = asyncio.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "over their retention" in record.getMessage():
                cleaned.set()

    handler = Handler()
    logger = logging.getLogger("chucky.server")
    logger.addHandler(handler)
    try:
        async with start_server() as server, Chucky(server.token(), url=server.url) as client:
            await client.prompt("Hello")
            policy = json.dumps({"retentionDays": 30})
            await asyncio.to_thread(server.store.set_policy, server.project_id, policy)
        later = datetime.now(UTC) + timedelta(days=30, minutes=1)
        async with start_server(clock=lambda: later) as server:
            async with asyncio.timeout(WAIT_SECONDS):
                await cleaned.wait()
            kept = await asyncio.to_thread(rows, server.store.database)
    finally:
        logger.removeHandler(handler)

    assert "sessions over their retention that were deleted: 1" in caplog.text
    assert kept == (0, 0)


def rows(database: Any) -> tuple[int, int]:
    query = "SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM session_events)"
    return tuple(database.read(lambda connection: connection.execute(query).fetchone()))
