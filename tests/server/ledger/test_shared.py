"""A ledger in PostgreSQL that several servers share, whatever they do at the same moment."""

from __future__ import annotations

import asyncio
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from chucky.errors import ChuckyError
from chucky.server.ledger import ledger as ledger_module
from chucky.server.ledger.accounts import METERS, Holder, Limit, Meter
from chucky.server.ledger.booking import LEASE_MS, book
from chucky.server.ledger.ledger import Ledger
from chucky.server.ledger.operations import (
    Adjust,
    Beat,
    Booked,
    Checkpoint,
    Done,
    Exceeded,
    Granted,
    Look,
    Operation,
    Outcome,
    Reserve,
    Seen,
    Settle,
    Sweep,
    Void,
)
from chucky.server.ledger.rows import LedgerRows
from chucky.server.ledger.wishes import Wish
from chucky.server.store import postgres_database
from chucky.server.store.database import store_error
from chucky.server.store.postgres_ledger import PostgresLedgerRows, PostgresLedgerTransaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.server.conftest import PostgresPlace
    from tests.server.ledger.conftest import Clock

WAIT_SECONDS = 20
ANN = Holder("p", "ann", "s1", "t1")
BOB = Holder("p", "bob", "s2", "t2")
PLENTY = Limit("user", "lifetime", 10**12)
SHARED = Limit("project", "lifetime", 10**12)


class Process:
    """One of those that share a ledger."""

    def __init__(self, rows: LedgerRows) -> None:
        self.rows = rows
        self.name = uuid.uuid4().hex

    def book(self, *operations: Operation) -> list[Outcome]:
        """Do a group of operations in a transaction of its own."""
        with self.booking(*operations) as outcomes:
            return outcomes

    @contextmanager
    def booking(self, *operations: Operation) -> Iterator[list[Outcome]]:
        """A moment in which a group of operations is done but not committed."""
        with self.rows.transaction() as transaction:
            [outcomes] = book(transaction, [operations], self.name)
            yield outcomes


@pytest.fixture
def place(postgres_place: PostgresPlace) -> PostgresPlace:
    return postgres_place


@pytest.fixture
def start(place: PostgresPlace) -> Iterator[Callable[..., Process]]:
    """Start a process that shares the ledger, if need be with a clock that the test sets."""
    with ExitStack() as stack:

        def starting(clock: Clock | None = None) -> Process:
            rows = PostgresLedgerRows.open(place.db, clock)
            stack.callback(rows.close)
            return Process(rows)

        yield starting


@pytest.fixture
def thread() -> Iterator[Callable[..., Future[Any]]]:
    """Run something in a thread."""
    with ThreadPoolExecutor() as threads:
        yield threads.submit


def wait_until_one_waits(place: PostgresPlace) -> None:
    """Wait until a process waits for what another holds; the test's time limit ends it."""
    while not place.execute(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
        "AND wait_event_type = 'Lock'"
    ):
        pass


def flat(amount: int) -> Wish:
    """A wish for an amount that is wanted whole or not at all."""
    return Wish(amount, 0, 0, 0, 0, 0)


def hold(
    amount: int, *limits: Limit, holder: Holder = ANN, meter: Meter = "ai", name: str | None = None
) -> Reserve:
    """Wish to hold an amount."""
    return Reserve(name or uuid.uuid4().hex, holder, meter, flat(amount), limits or (PLENTY,))


def spend(process: Process, amount: int, *limits: Limit, holder: Holder = ANN) -> None:
    """Hold an amount and spend it."""
    wanted = hold(amount, *limits, holder=holder)
    process.book(wanted, Settle(wanted.reservation_id, holder, "ai", amount))


def stand(process: Process, limit: Limit, holder: Holder = ANN) -> tuple[int, int]:
    """What is spent and reserved of a limit for model calls."""
    [seen] = process.book(Look(holder, {"ai": (limit,)}))
    assert isinstance(seen, Seen)
    [standing] = seen.standings
    return standing.spent, standing.reserved


def mismatches(place: PostgresPlace) -> list[Any]:
    """The accounts that are not the sum of their entries and reservations."""
    whose = """
        project_id = accounts.project_id AND meter = accounts.meter
        AND accounts.user_id IN ('', user_id) AND accounts.session_id IN ('', session_id)
    """
    return place.execute(f"""
        SELECT * FROM (
            SELECT user_id, session_id, meter, settled, reserved,
                (SELECT coalesce(sum(amount), 0) FROM ledger_entries WHERE {whose}) AS booked,
                (SELECT coalesce(sum(amount), 0) FROM ledger_reservations WHERE {whose}) AS held
            FROM ledger_accounts AS accounts
        ) AS counted WHERE settled <> booked OR reserved <> held
    """)


