"""The page's "stream()" and "StreamEvent (Legacy)"."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, StreamEvent, create_mcp_server, tool

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.page.conftest import Peer, RunExample

Within = Callable[[Awaitable[Any]], Awaitable[Any]]

POEM_LINES = 4


async def _all(events: AsyncIterator[StreamEvent]) -> list[StreamEvent]:
    return [event async for event in events]


@tool("write_poem", "Write a poem")
def write_poem() -> str:
    return "roses are red"


def test_the_signature_is_the_pages() -> None:
    assert inspect.isasyncgenfunction(Chucky.stream)
    signature = inspect.signature(Chucky.stream)
    _self, message, *overrides = signature.parameters.values()
    assert message.name == "message"
    assert message.default is inspect.Parameter.empty
    on_page = ["model", "system_prompt", "tools", "max_turns"]
    assert [each.name for each in overrides[: len(on_page)]] == on_page
    assert {each.kind for each in overrides[: len(on_page)]} == {inspect.Parameter.KEYWORD_ONLY}
    assert overrides[-1].kind is inspect.Parameter.VAR_KEYWORD
    assert {each.default for each in overrides[: len(on_page)]} == {None}
    assert signature.return_annotation == "AsyncGenerator[StreamEvent, None]"


async def test_the_pages_keywords_reach_the_server(peer: Peer, within: Within) -> None:
    client = Chucky("jwt", peer.url)
    await within(
        _all(
            client.stream(
                "Hello", model="haiku", system_prompt="Be brief.", tools=[write_poem], max_turns=3
            )
        )
    )
    (init,) = (frame["payload"] for frame in peer.of_type("init"))
    assert (init["model"], init["systemPrompt"], init["maxTurns"]) == ("haiku", "Be brief.", 3)
    assert [each["name"] for each in init["mcpServers"][0]["tools"]] == ["write_poem"]


async def test_events_come_while_the_turn_is_still_running(
    client: Chucky, script: Callable[..., str], within: Within
) -> None:
    asked = script({"text": "Looking.", "tools": [{"name": "write_poem"}]}, {"text": "done"})
    running: list[bool] = []

    @tool("write_poem", "Write a poem")
    def watched() -> str:
        running.append(True)
        return "roses"

    events = client.stream(asked, tools=[watched])
    before_tool = await within(anext(events))
    assert before_tool.type == "message"
    assert not running
    await within(_all(events))
    assert running


def test_an_event_is_a_dataclass_of_type_and_data() -> None:
    assert dataclasses.is_dataclass(StreamEvent)
    assert [each.name for each in dataclasses.fields(StreamEvent)] == ["type", "data"]
    assert StreamEvent("message", {"type": "assistant"}) == StreamEvent(
        type="message", data={"type": "assistant"}
    )


async def test_a_turn_is_told_in_messages_a_result_and_done(client: Chucky, within: Within) -> None:
    events = await within(_all(client.stream("What is the capital of France?")))
    assert [event.type for event in events] == ["message", "message", "result", "done"]
    system, assistant, result, done = (event.data for event in events)
    assert (system["type"], assistant["type"], result["type"]) == ("system", "assistant", "result")
    assert isinstance(assistant, dict)
    assert result["result"] == "The capital of France is Paris."
    assert done["sessionId"] == result["session_id"]


async def test_a_failed_turn_is_told_by_an_error_event(client: Chucky, within: Within) -> None:
    events = await within(_all(client.stream("Hello", model="no-such-model")))
    assert [event.type for event in events] == ["error", "result", "done"]
    assert "no-such-model" in events[0].data["error"]["message"]


async def test_the_example_prints_the_poem_once(run_example: RunExample, client: Chucky) -> None:
    printed, _names = await run_example("stream", client=client)
    lines = printed.splitlines()
    assert len(lines) == len(set(lines)) == POEM_LINES
    assert lines[0].startswith("A line about coding,")
    assert "[Using tool" not in printed


async def test_the_example_names_the_tool_that_is_used(
    run_example: RunExample, server: Server
) -> None:
    servers = [create_mcp_server("poet", [write_poem])]
    client = Chucky(server.token("page"), server.url, mcp_servers=servers)
    printed, _names = await run_example("stream", client=client)
    assert printed.count("\n[Using tool: write_poem]\n") == 1
    assert "mcp__" not in printed
    assert "roses are red" in printed


async def test_leaving_the_loop_early_ends_the_stream(
    client: Chucky, script: Callable[..., str], within: Within
) -> None:
    events = client.stream(script({"text": "never", "delay_ms": 60_000}))
    first = await within(anext(events))
    assert first.data["type"] == "system"
    await within(events.aclose())
    with pytest.raises(StopAsyncIteration):
        await anext(events)
