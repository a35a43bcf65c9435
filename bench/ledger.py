"""How many reservations are made and settled, and how long a caller waits for both.

Callers in one process reserve for a model call and settle it, over and over, each for a user of its
own with a daily budget, through the ledger as the server runs it: rules, queue, commits that are on
the disk. The peer is a loop that writes the same rows into the same tables of the same database in
as many transactions, with as many operations in each as ours had on average; it reads what it
changes but decides nothing, and has no callers. Ours and the peer take turns. Afterwards all
accounts are counted again from the entries and reservations.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.bare_ledger import RESERVED, SPENT, bare_ledger
from bench.figures import Figures, Row, Series, Target, percentile
from bench.postgres import postgres_server
from chucky.server.ledger.accounts import Holder, Limit
from chucky.server.ledger.ledger import Ledger
from chucky.server.ledger.operations import (
    Booked,
    Granted,
    Reserve,
    Settle,
    new_reservation_id,
)
from chucky.server.ledger.rows import LedgerRows, LedgerTransaction
from chucky.server.ledger.wishes import Wish
from chucky.server.model.pricing import Price, Rate, Usage
from chucky.server.postgres_url import PostgresUrl
from chucky.server.settings import Settings
from chucky.server.store import open_ledger
from chucky.server.store.opening import open_database

_NANOS = 1_000_000_000
_PRICE = Price(
    "m",
    "operator",
    input=Rate(3 * _NANOS),
    output=Rate(15 * _NANOS),
    cache_read=Rate(3 * _NANOS),
    cache_write_5m=Rate(3 * _NANOS),
    cache_write_1h=Rate(6 * _NANOS),
)
_USAGE = Usage(100, 200)
_WISH = Wish(RESERVED, 0, 4096, 64, 8192, 4096)
_LIMITS = (Limit("user", "day", 10**18),)
_COUNTED = """
    project_id = accounts.project_id AND meter = accounts.meter AND user_id = accounts.user_id
    AND accounts.session_id IN ('', session_id)
"""
_MISMATCHES = f"""
SELECT count(*) FROM (
    SELECT settled, reserved,
        (SELECT coalesce(sum(amount), 0) FROM ledger_entries WHERE {_COUNTED}) AS booked,
        (SELECT coalesce(sum(amount), 0) FROM ledger_reservations WHERE {_COUNTED}) AS held,
        (SELECT sum(spent) FROM ledger_windows
         WHERE ledger_windows.account_id = accounts.account_id) AS spent
    FROM ledger_accounts AS accounts
) AS counted WHERE settled <> booked OR reserved <> held OR spent <> booked
"""
_ENTRIES = "SELECT count(*) FROM ledger_entries"


@dataclass(frozen=True, slots=True)
class _Goal:
    """What is asked of a database at 50 callers."""

    pairs_a_second: float
    p99_ms: float


_GOALS = {"SQLite": _Goal(10_000, 20), "PostgreSQL": _Goal(1_500, 60)}
_GOAL_CALLERS = 50


@dataclass
class _Runs:
    """What was measured with so many callers on one database, a value for each block."""

    pairs_a_second: list[float] = field(default_factory=list)
    bare_pairs_a_second: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    operations_a_commit: list[float] = field(default_factory=list)


def measure(*, quick: bool) -> Figures:
    """Measure the ledger; see the module's docstring."""
    blocks = 2 if quick else 5
    pairs = {1: 4, 50: 100, 200: 200} if quick else {1: 1_000, 50: 25_000, 200: 25_000}
    rows: list[Row] = []
    details: dict[str, Any] = {}
    with _databases() as databases:
        for name, db in databases.items():
            mismatches: list[float] = []
            found = {callers: _Runs() for callers in pairs}
            for _ in range(blocks):
                for callers, runs in found.items():
                    _measure_block(db, callers, pairs[callers], runs)
                mismatches.append(_mismatches(db))
            rows += _rows(name, found, mismatches)
            details[name] = {"operations_in_a_commit": _commits(found), "entries": _count(db)}
    size = {"blocks": blocks, "pairs_in_a_block": sum(pairs.values()), "databases": 2}
    return Figures(rows=rows, size=size, details=details)


@contextmanager
def _databases() -> Iterator[dict[str, Path | PostgresUrl]]:
    with TemporaryDirectory() as directory, postgres_server() as url:
        yield {"SQLite": Path(directory) / "chucky.db", "PostgreSQL": PostgresUrl(url)}


# --- ours -------------------------------------------------------------------------------------