# --- locks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", ["lifetime", "day"])
def test_who_waited_for_another_sees_what_that_one_booked(
    place: PostgresPlace,
    start: Callable[..., Process],
    thread: Callable[..., Future[Any]],
    window: str,
) -> None:
    one, other = start(), start()
    limit = Limit("user", window, 1_000)
    spend(one, 1, limit)
    first, second = hold(600, limit), hold(600, limit)
    with one.booking(first, Settle(first.reservation_id, ANN, "ai", 600)):
        waiting = thread(other.book, second)
        wait_until_one_waits(place)
    [refused] = waiting.result(WAIT_SECONDS)
    assert isinstance(refused, Exceeded)
    assert refused.standing.spent == 601


def test_two_first_calls_of_a_user_at_once_share_one_account(
    place: PostgresPlace, start: Callable[..., Process], thread: Callable[..., Future[Any]]
) -> None:
    one, other = start(), start()
    limit = Limit("user", "day", 1_000)
    with one.booking(hold(600, limit)):
        waiting = thread(other.book, hold(600, limit))
        wait_until_one_waits(place)
    [outcome] = waiting.result(WAIT_SECONDS)
    assert type(outcome).__name__ == "Busy"
    assert stand(one, limit) == (0, 600)
    assert mismatches(place) == []


