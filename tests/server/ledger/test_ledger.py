"""The running ledger: callers that come together, leave, wait in line, and databases that fail."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from chucky.errors import ChuckyError
from chucky.server.ledger.accounts import Limit, Standing
from chucky.server.ledger.ledger import Ledger
from chucky.server.ledger.operations import (
    Beat,
    Booked,
    Checkpoint,
    Exceeded,
    Granted,
    Look,
    Reserve,
    Seen,
    Settle,
    Void,
)
from chucky.server.ledger.rows import LedgerTransaction
from chucky.server.ledger.wishes import Wish

WAIT_SECONDS = 20
LIMIT = Limit("user", "day", 10_000)


# --- a database that can be held up and made to fail ------------------------------------------


@dataclass
class FaultyRows:
    """Rows whose commits the test holds up, counts, and lets fail.

    Attributes:
        rows: The rows themselves.
        may_commit: Commits wait for it.
        faults: What becomes of the next commits: ``before`` fails without a trace, ``after``
            writes and says it failed, ``odd`` fails as no database does.
        commits: How many transactions there were.
    """

    rows: Any
    may_commit: threading.Event = field(default_factory=threading.Event)
    faults: Iterator[str] = field(default_factory=lambda: iter(()))
    commits: int = 0

    @contextmanager
    def transaction(self) -> Iterator[LedgerTransaction]:
        """One transaction."""
        assert self.may_commit.wait(WAIT_SECONDS)
        self.commits += 1
        fault = next(self.faults, "")
        if fault == "odd":
            raise OverflowError("too large")
        if fault == "before":
            raise ChuckyError("The database is busy.", code="STORE_ERROR")
        with self.rows.transaction() as transaction:
            yield transaction
        if fault == "after":
            raise ChuckyError("The connection was lost.", code="STORE_ERROR")

    def close(self) -> None:
        """Close nothing; the fixture does."""


@dataclass
class Running:
    """A running ledger."""

    ledger: Ledger
    rows: FaultyRows
    db: Any

    def have_committed(self, count: int) -> bool:
        """Whether there were more transactions than so many."""
        return self.rows.commits > count

    def wanted(
        self, amount: int, user: str = "ann", *limits: Limit, session: str = "s1"
    ) -> Reserve:
        """A reservation of an amount."""
        wish = Wish(amount, 0, 0, 0, 0, 0)
        holder = self.db.holder(user, session)
        return Reserve(uuid.uuid4().hex, holder, "ai", wish, limits or (LIMIT,))

    async def standing(self, user: str = "ann") -> Standing:
        """How the limit stands when all that was asked for is written."""
        look = Look(self.db.holder(user), {"ai": (LIMIT,)})
        [seen] = await asyncio.wait_for(self.ledger.ask(look), WAIT_SECONDS)
        assert isinstance(seen, Seen)
        return seen.standings[0]

    async def settle(self, reserved: Reserve, amount: int) -> Booked:
        """Spend what was reserved."""
        settle = Settle(reserved.reservation_id, reserved.holder, "ai", amount)
        [booked] = await asyncio.wait_for(self.ledger.post(settle), WAIT_SECONDS)
        assert isinstance(booked, Booked)
        return booked


Run = Callable[..., Any]


@pytest.fixture
def run(ledger_db: Any) -> Run:
    """Run a ledger on a database: ``async with run() as running``."""

    @asynccontextmanager
    async def start(*, is_shared: bool = False) -> AsyncIterator[Running]:
        rows = FaultyRows(ledger_db.rows)
        rows.may_commit.set()
        ledger = Ledger(rows, is_shared=is_shared)
        task = asyncio.create_task(ledger.run())
        try:
            yield Running(ledger, rows, ledger_db)
        finally:
            rows.may_commit.set()
            task.cancel()
            await asyncio.wait([task], timeout=WAIT_SECONDS)
            assert task.cancelled()

    return start


async def turns_of_the_loop(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so, while the database works in its thread."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - a thread has no event for this
            await asyncio.sleep(0.001)


def seen_in(db: Any) -> Standing:
    """How the limit stands in the database."""
    [seen] = db.book(Look(db.holder(), {"ai": (LIMIT,)}))
    standing: Standing = seen.standings[0]
    return standing


def no_matter(_: Standing) -> None:
    """Nobody wants to know that there is a wait."""


# --- many callers -----------------------------------------------------------------------------


async def test_callers_that_come_together_share_a_commit(run: Run) -> None:
    async with run() as running:
        wanted = [running.wanted(10) for _ in range(100)]
        asked = [asyncio.create_task(running.ledger.ask(each)) for each in wanted]
        await asyncio.gather(*asked)
        assert running.rows.commits <= 2
        assert (await running.standing()).reserved == 1_000


async def test_many_callers_spend_no_more_than_the_limit(run: Run, seed: int) -> None:
    chance = random.Random(seed)
    async with run() as running:
        told: list[int] = []

        async def call() -> None:
            while True:
                reserved = running.wanted(chance.randint(1, 900))
                [outcome] = await running.ledger.reserve(reserved, told=no_matter)
                if isinstance(outcome, Exceeded):
                    return
                await asyncio.sleep(0)
                booked = await running.settle(reserved, chance.randint(0, outcome.amount))
                told.append(booked.amount)

        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as callers:
            for _ in range(64):
                callers.create_task(call())
        standing = await running.standing()
        assert standing.reserved == 0
        assert standing.spent == sum(told) <= LIMIT.amount
        assert LIMIT.amount - standing.spent < 900


# --- callers that leave -----------------------------------------------------------------------


@pytest.mark.parametrize("when", range(12))
async def test_who_leaves_at_any_moment_leaves_nothing_held(run: Run, when: int) -> None:
    async with run() as running:
        answered = 0
        for is_held_up in (False, True):
            if is_held_up:
                running.rows.may_commit.clear()
            asked = asyncio.create_task(running.ledger.ask(running.wanted(500)))
            await turns_of_the_loop(when)
            asked.cancel()
            await asyncio.wait([asked], timeout=WAIT_SECONDS)
            running.rows.may_commit.set()
            answered += not asked.cancelled()  # it may have been first
            await running.standing()
            assert (await running.standing()).reserved == 500 * answered


@pytest.mark.parametrize("is_there", [True, False])
async def test_who_leaves_when_the_answer_comes_leaves_nothing_held(
    run: Run, is_there: bool
) -> None:
    async with run() as running:
        asked: asyncio.Task[Any]

        original = running.ledger._writer._answer

        def answer(request: Any, outcomes: Any) -> None:
            if is_there:
                original(request, outcomes)
            asked.cancel()  # nobody has read the answer yet, or learned that nobody wants it
            if not is_there:
                original(request, outcomes)

        running.ledger._writer._answer = answer
        asked = asyncio.create_task(running.ledger.ask(running.wanted(500)))
        await asyncio.wait([asked], timeout=WAIT_SECONDS)
        assert asked.cancelled()
        running.ledger._writer._answer = original
        await running.standing()
        assert (await running.standing()).reserved == 0


async def test_an_answer_that_cannot_be_given_is_an_error_and_holds_up_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run() as running:
        bad, good = running.wanted(500), running.wanted(500)
        original = running.ledger._writer._answer

        def answer(request: Any, outcomes: Any) -> None:
            if request.operations == (bad,):
                raise ValueError("a fault of ours")
            original(request, outcomes)

        monkeypatch.setattr(running.ledger._writer, "_answer", answer)
        others = [asyncio.create_task(running.ledger.ask(each)) for each in (bad, good)]
        async with asyncio.timeout(WAIT_SECONDS):
            with pytest.raises(ChuckyError) as caught:
                await others[0]
            [outcome] = await others[1]
        assert caught.value.code == "INTERNAL_ERROR"
        assert isinstance(outcome, Granted)


async def test_who_leaves_the_line_makes_room_for_the_next(run: Run) -> None:
    async with run() as running:
        all_of_it = running.wanted(10_000)
        await running.ledger.ask(all_of_it)
        waiting = [
            asyncio.create_task(running.ledger.reserve(running.wanted(6_000), told=no_matter))
            for _ in range(4)
        ]
        await until(lambda: running.ledger.has_line(running.wanted(1)))
        await running.standing()
        waiting[0].cancel()  # at the head of the line
        waiting[2].cancel()  # behind
        await asyncio.wait([waiting[0], waiting[2]], timeout=WAIT_SECONDS)
        await running.settle(all_of_it, 0)
        [outcome] = await asyncio.wait_for(waiting[1], WAIT_SECONDS)
        assert isinstance(outcome, Granted)
        waiting[3].cancel()
        await asyncio.wait([waiting[3]], timeout=WAIT_SECONDS)
        await running.standing()
        assert (await running.standing()).reserved == 6_000
        assert not running.ledger.has_line(running.wanted(1))


async def test_a_group_that_leaves_the_line_gives_back_what_it_was_granted(run: Run) -> None:
    async with run() as running:
        await running.ledger.ask(running.wanted(8_000))
        small, large = running.wanted(1_000), running.wanted(5_000)
        told: list[Standing] = []
        waiting = asyncio.create_task(running.ledger.reserve(small, large, told=told.append))
        await until(lambda: bool(told))
        assert (await running.standing()).reserved == 9_000
        waiting.cancel()
        await asyncio.wait([waiting], timeout=WAIT_SECONDS)
        await running.standing()
        assert (await running.standing()).reserved == 8_000


# --- the line ---------------------------------------------------------------------------------


async def test_those_who_wait_are_served_in_the_order_they_came(run: Run) -> None:
    async with run() as running:
        parts = [running.wanted(2_000) for _ in range(5)]
        for part in parts:
            await running.ledger.ask(part)
        served: list[int] = []

        async def wait(number: int) -> None:
            # The last ones want so little that they would fit before the first ones do.
            amount = 4_000 if number < 2 else 2_000
            await running.ledger.reserve(running.wanted(amount), told=no_matter)
            served.append(number)

        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as waiters:
            for number in range(3):
                waiters.create_task(wait(number))
                await running.standing()
            for part in parts:
                await running.settle(part, 0)
                await running.standing()
        assert served == [0, 1, 2]


async def test_everyone_in_line_is_told_that_there_is_a_wait(run: Run) -> None:
    async with run() as running:
        all_of_it = running.wanted(10_000)
        await running.ledger.ask(all_of_it)
        told: set[int] = set()

        async def wait(number: int) -> None:
            wanted = running.wanted(1_000)
            await running.ledger.reserve(wanted, told=lambda _: told.add(number))

        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as waiters:
            for number in range(3):
                waiters.create_task(wait(number))
                await running.standing()
            await until(lambda: told == {0, 1, 2})
            await running.settle(all_of_it, 0)


async def test_who_may_spend_more_does_not_wait_for_those_of_the_user_who_may_not(run: Run) -> None:
    async with run() as running:
        await running.ledger.ask(running.wanted(10_000))
        waiting = asyncio.create_task(running.ledger.reserve(running.wanted(1), told=no_matter))
        await until(lambda: running.ledger.has_line(running.wanted(1)))
        richer = running.wanted(6_000, "ann", replace(LIMIT, amount=50_000))
        assert not running.ledger.has_line(richer)
        async with asyncio.timeout(WAIT_SECONDS):
            [outcome] = await running.ledger.reserve(richer, told=no_matter)
        assert isinstance(outcome, Granted)
        waiting.cancel()
        await asyncio.wait([waiting], timeout=WAIT_SECONDS)


async def test_who_waits_for_something_else_by_now_leaves_the_line_to_the_next(run: Run) -> None:
    own = Limit("session", "lifetime", 1_000)
    async with run() as running:
        all_of_it = running.wanted(10_000, session="s2")
        of_session = running.wanted(500, "ann", own)
        for each in (all_of_it, of_session):
            await running.ledger.ask(each)
        told: list[Standing] = []
        both = running.wanted(800, "ann", LIMIT, own)
        first = asyncio.create_task(running.ledger.reserve(both, told=told.append))
        await until(lambda: running.ledger.has_line(running.wanted(1)))
        behind = running.wanted(1_000, session="s2")
        second = asyncio.create_task(running.ledger.reserve(behind, told=no_matter))
        await running.standing()
        await running.settle(all_of_it, 0)
        [outcome] = await asyncio.wait_for(second, WAIT_SECONDS)
        assert isinstance(outcome, Granted)
        await until(lambda: told[-1].limit == own)
        assert told[0].limit == LIMIT
        await running.settle(of_session, 0)
        [outcome] = await asyncio.wait_for(first, WAIT_SECONDS)
        assert isinstance(outcome, Granted)
        assert not running.ledger.has_line(both)


async def test_one_user_waits_and_another_does_not(run: Run) -> None:
    async with run() as running:
        await running.ledger.ask(running.wanted(10_000))
        waiting = asyncio.create_task(running.ledger.reserve(running.wanted(1), told=no_matter))
        await until(lambda: running.ledger.has_line(running.wanted(1)))
        [outcome] = await running.ledger.reserve(running.wanted(1, "bob"), told=no_matter)
        assert isinstance(outcome, Granted)
        waiting.cancel()
        await asyncio.wait([waiting], timeout=WAIT_SECONDS)


async def test_money_that_comes_from_elsewhere_ends_the_wait(run: Run) -> None:
    async with run() as running:
        all_of_it = running.wanted(10_000)
        await running.ledger.ask(all_of_it)
        waiting = asyncio.create_task(running.ledger.reserve(running.wanted(1), told=no_matter))
        await until(lambda: running.ledger.has_line(running.wanted(1)))
        # Another process gives it back; nothing of that is heard here.
        await asyncio.to_thread(
            running.db.book, Void(all_of_it.reservation_id, all_of_it.holder, "ai")
        )
        [outcome] = await asyncio.wait_for(waiting, WAIT_SECONDS)
        assert isinstance(outcome, Granted)


# --- databases that fail ----------------------------------------------------------------------


async def test_a_database_that_fails_grants_nothing_and_holds_nothing(run: Run) -> None:
    async with run() as running:
        for fault in ("before", "after"):
            running.rows.faults = iter([fault])
            with pytest.raises(ChuckyError) as caught:
                await running.ledger.ask(running.wanted(500))
            assert caught.value.code == "STORE_ERROR"
            await running.standing()
            assert (await running.standing()).reserved == 0


async def test_what_was_spent_while_the_database_failed_is_written_later(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "chucky.server")
    async with run() as running:
        reserved = [running.wanted(100) for _ in range(20)]
        for each in reserved:
            await running.ledger.ask(each)
        # Nothing is written for a while, then it is without an answer, then all is well.
        running.rows.faults = iter(["before", "before", "after"])
        booked = await asyncio.gather(*(running.settle(each, 60) for each in reserved))
        assert [each.amount for each in booked] == [60] * 20
        standing = await running.standing()
        assert (standing.spent, standing.reserved) == (1_200, 0)


async def test_nothing_is_lost_or_doubled_whatever_the_database_does(
    run: Run,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("chucky.server.ledger.ledger._FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("chucky.server.ledger.ledger._LONGEST_PAUSE_SECONDS", 0.002)
    caplog.set_level(logging.CRITICAL, "chucky.server")
    chance = random.Random(seed)
    told: list[int] = []

    async def call(running: Running) -> None:
        reserved = running.wanted(chance.randint(1, 400))
        try:
            [outcome] = await running.ledger.reserve(reserved, told=no_matter)
        except ChuckyError:
            return
        if isinstance(outcome, Granted):
            spent = chance.randint(0, outcome.amount)
            told.append((await running.settle(reserved, spent)).amount)

    def faults() -> Iterator[str]:
        for _ in range(60):
            yield chance.choice(["", "", "", "before", "after", "odd"])

    async with run() as running:
        running.rows.faults = faults()
        calls = []
        for _ in range(300):
            calls.append(asyncio.create_task(call(running)))
            await turns_of_the_loop(chance.randint(0, 3))
            if chance.random() < 0.2:
                chance.choice(calls).cancel()
        _, left = await asyncio.wait(calls, timeout=WAIT_SECONDS)
        assert not left
        running.rows.faults = iter(())
        # What fails now was begun before; what was granted to those who left is given back then.
        await until(lambda: not running.ledger._overdue and not running.ledger._writer.unanswered)
        standing = await running.standing()
        assert standing.reserved == 0
        # Those who left before they were told have spent, too.
        assert sum(told) <= standing.spent <= LIMIT.amount


async def test_a_fault_of_one_caller_is_not_that_of_the_others(run: Run) -> None:
    async with run() as running:
        running.rows.may_commit.clear()
        first = asyncio.create_task(running.ledger.ask(running.wanted(1)))
        await turns_of_the_loop(3)
        # These are written together. What one asks for fits no database.
        good, bad = running.wanted(500), running.wanted(2**70, "ann", Limit("user", "day", 2**80))
        others = [asyncio.create_task(running.ledger.ask(each)) for each in (good, bad)]
        await turns_of_the_loop(3)
        running.rows.may_commit.set()
        async with asyncio.timeout(WAIT_SECONDS):
            await first
            [outcome] = await others[0]
            assert isinstance(outcome, Granted)
            with pytest.raises(ChuckyError) as caught:
                await others[1]
        assert caught.value.code == "INTERNAL_ERROR"
        await running.standing()
        assert (await running.standing()).reserved == 501


# --- the end, and the beginning ---------------------------------------------------------------


@pytest.mark.parametrize("when", range(6))
async def test_what_was_spent_is_written_before_the_end(ledger_db: Any, when: int) -> None:
    rows = FaultyRows(ledger_db.rows)
    rows.may_commit.set()
    ledger = Ledger(rows)
    running = Running(ledger, rows, ledger_db)
    task = asyncio.create_task(ledger.run())
    reserved = [running.wanted(100) for _ in range(3)]
    await ledger.ask(*reserved)
    rows.faults = iter(["before"] if when % 2 else [])
    settled = [ledger.post(Settle(each.reservation_id, each.holder, "ai", 60)) for each in reserved]
    await turns_of_the_loop(when)
    task.cancel()
    await asyncio.wait([task], timeout=WAIT_SECONDS)
    assert task.cancelled()
    assert all(each.done() for each in settled)
    standing = await asyncio.to_thread(seen_in, ledger_db)
    assert (standing.spent, standing.reserved) == (180, 0)


async def test_a_start_ends_what_a_process_that_died_left(ledger_db: Any) -> None:
    def reserve() -> None:
        wish = Wish(5, 0, 0, 0, 0, 0)
        wanted = [
            Reserve(uuid.uuid4().hex, ledger_db.holder(), "ai", wish, ()) for _ in range(1_200)
        ]
        ledger_db.book(*wanted)
        ledger_db.book(Beat(ledger_db.owner, (Checkpoint(wanted[0].reservation_id, 3),)))

    await asyncio.to_thread(reserve)
    assert await Ledger(ledger_db.rows).recover() == 1_200
    assert await Ledger(ledger_db.rows).recover() == 0
    standing = await asyncio.to_thread(seen_in, ledger_db)
    assert (standing.spent, standing.reserved) == (3, 0)


async def test_where_others_live_only_ended_leases_are_ended(ledger_db: Any) -> None:
    await asyncio.to_thread(ledger_db.reserve, 5)
    assert await Ledger(ledger_db.rows, is_shared=True).recover() == 0
    ledger_db.clock.now_ms += 60_000
    await asyncio.to_thread(ledger_db.reserve, 7)
    assert await Ledger(ledger_db.rows, is_shared=True).recover() == 1
    assert (await asyncio.to_thread(seen_in, ledger_db)).reserved == 7


async def test_leases_are_renewed_while_someone_waits(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chucky.server.ledger.ledger.BEAT_SECONDS", 0.01)
    async with run(is_shared=True) as running:
        held = running.wanted(10_000)
        await running.ledger.ask(held)
        small = running.wanted(1)
        limits = Limit("user", "day", 20_000)
        first = Reserve(small.reservation_id, small.holder, "compute", small.wish, (limits,))
        waiting = asyncio.create_task(
            running.ledger.reserve(first, running.wanted(1), told=no_matter)
        )
        await until(lambda: running.ledger.has_line(running.wanted(1)))
        # The time of many leases passes while it waits with compute in its hands.
        for _ in range(5):
            enough = running.rows.commits + 3
            await until(partial(running.have_committed, enough))
            running.db.clock.now_ms += 14_000
        assert await Ledger(running.db.rows, is_shared=True).recover() == 0
        waiting.cancel()
        await asyncio.wait([waiting], timeout=WAIT_SECONDS)
