"""Another model answers while the one that was asked for is overloaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

OVERLOADED = (529, {"type": "error", "error": {"type": "overloaded_error", "message": "full"}})
REFUSED = (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}})
INIT = {
    "model": "claude-sonnet-5",
    "fallbackModel": "claude-haiku-4-5",
    "capabilities": ["result_details"],
}


async def test_it_answers_when_all_attempts_have_failed_and_says_so(
    start_server: Any,
    start_provider: Any,
    api: Any,
    dial: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(request: dict[str, Any]) -> Any:
        return OVERLOADED if request["model"] == "claude-sonnet-5" else api.says("I am here.")

    async with (
        start_provider(answer) as provider,
        start_server(upstream_url=provider.url, model_attempts=2) as server,
        dial(server.url, token=server.token()) as client,
    ):
        await client.send(type="init", payload=INIT)
        await client.ask("Hello")
        result = await client.result()
    assert result["result"] == "I am here."
    assert result["model"] == "claude-haiku-4-5-20251001"
    models = [request["model"] for request in provider.requests]
    assert models == ["claude-sonnet-5", "claude-sonnet-5", "claude-haiku-4-5-20251001"]
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert any("claude-haiku-4-5-20251001 answers" in warning for warning in warnings)


async def test_attempts_that_failed_are_none_of_the_calls_that_max_turns_allows(
    start_server: Any, start_provider: Any, api: Any, dial: Any
) -> None:
    def answer(request: dict[str, Any]) -> Any:
        return OVERLOADED if request["model"] == "claude-sonnet-5" else api.says("I am here.")

    async with (
        start_provider(answer) as provider,
        start_server(upstream_url=provider.url, model_attempts=2) as server,
        dial(server.url, token=server.token()) as client,
    ):
        await client.send(type="init", payload={**INIT, "maxTurns": 1})
        await client.ask("Hello")
        result = await client.result()
    assert (result["result"], result["num_turns"]) == ("I am here.", 1)
    assert len(provider.requests) == 3


async def test_it_has_its_own_price(
    start_server: Any, start_provider: Any, api: Any, dial: Any
) -> None:
    prices = {
        "claude-sonnet-5": {"input": 1_000, "output": 1_000},
        "claude-haiku-4-5-20251001": {"input": 1, "output": 0},
    }

    def answer(request: dict[str, Any]) -> Any:
        expensive = request["model"] == "claude-sonnet-5"
        return OVERLOADED if expensive else api.message(input_tokens=1_000_000)

    async with (
        start_provider(answer) as provider,
        start_server(upstream_url=provider.url, model_attempts=1, prices=prices) as server,
        dial(server.url, token=server.token()) as client,
    ):
        await client.send(type="init", payload=INIT)
        await client.ask("Hello")
        assert (await client.result())["total_cost_usd"] == 1.0


@pytest.mark.parametrize(
    ("failure", "reason"), [(REFUSED, "model_rejected_request"), (OVERLOADED, "model_overloaded")]
)
async def test_it_is_asked_once_and_not_for_what_would_fail_there_too(
    start_server: Any, start_provider: Any, dial: Any, failure: Any, reason: str
) -> None:
    async with (
        start_provider(failure) as provider,
        start_server(upstream_url=provider.url, model_attempts=1) as server,
        dial(server.url, token=server.token()) as client,
    ):
        await client.send(type="init", payload=INIT)
        await client.ask("Hello")
        assert (await client.result())["error"]["reason"] == reason
    assert len(provider.requests) == (2 if failure is OVERLOADED else 1)


async def test_it_does_not_repeat_what_the_client_has_seen(
    server: Any, dial: Any, script: Callable[..., str]
) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.send(type="init", payload={**INIT, "includePartialMessages": True})
        await client.ask(script({"text": ["one ", "two "], "cut_after_chunks": 1}, {"text": "x"}))
        result = await client.result()
    assert result["error"]["reason"] in ("model_stream_dropped", "model_unreachable")
