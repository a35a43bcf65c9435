"""How models of each generation are told to think, and what becomes of their thoughts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chucky import Chucky
from chucky.session import Session

WAIT_SECONDS = 20
OVERLOADED = (529, {"type": "error", "error": {"type": "overloaded_error", "message": "full"}})


async def answers(session: Session, text: str) -> list[Any]:
    async with asyncio.timeout(WAIT_SECONDS):
        await session.send(text)
        return [message async for message in session.stream()]


ADAPTIVE = {"type": "adaptive", "display": "summarized"}


@pytest.mark.parametrize(
    ("model", "asked", "sent", "max_tokens"),
    [
        ("claude-haiku-4-5-20251001", None, None, 32_000),
        ("claude-haiku-4-5-20251001", 0, None, 32_000),
        # Fewer than the API takes as a budget: not to think is the only way not to think more.
        ("claude-haiku-4-5-20251001", 1_023, None, 32_000),
        ("claude-haiku-4-5-20251001", 1_024, {"type": "enabled", "budget_tokens": 1_024}, 33_024),
        (
            "claude-haiku-4-5-20251001",
            1_000_000,
            {"type": "enabled", "budget_tokens": 48_000},
            64_000,
        ),
        ("claude-sonnet-5", None, None, 32_000),
        ("claude-sonnet-5", 5_000, ADAPTIVE, 32_000),
        ("claude-sonnet-5", 0, {"type": "disabled"}, 32_000),
        ("claude-sonnet-5-5", 0, {"type": "between_tools"}, 32_000),
        # These always think, and refuse to be told otherwise.
        ("claude-opus-5-5", 0, None, 32_000),
        ("claude-opus-5-5", 5_000, ADAPTIVE, 32_000),
    ],
)
async def test_each_generation_is_told_in_its_own_words(
    start_server: Any,
    start_provider: Any,
    dial: Any,
    model: str,
    asked: int | None,
    sent: dict[str, Any] | None,
    max_tokens: int,
) -> None:
    async with (
        start_provider() as provider,
        start_server(upstream_url=provider.url) as server,
        dial(server.url, token=server.token()) as client,
    ):
        await client.send(type="init", payload={"model": model, "maxThinkingTokens": asked})
        await client.ask("Hm?")
        assert (await client.result())["subtype"] == "success"
    (request,) = provider.requests
    assert request.get("thinking") == sent
    assert request["max_tokens"] == max_tokens


async def test_thinking_goes_back_signed_to_the_model_that_thought_it_and_to_no_other(
    start_server: Any, start_provider: Any, api: Any
) -> None:
    thought = api.message(*api.thinking_block("Hm.", "signed"), *api.text_block("One.", index=1))
    async with (
        start_provider(
            thought, OVERLOADED, api.says("Two."), api.says("Three."), api.says("Four.")
        ) as provider,
        start_server(upstream_url=provider.url, model_attempts=1) as server,
        Chucky(
            server.token(sdk_config={"fallbackModel": "haiku"}), server.url, "claude-sonnet-5"
        ) as client,
    ):
        session = client.create_session()
        first = await answers(session, "one")
        second = await answers(session, "two")
        third = await answers(session, "three")
    block = {"type": "thinking", "thinking": "Hm.", "signature": "signed"}
    text = {"type": "text", "text": "One."}
    _, refused, fallback, again = provider.requests
    assert refused["model"] == again["model"] == "claude-sonnet-5"
    assert fallback["model"] == "claude-haiku-5-5"
    assert refused["messages"][1]["content"] == [block, text]
    assert fallback["messages"][1]["content"] == [text]
    assert again["messages"][1]["content"] == [block, text]
    assert [messages[-1].model for messages in (first, second, third)] == [
        "claude-sonnet-5",
        "claude-haiku-5-5",
        "claude-sonnet-5",
    ]


async def test_thinking_does_not_outlive_what_it_was_signed_with(
    start_server: Any, start_provider: Any, api: Any, dial: Any
) -> None:
    """A summary in the place of the beginning makes the signatures of what follows wrong."""
    use = {"type": "tool_use", "id": "t1", "name": "mcp__s__look", "input": {}}
    usage = {"input_tokens": 900_000}
    calls = api.message(
        *api.thinking_block("Hm.", "signed"),
        *api.block(use, index=1),
        stop_reason="tool_use",
        **usage,
    )
    tools = [
        {
            "name": "s",
            "tools": [
                {"name": "look", "description": "d", "inputSchema": {}, "executeIn": "client"}
            ],
        }
    ]
    async with (
        start_provider(
            api.says("Hello."), calls, api.says("A summary."), api.says("Done.")
        ) as provider,
        start_server(upstream_url=provider.url) as server,
        dial(server.url, token=server.token()) as client,
    ):
        await client.send(type="init", payload={"model": "claude-opus-5-5", "mcpServers": tools})
        await client.ask("Hello")
        await client.result()
        await client.ask("Look")
        call = (await client.receive_until("tool_call"))[-1]["payload"]
        await client.send(
            type="tool_result", payload={"callId": call["callId"], "result": {"content": []}}
        )
        assert (await client.result())["result"] == "Done."
    summary, calling, results = provider.requests[-1]["messages"]
    assert "A summary." in summary["content"][0]["text"]
    assert [block["type"] for block in calling["content"]] == ["tool_use"]
    assert results["content"][0]["tool_use_id"] == "t1"
