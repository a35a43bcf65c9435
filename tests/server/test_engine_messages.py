"""The engine `messages` through the real server: retries, limits, interruption, cost, caching."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest

from chucky import Chucky, tool
from chucky.options import DEFAULT_MODEL
from chucky.session import Session

WAIT_SECONDS = 20
NOW = {"retry_after": 0}  # so that retries do not wait


@tool("add", "Add two numbers")
async def add(a: int, b: int) -> str:
    return str(a + b)


@pytest.fixture
def client(server: Any) -> Chucky:
    return Chucky(server.token("engine"), server.url, include_partial_messages=False)


async def answers(session: Session, text: str) -> list[Any]:
    """Everything one turn yields."""
    async with asyncio.timeout(WAIT_SECONDS):
        await session.send(text)
        return [message async for message in session.stream()]


@pytest.mark.parametrize(
    "failure",
    [
        {"error": {"status": 429, "type": "rate_limit_error", "message": "slow down", **NOW}},
        {"error": {"status": 529, "type": "overloaded_error", "message": "full", **NOW}},
        {"error": {"status": 500, "type": "api_error", "message": "oops", **NOW}},
        {"text": ["half an ", "answer"], "cut_after_chunks": 1},
        {"text": "", "cut_after_chunks": 0},
    ],
)
async def test_a_call_that_may_succeed_later_is_made_again(
    client: Chucky, script: Callable[..., str], failure: dict[str, Any]
) -> None:
    result = await client.prompt(script(failure, {"text": "whole answer"}))
    assert result.result == "whole answer"
    assert result.subtype == "success"
    assert result.num_turns == 1
    # Messages of the attempt that failed were not shown.
    assert [message["type"] for message in result.messages] == ["system", "assistant", "result"]


async def test_a_call_is_not_made_for_ever(client: Chucky, script: Callable[..., str]) -> None:
    busy = {"error": {"status": 529, "type": "overloaded_error", "message": "full", **NOW}}
    result = await client.prompt(script(*[busy] * 4, {"text": "too late"}))
    assert result.error.code == "MODEL_ERROR"
    assert result.error.reason == "model_overloaded"
    assert "full" in result.result


async def test_a_call_is_never_repeated_after_output_was_shown(
    server: Any, script: Callable[..., str]
) -> None:
    client = Chucky(server.token("engine"), server.url, include_partial_messages=True)
    cut = {"text": ["one ", "two "], "cut_after_chunks": 1}
    result = await client.prompt(script(cut, {"text": "again"}))
    assert result.error.reason in ("model_stream_dropped", "model_unreachable")
    events = [message for message in result.messages if message["type"] == "stream_event"]
    shown = "".join(map(str, events))
    assert shown == "one "


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (400, "invalid_request_error", "model_rejected_request"),
        (401, "authentication_error", "provider_key_refused"),
        (403, "permission_error", "provider_forbidden"),
        (404, "not_found_error", "model_not_found"),
        (413, "request_too_large", "request_too_large"),
    ],
)
async def test_what_cannot_succeed_is_not_repeated(
    client: Chucky, script: Callable[..., str], status: int, kind: str, reason: str
) -> None:
    refusal = {"error": {"status": status, "type": kind, "message": "the detail"}}
    async with client.create_session() as session:
        messages = await answers(session, script(refusal, {"text": "a second attempt"}))
        assert messages[-1].error.reason == reason
        # What the operator must mend is not explained to end users.
        assert ("the detail" in messages[-1].result) is (status not in (401, 403))
        # The rejected message is forgotten, so the session goes on.
        assert (await answers(session, "What is 2 + 2?"))[-1].subtype == "success"


async def test_an_error_in_the_middle_of_a_stream_is_an_attempt_that_failed(
    client: Chucky, script: Callable[..., str]
) -> None:
    broken = {
        "text": "half",
        "error": {"status": 529, "type": "overloaded_error", "message": "full"},
    }
    result = await client.prompt(script(broken, {"text": "whole"}))
    assert result.result == "whole"


async def test_max_turns_ends_a_turn_after_so_many_calls_and_the_session_goes_on(
    server: Any, script: Callable[..., str]
) -> None:
    client = Chucky(server.token("engine"), server.url, max_turns=2)
    call = {"tools": [{"name": "add", "input": {"a": 1, "b": 2}}]}
    async with client.create_session(tools=[add]) as session:
        messages = await answers(session, script(call, call, {"text": "never said"}))
        result = messages[-1]
        assert result.error.code == "MAX_TURNS"
        assert result.error.subtype == "error_max_turns"
        assert result.num_turns == 2
        # Both calls ran: the conversation stays complete, and so usable.
        results = [message for message in messages if message.type == "user"]
        assert len(results) == 2
        assert (await answers(session, "What is 2 + 2?"))[-1].subtype == "success"


async def test_an_interrupted_answer_is_remembered_as_far_as_it_came(
    server: Any, script: Callable[..., str]
) -> None:
    client = Chucky(server.token("engine"), server.url, include_partial_messages=True)
    endless = script({"text": ["My favourite ", "number is 7. ", "And"], "chunk_delay_ms": 50_000})
    async with asyncio.timeout(WAIT_SECONDS), client.create_session() as session:
        await session.send(endless)
        messages = []
        async for message in session.stream():
            messages.append(message)
            if message.type == "stream_event" and str(message):
                await session.interrupt()
        assert messages[-1].error.code == "INTERRUPTED"
        assert messages[-1].total_cost_usd > 0
        assert (await answers(session, "What is 2 + 2?"))[-1].subtype == "success"


async def test_interrupting_a_tool_leaves_the_session_usable(
    client: Chucky, script: Callable[..., str]
) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    @tool("wait", "Waits for ever")
    async def wait() -> str:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return "never"

    async with asyncio.timeout(WAIT_SECONDS), client.create_session(tools=[wait]) as session:
        await session.send(script({"tools": [{"name": "wait", "input": {}}]}, {"text": "done"}))
        await entered.wait()
        await session.interrupt()
        messages = [message async for message in session.stream()]
        assert messages[-1].error.code == "INTERRUPTED"
        assert (await answers(session, "What is 2 + 2?"))[-1].subtype == "success"
    assert cancelled.is_set()


async def test_cost_is_exact_to_the_micro_dollar_and_cumulative(
    client: Chucky, script: Callable[..., str]
) -> None:
    # 3 / 15 / 0.30 / 3.75 dollars per million tokens: claude-sonnet-4-5's rates below 200 k.
    usage = {
        "input_tokens": 1_000,
        "output_tokens": 100,
        "cache_read_input_tokens": 10_000,
        "cache_creation_input_tokens": 2_000,
    }
    async with client.create_session(model="claude-sonnet-4-5-20250929") as session:
        first = (await answers(session, script({"text": "a", "usage": usage})))[-1]
        second = (await answers(session, script({"text": "b", "usage": usage})))[-1]
    each = 0.003 + 0.0015 + 0.003 + 0.0075
    if first.model == "claude-sonnet-4-5-20250929":  # its successor, retired, has other rates
        assert first.total_cost_usd == pytest.approx(each, abs=1e-9)
    assert first.turn_cost_usd == first.total_cost_usd == second.turn_cost_usd
    assert second.total_cost_usd == pytest.approx(2 * first.total_cost_usd, abs=1e-9)
    assert first.usage == second.usage == usage


async def test_a_failed_attempt_is_counted_too(client: Chucky, script: Callable[..., str]) -> None:
    usage = {"input_tokens": 1_000, "output_tokens": 10}
    cut = {"text": ["x" * 30], "cut_after_chunks": 1, "usage": usage}
    whole = {"text": "ok", "usage": usage}
    once = await client.prompt(script(whole))
    twice = await client.prompt(script(cut, whole))
    assert twice.usage["input_tokens"] == 2 * once.usage["input_tokens"]
    assert twice.total_cost_usd > once.total_cost_usd


@pytest.mark.parametrize(("day", "answering"), [(29, DEFAULT_MODEL), (30, "claude-sonnet-5-5")])
async def test_from_the_day_a_model_retires_its_successor_answers_and_says_so(
    start_server: Any, caplog: pytest.LogCaptureFixture, day: int, answering: str
) -> None:
    async with (
        start_server(clock=lambda: datetime(2026, 11, day, 12, tzinfo=UTC)) as server,
        Chucky(_token_of_november(server), server.url).create_session() as session,
    ):
        messages = await answers(session, "What is 2 + 2?")
    assert messages[0]["model"] == messages[-1].model == answering
    told = [record.getMessage() for record in caplog.records]
    assert any("claude-sonnet-5-5" in each for each in told) is (day == 30)


async def test_succession_can_be_turned_off(start_server: Any) -> None:
    async with start_server(
        clock=lambda: datetime(2026, 12, 1, tzinfo=UTC), succession=False
    ) as server:
        result = await Chucky(_token_of_november(server), server.url).prompt("hi")
    assert result.error.reason == "model_retired"
    assert "claude-sonnet-5-5" in result.result


def _token_of_november(server: Any) -> str:
    """A token that is good at any time of November and December 2026."""
    claims = {
        "sub": "u",
        "iss": server.project_id,
        "iat": int(datetime(2026, 11, 1, tzinfo=UTC).timestamp()),
        "exp": int(datetime(2027, 1, 1, tzinfo=UTC).timestamp()),
        "budget": {"ai": 1, "compute": 1, "window": "day"},
    }
    return jwt.encode(claims, server.secret, algorithm="HS256")


# --- what reaches the provider ----------------------------------------------------------------


Event = dict[str, Any]


async def test_the_provider_gets_the_whole_conversation_marked_for_caching(
    start_server: Any, start_provider: Any
) -> None:
    async with start_provider() as provider, start_server(upstream_url=provider.url) as server:
        client = Chucky(server.token(), server.url, system_prompt="Be brief.")
        async with client.create_session(tools=[add], model="haiku") as session:
            await answers(session, "first")
            await answers(session, "second")
    first, second = provider.requests
    mark = {"type": "ephemeral"}
    assert first["system"] == [{"type": "text", "text": "Be brief.", "cache_control": mark}]
    assert [each["name"] for each in first["tools"]] == ["mcp__inline-tools__add"]
    assert first["stream"] is True
    texts = [message["content"][-1]["text"] for message in second["messages"]]
    assert texts == ["first", "Yes.", "second"]
    # The prefix is the same as before but for the mark, which is on the last message alone.
    marks = [message["content"][-1].get("cache_control") for message in second["messages"]]
    assert marks == [None, None, mark]
    assert first["messages"][0]["content"][0]["text"] == second["messages"][0]["content"][0]["text"]
    # The provider can tell users apart and does not learn who they are.
    assert first["metadata"] == second["metadata"]
    assert "user-1" not in first["metadata"]["user_id"]


async def test_blocks_reach_the_provider_without_what_a_client_added(
    start_server: Any, start_provider: Any, dial: Any
) -> None:
    image = {"type": "base64", "media_type": "image/png", "data": "aGk="}
    text = {"type": "text", "text": "Look."}
    added = {"cache_control": {"type": "ephemeral", "ttl": "1h"}, "bogus": 1}
    content = [{**text, **added}, {"type": "image", "source": {**image, **added}, **added}, text]
    async with (
        start_provider() as provider,
        start_server(upstream_url=provider.url) as server,
        dial(server.url, token=server.token()) as raw,
    ):
        for _ in range(3):
            await raw.send(type="user", message={"role": "user", "content": content})
            await raw.result()
    last = provider.requests[-1]["messages"]
    assert last[0]["content"] == [text, {"type": "image", "source": image}, text]
    assert json.dumps(provider.requests[-1]).count("cache_control") == 1


async def test_a_provider_that_asks_for_a_long_pause_is_not_asked_again(
    client: Chucky, script: Callable[..., str]
) -> None:
    busy = {"status": 429, "type": "rate_limit_error", "message": "later", "retry_after": 60}
    result = await client.prompt(script({"error": busy}, {"text": "too soon"}))
    assert result.error.reason == "model_rate_limited"


async def test_a_preset_prompt_is_its_appended_text_and_a_blank_one_is_none(
    start_server: Any, start_provider: Any, dial: Any
) -> None:
    preset = {"type": "preset", "preset": "claude_code", "append": "Be kind."}
    async with start_provider() as provider, start_server(upstream_url=provider.url) as server:
        for prompt in (preset, "   ", {"type": "preset", "preset": "claude_code"}):
            async with dial(server.url, token=server.token()) as raw:
                await raw.send(type="init", payload={"systemPrompt": prompt})
                await raw.ask("hi")
                await raw.result()
    systems = [request.get("system") for request in provider.requests]
    assert [system and system[0]["text"] for system in systems] == ["Be kind.", None, None]


TOOL_USE = {"type": "tool_use", "id": "t1", "name": "mcp__inline-tools__add", "input": {}}
HALF_A_CALL = {"type": "input_json_delta", "partial_json": '{"a": 1, "b'}

UNUSABLE: dict[str, tuple[Callable[[Any], list[Event]], str]] = {
    "refusal": (lambda api: api.message(stop_reason="refusal"), "model_refused"),
    "window exceeded": (
        lambda api: api.message(
            *api.text_block("long"), stop_reason="model_context_window_exceeded"
        ),
        "context_window_exceeded",
    ),
    "half a call": (
        lambda api: api.message(*api.block(TOOL_USE, HALF_A_CALL), stop_reason="max_tokens"),
        "output_limit_reached",
    ),
    "half a block": (
        lambda api: api.message(*api.block(TOOL_USE, HALF_A_CALL)[:-1]),
        "output_limit_reached",
    ),
    "a delta of no block": (
        lambda api: api.message({"type": "content_block_delta", "index": 7, "delta": {}}),
        "stream_malformed",
    ),
    "a start of nothing": (
        lambda api: api.message({"type": "content_block_start"}),
        "stream_malformed",
    ),
    "negative usage": (lambda api: api.message(input_tokens=-1), "model_stream_malformed"),
    "no end": (lambda api: api.message()[:-1], "model_stream_dropped"),
    "nothing": (lambda _api: [], "model_stream_dropped"),
    "an error": (
        lambda _api: [{"type": "error", "error": {"type": "odd_error", "message": "hm"}}],
        "model_error",
    ),
}


@pytest.mark.parametrize(("events", "reason"), UNUSABLE.values(), ids=UNUSABLE)
async def test_an_answer_that_cannot_be_used_is_an_error_that_says_why(
    start_server: Any,
    start_provider: Any,
    api: Any,
    events: Callable[[Any], list[Event]],
    reason: str,
) -> None:
    async with (
        start_provider(events(api), api.says("Yes.")) as provider,
        start_server(upstream_url=provider.url, model_attempts=1) as server,
        Chucky(server.token(), server.url).create_session(tools=[add]) as session,
    ):
        result = (await answers(session, "hi"))[-1]
        assert result.error.reason == reason
        # It is not remembered: the next answer begins with a clean conversation.
        assert (await answers(session, "again"))[-1].result == "Yes."
    (only,) = provider.requests[-1]["messages"]
    assert only["content"][0]["text"] == "again"


async def test_an_answer_that_was_cut_off_says_so(
    client: Chucky, script: Callable[..., str]
) -> None:
    result = await client.prompt(script({"text": "long", "usage": {"output_tokens": 999_999}}))
    assert result.subtype == "success"
    assert result.stop_reason == "max_tokens"


async def test_a_message_without_text_is_an_empty_success(
    start_server: Any, start_provider: Any, api: Any
) -> None:
    async with (
        start_provider(api.message()) as provider,
        start_server(upstream_url=provider.url) as server,
    ):
        result = await Chucky(server.token(), server.url).prompt("hi")
    assert result.subtype == "success"
    assert result.result == ""


@pytest.mark.parametrize("pieces", [["Hi \ud83d", " there \U0001f44b"], ["Hi ", "\ude00 \\ud83d"]])
async def test_half_a_character_of_a_model_is_replaced_and_the_session_goes_on(
    start_server: Any, start_provider: Any, api: Any, pieces: list[str]
) -> None:
    deltas = [{"type": "text_delta", "text": each} for each in pieces]
    block = api.block({"type": "text", "text": ""}, *deltas)
    async with (
        start_provider(api.message(*block), api.says("Yes.")) as provider,
        start_server(upstream_url=provider.url) as server,
        Chucky(server.token(), server.url).create_session(include_partial_messages=True) as session,
    ):
        expected = re.sub("[\ud800-\udfff]", "\ufffd", "".join(pieces))
        assert (await answers(session, "hi"))[-1].result == expected
        assert (await answers(session, "again"))[-1].result == "Yes."
    assert provider.requests[-1]["messages"][1]["content"][0]["text"] == expected


async def test_half_a_character_in_the_input_of_a_tool_is_replaced(
    start_server: Any, start_provider: Any, api: Any
) -> None:
    got: list[str] = []

    @tool("note", "Note something")
    async def note(text: str) -> str:
        got.append(text)
        return "Noted."

    call = {"type": "tool_use", "id": "t1", "input": {}}
    delta = {"type": "input_json_delta", "partial_json": json.dumps({"text": "x\ud83d"})}
    async with (
        start_provider(
            lambda request: api.message(
                *api.block({**call, "name": request["tools"][0]["name"]}, delta),
                stop_reason="tool_use",
            ),
            api.says("Done."),
        ) as provider,
        start_server(upstream_url=provider.url) as server,
        Chucky(server.token(), server.url).create_session(tools=[note]) as session,
    ):
        assert (await answers(session, "hi"))[-1].result == "Done."
    assert got == ["x\ufffd"]


async def test_blocks_go_back_to_the_model_as_they_came(
    start_server: Any, start_provider: Any, api: Any
) -> None:
    redacted = {"type": "redacted_thinking", "data": "opaque"}
    blocks = [
        *api.thinking_block("Hm. Yes.", "sig"),
        *api.block(redacted, index=1),
        *api.text_block("Sure.", index=2),
    ]
    async with (
        start_provider(api.message(*blocks)) as provider,
        start_server(upstream_url=provider.url) as server,
        Chucky(server.token(), server.url).create_session() as session,
    ):
        first = await answers(session, "one")
        await answers(session, "two")
    whole = {"type": "thinking", "thinking": "Hm. Yes.", "signature": "sig"}
    text = {"type": "text", "text": "Sure."}
    assert provider.requests[1]["messages"][1]["content"] == [whole, redacted, text]
    # Clients see the documented blocks only.
    assert first[1]["message"]["content"] == [whole, text]


async def test_a_provider_that_cannot_be_reached_is_a_result(start_server: Any) -> None:
    async with start_server(upstream_url="http://127.0.0.1:9", model_attempts=1) as server:
        result = await Chucky(server.token(), server.url).prompt("hi")
    assert result.error.reason == "model_unreachable"


async def test_a_turn_that_takes_too_long_ends_with_a_result(
    start_server: Any, script: Callable[..., str]
) -> None:
    async with start_server(turn_timeout_seconds=1) as server:
        client = Chucky(server.token(), server.url)
        result = await client.prompt(script({"text": "late", "delay_ms": 60_000}))
    assert result.error.code == "TIMEOUT"
    assert result.error.reason == "turn_timeout"


async def test_a_tool_that_never_answers_becomes_an_error_for_the_model(
    start_server: Any, dial: Any, script: Callable[..., str]
) -> None:
    definition = {
        "name": "lost",
        "description": "Never answers",
        "inputSchema": {"type": "object"},
        "executeIn": "client",
    }
    async with (
        start_server(tool_timeout_seconds=1) as server,
        dial(server.url, token=server.token()) as raw,
    ):
        tools = [{"name": "s", "tools": [definition]}]
        await raw.send(type="init", payload={"mcpServers": tools})
        await raw.ask(script({"tools": [{"name": "lost", "input": {}}]}, {"text": "went on"}))
        frames = await raw.receive_until("result")
    user = next(frame for frame in frames if frame["type"] == "user")
    assert user["message"]["content"][0]["is_error"] is True
    assert "1 s" in user["message"]["content"][0]["content"][0]["text"]
    assert frames[-1]["result"] == "went on"
