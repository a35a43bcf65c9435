"""Budgets as users meet them: whole turns through a real server, with a provider that charges."""

from __future__ import annotations

import asyncio
import random
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chucky import Chucky, tool
from chucky.server.ledger.operations import Reserve, Void
from chucky.server.ledger.wishes import Wish

WAIT_SECONDS = 40
MODEL = "claude-sonnet-5-5"  # 2,000 nano-dollars a token in, 2,500 cached, 10,000 out


def client(service: Any, token: str, **options: Any) -> Chucky:
    options = {"model": MODEL, "include_partial_messages": False, **options}
    return Chucky(token, service.server.url, **options)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


async def nothing_held(service: Any, meter: str = "ai") -> Any:
    """Wait until a user's reservations have ended; return how they stand."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (standing := await service.standing(meter)).reserved:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    return standing


# --- many at once -----------------------------------------------------------------------------


@pytest.mark.parametrize("mints_again", [False, True], ids=["one-token", "minted-again"])
async def test_no_crowd_spends_more_than_the_budget_or_leaves_a_calls_worth(
    start_service: Any, seed: int, mints_again: bool
) -> None:
    chance = random.Random(seed)
    limit_nanos = 200_000_000
    told_dollars: list[float] = []
    async with start_service() as service:
        service.till.output_tokens = lambda _: chance.randint(1, 1_500)
        start = datetime.now(UTC) - timedelta(hours=12)

        def token() -> str:
            moved = start + timedelta(minutes=chance.randint(1, 600)) if mints_again else start
            return str(service.token(limit_nanos / 10**9, window="day", window_start=moved))

        async def spend(chucky: Chucky) -> None:
            async with chucky:
                while True:
                    result = await chucky.prompt("Hello")
                    told_dollars.append(result.turn_cost_usd)
                    if result.is_error and result.error.reason == "user_budget_exhausted":
                        if not result.turn_cost_usd:
                            return
                    else:
                        assert not result.is_error, result

        one = token()
        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as crowd:
            for _ in range(64):
                crowd.create_task(spend(client(service, token() if mints_again else one)))
        standing = await nothing_held(service)
        assert standing.spent <= limit_nanos
        assert limit_nanos - standing.spent < 500 * 2_500 + 64 * 10_000
        micros = sum(round(each * 10**6) for each in told_dollars)
        assert standing.spent <= micros * 1_000 < standing.spent + 1_000 * len(told_dollars)
        assert len(service.till.requests) > 10


async def test_calls_like_those_of_sub_agents_all_run_side_by_side(start_service: Any) -> None:
    async with start_service() as service:
        service.till.input_tokens = 15_000
        service.till.output_tokens = lambda _: 600
        token, text = service.token(2.0), "word " * 12_000
        for _ in range(8):
            # Each call waits at the provider for four others: were one held back, all would hang.
            service.till.meeting = asyncio.Barrier(5)
            async with asyncio.timeout(WAIT_SECONDS):
                results = await asyncio.gather(
                    *(client(service, token).prompt(text) for _ in range(5))
                )
            assert not any(result.is_error for result in results)
        assert (await nothing_held(service)).spent == 40 * (15_000 * 2_000 + 600 * 10_000)
        assert min(request["max_tokens"] for request in service.till.requests) >= 4_096


# --- waiting for money ------------------------------------------------------------------------


async def usage(service: Any, token: str) -> None:
    """Ask the server how the budget stands: answered after what was asked for before."""
    url = service.server.url.replace("ws://", "http://").removesuffix("/ws") + "/usage"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with await asyncio.to_thread(urllib.request.urlopen, request, timeout=WAIT_SECONDS):
        pass


async def test_turns_that_wait_for_money_until_their_time_is_over_are_busy(
    start_service: Any, loop_time: Any
) -> None:
    async with start_service(turn_timeout_seconds=10) as service:
        token = service.token(0.03)
        everything = Reserve("all", service.holder(), "ai", Wish(30_000_000, 0, 0, 0, 0, 0), ())
        await service.book(everything)
        waiting = [asyncio.create_task(client(service, token).prompt("Hello")) for _ in range(3)]
        await until(lambda: service.till.counts == 3)
        for _ in range(5):
            await usage(service, token)
        loop_time.advance(10)
        async with asyncio.timeout(WAIT_SECONDS):
            results = await asyncio.gather(*waiting)
        for result in results:
            assert (result.error.code, result.error.reason) == ("BUDGET_BUSY", "budget_reserved")
            assert result.error.retryable
        assert not service.till.requests
        assert (await nothing_held(service, "compute")).reserved == 0
        # Nothing remains of those who gave up, and what was held comes back.
        await service.book(Void("all", service.holder(), "ai"))
        assert not (await client(service, token).prompt("Hello")).is_error


async def test_a_turn_that_waited_goes_on_when_another_gives_back(start_service: Any) -> None:
    async with start_service() as service:
        # The first call takes all there is: 2,875 tokens of output.
        token = service.token(0.03)
        service.till.may_end.clear()
        first = asyncio.create_task(client(service, token).prompt("Hello"))
        await until(lambda: service.till.in_flight == 1)
        second = asyncio.create_task(client(service, token).prompt("Hello"))
        await until(lambda: service.till.counts == 2)
        await usage(service, token)
        assert service.till.in_flight == 1
        service.till.may_end.set()
        async with asyncio.timeout(WAIT_SECONDS):
            results = await asyncio.gather(first, second)
        assert [result.is_error for result in results] == [False, False]
        assert service.till.requests[0]["max_tokens"] == 2_875


async def test_a_turn_waits_for_compute_that_others_hold(start_service: Any) -> None:
    async with start_service() as service:
        token = service.token(compute_seconds=1)
        everything = Reserve("all", service.holder(), "compute", Wish(1_000, 0, 0, 0, 0, 0), ())
        await service.book(everything)
        waiting = asyncio.create_task(client(service, token).prompt("Hello"))
        await until(lambda: service.till.counts == 1)
        await usage(service, token)
        assert not waiting.done()
        await service.book(Void("all", service.holder(), "compute"))
        async with asyncio.timeout(WAIT_SECONDS):
            assert not (await waiting).is_error


# --- answers cut short ------------------------------------------------------------------------


async def test_an_answer_cut_short_has_its_text_and_its_cost(start_service: Any) -> None:
    async with start_service() as service:
        service.till.output_tokens = lambda _: 100_000
        result = await client(service, service.token(0.03)).prompt("Hello")
        assert (result.error.code, result.error.reason) == (
            "BUDGET_EXCEEDED",
            "user_budget_exhausted",
        )
        assert result.result == "So far."
        assert result.turn_cost_usd == 0.02975  # 500 x 2,000 + 2,875 x 10,000
        assert result.error.limit == 30_000
        # What is left, 250,000 nano-dollars, pays for no call, and none is made.
        calls = len(service.till.requests)
        again = await client(service, service.token(0.03)).prompt("Hello")
        assert again.error.reason == "user_budget_exhausted"
        assert (again.error.spent, again.error.limit) == (29_750, 30_000)
        assert len(service.till.requests) == calls
        # A larger token raises the limit.
        service.till.output_tokens = lambda _: 5
        assert not (await client(service, service.token(0.06)).prompt("Hello")).is_error


async def test_thinking_is_lowered_with_the_answer(start_service: Any) -> None:
    model = "claude-haiku-4-5-20251001"  # 1,000 nano-dollars in, 1,250 cached, 5,000 out
    async with start_service() as service:
        for dollars, max_tokens, budget_tokens in (
            (0.020625, 4_000, 3_000),
            (0.005625, 1_000, None),
        ):
            chucky = client(
                service,
                service.token(dollars, user=f"{dollars}"),
                model=model,
                max_thinking_tokens=10_000,
            )
            assert not (await chucky.prompt("Hello")).is_error
            sent = service.till.requests[-1]
            assert sent["max_tokens"] == max_tokens
            assert sent.get("thinking", {}).get("budget_tokens") == budget_tokens


async def test_a_session_has_a_budget_of_its_own(start_service: Any) -> None:
    async with start_service() as service:
        service.till.output_tokens = lambda _: 1_000
        chucky = client(service, service.token(), max_budget_usd=0.03)
        async with asyncio.timeout(WAIT_SECONDS), chucky.create_session() as session:
            results = []
            for _ in range(4):
                await session.send("Hello")
                results.append([message async for message in session.stream()][-1])
        costs = [round(result.total_cost_usd, 6) for result in results]
        assert costs[:2] == [0.011, 0.022]
        assert costs[-1] <= 0.03
        assert results[-1].error.reason == "session_budget_exhausted"
        # Another session of the user has one, too.
        assert not (await chucky.prompt("Hello")).is_error


# --- compute ----------------------------------------------------------------------------------


@dataclass
class ServerClock:
    """The server's time of day, which a test can move on."""

    moved: timedelta = timedelta()

    def __call__(self) -> datetime:
        """Tell the time."""
        return datetime.now(UTC) + self.moved


