"""``GET /usage``: what a user has spent and has left, for whoever holds the token."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chucky import Chucky, create_budget, create_token
from chucky.server.ledger.accounts import Holder
from chucky.server.ledger.corrections import give_credit
from chucky.server.settings import Settings
from chucky.server.store import open_ledger
from chucky.tokens import Window

WAIT_SECONDS = 15
MODEL = "claude-sonnet-4-6"
# 1,000 * 3 + 20 * 15 micro-dollars, and 0.3 of one: rounded up.
TOKENS = {"input_tokens": 1_000, "output_tokens": 20, "cache_read_input_tokens": 1}
COST_MICROS = 3_301
HOUR = timedelta(hours=1)


class Clock:
    """The time that a server goes by; it stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def token(
    server: Any,
    user: str = "ann",
    *,
    ai_dollars: float = 1.0,
    compute_hours: float = 1.0,
    window: Window = "day",
    start: datetime | None = None,
) -> str:
    """A token whose budget says where its windows begin only if the test does."""
    budget: dict[str, Any] = {
        "ai": round(ai_dollars * 1_000_000),
        "compute": round(compute_hours * 3_600),
        "window": window,
    }
    if start is not None:
        budget["windowStart"] = start.isoformat()
    return create_token(user, server.project_id, server.secret, budget, 10**9)


async def get(server: Any, authorization: str | None, path: str = "/usage") -> httpx2.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    base_url = server.url.replace("ws", "http", 1).removesuffix("/ws")
    async with httpx2.AsyncClient(base_url=base_url, headers=headers) as web:
        return await web.get(path)


async def usage(server: Any, user_token: str) -> dict[str, Any]:
    answer = await get(server, f"Bearer {user_token}")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    read: dict[str, Any] = answer.json()
    return read


async def spend(server: Any, user_token: str, script: Callable[..., str]) -> Any:
    async with Chucky(user_token, server.url, model=MODEL) as client:
        return await client.prompt(script({"text": "Done.", "usage": TOKENS}))


def iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}.000Z"


async def test_a_user_who_has_spent_nothing_has_the_whole_budget(
    start_server: Any, clock: Clock
) -> None:
    async with start_server(clock) as server:
        assert await usage(server, token(server, start=clock.now - 2 * HOUR)) == {
            "ai": {"used": 0, "remaining": 1_000_000, "budget": 1_000_000},
            "compute": {"used": 0, "remaining": 3_600, "budget": 3_600},
            "window": "day",
            "resetsAt": iso(clock.now + 22 * HOUR),
            "allowed": True,
        }


async def test_what_was_used_is_rounded_up_and_the_next_window_has_all_of_it_again(
    start_server: Any, clock: Clock, script: Callable[..., str]
) -> None:
    async with start_server(clock) as server:
        user_token = token(server)
        assert (await spend(server, user_token, script)).subtype == "success"
        told = await usage(server, user_token)
        assert told["ai"] == {
            "used": COST_MICROS,
            "remaining": 1_000_000 - COST_MICROS,
            "budget": 1_000_000,
        }
        assert told["compute"]["used"] == 3_600 - told["compute"]["remaining"] > 0
        clock.now += 23 * HOUR
        assert await usage(server, user_token) == told
        clock.now += HOUR
        told = await usage(server, user_token)
        assert (told["ai"]["used"], told["compute"]["used"]) == (0, 0)
        assert told["resetsAt"] == iso(clock.now + 24 * HOUR)


async def test_looking_does_not_fix_where_windows_begin_and_spending_does(
    start_server: Any, clock: Clock, script: Callable[..., str]
) -> None:
    async with start_server(clock) as server:
        for start in (clock.now, clock.now - HOUR, clock.now - 30 * HOUR):
            told = await usage(server, token(server, start=start))
            hours_in = (clock.now - start) % (24 * HOUR)
            assert told["resetsAt"] == iso(clock.now + 24 * HOUR - hours_in)
        first = token(server, start=clock.now - 5 * HOUR)
        await spend(server, first, script)
        for later in (None, clock.now, clock.now - HOUR):
            told = await usage(server, token(server, start=later))
            assert told["resetsAt"] == iso(clock.now + 19 * HOUR)
            assert told["ai"]["used"] == COST_MICROS


