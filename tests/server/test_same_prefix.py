"""After a resume the model gets exactly what it had before, so that its cache still fits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, Message, Session, tool

if TYPE_CHECKING:
    from tests.server.conftest import Evicted

WAIT_SECONDS = 30
WINDOW = 10_000
TOOL = "mcp__inline-tools__look_up"
MODELS = {
    name: {
        "family": name,
        "released": date(2026, 1, 1),
        "context_tokens": WINDOW,
        "max_output_tokens": 1_000,
    }
    for name in ("small", "other")
}
PRICES = {name: {"input": 0, "output": 0} for name in MODELS}
OVERLOADED = (529, {"type": "error", "error": {"type": "overloaded_error", "message": "full"}})
REJECTED = (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}})


@tool("look_up", "Look something up")
async def look_up() -> str:
    return "It is under the oak."


OPTIONS: dict[str, Any] = {
    "tools": [look_up],
    "fallback_model": "other",
    "system_prompt": "Be brief.",
}


async def ask(session: Session, text: str) -> list[Message]:
    async with asyncio.timeout(WAIT_SECONDS):
        await session.send(text)
        return [each async for each in session.stream()]


def calls(api: Any, *ids: str) -> list[dict[str, Any]]:
    """The events of a thought and of tool calls."""
    blocks = api.thinking_block("Look.", f"signed {ids}")
    for index, each in enumerate(ids, 1):
        start = {"type": "tool_use", "id": each, "name": TOOL, "input": {}}
        blocks += api.block(start, index=index)
    return list(api.message(*blocks, stop_reason="tool_use"))


Conversation = Callable[[Any], tuple[list[Any], list[str]]]


def with_thinking_and_tools(api: Any) -> tuple[list[Any], list[str]]:
    said = api.message(*api.thinking_block("Hm.", "signed"), *api.text_block("Oak.", index=1))
    return [calls(api, "a", "b"), said, api.says("Bye.")], ["Where is it?", "Good bye"]


def with_a_summary(api: Any) -> tuple[list[Any], list[str]]:
    full = api.message(*api.text_block("Yes."), input_tokens=8_000)
    answers = [api.says("Hello."), full, api.says("A summary."), calls(api, "a"), api.says("Oak.")]
    return answers, ["Hello", "Is it so?", "Where is it?"]


def with_failures(api: Any) -> tuple[list[Any], list[str]]:
    return [api.says("Hello."), REJECTED, api.says("Again.")], ["Hello", "This fails", "And now?"]


def with_the_fallback_model(api: Any) -> tuple[list[Any], list[str]]:
    thought = api.message(*api.thinking_block("Hm.", "others"), *api.text_block("Two.", index=1))
    return [calls(api, "a"), api.says("One."), OVERLOADED, thought], ["Hello", "And then?"]


def with_a_summary_on_demand(api: Any) -> tuple[list[Any], list[str]]:
    answers = [api.says("Hello."), api.says("Fine."), api.says("A summary.")]
    return answers, ["Hello", "How are you?", "/compact"]


@pytest.mark.parametrize("how", ["resumed", "restarted", "evicted"])
@pytest.mark.parametrize(
    "conversation",
    [
        with_thinking_and_tools,
        with_a_summary,
        with_failures,
        with_the_fallback_model,
        with_a_summary_on_demand,
    ],
)
async def test_a_session_that_is_read_again_before_each_message_asks_the_model_the_same(
    start_server: Any,
    start_provider: Any,
    api: Any,
    tmp_path: Path,
    conversation: Conversation,
    how: str,
    evicted: Evicted,
) -> None:
    answers, inputs = conversation(api)
    inputs = [*inputs, "One more", "The last question"]
    asked = []
    for resumes in (False, True):
        async with start_provider(*answers, api.says("The end.")) as provider:
            settings = {
                "models": MODELS,
                "prices": PRICES,
                "model_attempts": 1,
                "upstream_url": provider.url,
                "db": tmp_path / f"{resumes}.db",
            }
            if resumes and how == "evicted":
                settings |= {"reconnect_grace_seconds": 0.1, "evict_after_seconds": 0.1}
                async with start_server(**settings) as server, client_of(server) as client:
                    session = client.create_session(**OPTIONS)
                    for text in inputs:
                        await ask(session, text)
                        await evicted.wait()
            elif resumes:
                await converse_on_many_connections(start_server, settings, inputs, how)
            else:
                async with start_server(**settings) as server, client_of(server) as client:
                    session = client.create_session(**OPTIONS)
                    for text in inputs:
                        await ask(session, text)
        asked.append([without_names(request) for request in provider.requests])

    assert len(asked[0]) >= len(inputs)
    assert asked[1] == asked[0]


async def converse_on_many_connections(
    start_server: Any, settings: dict[str, Any], inputs: list[str], how: str
) -> None:
    async with AsyncExitStack() as stack:
        session_id = None
        server = None
        for text in inputs:
            if server is None or how == "restarted":
                await stack.aclose()
                server = await stack.enter_async_context(start_server(**settings))
            async with client_of(server) as client:
                session = client.create_session(resume=session_id, **OPTIONS)
                await ask(session, text)
                session_id = session.session_id


@pytest.mark.parametrize("option", ["resume_session_at", "fork_session"])
async def test_a_copy_asks_the_model_what_the_session_would_have_asked(
    start_server: Any, start_provider: Any, api: Any, option: str
) -> None:
    answers, inputs = with_thinking_and_tools(api)
    async with start_provider(*answers, api.says("The end.")) as provider:
        settings = {"models": MODELS, "prices": PRICES, "upstream_url": provider.url}
        async with start_server(**settings) as server, client_of(server) as client:
            session = client.create_session(**OPTIONS)
            for text in inputs:
                last = (await ask(session, text))[-1]
            at: dict[str, Any] = {option: last.uuid if option == "resume_session_at" else True}
            if option == "resume_session_at":
                await ask(session, "This is cut off")
            copy = client.resume_session(session.session_id, **at, **OPTIONS)
            await ask(copy, "One more")
            await ask(client.resume_session(session.session_id, **OPTIONS), "One more")

    *_, of_copy, of_session = (request["messages"] for request in provider.requests)
    if option == "resume_session_at":
        assert [each for each in of_session if each not in of_copy] == of_session[-3:-1]
    else:
        assert of_copy == of_session


async def test_tools_that_a_client_left_are_answered_when_it_resumes(
    start_server: Any, start_provider: Any, api: Any
) -> None:
    called = asyncio.Event()

    @tool("look_up", "Look something up")
    async def never() -> str:
        called.set()
        return await asyncio.Future()

    async with start_provider(calls(api, "a", "b"), api.says("Oak.")) as provider:
        settings = {"models": MODELS, "prices": PRICES, "upstream_url": provider.url}
        async with start_server(**settings) as server, client_of(server) as client:
            session = client.create_session(tools=[never])
            await session.send("Where is it?")
            await called.wait()
            await session.close()
            resumed = client.resume_session(session.session_id, **OPTIONS)
            assert (await ask(resumed, "Well?"))[-1].result == "Oak."
            history = await resumed.history()

    *_, results, _question = provider.requests[-1]["messages"]
    assert [(each["tool_use_id"], each["is_error"]) for each in results["content"]] == [
        ("a", True),
        ("b", True),
    ]
    ends = [each.error.reason for each in history if each.get("is_error")]
    assert ends == ["client_left"]


def client_of(server: Any) -> Chucky:
    return Chucky(server.token(), server.url, model="small")


def without_names(request: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in request.items() if name != "metadata"}