async def run_out(loop_time: Any, turn: asyncio.Task[Any]) -> Any:
    """Let time pass, in steps that leave the ledger time to answer, until a turn has ended."""
    async with asyncio.timeout_at(asyncio.get_running_loop().time() + 10_000):
        while not turn.done():
            loop_time.advance(0.05)
            await asyncio.wait([turn], timeout=0.01)
    return turn.result()


async def test_a_turn_ends_when_its_compute_is_used_up_and_the_session_goes_on(
    start_service: Any, loop_time: Any
) -> None:
    clock = ServerClock()
    async with start_service(clock=clock) as service:
        chucky = client(service, service.token(compute_seconds=3, window="hour"))
        async with asyncio.timeout(10_000), chucky.create_session() as session:

            async def turn() -> Any:
                await session.send("Hello")
                return [message async for message in session.stream()][-1]

            service.till.may_end.clear()
            running = asyncio.create_task(turn())
            await until(lambda: service.till.in_flight == 1)
            result = await run_out(loop_time, running)
            assert result.error.code == "BUDGET_EXCEEDED"
            assert (result.error.meter, result.error.spent, result.error.limit) == ("compute", 3, 3)
            assert result.turn_compute_ms == 3_000
            assert result.turn_cost_usd > 0
            await until(lambda: service.till.in_flight == 0)
            service.till.may_end.set()
            # The same session in the same window, and in the next.
            calls = len(service.till.requests)
            assert (await turn()).error.meter == "compute"
            assert len(service.till.requests) == calls
            clock.moved = timedelta(hours=1)
            assert not (await turn()).is_error
        assert (await nothing_held(service, "compute")).spent > 3_000


