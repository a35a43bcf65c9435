"""The ledger for its tests: its rows in every database there is, and a clock that stands still."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from chucky.server.ledger.accounts import Holder, Limit, Meter
from chucky.server.ledger.booking import book
from chucky.server.ledger.operations import Operation, Outcome, Reserve, Settle
from chucky.server.ledger.rows import LedgerRows
from chucky.server.ledger.wishes import Wish
from chucky.server.store.sqlite_ledger import SqliteLedgerRows

# A Monday in the middle of a month.
START_MS = 1_789_387_200_000


@dataclass
class Clock:
    """The time of a database, as the test says."""

    now_ms: int = START_MS

    def __call__(self) -> int:
        """Tell the time."""
        return self.now_ms


@dataclass
class LedgerDatabase:
    """A database with a ledger in it, which a test drives without a server.

    Attributes:
        open_rows: Opens it; a second time for a second process.
        rows: It, opened.
        clock: Its time.
        start_ms: The time in the beginning.
        project_id: A project that no other test has.
        owner: The process that books.
    """

    open_rows: Callable[[], LedgerRows]
    rows: LedgerRows
    clock: Clock
    start_ms: int = START_MS
    project_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)

    def holder(self, user: str = "ann", session: str = "s1", turn: str = "t1") -> Holder:
        """Someone who pays."""
        return Holder(self.project_id, user, session, turn)

    def book(self, *operations: Operation, owner: str | None = None) -> list[Outcome]:
        """Do a group of operations in a transaction of its own."""
        with self.rows.transaction() as transaction:
            [outcomes] = book(transaction, [operations], owner or self.owner)
        return outcomes

    def reserve(
        self,
        amount: int,
        *limits: Limit,
        holder: Holder | None = None,
        meter: Meter = "ai",
        **more: Any,
    ) -> tuple[str, Outcome]:
        """Try to hold an amount; return the id of the reservation, and what came of it."""
        reservation_id = uuid.uuid4().hex
        who = holder or self.holder()
        wanted = Reserve(reservation_id, who, meter, flat(amount), limits, **more)
        return reservation_id, self.book(wanted)[0]

    def spend(
        self, amount: int, *limits: Limit, holder: Holder | None = None, meter: Meter = "ai"
    ) -> str:
        """Hold an amount, whatever the limits are, and spend it; return the id of the call."""
        who = holder or self.holder()
        wide = [replace(limit, amount=10**15) for limit in limits]
        reservation_id, _ = self.reserve(amount, *wide, holder=who, meter=meter)
        self.book(Settle(reservation_id, who, meter, amount, limits=limits))
        return reservation_id


def flat(amount: int) -> Wish:
    """A wish for an amount that is wanted whole or not at all."""
    return Wish(amount, 0, 0, 0, 0, 0)


@pytest.fixture(params=["sqlite"])
def ledger_db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LedgerDatabase]:
    """The ledger in a database, once for each kind of database there is."""
    clock = Clock()
    opened: list[LedgerRows] = []

    def open_rows() -> LedgerRows:
        assert request.param == "sqlite"
        opened.append(SqliteLedgerRows.open(tmp_path / "ledger.db", clock))
        return opened[-1]

    yield LedgerDatabase(open_rows, open_rows(), clock)
    for rows in opened:
        rows.close()
