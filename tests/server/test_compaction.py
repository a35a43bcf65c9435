"""A conversation that fills the model's window goes on from a summary of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from chucky import Chucky, tool
from chucky.session import Session

WAIT_SECONDS = 20
WINDOW = 10_000
# A model of a small window, so that its border is soon reached.
SMALL = {
    "small": {
        "family": "small",
        "released": date(2026, 1, 1),
        "context_tokens": WINDOW,
        "max_output_tokens": 1_000,
    }
}
FREE = {"small": {"input": 0, "output": 0}}
NEARLY_FULL = {"input_tokens": 7_999, "output_tokens": 1}
JUST_BELOW = {"input_tokens": 7_998, "output_tokens": 1}
TOO_LONG = {
    "error": {
        "status": 400,
        "type": "invalid_request_error",
        "message": "prompt is too long: 10001 tokens > 10000 maximum",
    }
}


@tool("look_up", "Look something up")
async def look_up() -> str:
    return "The treasure is under the oak."


async def answers(session: Session, text: str | list[dict[str, Any]]) -> list[Any]:
    async with asyncio.timeout(WAIT_SECONDS):
        await session.send(text)
        return [message async for message in session.stream()]


def boundaries(messages: list[Any]) -> list[dict[str, Any]]:
    """What was said of compaction, in the order it came."""
    return [
        message.compact_metadata
        for message in messages
        if message.get("subtype") == "compact_boundary"
    ]


@pytest.fixture
def small_server(start_server: Any) -> Any:
    return start_server(models=SMALL, prices=FREE)


async def test_at_four_fifths_of_the_window_the_conversation_is_summarised(
    small_server: Any, script: Callable[..., str]
) -> None:
    async with small_server as server, Chucky(server.token(), server.url, "small") as client:
        session = client.create_session()
        await answers(session, "My name is Alice.")
        await answers(session, script({"text": "Yes.", "usage": NEARLY_FULL}))
        messages = await answers(session, "What is my name?")
        assert boundaries(messages) == [{"trigger": "auto", "pre_tokens": 8_000}]
        # The boundary comes before the answer, and what was told before it is not lost.
        kinds = [message.type for message in messages]
        assert kinds == ["system", "assistant", "result"]
        assert messages[-1].result == "Your name is Alice."
        # The summary is short: nothing is summarised again.
        assert boundaries(await answers(session, "What is my name?")) == []


async def test_a_summary_is_none_of_the_calls_that_max_turns_allows(
    small_server: Any, script: Callable[..., str]
) -> None:
    async with (
        small_server as server,
        Chucky(server.token(), server.url, "small", max_turns=1) as client,
    ):
        session = client.create_session()
        await answers(session, "My name is Alice.")
        await answers(session, script({"text": "Yes.", "usage": NEARLY_FULL}))
        messages = await answers(session, "What is my name?")
        assert len(boundaries(messages)) == 1
        assert messages[-1].result == "Your name is Alice."


async def test_no_summary_is_paid_for_where_max_turns_ends_the_turn_before_the_next_call(
    small_server: Any, script: Callable[..., str]
) -> None:
    async with small_server as server, Chucky(server.token(), server.url, "small") as client:
        session = client.create_session(tools=[look_up], max_turns=1)
        await answers(session, "My name is Alice.")
        call = {"tools": [{"name": "look_up"}], "usage": NEARLY_FULL}
        messages = await answers(session, script(call))
        assert messages[-1].error.code == "MAX_TURNS"
        assert boundaries(messages) == []
        assert messages[-1].num_turns == 2


async def test_below_it_nothing_is_summarised(
    small_server: Any, script: Callable[..., str]
) -> None:
    async with small_server as server, Chucky(server.token(), server.url, "small") as client:
        session = client.create_session()
        await answers(session, "My name is Alice.")
        await answers(session, script({"text": "Yes.", "usage": JUST_BELOW}))
        assert boundaries(await answers(session, "What is my name?")) == []


async def test_it_happens_between_two_calls_of_one_turn_too(
    small_server: Any, script: Callable[..., str]
) -> None:
    async with small_server as server, Chucky(server.token(), server.url, "small") as client:
        session = client.create_session(tools=[look_up])
        await answers(session, "My name is Alice.")
        call = {"tools": [{"name": "look_up"}], "usage": NEARLY_FULL}
        messages = await answers(session, script(call, text="Where is the treasure?"))
        assert len(boundaries(messages)) == 1
        # The results of the tool and the call they belong to are kept as they are.
        assert "under the oak" in messages[-1].result
        assert messages[-1].subtype == "success"


async def test_a_request_that_is_refused_as_too_long_is_made_again_with_a_summary(
    start_server: Any, start_provider: Any, api: Any
) -> None:
    refusal = TOO_LONG["error"]
    async with (
        start_provider(
            api.says("Hello."),
            (400, {"type": "error", "error": {"type": refusal["type"], **refusal}}),
            api.says("Alice said hello."),
            api.says("It fits now."),
        ) as provider,
        start_server(upstream_url=provider.url) as server,
        Chucky(server.token(), server.url).create_session() as session,
    ):
        await answers(session, "I am Alice.")
        messages = await answers(session, "And now?")
        assert len(boundaries(messages)) == 1
        assert messages[-1].result == "It fits now."
    _hello, _refused, summary, last = provider.requests
    assert [each["content"][0]["text"] for each in summary["messages"][:-1]] == [
        "I am Alice.",
        "Hello.",
    ]
    assert "Summarize this conversation" in summary["messages"][-1]["content"][0]["text"]
    goes_on, question = last["messages"]
    assert goes_on["content"][0]["text"].endswith("Alice said hello.")
    assert question["content"][0]["text"] == "And now?"


async def test_what_is_too_long_even_so_is_a_result_that_names_the_fix(
    small_server: Any, script: Callable[..., str]
) -> None:
    async with small_server as server, Chucky(server.token(), server.url, "small") as client:
        session = client.create_session()
        messages = await answers(session, script(TOO_LONG, {"text": "never said"}))
        result = messages[-1]
        assert result.error.reason == "context_window_exceeded"
        assert "send less at once" in result.result
        # The message that did not fit is forgotten, and the session goes on.
        assert (await answers(session, "What is 2 + 2?"))[-1].subtype == "success"


@pytest.mark.parametrize("form", ["text", "block"])
async def test_the_user_may_ask_for_it(small_server: Any, form: str) -> None:
    async with small_server as server, Chucky(server.token(), server.url, "small") as client:
        session = client.create_session()
        assert boundaries(await answers(session, "/compact")) == []  # nothing to summarise yet
        await answers(session, "My name is Alice.")
        command = "/compact mind the names"
        messages = await answers(
            session, command if form == "text" else [{"type": "text", "text": command}]
        )
        assert [each["trigger"] for each in boundaries(messages)] == ["manual"]
        assert messages[-1].subtype == "success"
        assert (await answers(session, "What is my name?"))[-1].result == "Your name is Alice."


async def test_a_message_that_only_begins_like_the_command_is_a_message(
    small_server: Any,
) -> None:
    async with small_server as server, Chucky(server.token(), server.url, "small") as client:
        session = client.create_session()
        await answers(session, "My name is Alice.")
        assert boundaries(await answers(session, "/compactness is what?")) == []


async def test_what_a_summary_costs_is_part_of_the_turn(
    start_server: Any, script: Callable[..., str]
) -> None:
    priced = {"small": {"input": 1_000, "output": 0}}  # a tenth of a cent for each token
    async with (
        start_server(models=SMALL, prices=priced) as server,
        Chucky(server.token(), server.url, "small") as client,
    ):
        session = client.create_session()
        await answers(session, "My name is Alice.")
        last = (await answers(session, script({"text": "Yes.", "usage": NEARLY_FULL})))[-1]
        result = (await answers(session, "What is my name?"))[-1]
        assert result.num_turns == last.num_turns + 2
        # The answer alone read only a few tokens; the summary read the conversation.
        assert result.turn_cost_usd > result.usage["input_tokens"] / 1_000 * 0.99
        assert result.usage["input_tokens"] > 100