async def test_a_larger_token_brings_more_compute(start_service: Any, loop_time: Any) -> None:
    async with start_service() as service:
        service.till.may_end.clear()
        chucky = client(service, service.token(compute_seconds=2))
        result = await run_out(loop_time, asyncio.create_task(chucky.prompt("Hello")))
        assert result.error.meter == "compute"
        service.till.may_end.set()
        larger = client(service, service.token(compute_seconds=20))
        assert not (await larger.prompt("Hello")).is_error


async def test_a_turn_that_waits_for_a_tool_uses_no_compute(
    start_service: Any, loop_time: Any
) -> None:
    async with start_service() as service:
        service.till.tool_calls = 3

        @tool("think", "Takes its time")
        async def think() -> str:
            loop_time.advance(5)
            return "done"

        chucky = client(service, service.token(compute_seconds=10))
        async with asyncio.timeout(10_000), chucky.create_session(tools=[think]) as session:
            await session.send("Hello")
            result = [message async for message in session.stream()][-1]
        assert not result.is_error
        assert result.turn_compute_ms < 5_000
        assert (await nothing_held(service, "compute")).spent == result.turn_compute_ms


# --- calls that end otherwise -----------------------------------------------------------------


async def test_a_call_that_broke_off_and_its_repetition_are_both_charged(
    start_service: Any,
) -> None:
    async with start_service() as service:
        service.till.breaks = 1
        result = await client(service, service.token()).prompt("Hello")
        assert not result.is_error
        # What had arrived, "So far." (3 tokens), and the whole answer.
        nanos = (500 * 2_000 + 3 * 10_000) + (500 * 2_000 + 100 * 10_000)
        standing = await nothing_held(service)
        assert standing.spent == nanos
        assert result.turn_cost_usd == nanos / 10**9


async def test_cached_tokens_are_charged_by_their_kind_to_the_nano(start_service: Any) -> None:
    split = {"ephemeral_5m_input_tokens": 101, "ephemeral_1h_input_tokens": 103}
    async with start_service() as service:
        service.till.usage = {
            "cache_creation_input_tokens": 204,
            "cache_creation": split,
            "cache_read_input_tokens": 107,
        }
        await client(service, service.token()).prompt("Hello")
        nanos = 500 * 2_000 + 100 * 10_000 + 101 * 2_500 + 103 * 4_000 + 107 * 100
        assert (await nothing_held(service)).spent == nanos


async def test_a_long_context_is_charged_at_its_tier(start_service: Any) -> None:
    async with start_service() as service:
        service.till.input_tokens = 100_001
        await client(service, service.token(), model="claude-haiku-5-5").prompt("Hello")
        assert (await nothing_held(service)).spent == 100_001 * 500 + 100 * 2_500


async def test_more_than_the_bound_is_booked_and_then_nothing_is_left(start_service: Any) -> None:
    async with start_service() as service:
        service.till.usage = {"cache_read_input_tokens": 10**6}
        chucky = client(service, service.token(0.05))
        assert not (await chucky.prompt("Hello")).is_error
        standing = await nothing_held(service)
        assert standing.spent == 500 * 2_000 + 100 * 10_000 + 10**6 * 100
        assert (await chucky.prompt("Hello")).error.reason == "user_budget_exhausted"


async def test_a_client_that_leaves_in_the_middle_frees_everything(
    start_service: Any, dial: Any
) -> None:
    async with start_service() as service:
        token = service.token()
        service.till.may_end.clear()
        async with dial(service.server.url, token=token) as raw:
            await raw.send(type="init", payload={"model": MODEL})
            await raw.ask("Hello")
            await until(lambda: service.till.in_flight == 1)
            await raw.receive_until("system")
            standing = await service.standing()
            assert standing.reserved > 0
        standing = await nothing_held(service)
        assert 0 < standing.spent <= 500 * 2_000 + 3 * 10_000
        assert (await nothing_held(service, "compute")).spent > 0
        await until(lambda: service.till.in_flight == 0)


async def test_a_call_the_provider_refuses_costs_nothing(
    start_server: Any, start_provider: Any, api: Any
) -> None:
    overloaded = (400, {"type": "error", "error": {"type": "invalid_request_error"}})
    async with (
        start_provider(overloaded, api.says("Hi.")) as provider,
        start_server(upstream_url=provider.url) as server,
    ):
        refused = await Chucky(server.token(), server.url, model=MODEL).prompt("Hello")
        assert refused.is_error
        assert refused.turn_cost_usd == 0
