"""Sessions in databases of each kind: what is written is read again, in pages and sums."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from chucky.server.ledger.accounts import Holder
from chucky.server.ledger.booking import book
from chucky.server.ledger.operations import Reserve, Settle, Sweep
from chucky.server.ledger.wishes import Wish
from chucky.server.sessions.log import Event, Progress, SessionRecord
from chucky.server.store.opening import open_database, open_ledger
from chucky.server.store.session_rows import KeptSessions

if TYPE_CHECKING:
    from tests.server.conftest import Place

SESSION = SessionRecord("s", "p", "u")


@pytest.fixture
def rows(place: Place) -> Any:
    with closing(open_ledger(place.db, lambda: 1_000)) as opened:
        yield opened


@pytest.fixture
def kept(place: Place, rows: Any) -> Any:
    with closing(KeptSessions(open_database(place.db))) as opened:
        yield opened


def append(rows: Any, *events: Event, progress: Progress | None = None) -> None:
    with rows.transaction() as transaction:
        transaction.append_events(SESSION, events, progress or Progress())


def test_messages_come_in_pages_of_few_and_of_short_ones(rows: Any, kept: KeptSessions) -> None:
    kinds = ("input", "context", "message", "message", "context", "message")
    sizes = (2, 900, 300, 200, 900, 10)
    events = [
        Event(seq, kind, "t", "x" * size)  # type: ignore[arg-type]
        for seq, (kind, size) in enumerate(zip(kinds, sizes, strict=True), 1)
    ]
    append(rows, *events)

    def page(after: int, most: int, most_characters: int) -> list[int]:
        return [event.seq for event in kept.messages("s", after, most, most_characters)]

    assert page(0, 10, 10_000) == [1, 3, 4, 6]
    assert page(0, 2, 10_000) == [1, 3]
    assert page(3, 10, 10_000) == [4, 6]
    assert page(0, 10, 302) == [1, 3]
    assert page(0, 10, 303) == [1, 3, 4]
    # However long the next one is, there is one.
    assert page(1, 10, 1) == [3]
    assert page(6, 10, 10_000) == []
    assert kept.messages("s", 0, 10, 10_000)[1] == events[2]


def test_what_the_turn_that_runs_has_cost_is_summed_up(rows: Any, kept: KeptSessions) -> None:
    for turn_id in ("first", "second"):
        seq = {"first": 1, "second": 2}[turn_id]
        append(rows, Event(seq, "input", turn_id, "{}"), progress=Progress(turn_id, "flat"))
        holder = Holder("p", "u", "s", turn_id)
        for call, amount in (("a", 5), ("b", 7)):
            name = f"{turn_id}-{call}"
            reserve = Reserve(name, holder, "ai", Wish(10, 0, 0, 0, 0, 0), ())
            settle = Settle(name, holder, "ai", amount + seq)
            with rows.transaction() as transaction:
                book(transaction, [[reserve], [settle]], "owner")
    record = kept.session("s")
    assert record

    with rows.transaction() as transaction:
        assert record.turn_id == "second"
        assert transaction.turn_cost(record) == (2, 5 + 7 + 2 + 2)


def test_a_call_that_was_settled_late_is_one_call_of_its_turn(
    rows: Any, kept: KeptSessions
) -> None:
    append(rows, Event(1, "input", "t", "{}"), progress=Progress("t", "flat"))
    holder = Holder("p", "u", "s", "t")
    reserve = Reserve("late", holder, "ai", Wish(10, 0, 0, 0, 0, 0), ())
    settle = Settle("late", holder, "ai", 8)
    with rows.transaction() as transaction:
        book(transaction, [[reserve]], "owner")
    with rows.transaction() as transaction:
        book(transaction, [[Sweep(everything=True)], [settle]], "other")
    record = kept.session("s")
    assert record
    with rows.transaction() as transaction:
        assert transaction.turn_cost(record) == (1, 8)


def test_a_copy_has_the_events_up_to_its_last_and_a_life_of_its_own(
    rows: Any, kept: KeptSessions
) -> None:
    append(rows, *(Event(seq, "message", "t", f'"{seq}"') for seq in (1, 2, 3)))
    copy = SessionRecord("copy", "p", "u", forked_from="s", last_seq=2)
    with rows.transaction() as transaction:
        transaction.fork_session(copy, "s")
        transaction.append_events(copy, [Event(3, "message", "t", '"own"')], Progress(turns=1))

    assert [event.body for event in kept.events("copy")] == ['"1"', '"2"', '"own"']
    assert [event.body for event in kept.events("s")] == ['"1"', '"2"', '"3"']
    found = kept.session("copy")
    assert found
    assert (found.forked_from, found.turns, found.last_seq) == ("s", 1, 3)
    assert kept.left_sessions("anybody") == []
