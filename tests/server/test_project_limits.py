"""What a project's policy limits, each limit with its own code and reason; and warnings before."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chucky import Chucky, ConcurrencyLimitError, create_budget, create_token
from chucky.server.store import Store

MODEL = "claude-sonnet-4-6"
TOKENS = {"input_tokens": 1_000, "output_tokens": 20}  # 3,300 micro-dollars
MINUTE = timedelta(minutes=1)

StartLimited = Callable[..., AbstractAsyncContextManager[Any]]


class Clock:
    """The time that a server goes by; it stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def start_limited(start_server: Any, tmp_path: Path, clock: Clock) -> StartLimited:
    """Start a server whose default project has a policy: ``async with start_limited(maxTurns=1)``.

    Its clock is the fixture ``clock``.
    """

    def prepare(policy: dict[str, Any]) -> None:
        with closing(Store.open(tmp_path / "chucky.db")) as store:
            store.set_policy(store.ensure_default_project(), json.dumps(policy))

    @asynccontextmanager
    async def start(**policy: Any) -> AsyncIterator[Any]:
        await asyncio.to_thread(prepare, policy)
        async with start_server(clock) as server:
            yield server

    return start


def client(server: Any, user: str = "ann", ai_dollars: float = 1_000, **options: Any) -> Chucky:
    budget = create_budget(ai_dollars, 100, "day")
    token = create_token(user, server.project_id, server.secret, budget, 10**9)
    return Chucky(token, server.url, model=MODEL, **options)


async def ask(
    server: Any, user: str = "ann", usage: dict[str, int] | None = None, **options: Any
) -> Any:
    """One turn of a user, on a connection of its own."""
    step = {"text": "Done.", "usage": usage or TOKENS, "overrun": True}
    async with client(server, user, **options) as asking:
        return await asking.prompt(f"Go.\n```offline\n{json.dumps([step])}\n```")


def iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}.000Z"


# --- budgets of a project ---------------------------------------------------------------------


async def test_the_budget_of_a_project_is_shared_by_its_users(
    start_limited: StartLimited, clock: Clock
) -> None:
    start = clock.now - 10 * MINUTE
    hourly = {"ai": 12_000, "window": "hour", "windowStart": start.isoformat()}
    async with start_limited(budgets=[hourly]) as server:
        for user in ("ann", "bob", "cid"):
            assert (await ask(server, user)).subtype == "success"
        for user in ("ann", "dan"):
            error = (await ask(server, user)).error
            assert (error.code, error.reason) == ("BUDGET_EXCEEDED", "developer_budget_exhausted")
            assert (error.meter, error.scope, error.window) == ("ai", "project", "hour")
            assert (error.spent, error.limit) == (9_900, 12_000)
            assert error.resets_at == iso(start + 60 * MINUTE)
        clock.now += 51 * MINUTE
        assert (await ask(server, "dan")).subtype == "success"


async def test_all_budgets_of_a_project_hold(start_limited: StartLimited, clock: Clock) -> None:
    budgets = [{"ai": 5_000, "window": "hour"}, {"ai": 9_000, "window": "day"}]
    async with start_limited(budgets=budgets) as server:
        await ask(server)
        assert (await ask(server)).error.window == "hour"
        clock.now += 61 * MINUTE
        assert (await ask(server)).subtype == "success"
        clock.now += 61 * MINUTE
        assert (await ask(server)).error.window == "day"


async def test_the_compute_of_a_project_is_limited_too(start_limited: StartLimited) -> None:
    async with start_limited(budgets=[{"compute": 0, "window": "month"}]) as server:
        error = (await ask(server)).error
    assert (error.code, error.reason) == ("BUDGET_EXCEEDED", "developer_budget_exhausted")
    assert (error.meter, error.window, error.spent, error.limit) == ("compute", "month", 0, 0)


async def test_what_a_project_has_left_is_not_told_to_its_users(
    start_limited: StartLimited,
) -> None:
    async with start_limited(budgets=[{"ai": 10_000, "window": "hour"}]) as server:
        result = await ask(server, max_budget_usd=1)
    assert {budget["scope"] for budget in result.budgets} == {"user", "session"}


async def test_a_session_spends_no_more_than_the_policy_and_its_client_say(
    start_limited: StartLimited,
) -> None:
    async with start_limited(maxBudgetUsd=0.012) as server:
        for asked, limit in ((None, 12_000), (1.0, 12_000), (0.005, 5_000)):
            step = {"text": "Done.", "usage": TOKENS}
            message = f"Go.\n```offline\n{json.dumps([step])}\n```"
            async with (
                client(server, max_budget_usd=asked) as asking,
                asking.create_session() as session,
            ):
                while True:
                    await session.send(message)
                    last = [each async for each in session.stream()][-1]
                    if last.subtype != "success":
                        break
            error = last.error
            assert (error.code, error.reason) == ("BUDGET_EXCEEDED", "session_budget_exhausted")
            assert error.subtype == "error_max_budget_usd"
            assert (error.scope, error.limit) == ("session", limit)
            assert error.spent == limit // 3_300 * 3_300
            assert error.resets_at is None