async def test_nothing_is_allowed_once_either_budget_is_used_up(
    start_server: Any, script: Callable[..., str]
) -> None:
    async with start_server() as server:
        await spend(server, token(server), script)
        poor = await usage(server, token(server, ai_dollars=0.003301))
        assert (poor["ai"]["remaining"], poor["allowed"]) == (0, False)
        poorer = await usage(server, token(server, ai_dollars=0.001))
        assert (poorer["ai"]["remaining"], poorer["allowed"]) == (0, False)
        rushed = await usage(server, token(server, compute_hours=0))
        assert (rushed["compute"]["remaining"], rushed["allowed"]) == (0, False)
        assert (await usage(server, token(server, ai_dollars=0.003302)))["allowed"] is True


async def test_a_lifetime_never_begins_again(start_server: Any) -> None:
    async with start_server() as server:
        told = await usage(server, token(server, window="lifetime"))
    assert (told["window"], told["resetsAt"]) == ("lifetime", None)


async def test_users_see_their_own_and_the_limit_of_the_token_they_hold(
    start_server: Any, script: Callable[..., str]
) -> None:
    async with start_server() as server:
        await spend(server, token(server), script)
        assert (await usage(server, token(server, "bob")))["ai"]["used"] == 0
        larger = await usage(server, token(server, ai_dollars=2))
        assert (larger["ai"]["budget"], larger["ai"]["used"]) == (2_000_000, COST_MICROS)


async def test_a_credit_is_taken_off_what_was_used(
    start_server: Any, tmp_path: Path, script: Callable[..., str]
) -> None:
    def give(server: Any) -> None:
        with closing(open_ledger(Settings(db=tmp_path / "chucky.db"))) as rows:
            give_credit(rows, Holder(server.project_id, "ann"), "ai", 1_000_000)

    async with start_server() as server:
        user_token = token(server)
        await spend(server, user_token, script)
        await asyncio.to_thread(give, server)
        told = await usage(server, user_token)
    assert told["ai"]["used"] == COST_MICROS - 1_000
    assert told["ai"]["remaining"] == 1_001_000 - COST_MICROS


# --- who may not see it -------------------------------------------------------------------------


def refusal(answer: httpx2.Response) -> str:
    """The reason of an answer that says no, in the form of all of them."""
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    told = answer.json()
    assert told["code"] == "AUTHENTICATION_ERROR"
    assert told["message"].endswith(".")
    return str(told["error"])


async def test_without_a_good_token_nothing_is_told(start_server: Any, clock: Clock) -> None:
    async with start_server(clock) as server:
        good = token(server)
        expired = create_token(
            "ann", server.project_id, server.secret, create_budget(1, 1), expires_in=3_600
        )
        forged = create_token(
            "ann", server.project_id, f"hk_live_{secrets.token_hex(32)}", create_budget(1, 1), 10**6
        )
        clock.now += 2 * HOUR
        for authorization, reason in (
            (None, "token_missing"),
            ("Bearer", "token_missing"),
            (f"Basic {good}", "token_missing"),
            (good, "token_missing"),
            ("Bearer nonsense", "token_malformed"),
            (f"Bearer {forged}", "token_signature"),
            (f"Bearer {expired}", "token_expired"),
        ):
            answer = await get(server, authorization)
            assert refusal(answer) == reason
            assert good not in answer.text
        assert refusal(await get(server, None, f"/usage?token={good}")) == "token_missing"
        assert (await get(server, f"bearer   {good}")).status_code == 200


@pytest.mark.parametrize(
    ("change", "reason"),
    [("disable_project", "project_disabled"), ("rotate_key", "token_signature")],
)
async def test_a_token_that_is_no_longer_good_is_refused(
    start_server: Any, change: str, reason: str
) -> None:
    async with start_server() as server:
        user_token = token(server)
        await usage(server, user_token)
        await asyncio.to_thread(getattr(server.store, change), server.project_id)
        async with asyncio.timeout(WAIT_SECONDS):
            while (answer := await get(server, f"Bearer {user_token}")).status_code == 200:
                pass  # the server looks for changes twice a second
    assert refusal(answer) == reason


async def test_a_server_without_a_ledger_says_so(start_server: Any) -> None:
    async with start_server(ledger=False) as server:
        answer = await get(server, f"Bearer {token(server)}")
    assert answer.status_code == 503
    assert answer.json() == {
        "error": "ledger_off",
        "code": "VALIDATION_ERROR",
        "message": "This server keeps no budgets (its setting 'ledger' is off).",
    }