def test_an_account_that_is_made_late_counts_what_is_being_booked_meanwhile(
    place: PostgresPlace,
    start: Callable[..., Process],
    thread: Callable[..., Future[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = start(), start()
    spend(one, 5)
    is_about_to, may_go_on = threading.Event(), threading.Event()
    create = PostgresLedgerTransaction._create_accounts

    def create_when_told(self: PostgresLedgerTransaction, keys: Any) -> None:
        self._connection.rollback()
        is_about_to.set()
        assert may_go_on.wait(WAIT_SECONDS)
        create(self, keys)

    monkeypatch.setattr(PostgresLedgerTransaction, "_create_accounts", create_when_told)
    waiting = thread(other.book, hold(200, PLENTY, SHARED))
    assert is_about_to.wait(WAIT_SECONDS)
    with one.booking(hold(70)):
        may_go_on.set()
        wait_until_one_waits(place)
    assert isinstance(waiting.result(WAIT_SECONDS)[0], Granted)
    assert stand(one, SHARED) == (5, 270)
    assert mismatches(place) == []


def test_an_account_that_is_made_while_a_batch_waits_for_another_is_locked_as_well(
    place: PostgresPlace, start: Callable[..., Process], thread: Callable[..., Future[Any]]
) -> None:
    one, other = start(), start()
    spend(one, 5, holder=BOB)
    with psycopg.connect(place.db.secret_url, options="-c search_path=chucky") as holder:
        holder.execute("SELECT * FROM ledger_accounts FOR UPDATE")
        waiting = thread(other.book, hold(70, holder=BOB), hold(70, holder=ANN))
        wait_until_one_waits(place)
        with one.booking(hold(200, holder=ANN)):
            holder.commit()
            wait_until_one_waits(place)
    waiting.result(WAIT_SECONDS)
    assert stand(one, PLENTY) == (0, 270)
    assert mismatches(place) == []


def test_the_first_of_two_to_use_a_window_fixes_where_it_begins_for_both_meters(
    place: PostgresPlace, start: Callable[..., Process], thread: Callable[..., Future[Any]]
) -> None:
    one, other = start(), start()
    for meter in METERS:
        one.book(hold(1, meter=meter))
    early, late = (Limit("user", "week", 1_000, start_ms=at) for at in (1_000, 2_000))
    with one.booking(hold(1, early, meter="ai")):
        waiting = thread(other.book, hold(1, late, meter="compute"))
        wait_until_one_waits(place)
    waiting.result(WAIT_SECONDS)
    assert place.execute("SELECT anchor_ms FROM ledger_anchors") == [(1_000,)]


def test_processes_that_need_each_others_accounts_in_any_order_never_block_each_other(
    place: PostgresPlace,
    start: Callable[..., Process],
    thread: Callable[..., Future[Any]],
    seed: int,
) -> None:
    users = [Holder("p", f"user-{number}", f"session-{number}", "t") for number in range(12)]
    common = [PLENTY, SHARED, Limit("user", "day", 10**12)]
    scopes: dict[Meter, list[Limit]] = {
        "ai": [*common, Limit("session", "lifetime", 10**12)],
        "compute": common,
    }

    def work(process: Process, chance: random.Random) -> None:
        held: list[Reserve] = []
        for _ in range(60):
            wanted = [
                hold(
                    chance.randrange(100),
                    *chance.sample(scopes[meter], chance.randrange(1, 4)),
                    holder=chance.choice(users),
                    meter=meter,
                )
                for meter in chance.choices(METERS, k=chance.randrange(6))
            ]
            ended = [held.pop(chance.randrange(len(held))) for _ in range(len(held) // 2)]
            endings: list[Operation] = [
                Void(each.reservation_id, each.holder, each.meter) for each in ended[::2]
            ]
            endings += [
                Settle(each.reservation_id, each.holder, each.meter, each.wish.fixed)
                for each in ended[1::2]
            ]
            operations: list[Operation] = [*wanted, *endings, Beat(process.name), Sweep()]
            chance.shuffle(operations)
            outcomes = process.book(*operations)
            assert len(outcomes) == len(operations)
            held += wanted

    doing = [thread(work, start(), random.Random(f"{seed} {number}")) for number in range(3)]
    for each in doing:
        each.result(WAIT_SECONDS)
    assert mismatches(place) == []
    assert place.execute("SELECT count(*) > 100 FROM ledger_entries") == [(True,)]


# --- leases -----------------------------------------------------------------------------------


def aged(place: PostgresPlace) -> None:
    """Let the leases of all reservations be over."""
    place.execute(f"UPDATE ledger_reservations SET expires_ms = expires_ms - {LEASE_MS + 1_000}")


def test_a_reservation_that_is_renewed_just_before_it_would_be_ended_is_not(
    place: PostgresPlace, start: Callable[..., Process], thread: Callable[..., Future[Any]]
) -> None:
    one, other = start(), start()
    wanted = hold(500)
    one.book(wanted)
    aged(place)
    with one.booking(hold(1), Beat(one.name, (Checkpoint(wanted.reservation_id, 30),))):
        waiting = thread(other.book, Sweep())
        wait_until_one_waits(place)
    assert waiting.result(WAIT_SECONDS) == [Done(0)]
    [booked] = one.book(Settle(wanted.reservation_id, ANN, "ai", 400))
    assert booked == Booked("ai", "settle", 400)


def test_a_reservation_that_is_being_ended_is_not_waited_for_by_who_renews_leases(
    place: PostgresPlace, start: Callable[..., Process]
) -> None:
    one, other = start(), start()
    stale, fresh = hold(500), hold(20, holder=BOB)
    one.book(stale)
    aged(place)
    one.book(fresh)
    one.book(Beat(one.name, (Checkpoint(fresh.reservation_id, 7),)))
    aged(place)
    place.execute(
        "UPDATE ledger_reservations SET expires_ms = expires_ms + 60000 WHERE user_id = 'bob'"
    )
    with other.booking(Sweep()) as swept:
        assert one.book(Beat(one.name)) == [Done(1)]  # bob's
    assert swept == [Done(1)]
    [booked] = one.book(Settle(stale.reservation_id, ANN, "ai", 400))
    assert booked == Booked("ai", "late", 400, 400)


def test_what_two_processes_settle_late_at_once_is_booked_once(
    place: PostgresPlace, start: Callable[..., Process], thread: Callable[..., Future[Any]]
) -> None:
    one, other = start(), start()
    wanted = hold(500)
    one.book(wanted)
    aged(place)
    assert other.book(Sweep()) == [Done(1)]
    settle = Settle(wanted.reservation_id, ANN, "ai", 400)
    with one.booking(settle) as first:
        waiting = thread(other.book, settle)
        wait_until_one_waits(place)
    assert waiting.result(WAIT_SECONDS) == first == [Booked("ai", "late", 400, 400)]
    assert stand(one, PLENTY) == (400, 0)
    assert mismatches(place) == []


async def test_what_a_dead_process_held_comes_back_to_who_waits_for_it(
    place: PostgresPlace, start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "BEAT_SECONDS", 0.05)
    limit = Limit("user", "day", 1_000)
    died, lives = [await asyncio.to_thread(start) for _ in range(2)]
    await asyncio.to_thread(died.book, hold(900, limit, name="left"))
    await asyncio.to_thread(
        died.book, Beat(died.name, (Checkpoint("left", 300),))
    )  # so much was known to be spent
    async with running(lives) as ledger:
        waits = asyncio.Event()
        async with asyncio.timeout(WAIT_SECONDS):
            waiting = asyncio.create_task(
                ledger.reserve(hold(600, limit), told=lambda _: waits.set())
            )
            await waits.wait()
            await asyncio.to_thread(aged, place)
            [granted] = await waiting
    assert isinstance(granted, Granted)
    assert granted.standings[0].spent == 300
    [(kind, estimated)] = place.execute("SELECT kind, is_estimated FROM ledger_entries")
    assert (kind, estimated) == ("expire", True)


@dataclass
class Outage:
    """A database that is away when the test says so, for one process."""

    rows: LedgerRows
    is_out: bool = False
    tries: int = 0

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Begin a transaction, if the database is there."""
        self.tries += 1
        if self.is_out:
            raise store_error("The database is away by a test.")
        with self.rows.transaction() as transaction:
            yield transaction

    def close(self) -> None:
        """Leave that to whoever opened it."""

    async def tried(self, times: int) -> None:
        """Wait until there were so many more transactions; the test's time limit ends it."""
        wanted = self.tries + times
        while self.tries < wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_after_an_outage_others_have_the_time_of_a_lease_to_renew_theirs(
    place: PostgresPlace,
    start: Callable[..., Process],
    monkeypatch: pytest.MonkeyPatch,
    loop_time: Any,
) -> None:
    monkeypatch.setattr(ledger_module, "BEAT_SECONDS", 0.01)
    other, process = [await asyncio.to_thread(start) for _ in range(2)]
    theirs = hold(900)
    await asyncio.to_thread(other.book, theirs)
    outage = Outage(process.rows)
    async with running(Process(outage)):
        outage.is_out = True
        await outage.tried(2)
        await asyncio.to_thread(aged, place)
        outage.is_out = False
        await outage.tried(5)
        assert await asyncio.to_thread(stand, other, PLENTY) == (0, 900)
        # It never came back: what it held is free when the time is over.
        loop_time.advance(LEASE_MS / 1_000)
        await outage.tried(2)
        assert await asyncio.to_thread(stand, other, PLENTY) == (0, 0)


async def test_what_a_server_has_spent_that_was_cut_off_is_booked_when_it_is_back(
    place: PostgresPlace, start: Callable[..., Process], caplog: pytest.LogCaptureFixture
) -> None:
    limit = Limit("user", "day", 1_000)
    other, process = [await asyncio.to_thread(start) for _ in range(2)]
    outage = Outage(process.rows)
    wanted = hold(500, limit)
    async with running(Process(outage)) as ledger, asyncio.timeout(WAIT_SECONDS):
        await ledger.ask(wanted)
        outage.is_out = True
        spent = ledger.post(Settle(wanted.reservation_id, ANN, "ai", 400, limits=(limit,)))
        await outage.tried(2)
        await asyncio.to_thread(aged, place)
        assert await asyncio.to_thread(other.book, Sweep()) == [Done(1)]
        await asyncio.to_thread(spend, other, 900, limit)
        outage.is_out = False
        [booked] = await spent
    assert isinstance(booked, Booked)
    assert (booked.kind, booked.amount, booked.excess) == ("late", 400, 400)
    assert [each.spent for each in booked.standings] == [1_300]
    assert await asyncio.to_thread(stand, other, limit) == (1_300, 0)
    assert mismatches(place) == []
    assert f"400 (ai) is booked for {wanted.reservation_id}, 400 of it when nothing" in caplog.text


# --- many callers -----------------------------------------------------------------------------


@asynccontextmanager
async def running(process: Process) -> AsyncIterator[Ledger]:
    """A ledger as a server runs it."""
    ledger = Ledger(process.rows, is_shared=True)
    await ledger.recover()
    task = asyncio.create_task(ledger.run())
    yield ledger
    task.cancel()
    await asyncio.wait([task])


async def test_sixty_four_callers_of_two_servers_spend_a_budget_to_the_end_and_no_more(
    place: PostgresPlace, start: Callable[..., Process]
) -> None:
    limit = Limit("user", "day", 20_000)
    least, wish = 110, Wish(100, 1_000_000, 400, 10, 200, 50)

    async def spend_all(ledger: Ledger) -> Sequence[int]:
        spent: list[int] = []
        while True:
            wanted = Reserve(uuid.uuid4().hex, ANN, "ai", wish, (limit,))
            [outcome] = await ledger.reserve(wanted, told=lambda _: None)
            if isinstance(outcome, Exceeded):
                return spent
            assert isinstance(outcome, Granted)
            amount = least + len(spent) % 2 * (outcome.amount - least)
            [booked] = await ledger.post(Settle(wanted.reservation_id, ANN, "ai", amount))
            assert booked == Booked("ai", "settle", amount)
            spent.append(amount)

    one, other = [await asyncio.to_thread(start) for _ in range(2)]
    async with asyncio.timeout(WAIT_SECONDS), running(one) as first, running(other) as second:
        callers = [spend_all(first if number % 2 else second) for number in range(64)]
        spent = await asyncio.gather(*callers)

    total = sum(map(sum, spent))
    assert limit.amount - least < total <= limit.amount
    assert await asyncio.to_thread(stand, one, limit) == (total, 0)
    assert mismatches(place) == []


# --- faults -----------------------------------------------------------------------------------


def test_a_connection_that_was_lost_between_two_batches_is_made_again_unnoticed(
    place: PostgresPlace, start: Callable[..., Process]
) -> None:
    process = start()
    spend(process, 100)
    place.cut()
    spend(process, 100)
    assert stand(process, PLENTY) == (200, 0)


def test_a_connection_that_is_lost_in_a_batch_leaves_nothing_of_it_behind(
    place: PostgresPlace, start: Callable[..., Process]
) -> None:
    process = start()
    spend(process, 100)
    with (
        pytest.raises(ChuckyError, match="did not answer to the end") as caught,
        process.booking(hold(50)),
    ):
        place.cut()
    assert caught.value.code == "STORE_ERROR"
    assert stand(process, PLENTY) == (100, 0)


def test_a_database_that_is_away_is_told_and_used_again_when_it_is_back(
    place: PostgresPlace, start: Callable[..., Process]
) -> None:
    process = start()
    spend(process, 100)
    with place.outage(), pytest.raises(ChuckyError) as caught:
        process.book(hold(50))
    assert caught.value.code == "STORE_ERROR"
    spend(process, 100)
    assert stand(process, PLENTY) == (200, 0)


def test_accounts_that_are_held_for_too_long_are_told_and_nothing_is_written(
    place: PostgresPlace, start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = postgres_database._SET_UP.replace("'5s'", "'10ms'")
    one = start()
    spend(one, 100)
    monkeypatch.setattr(postgres_database, "_SET_UP", short)
    other = start()
    with one.booking(hold(1)), pytest.raises(ChuckyError, match="is locked by another") as caught:
        other.book(hold(50))
    assert caught.value.code == "STORE_ERROR"
    assert stand(other, PLENTY) == (100, 1)


def test_a_batch_that_fails_in_the_middle_leaves_nothing_behind(
    place: PostgresPlace, start: Callable[..., Process]
) -> None:
    process = start()
    spend(process, 100)
    too_much = Adjust("a", "credit", ANN, "ai", 2**70)
    with pytest.raises(psycopg.DataError, match="out of range"):
        process.book(hold(1), too_much)
    assert stand(process, PLENTY) == (100, 0)
    assert mismatches(place) == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ledger_entries SET amount = 0",
        "DELETE FROM ledger_entries",
        "TRUNCATE ledger_entries",
    ],
)
def test_entries_are_never_changed(
    place: PostgresPlace, start: Callable[..., Process], change: str
) -> None:
    process = start()
    spend(process, 100)
    with pytest.raises(Exception, match="never changed or deleted"):
        place.execute(change)
    assert stand(process, PLENTY) == (100, 0)


def test_the_time_is_that_of_the_database(
    place: PostgresPlace, start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 0)
    process = start()
    clock = "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    [(before,)] = place.execute(clock)
    spend(process, 100)
    [(after,)] = place.execute(clock)
    [(at_ms,)] = place.execute("SELECT at_ms FROM ledger_entries")
    assert before <= at_ms <= after
