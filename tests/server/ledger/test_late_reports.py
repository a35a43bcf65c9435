"""What reports say of a call that was settled after its lease had ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from chucky.server.ledger.operations import Beat, Checkpoint, Operation, Settle, Sweep, Void
from chucky.server.ledger.reports import ChargeLine, Doubt, Grouping, Selection, UsageLine
from chucky.server.model.pricing import Price, Rate, Usage
from chucky.server.settings import Settings
from chucky.server.store import open_reader

if TYPE_CHECKING:
    from tests.server.conftest import Place

PRICE = Price("m", "operator", *[Rate(1_000_000)] * 5)  # a nano-dollar a token
DAY_MS = 86_400_000
EXPECTED = Usage(500, 0, 30, 0, 0)  # what was known of the call when its lease ended
REAL = Usage(420, 90, 30, 7, 60)
COST = 607


@pytest.fixture
def call_id(ledger_db: Any) -> str:
    """A call whose lease has ended."""
    reserved, _ = ledger_db.reserve(1_000, price=PRICE, usage=EXPECTED)
    ledger_db.book(Beat(ledger_db.owner, (Checkpoint(reserved, 530, EXPECTED),)))
    ledger_db.book(Sweep(everything=True), owner="next")
    return str(reserved)


@pytest.fixture
def book(ledger_db: Any) -> Callable[..., None]:
    """Book something, once and once more."""

    def twice(*operations: Operation) -> None:
        for _ in range(2):
            ledger_db.book(*operations)

    return twice


@pytest.fixture
def ledger(place: Place, ledger_db: Any) -> Iterator[Any]:
    """The reports of the project of this test."""
    with closing(open_reader(Settings(db=place.db))) as reader:
        yield Reports(reader, Selection(ledger_db.project_id))


class Reports:
    """What an operator sees."""

    def __init__(self, reader: Any, selection: Selection) -> None:
        self.reader = reader
        self.selection = selection

    def usage(self, by: Grouping = "model") -> list[UsageLine]:
        """What was used."""
        with self.reader.snapshot() as rows:
            return list(rows.usage(self.selection, by))

    def charges(self, doubt: Doubt) -> list[ChargeLine]:
        """Charges that an operator may want to look at."""
        with self.reader.snapshot() as rows:
            return list(rows.charges(self.selection, doubt))


def tokens(line: UsageLine) -> Usage:
    return Usage(*line[3:8])


def test_a_call_that_was_settled_late_is_one_call_with_its_real_tokens_and_cost(
    ledger_db: Any, call_id: str, book: Any, ledger: Any
) -> None:
    book(Settle(call_id, ledger_db.holder(), "ai", COST, REAL))
    [line] = ledger.usage()
    assert (line.group, line.calls, tokens(line), line.ai_nanos) == ("m", 1, REAL, COST)
    assert (line.estimated, line.estimated_nanos) == (0, 0)
    assert (line.excess, line.excess_nanos, line.credited_nanos) == (1, COST - 530, 0)
    assert ledger.charges("estimated") == []
    [charge] = ledger.charges("excess")
    assert (charge.call_id, charge.amount, charge.reserved) == (call_id, COST - 530, 0)


def test_a_late_settlement_that_is_an_estimate_too_leaves_the_whole_call_one(
    ledger_db: Any, call_id: str, book: Any, ledger: Any
) -> None:
    book(Settle(call_id, ledger_db.holder(), "ai", COST, REAL, is_estimated=True, unpriced="maps"))
    [line] = ledger.usage()
    assert (line.calls, line.estimated, line.estimated_nanos) == (1, 1, COST)
    assert line.unpriced == 1
    assert {each.call_id for each in ledger.charges("estimated")} == {call_id}
    assert [each.unpriced for each in ledger.charges("unpriced")] == ["maps"]


def test_a_call_that_had_expired_and_was_void_comes_to_nothing(
    ledger_db: Any, call_id: str, book: Any, ledger: Any
) -> None:
    book(Void(call_id, ledger_db.holder(), "ai"))
    [line] = ledger.usage()
    assert (tokens(line), line.ai_nanos, line.estimated_nanos, line.excess) == (Usage(), 0, 0, 0)
    assert line.credited_nanos == 0


def test_what_is_settled_on_another_day_counts_on_that_day(
    ledger_db: Any, call_id: str, book: Any, ledger: Any
) -> None:
    ledger_db.clock.now_ms += DAY_MS
    book(Settle(call_id, ledger_db.holder(), "ai", 300, Usage(300)))
    first, second = ledger.usage("day")
    assert (first.calls, first.ai_nanos, second.calls, second.ai_nanos) == (1, 530, 0, -230)
    assert (first.input_tokens, second.input_tokens) == (500, -200)


def test_compute_that_was_settled_late_is_counted_in_full(
    ledger_db: Any, book: Any, ledger: Any
) -> None:
    turn, _ = ledger_db.reserve(10_000, meter="compute")
    ledger_db.book(Beat(ledger_db.owner, (Checkpoint(turn, 2_000),)))
    ledger_db.book(Sweep(everything=True), owner="next")
    book(Settle(turn, ledger_db.holder(), "compute", 7_500))
    [line] = ledger.usage("user")
    assert (line.compute_ms, line.credited_ms, line.calls, line.estimated) == (7_500, 0, 0, 0)