# --- how many, how often ------------------------------------------------------------------------


async def test_turns_of_a_project_are_counted_over_the_last_minute(
    start_limited: StartLimited, clock: Clock
) -> None:
    async with start_limited(maxTurnsPerMinute=2) as server:
        first = clock.now
        assert (await ask(server, "ann")).subtype == "success"
        clock.now += MINUTE / 2
        assert (await ask(server, "bob")).subtype == "success"
        result = await ask(server, "cid")
        error = result.error
        assert (error.code, error.reason) == ("RATE_LIMIT", "developer_rate_reached")
        assert (error.spent, error.limit, error.resets_at) == (2, 2, iso(first + MINUTE))
        assert result.total_cost_usd == 0
        clock.now = first + MINUTE
        assert (await ask(server, "cid")).subtype == "success"
        assert (await ask(server, "ann")).error.reason == "developer_rate_reached"


async def test_turns_of_a_user_are_counted_apart_from_others(
    start_limited: StartLimited, clock: Clock
) -> None:
    async with start_limited(maxTurnsPerUserPerMinute=1) as server:
        assert (await ask(server, "ann")).subtype == "success"
        error = (await ask(server, "ann")).error
        assert (error.code, error.reason) == ("RATE_LIMIT", "user_rate_reached")
        assert (error.spent, error.limit, error.resets_at) == (1, 1, iso(clock.now + MINUTE))
        assert (await ask(server, "bob")).subtype == "success"


@pytest.mark.parametrize(
    ("limit", "second_user", "reason"),
    [
        ("maxSessions", "bob", "developer_concurrent_limit_reached"),
        ("maxSessionsPerUser", "ann", "concurrent_limit_reached"),
    ],
)
async def test_open_sessions_are_limited(
    start_limited: StartLimited, limit: str, second_user: str, reason: str
) -> None:
    async with start_limited(**{limit: 1}) as server:
        async with client(server, "ann") as first, first.create_session() as session:
            await session.send("What is 2 + 2?")
            async for _ in session.stream():
                pass
            with pytest.raises(ConcurrencyLimitError) as caught:
                await ask(server, second_user)
            assert (caught.value.code, caught.value.reason) == ("CONCURRENCY_LIMIT", reason)
            details = caught.value.details
            assert (details["spent"], details["limit"], details["resets_at"]) == (1, 1, None)
            if limit == "maxSessionsPerUser":
                assert (await ask(server, "bob")).subtype == "success"
        assert (await ask(server, second_user)).subtype == "success"


# --- warnings -----------------------------------------------------------------------------------


async def test_a_result_warns_when_four_fifths_and_again_when_nearly_all_is_spent(
    start_limited: StartLimited, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "chucky.server")
    warnings, logged = [], []
    async with start_limited() as server:
        # 79.9 %, 80 %, 94.9 %, 95 % and 95.1 % of a dollar, at 15 dollars per million tokens.
        for tokens in (53_266, 68, 9_932, 68, 67):
            caplog.clear()
            usage = {"input_tokens": 0, "output_tokens": tokens}
            result = await ask(server, usage=usage, ai_dollars=1)
            [budget] = [each for each in result.budgets if each["meter"] == "ai"]
            warnings.append(budget["warning"])
            logged.append([each.message for each in caplog.records if "budget" in each.message])
    assert warnings == [None, 80, 80, 95, 95]
    # Each threshold once, when it is reached.
    assert [len(messages) for messages in logged] == [0, 1, 0, 1, 0]
    assert (
        logged[1][0].endswith(
            ": 80 % of the ai budget of the user is spent: $0.799995 of $1.00 in this day"
        )
        or "80 %" in logged[1][0]
    )


async def test_a_result_says_how_the_budgets_of_its_turn_stand(
    start_limited: StartLimited, clock: Clock
) -> None:
    async with start_limited() as server:
        result = await ask(server, ai_dollars=1, max_budget_usd=0.5)
    assert result.turn_cost_usd == 0.0033
    assert 0 < result.turn_compute_ms < 60_000
    budgets = {(each["scope"], each["meter"]): each for each in result.budgets}
    session, user = budgets["session", "ai"], budgets["user", "ai"]
    assert (session["spent"], session["limit"], session["resets_at"]) == (3_300, 500_000, None)
    assert (user["spent"], user["limit"], user["window"]) == (3_300, 1_000_000, "day")
    assert datetime.fromisoformat(user["resets_at"]) > clock.now
    compute = budgets["user", "compute"]
    assert (compute["limit"], compute["warning"]) == (360_000, None)
    assert compute["spent"] == -(-result.turn_compute_ms // 1_000)
