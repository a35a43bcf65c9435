"""The rules of the ledger, on each database."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from chucky.server.ledger.accounts import Limit, Meter, TurnRate
from chucky.server.ledger.booking import LEASE_MS, book
from chucky.server.ledger.operations import (
    Adjust,
    Beat,
    Booked,
    Busy,
    Checkpoint,
    Done,
    Exceeded,
    Extend,
    Granted,
    Look,
    Operation,
    Outcome,
    Reanchor,
    Refused,
    Reserve,
    Seen,
    Settle,
    Sweep,
    TooFast,
    Void,
    new_reservation_id,
)
from chucky.server.ledger.windows import iso_time, milliseconds
from chucky.server.ledger.wishes import Wish
from chucky.server.model.pricing import Price, Rate, Usage
from chucky.server.sessions.log import Event, Progress, SessionRecord

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
DAILY = Limit("user", "day", 1_000)
EVER = Limit("user", "lifetime", 1_000)
PRICE = Price("m", "operator", *[Rate(1_000_000)] * 5)  # a nano-dollar a token


def spent(outcome: Outcome) -> int:
    """What the limits that were asked for say is spent, and no reservation open."""
    assert isinstance(outcome, Booked | Seen | Granted)
    [standing] = outcome.standings
    assert standing.reserved == 0
    return standing.spent


def look(db: Any, limit: Limit, **who: str) -> Outcome:
    outcome: Outcome = db.book(Look(db.holder(**who), {"ai": (limit,)}))[0]
    return outcome


# --- limits -----------------------------------------------------------------------------------


def test_money_is_held_until_it_is_spent_or_given_back(ledger_db: Any) -> None:
    first, granted = ledger_db.reserve(700, DAILY)
    assert isinstance(granted, Granted)
    _, second = ledger_db.reserve(301, DAILY)
    assert isinstance(second, Busy)
    assert (second.standing.spent, second.standing.reserved, second.standing.free) == (0, 700, 300)

    assert ledger_db.book(Settle(first, ledger_db.holder(), "ai", 600))[0] == Booked(
        "ai", "settle", 600
    )
    _, third = ledger_db.reserve(401, DAILY)
    assert isinstance(third, Exceeded)
    fourth, granted = ledger_db.reserve(400, DAILY)
    assert isinstance(granted, Granted)
    assert ledger_db.book(Void(fourth, ledger_db.holder(), "ai"))[0] == Booked("ai", "void", 0)
    assert spent(look(ledger_db, DAILY)) == 600


def test_users_projects_and_meters_have_nothing_in_common(ledger_db: Any) -> None:
    ledger_db.spend(1_000)
    for holder, meter in (
        (ledger_db.holder("bob"), "ai"),
        (ledger_db.holder(), "compute"),
        (ledger_db.holder()._replace(project_id=uuid.uuid4().hex), "ai"),
    ):
        _, outcome = ledger_db.reserve(1_000, DAILY, holder=holder, meter=meter)
        assert isinstance(outcome, Granted)
    assert isinstance(ledger_db.reserve(1, DAILY)[1], Exceeded)


def test_sessions_of_a_user_draw_on_one_account_and_each_on_its_own(ledger_db: Any) -> None:
    ledger_db.spend(400, holder=ledger_db.holder(session="s1"))
    ledger_db.spend(500, holder=ledger_db.holder(session="s2"))
    session = Limit("session", "lifetime", 600)
    in_first = ledger_db.holder(session="s1")
    _, outcome = ledger_db.reserve(201, session, holder=in_first)
    assert isinstance(outcome, Exceeded)
    assert outcome.standing.limit.scope == "session"
    _, outcome = ledger_db.reserve(101, session, DAILY, holder=in_first)
    assert isinstance(outcome, Exceeded)
    assert outcome.standing.limit.scope == "user"
    assert isinstance(ledger_db.reserve(100, session, DAILY, holder=in_first)[1], Granted)


def test_a_project_is_limited_to_what_its_users_spend_together(ledger_db: Any) -> None:
    ledger_db.spend(300, holder=ledger_db.holder("ann"))
    ledger_db.spend(300, holder=ledger_db.holder("bob"))
    together = Limit("project", "day", 1_000)
    # The first limit of the project counts what was spent before there was one.
    held, outcome = ledger_db.reserve(400, together, holder=ledger_db.holder("cyd"))
    assert isinstance(outcome, Granted)
    assert isinstance(ledger_db.reserve(1, together, holder=ledger_db.holder("ann"))[1], Busy)
    ledger_db.book(Settle(held, ledger_db.holder("cyd"), "ai", 400))
    _, outcome = ledger_db.reserve(1, together, holder=ledger_db.holder("ann"))
    assert isinstance(outcome, Exceeded)
    assert outcome.standing.spent == 1_000


def test_the_amount_of_the_token_is_the_limit_now(ledger_db: Any) -> None:
    ledger_db.spend(1_000)
    assert isinstance(ledger_db.reserve(1, DAILY)[1], Exceeded)
    assert isinstance(ledger_db.reserve(500, replace(DAILY, amount=1_500))[1], Granted)
    assert isinstance(ledger_db.reserve(1, DAILY)[1], Exceeded)
    assert isinstance(ledger_db.reserve(1, replace(DAILY, amount=1_500))[1], Busy)


def test_what_a_provider_charges_beyond_the_reservation_is_booked_as_excess(ledger_db: Any) -> None:
    held, _ = ledger_db.reserve(900, DAILY)
    outcome = ledger_db.book(Settle(held, ledger_db.holder(), "ai", 1_100, limits=(DAILY,)))[0]
    assert (outcome.amount, outcome.excess, spent(outcome)) == (1_100, 200, 1_100)
    assert isinstance(ledger_db.reserve(1, DAILY)[1], Exceeded)


# --- windows and their anchors ----------------------------------------------------------------


def test_minting_a_token_again_with_another_start_adds_no_money(ledger_db: Any) -> None:
    start_ms = ledger_db.clock.now_ms
    ledger_db.spend(1_000, replace(DAILY, start_ms=start_ms))
    assert isinstance(ledger_db.reserve(1, replace(DAILY, start_ms=start_ms))[1], Exceeded)
    for minutes in range(1, 24 * 60, 37):
        ledger_db.clock.now_ms = start_ms + minutes * 60_000
        for again_ms in (ledger_db.clock.now_ms, start_ms + DAY_MS, 0, None):
            _, outcome = ledger_db.reserve(1, replace(DAILY, start_ms=again_ms))
            assert isinstance(outcome, Exceeded)
    ledger_db.clock.now_ms = start_ms + DAY_MS
    assert isinstance(ledger_db.reserve(1_000, replace(DAILY, start_ms=start_ms))[1], Granted)


def test_the_first_use_fixes_where_windows_begin(ledger_db: Any) -> None:
    now_ms = ledger_db.clock.now_ms
    for kind in ("hour", "day", "week", "month"):
        started = Limit("user", kind, 1_000, now_ms - 90_000)
        outcome = ledger_db.reserve(1, started, holder=ledger_db.holder("bob"))[1]
        assert outcome.standings[0].window.start_ms == now_ms - 90_000
        outcome = ledger_db.reserve(1, Limit("user", kind, 1_000))[1]
        assert outcome.standings[0].window.start_ms == now_ms


def test_looking_fixes_nothing(ledger_db: Any) -> None:
    look(ledger_db, replace(DAILY, start_ms=0))
    ledger_db.clock.now_ms += 1
    assert ledger_db.reserve(1, DAILY)[1].standings[0].window.start_ms == ledger_db.clock.now_ms


def test_a_window_that_was_only_looked_at_is_not_kept(ledger_db: Any) -> None:
    weekly = Limit("user", "week", 1_000)
    ledger_db.spend(5, DAILY)
    for _ in range(3):
        ledger_db.clock.now_ms += 1
        assert spent(look(ledger_db, weekly)) == 0
        ledger_db.spend(5, DAILY)
    # What is looked at begins at that moment, as it would if it was used.
    [account] = ledger_db.lock(ledger_db.holder().key("user", "ai"))
    assert [window.kind for window in account.spent] == ["day"]


def test_spending_counts_in_the_window_in_which_it_is_booked(ledger_db: Any) -> None:
    hourly = Limit("user", "hour", 1_000)
    held, _ = ledger_db.reserve(1_000, hourly)
    ledger_db.clock.now_ms += HOUR_MS - 1
    assert isinstance(ledger_db.reserve(1, hourly)[1], Busy)
    ledger_db.clock.now_ms += 1
    # What is open is held in the new window, too: it will be booked there.
    assert isinstance(ledger_db.reserve(1, hourly)[1], Busy)
    ledger_db.book(Settle(held, ledger_db.holder(), "ai", 1_000))
    assert isinstance(ledger_db.reserve(1, hourly)[1], Exceeded)
    ledger_db.clock.now_ms += HOUR_MS
    assert isinstance(ledger_db.reserve(1_000, hourly)[1], Granted)


def test_an_operator_can_move_the_anchor(ledger_db: Any) -> None:
    start_ms = ledger_db.clock.now_ms
    ledger_db.spend(1_000, DAILY)
    assert isinstance(ledger_db.reserve(1, DAILY)[1], Exceeded)
    ledger_db.clock.now_ms += HOUR_MS
    moved = Reanchor(ledger_db.holder(), "day", ledger_db.clock.now_ms)
    assert ledger_db.book(moved) == [Done()]
    held, outcome = ledger_db.reserve(1_000, DAILY)
    assert isinstance(outcome, Granted)
    assert outcome.standings[0].window.start_ms == ledger_db.clock.now_ms
    ledger_db.book(Void(held, ledger_db.holder(), "ai"))
    # And back: what was spent counts in the windows that result.
    ledger_db.book(Reanchor(ledger_db.holder(), "day", start_ms))
    assert isinstance(ledger_db.reserve(1, DAILY)[1], Exceeded)


@pytest.mark.parametrize("kind", ["hour", "day", "week", "month", "lifetime"])
def test_a_clock_that_jumps_neither_gives_nor_takes_money(ledger_db: Any, kind: str) -> None:
    limit = Limit("user", kind, 1_000)
    start_ms = ledger_db.clock.now_ms
    ledger_db.spend(600, limit)
    ledger_db.clock.now_ms = start_ms + 40 * DAY_MS
    ledger_db.spend(500, limit)
    ledger_db.clock.now_ms = start_ms + 1
    is_forever = kind == "lifetime"
    assert spent(look(ledger_db, limit)) == (1_100 if is_forever else 600)
    ledger_db.spend(300, limit)
    ledger_db.clock.now_ms = start_ms + 40 * DAY_MS + 1
    assert spent(look(ledger_db, limit)) == (1_400 if is_forever else 500)
    ledger_db.clock.now_ms = start_ms - DAY_MS
    assert spent(look(ledger_db, limit)) == (1_400 if is_forever else 0)


# --- every reservation ends once --------------------------------------------------------------


def test_a_window_that_is_now_again_counts_what_is_booked_in_it(ledger_db: Any) -> None:
    start_ms = ledger_db.clock.now_ms
    ledger_db.spend(100, DAILY)
    ledger_db.clock.now_ms = start_ms + 40 * DAY_MS
    ledger_db.spend(10, EVER)
    ledger_db.clock.now_ms = start_ms + 1
    ledger_db.spend(1, EVER)
    assert spent(look(ledger_db, DAILY)) == 101
    assert spent(look(replace(ledger_db, rows=ledger_db.open_rows()), DAILY)) == 101


def test_a_window_that_is_still_to_come_counts_what_is_booked_when_it_has_come(
    ledger_db: Any,
) -> None:
    start_ms = ledger_db.clock.now_ms
    ledger_db.spend(1, DAILY)
    ledger_db.clock.now_ms = start_ms + DAY_MS + 1_000
    ledger_db.spend(10, DAILY)
    ledger_db.clock.now_ms = start_ms + DAY_MS - 1_000  # the clock is set back
    ledger_db.spend(100, EVER)
    ledger_db.clock.now_ms = start_ms + DAY_MS + 2_000
    ledger_db.spend(200, EVER)
    assert spent(look(ledger_db, DAILY)) == 210
    assert spent(look(replace(ledger_db, rows=ledger_db.open_rows()), DAILY)) == 210


def test_what_is_settled_again_is_booked_once(ledger_db: Any) -> None:
    held, _ = ledger_db.reserve(700, DAILY)
    settle = Settle(held, ledger_db.holder(), "ai", 500, limits=(DAILY,))
    first = ledger_db.book(settle)[0]
    for again in (settle, settle._replace(amount=600), Void(held, ledger_db.holder(), "ai")):
        outcome = ledger_db.book(again)[0]
        assert (outcome.kind, outcome.amount) == (first.kind, first.amount) == ("settle", 500)
    with ledger_db.rows.transaction() as transaction:
        [[once], [twice]] = book(transaction, [[settle], [settle]], ledger_db.owner)
    assert once == twice == first


def test_ends_in_one_transaction_count_once(ledger_db: Any) -> None:
    held, _ = ledger_db.reserve(700, DAILY)
    settle = Settle(held, ledger_db.holder(), "ai", 500, limits=(DAILY,))
    void = Void(held, ledger_db.holder(), "ai")
    with ledger_db.rows.transaction() as transaction:
        [[once], [twice], [voided]] = book(transaction, [[settle], [settle], [void]], "me")
    assert spent(once) == spent(twice) == 500
    assert voided == Booked("ai", "settle", 500)
    assert spent(look(ledger_db, DAILY)) == 500


def test_a_reservation_that_is_asked_for_again_is_held_once(ledger_db: Any) -> None:
    wanted = Reserve(
        "r-" + uuid.uuid4().hex, ledger_db.holder(), "ai", Wish(0, 10**6, 700, 1, 1, 1), (DAILY,)
    )
    again = wanted._replace(is_repeated=True)
    first, second = ledger_db.book(wanted)[0], ledger_db.book(again)[0]
    assert (first.units, first.amount) == (second.units, second.amount)
    seen = look(ledger_db, DAILY)
    assert isinstance(seen, Seen)
    assert seen.standings[0].reserved == first.amount
    ledger_db.book(Settle(wanted.reservation_id, ledger_db.holder(), "ai", 5))
    assert isinstance(ledger_db.book(again)[0], Refused)
    assert spent(look(ledger_db, DAILY)) == 5


def test_ids_of_reservations_are_uuids_in_the_order_of_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = iter(range(1_789_387_200_000_000_000, 1_789_387_300_000_000_000, 10**9))
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    ids = [new_reservation_id() for _ in range(100)]
    assert ids == sorted(ids)
    assert {uuid.UUID(each).version for each in ids} == {7}
    assert len({each[13:] for each in ids}) == 100


def test_what_nobody_reserved_cannot_be_ended(ledger_db: Any) -> None:
    unknown: tuple[Operation, ...] = (
        Settle("never", ledger_db.holder(), "ai", 5),
        Void("never", ledger_db.holder(), "ai"),
        Extend("never", ledger_db.holder(), "ai", Wish(1, 0, 0, 0, 0, 0), ()),
    )
    for operation in unknown:
        assert isinstance(ledger_db.book(operation)[0], Refused)
    assert spent(look(ledger_db, DAILY)) == 0


def test_a_group_stops_where_something_is_not_granted(ledger_db: Any) -> None:
    def wanted(amount: int) -> Reserve:
        wish = Wish(amount, 0, 0, 0, 0, 0)
        return Reserve(uuid.uuid4().hex, ledger_db.holder(), "ai", wish, (DAILY,))

    outcomes = ledger_db.book(wanted(400), wanted(700), wanted(1))
    assert [type(each) for each in outcomes] == [Granted, Busy]
    assert isinstance(ledger_db.reserve(600, DAILY)[1], Granted)


def test_an_extension_holds_more_under_the_same_limits(ledger_db: Any) -> None:
    wish = Wish(0, 1_000_000, 600, 1, 600, 50)
    held = uuid.uuid4().hex
    ledger_db.book(Reserve(held, ledger_db.holder(), "compute", wish, (DAILY,)))
    more = Extend(held, ledger_db.holder(), "compute", wish, (DAILY,))
    other, _ = ledger_db.reserve(350, DAILY, meter="compute")
    assert ledger_db.book(more)[0].amount == 650
    assert isinstance(ledger_db.book(more)[0], Busy)
    ledger_db.book(Settle(other, ledger_db.holder(), "compute", 100))
    assert ledger_db.book(more)[0].amount == 900
    # All that is left is its own, so that nobody needs to be waited for.
    outcome = ledger_db.book(more)[0]
    assert isinstance(outcome, Exceeded)
    assert (outcome.standing.spent, outcome.standing.reserved) == (1_000, 0)
    outcome = ledger_db.book(Settle(held, ledger_db.holder(), "compute", 890))[0]
    assert (outcome.amount, outcome.excess) == (890, 0)
    assert isinstance(ledger_db.book(more)[0], Refused)


# --- processes that die -----------------------------------------------------------------------


def test_what_a_dead_process_left_is_ended_with_its_checkpoint(ledger_db: Any) -> None:
    usage = Usage(input_tokens=100, output_tokens=50)
    followed, _ = ledger_db.reserve(700, DAILY, price=PRICE, usage=Usage(input_tokens=100))
    untouched, _ = ledger_db.reserve(200, DAILY, price=PRICE, usage=Usage(input_tokens=90))
    ledger_db.book(Beat(ledger_db.owner, (Checkpoint(followed, 150, usage),)))
    assert ledger_db.book(Sweep(everything=True), owner="next")[0].count >= 2
    assert spent(look(ledger_db, DAILY)) == 150 + 90
    with ledger_db.rows.transaction() as transaction:
        endings = transaction.endings([followed, untouched])
        assert not transaction.reservations([followed, untouched])
    assert {each.kind for each in endings.values()} == {"expire"}


def test_a_checkpoint_beyond_what_is_held_is_booked_as_what_was_held(ledger_db: Any) -> None:
    held, _ = ledger_db.reserve(700, DAILY)
    ledger_db.book(Beat(ledger_db.owner, (Checkpoint(held, 800),)))
    ledger_db.book(Sweep(everything=True), owner="next")
    assert spent(look(ledger_db, DAILY)) == 700


def test_only_reservations_nobody_renews_are_ended_by_others(ledger_db: Any) -> None:
    ledger_db.reserve(300, DAILY, holder=ledger_db.holder())
    ledger_db.clock.now_ms += LEASE_MS - 1
    ledger_db.book(Sweep(), owner="other")
    assert isinstance(ledger_db.reserve(701, DAILY)[1], Busy)
    ledger_db.book(Beat(ledger_db.owner))
    ledger_db.clock.now_ms += LEASE_MS - 1
    ledger_db.book(Sweep(), owner="other")
    assert isinstance(ledger_db.reserve(701, DAILY)[1], Busy)
    ledger_db.clock.now_ms += 1
    ledger_db.book(Sweep())  # nobody ends their own
    assert isinstance(ledger_db.reserve(701, DAILY)[1], Busy)
    ledger_db.book(Sweep(), owner="other")
    assert isinstance(ledger_db.reserve(701, DAILY)[1], Granted)


# --- what is settled when its lease has ended -------------------------------------------------


def expired(
    db: Any, *limits: Limit, checkpoint: int = 150, meter: Meter = "ai", **more: Any
) -> str:
    """A reservation that has ended with its checkpoint, because its lease was over."""
    held, outcome = db.reserve(700, *(limits or (DAILY,)), meter=meter, **more)
    assert isinstance(outcome, Granted)
    usage = Usage(input_tokens=checkpoint) if meter == "ai" else Usage()
    db.book(Beat(db.owner, (Checkpoint(held, checkpoint, usage),)))
    assert db.book(Sweep(everything=True), owner="next") != [Done(0)]
    return str(held)


def late_entries(place: Any) -> list[Any]:
    """What is booked late: how much, what of it is excess, and the input and output tokens."""
    return list(
        place.execute(
            "SELECT amount, reserved, excess, input_tokens, output_tokens FROM ledger_entries"
            " WHERE kind = 'late' ORDER BY entry_id"
        )
    )


@pytest.mark.parametrize("meter", ["ai", "compute"])
@pytest.mark.parametrize(("amount", "excess"), [(600, 450), (150, 0), (90, 0), (0, 0), (710, 560)])
def test_what_is_settled_after_its_lease_had_ended_is_booked_in_full(
    ledger_db: Any, place: Any, meter: Meter, amount: int, excess: int
) -> None:
    held = expired(ledger_db, meter=meter)
    usage = Usage(90, amount) if meter == "ai" else Usage()
    settle = Settle(held, ledger_db.holder(), meter, amount, usage, limits=(DAILY,))
    booked = ledger_db.book(settle)[0]
    assert booked._replace(standings=()) == Booked(meter, "late", amount, excess)
    assert spent(booked) == amount
    [late] = late_entries(place)
    difference = (90 - 150, amount) if meter == "ai" else (0, 0)
    assert late == (amount - 150, 0, excess, *difference)


def test_what_is_settled_late_is_booked_once_however_often_it_is_sent(
    ledger_db: Any, place: Any
) -> None:
    held = expired(ledger_db)
    settle = Settle(held, ledger_db.holder(), "ai", 600, limits=(DAILY,))
    first = ledger_db.book(settle)[0]
    void = Void(held, ledger_db.holder(), "ai")
    for again in (settle, settle._replace(amount=500), void):
        outcome = ledger_db.book(again)[0]
        assert outcome._replace(standings=first.standings) == first
    reserve = Reserve(held, ledger_db.holder(), "ai", Wish(1, 0, 0, 0, 0, 0), (), is_repeated=True)
    assert isinstance(ledger_db.book(reserve)[0], Refused)
    assert spent(look(ledger_db, DAILY)) == 600
    assert len(late_entries(place)) == 1


def test_what_expires_and_is_settled_twice_in_one_transaction_is_booked_in_full_and_once(
    ledger_db: Any, place: Any
) -> None:
    held, _ = ledger_db.reserve(700, DAILY, price=PRICE, usage=Usage(150))
    settle = Settle(held, ledger_db.holder(), "ai", 600, Usage(100, 500), limits=(DAILY,))
    with ledger_db.rows.transaction() as transaction:
        sweep = Sweep(everything=True)
        [_, [once], [twice]] = book(transaction, [[sweep], [settle], [settle]], "next")
    assert isinstance(once, Booked)
    assert once == twice
    assert (once.kind, once.amount, spent(once)) == ("late", 600, 600)
    assert late_entries(place) == [(450, 0, 450, -50, 500)]


def test_a_call_that_had_expired_and_cost_nothing_is_free(ledger_db: Any, place: Any) -> None:
    held = expired(ledger_db)
    void = Void(held, ledger_db.holder(), "ai")
    assert ledger_db.book(void) == ledger_db.book(void) == [Booked("ai", "late", 0)]
    assert spent(look(ledger_db, DAILY)) == 0
    assert late_entries(place) == [(-150, 0, 0, -150, 0)]


def test_what_is_settled_late_counts_in_the_window_that_is_now(ledger_db: Any) -> None:
    held = expired(ledger_db)
    ledger_db.clock.now_ms += DAY_MS
    late = ledger_db.book(Settle(held, ledger_db.holder(), "ai", 600, limits=(DAILY,)))[0]
    assert (late.amount, spent(late)) == (600, 450)
    assert spent(look(ledger_db, EVER)) == 600
    assert isinstance(ledger_db.reserve(551, DAILY)[1], Exceeded)


def test_what_others_were_granted_meanwhile_stays_theirs(ledger_db: Any) -> None:
    held = expired(ledger_db)
    other, granted = ledger_db.reserve(850, DAILY)
    assert isinstance(granted, Granted)
    ledger_db.book(Settle(held, ledger_db.holder(), "ai", 600))
    last = ledger_db.book(Settle(other, ledger_db.holder(), "ai", 850, limits=(DAILY,)))[0]
    assert (last.amount, last.excess, spent(last)) == (850, 0, 1_450)
    assert isinstance(ledger_db.reserve(1, DAILY)[1], Exceeded)


def test_a_session_and_a_project_have_what_was_settled_late(ledger_db: Any) -> None:
    whole = Limit("project", "month", 1_000)
    own = Limit("session", "lifetime", 1_000)
    held = expired(ledger_db, DAILY, whole, own)
    settle = Settle(held, ledger_db.holder(), "ai", 600, limits=(DAILY, whole, own))
    late = ledger_db.book(settle)[0]
    assert [each.spent for each in late.standings] == [600, 600, 600]


def test_what_is_settled_late_is_no_turn_that_begins(ledger_db: Any) -> None:
    held = expired(ledger_db, meter="compute")
    ledger_db.book(Settle(held, ledger_db.holder(), "compute", 600))
    assert isinstance(begun(ledger_db, TurnRate("user", 2)), Granted)
    assert isinstance(begun(ledger_db, TurnRate("user", 2)), TooFast)


def test_a_refund_gives_back_what_a_call_cost_with_its_late_settlement(ledger_db: Any) -> None:
    held = expired(ledger_db)
    ledger_db.book(Settle(held, ledger_db.holder(), "ai", 600))
    assert isinstance(adjusted(ledger_db, "refund", 601, held), Refused)
    assert isinstance(adjusted(ledger_db, "refund", 1, f"{held}-late"), Refused)
    assert adjusted(ledger_db, "refund", 400, held) == Done()
    assert isinstance(adjusted(ledger_db, "refund", 201, held), Refused)
    assert adjusted(ledger_db, "refund", 200, held) == Done()
    assert spent(look(ledger_db, DAILY)) == 0


def test_a_refund_from_before_a_late_settlement_stays(ledger_db: Any) -> None:
    held = expired(ledger_db)
    assert adjusted(ledger_db, "refund", 150, held) == Done()
    late = ledger_db.book(Settle(held, ledger_db.holder(), "ai", 100, limits=(DAILY,)))[0]
    assert (late.amount, spent(late)) == (100, -50)
    assert isinstance(adjusted(ledger_db, "refund", 1, held), Refused)


# --- corrections ------------------------------------------------------------------------------


def adjusted(db: Any, kind: str, amount: int, call: str = "", user: str = "ann") -> Outcome:
    # An operator knows of no session.
    holder = db.holder(user, session="", turn="")
    outcome: Outcome = db.book(
        Adjust(uuid.uuid4().hex, kind, holder, "ai", amount, refers_to=call)
    )[0]
    return outcome


def test_a_credit_gives_its_amount_once(ledger_db: Any) -> None:
    ledger_db.spend(1_000, DAILY)
    assert adjusted(ledger_db, "credit", 300) == Done()
    assert spent(look(ledger_db, DAILY)) == 700
    assert spent(look(ledger_db, EVER)) == 700
    assert isinstance(ledger_db.reserve(301, DAILY)[1], Exceeded)
    assert isinstance(ledger_db.reserve(300, DAILY)[1], Granted)


def test_a_credit_that_is_booked_again_counts_once(ledger_db: Any) -> None:
    credit = Adjust(uuid.uuid4().hex, "credit", ledger_db.holder(), "ai", 300)
    assert ledger_db.book(credit) == [Done()]
    assert ledger_db.book(credit) == [Done(0)]
    assert spent(look(ledger_db, DAILY)) == -300


def test_a_charge_is_refunded_at_most_once(ledger_db: Any) -> None:
    call = ledger_db.spend(1_000, DAILY)
    assert adjusted(ledger_db, "refund", 400, call) == Done()
    assert isinstance(adjusted(ledger_db, "refund", 601, call), Refused)
    assert adjusted(ledger_db, "refund", 600, call) == Done()
    assert isinstance(adjusted(ledger_db, "refund", 1, call), Refused)
    assert isinstance(adjusted(ledger_db, "refund", 1, "no-such-call"), Refused)
    assert isinstance(adjusted(ledger_db, "refund", 1, call, user="bob"), Refused)
    assert spent(look(ledger_db, DAILY)) == 0


def test_two_refunds_in_one_transaction_are_no_more_than_the_charge(ledger_db: Any) -> None:
    call = ledger_db.spend(1_000, DAILY)
    half = Adjust("", "refund", ledger_db.holder(), "ai", 600, refers_to=call)
    groups = [[replace(half, entry_key=uuid.uuid4().hex)] for _ in range(2)]
    with ledger_db.rows.transaction() as transaction:
        [[first], [second]] = book(transaction, groups, "me")
    assert first == Done()
    assert isinstance(second, Refused)


# --- the rate of turns ------------------------------------------------------------------------


def begun(db: Any, rate: TurnRate, user: str = "ann") -> Outcome:
    outcome: Outcome = db.reserve(10, holder=db.holder(user), meter="compute", rates=(rate,))[1]
    return outcome


def test_no_more_turns_begin_in_a_minute_than_may(ledger_db: Any) -> None:
    rate = TurnRate("user", 2)
    start_ms = ledger_db.clock.now_ms
    held = ledger_db.reserve(10, meter="compute", rates=(rate,))[0]
    ledger_db.book(Settle(held, ledger_db.holder(), "compute", 5))
    ledger_db.clock.now_ms += 20_000
    assert isinstance(begun(ledger_db, rate), Granted)
    outcome = begun(ledger_db, rate)
    assert isinstance(outcome, TooFast)
    assert outcome.resets_ms == start_ms + 60_000
    assert isinstance(begun(ledger_db, rate, "bob"), Granted)
    assert isinstance(begun(ledger_db, TurnRate("project", 3), "cyd"), TooFast)
    ledger_db.clock.now_ms = start_ms + 59_999
    assert isinstance(begun(ledger_db, rate), TooFast)
    ledger_db.clock.now_ms += 1
    assert isinstance(begun(ledger_db, rate), Granted)


def test_turns_that_begin_in_one_transaction_count(ledger_db: Any) -> None:
    rate = TurnRate("user", 2)
    wanted = [
        Reserve(
            uuid.uuid4().hex, ledger_db.holder(), "compute", Wish(1, 0, 0, 0, 0, 0), (), (rate,)
        )
        for _ in range(3)
    ]
    with ledger_db.rows.transaction() as transaction:
        outcomes = book(transaction, [[each] for each in wanted], "me")
    assert [type(each) for [each] in outcomes] == [Granted, Granted, TooFast]


def test_turns_of_a_time_that_has_not_come_do_not_count(ledger_db: Any) -> None:
    rate = TurnRate("user", 1)
    assert isinstance(begun(ledger_db, rate), Granted)
    ledger_db.clock.now_ms -= DAY_MS
    assert isinstance(begun(ledger_db, rate), Granted)
    assert isinstance(begun(ledger_db, rate), TooFast)


# --- what is written --------------------------------------------------------------------------


def fail_in_the_middle(db: Any, *operations: Operation) -> None:
    with db.rows.transaction() as transaction:
        book(transaction, [operations], "me")
        raise RuntimeError("power cut")


def test_a_transaction_that_fails_writes_nothing(ledger_db: Any) -> None:
    wanted = Reserve("r", ledger_db.holder(), "ai", Wish(9, 0, 0, 0, 0, 0), (DAILY,), price=PRICE)
    with pytest.raises(RuntimeError, match="power"):
        fail_in_the_middle(ledger_db, wanted)
    assert spent(look(ledger_db, DAILY)) == 0
    assert isinstance(ledger_db.book(Void("r", ledger_db.holder(), "ai"))[0], Refused)
    # What was looked up in the transaction that failed is not relied on afterwards.
    held, _ = ledger_db.reserve(9, DAILY, price=PRICE)
    with ledger_db.rows.transaction() as transaction:
        assert transaction.reservations([held])[held].model == "m"
        assert '"source":"operator"' in transaction.reservations([held])[held].price


def test_the_largest_budget_and_spending_can_be_kept(ledger_db: Any) -> None:
    most = Limit("user", "month", (2**53 - 1) * 1_000)
    held, outcome = ledger_db.reserve(5 * 10**18, most)
    assert isinstance(outcome, Granted)
    settle = Settle(held, ledger_db.holder(), "ai", 5 * 10**18, limits=(most,))
    assert spent(ledger_db.book(settle)[0]) == 5 * 10**18


def test_a_second_process_sees_the_same_ledger(ledger_db: Any) -> None:
    second = replace(ledger_db, rows=ledger_db.open_rows())
    for turn in range(3):
        for process in (ledger_db, second):
            process.spend(100, DAILY)
        assert spent(look(ledger_db, DAILY)) == 200 * (turn + 1)
    assert isinstance(ledger_db.reserve(401, DAILY)[1], Exceeded)


def test_windows_are_told_as_they_are(ledger_db: Any) -> None:
    anchor_ms = milliseconds(datetime.fromisoformat("2026-01-31T00:00+05:00"))
    limit = Limit("user", "month", 1_000, anchor_ms)
    standing = ledger_db.reserve(1, limit)[1].standings[0]
    assert iso_time(standing.window.start_ms) == "2026-08-30T19:00:00.000Z"
    assert iso_time(standing.window.end_ms) == "2026-09-30T19:00:00.000Z"


def test_a_turn_whose_end_is_written_again_counts_once(ledger_db: Any, place: Any) -> None:
    session = SessionRecord(uuid.uuid4().hex, ledger_db.project_id, "ann")
    first = [Event(1, "input", "t1", "{}"), Event(2, "message", "t1", "{}")]
    second = [Event(3, "message", "t2", "{}")]

    def write(events: list[Event]) -> None:
        with ledger_db.rows.transaction() as transaction:
            transaction.append_events(session, events, Progress("", "", 1, 2, 700))

    for events in (first, first, second, second, first):
        write(events)
    counted = "SELECT turns, calls, spent_nanos FROM sessions WHERE session_id = "
    assert place.execute(f"{counted}'{session.session_id}'") == [(2, 4, 1_400)]
