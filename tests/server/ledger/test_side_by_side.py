"""Calls that one turn makes side by side, as sub-agents do: one gate, one budget, one allowance."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from chucky.errors import ChuckyError
from chucky.server.ledger.accounts import Limit
from chucky.server.ledger.ledger import Ledger
from chucky.server.ledger.payer import FreePayer, TurnLimits, TurnPayer
from chucky.server.model.catalog import Catalog, Model
from chucky.server.model.gate import Gate, Provider
from chucky.server.model.meter import Meter
from chucky.server.model.payment import Payer
from chucky.server.model.pricing import PriceTable
from chucky.server.model.upstream import ModelRequest, UpstreamError

WAIT_SECONDS = 20
CATALOG = Catalog.load()
PRICES = PriceTable(CATALOG)
SONNET = CATALOG.models["claude-sonnet-5-5"]  # 2,000 nano-dollars a token in, 10,000 out
REQUEST = {
    "model": SONNET.id,
    "max_tokens": 32_000,
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
}
INPUT_TOKENS = 15_000
OUTPUT_TOKENS = 600
FREE = UpstreamError("No.", reason="model_overloaded", is_free=True)
BROKEN = UpstreamError("It broke.", reason="model_stream_dropped")


@dataclass
class Answers:
    """A provider whose calls wait until the test lets them end, and fail as it says.

    Attributes:
        meeting: Where calls wait for each other; None where they need not.
        may_end: Answers break off before their end until it is set.
        failures: What the next calls fail with, after they have begun.
        calls: How many were made.
        in_flight: How many are being answered.
    """

    meeting: asyncio.Barrier | None = None
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    failures: list[UpstreamError] = field(default_factory=list)
    calls: int = 0
    in_flight: int = 0

    async def upstream_for(self, model: Model, project_id: str) -> Answers:
        """Serve every model."""
        return self

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncIterator[AsyncIterator[str]]:
        """Answer."""
        self.calls += 1
        self.in_flight += 1
        try:
            yield self._events()
        finally:
            self.in_flight -= 1

    async def _events(self) -> AsyncIterator[str]:
        if self.failures:
            raise self.failures.pop(0)
        if self.meeting is not None:
            await self.meeting.wait()
        usage = {"input_tokens": INPUT_TOKENS, "output_tokens": 1}
        yield json.dumps({"type": "message_start", "message": {"usage": usage}})
        await self.may_end.wait()
        end = {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": OUTPUT_TOKENS}}
        yield json.dumps({"type": "message_delta", **end})
        yield json.dumps({"type": "message_stop"})

    async def count_tokens(self, request: ModelRequest) -> int | None:
        """Count."""
        return INPUT_TOKENS

    async def close(self) -> None:
        """Let go of nothing."""


@dataclass
class Desk:
    """A gate, its provider, and a ledger to pay from.

    Attributes:
        answers: The provider.
        ledger: The ledger.
        open_payer: Makes the payer of a turn that may make so many calls.
        meter: What all calls have used.
    """

    answers: Answers
    ledger: Ledger
    open_payer: Callable[[int | None], Any]
    meter: Meter = field(default_factory=Meter)

    async def call(self, payer: Payer, *, leaves: bool = False, is_aside: bool = False) -> None:
        """Make a call and read it to its end, or leave after its first event."""
        ready: asyncio.Future[Provider] = asyncio.get_running_loop().create_future()
        ready.set_result(Provider(self.answers, PRICES))
        gate = Gate(ready, lambda: datetime(2026, 11, 25, tzinfo=UTC))
        stream = gate.call(
            SONNET, REQUEST, self.meter, payer=payer, project_id="p", is_aside=is_aside
        )
        async with asyncio.timeout(WAIT_SECONDS), aclosing(stream) as events:
            async for _ in events:
                if leaves:
                    break

    async def refused(self, payer: Payer) -> None:
        """See that the turn may make no more calls."""
        with pytest.raises(ChuckyError) as caught:
            await self.call(payer)
        assert (caught.value.code, caught.value.reason) == ("MAX_TURNS", "max_turns_reached")


@pytest.fixture
async def desk(ledger_db: Any) -> AsyncIterator[Desk]:
    """A gate on a ledger in each kind of database, with two dollars a day."""
    answers, ledger = Answers(), Ledger(ledger_db.rows)
    answers.may_end.set()
    limits = (Limit("user", "day", 2_000_000_000),)

    def end_turn(error: ChuckyError) -> None:
        raise error

    def open_payer(calls: int | None) -> TurnPayer:
        turn_limits = TurnLimits(limits, calls=calls)
        return TurnPayer(
            ledger, ledger_db.holder(), turn_limits, min_output_tokens=64, end_turn=end_turn
        )

    running = asyncio.create_task(ledger.run())
    try:
        yield Desk(answers, ledger, open_payer)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_calls_of_one_turn_wait_for_no_other_on_a_budget_that_pays_for_all(
    desk: Desk,
) -> None:
    payer = desk.open_payer(None)
    # Each call waits at the provider for four others: were one held back, all would hang.
    desk.answers.meeting = asyncio.Barrier(5)
    for _ in range(8):
        await asyncio.gather(*(desk.call(payer) for _ in range(5)))
    bill = await payer.close()
    assert bill.ai_nanos == 40 * (INPUT_TOKENS * 2_000 + OUTPUT_TOKENS * 10_000)


async def test_calls_side_by_side_share_what_their_turn_may_call(desk: Desk) -> None:
    payer = desk.open_payer(3)
    desk.answers.may_end.clear()
    calls = [asyncio.create_task(desk.call(payer)) for _ in range(5)]
    # The two that are too many are refused while the three are still being answered.
    async with asyncio.timeout(WAIT_SECONDS):
        while sum(each.done() for each in calls) < 2 or desk.answers.in_flight < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    desk.answers.may_end.set()
    async with asyncio.timeout(WAIT_SECONDS):
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    codes = [each.code for each in outcomes if isinstance(each, ChuckyError)]
    assert codes == ["MAX_TURNS", "MAX_TURNS"]
    assert desk.answers.calls == desk.meter.calls == 3
    await desk.refused(payer)
    assert (await payer.close()).ai_nanos == 3 * (INPUT_TOKENS * 2_000 + OUTPUT_TOKENS * 10_000)


@pytest.mark.parametrize("error", [FREE, BROKEN], ids=["never-sent", "broken-off"])
async def test_a_call_that_failed_is_not_one_of_those_a_turn_may_make(
    desk: Desk, error: UpstreamError
) -> None:
    payer = desk.open_payer(2)
    desk.answers.failures = [error] * 7
    # Side by side, as retries of several sub-agents are.
    outcomes = await asyncio.gather(*(desk.call(payer) for _ in range(2)), return_exceptions=True)
    assert all(isinstance(each, UpstreamError) for each in outcomes)
    for _ in range(5):
        with pytest.raises(UpstreamError):
            await desk.call(payer)
    await desk.call(payer)
    await desk.call(payer)
    await desk.refused(payer)
    assert desk.meter.calls == 2


async def test_a_call_that_is_not_paid_for_or_given_up_before_it_is_made_takes_none(
    desk: Desk, ledger_db: Any
) -> None:
    payer = desk.open_payer(1)
    limit = Limit("user", "day", 2_000_000_000)
    everything, _ = await asyncio.to_thread(ledger_db.reserve, 2_000_000_000, limit)
    waiting = asyncio.create_task(desk.call(payer))
    async with asyncio.timeout(WAIT_SECONDS):
        while payer.overdue() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    # While it waits for money it holds the only call there is.
    await desk.refused(payer)
    waiting.cancel()
    await asyncio.wait([waiting])
    await asyncio.to_thread(ledger_db.give_back, everything)
    await desk.call(payer)
    await asyncio.to_thread(ledger_db.spend, 2_000_000_000, limit)
    poor = desk.open_payer(1)
    for _ in range(2):
        with pytest.raises(ChuckyError) as caught:
            await desk.call(poor)
        assert caught.value.reason == "user_budget_exhausted"


async def test_an_answer_that_its_reader_left_is_one_of_them(desk: Desk) -> None:
    payer = desk.open_payer(1)
    await desk.call(payer, leaves=True)
    await desk.refused(payer)


async def test_a_call_for_the_servers_own_sake_takes_none_but_needs_one_left(desk: Desk) -> None:
    payer = desk.open_payer(1)
    await desk.call(payer, is_aside=True)
    await desk.call(payer)
    calls = desk.answers.calls
    with pytest.raises(ChuckyError) as caught:
        await desk.call(payer, is_aside=True)
    assert caught.value.code == "MAX_TURNS"
    assert desk.answers.calls == calls


async def test_without_a_limit_of_its_own_a_turn_ends_after_200_calls(desk: Desk) -> None:
    payer = FreePayer()
    for _ in range(200):
        await desk.call(payer)
    await desk.refused(payer)