class _CountedRows:
    """Rows that count transactions."""

    def __init__(self, rows: LedgerRows) -> None:
        self._rows = rows
        self.transactions = 0

    @contextmanager
    def transaction(self) -> Iterator[LedgerTransaction]:
        """Begin a transaction."""
        self.transactions += 1
        with self._rows.transaction() as transaction:
            yield transaction

    def close(self) -> None:
        """Close the database."""
        self._rows.close()


def _measure_block(db: Path | PostgresUrl, callers: int, pairs: int, runs: _Runs) -> None:
    with closing(_CountedRows(open_ledger(Settings(db=db)))) as rows:
        started_at = time.perf_counter()
        waited = asyncio.run(_spend(rows, callers, pairs // callers))
        seconds = time.perf_counter() - started_at
    runs.pairs_a_second.append(len(waited) / seconds)
    runs.p99_ms.append(percentile(waited, 0.99) * 1_000)
    runs.operations_a_commit.append(2 * len(waited) / rows.transactions)
    users = max(round(runs.operations_a_commit[-1]), 1)
    rounds = max(pairs // users, 1)
    with bare_ledger(db, users) as bare:
        started_at = time.perf_counter()
        for _ in range(rounds):
            bare.spend()
        seconds = time.perf_counter() - started_at
    runs.bare_pairs_a_second.append(rounds * users / seconds)


async def _spend(rows: LedgerRows, callers: int, pairs: int) -> list[float]:
    ledger = Ledger(rows)
    running = asyncio.create_task(ledger.run())
    waited: list[float] = []
    async with asyncio.TaskGroup() as tasks:
        for number in range(callers):
            holder = Holder("bench", f"user-{number}", f"session-{number}", "turn")
            tasks.create_task(_spend_alone(ledger, holder, pairs, waited))
    running.cancel()
    await asyncio.wait([running])
    return waited


async def _spend_alone(ledger: Ledger, holder: Holder, pairs: int, waited: list[float]) -> None:
    for _ in range(pairs):
        started_at = time.perf_counter()
        call_id = new_reservation_id()
        wanted = Reserve(call_id, holder, "ai", _WISH, _LIMITS, price=_PRICE, usage=_USAGE)
        [granted] = await ledger.reserve(wanted, told=_never)
        assert isinstance(granted, Granted)
        [booked] = await ledger.post(Settle(call_id, holder, "ai", SPENT, _USAGE, limits=_LIMITS))
        assert isinstance(booked, Booked)
        waited.append(time.perf_counter() - started_at)


def _never(standing: object) -> None:
    raise AssertionError(f"nobody else holds this money: {standing}")


# --- what it comes to -------------------------------------------------------------------------


def _mismatches(db: Path | PostgresUrl) -> int:
    return _number(db, _MISMATCHES)


def _count(db: Path | PostgresUrl) -> int:
    return _number(db, _ENTRIES)


def _number(db: Path | PostgresUrl, query: str) -> int:
    with closing(open_database(db)) as database:
        return int(database.read(lambda connection: connection.execute(query).fetchone())[0])


def _commits(found: dict[int, _Runs]) -> dict[str, float]:
    return {
        f"{callers} callers": round(
            sum(runs.operations_a_commit) / len(runs.operations_a_commit), 1
        )
        for callers, runs in found.items()
    }


def _rows(name: str, found: dict[int, _Runs], mismatches: list[float]) -> Iterator[Row]:
    goal = _GOALS[name]
    for callers, runs in found.items():
        ours = Series("through the ledger", tuple(runs.pairs_a_second))
        peer = Series("bare loop", tuple(runs.bare_pairs_a_second))
        who = f"{name}, {callers} {'caller' if callers == 1 else 'callers'}"
        yield Row(
            f"{who}: reserved and settled, to the bare loop",
            "pairs/s",
            ours,
            peer,
            "ours / peer",
            Target(at_least=0.3),
        )
        is_goal = callers == _GOAL_CALLERS
        if is_goal:
            target = Target(at_least=goal.pairs_a_second)
            yield Row(f"{who}: reserved and settled", "pairs/s", ours, None, "ours", target)
        yield Row(
            f"{who}: a caller waits for both, p99",
            "ms",
            Series("through the ledger", tuple(runs.p99_ms)),
            None,
            "ours",
            Target(at_most=goal.p99_ms) if is_goal else None,
        )
    yield Row(
        f"{name}: accounts that are not the sum of their entries",
        "accounts",
        Series("counted again", tuple(mismatches)),
        None,
        "ours",
        Target(at_most=0),
    )
