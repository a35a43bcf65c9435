"""The page's "prompt()"."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, PromptResult, text_result, tool

if TYPE_CHECKING:
    from tests.page.conftest import Peer, RunExample

Within = Callable[[Awaitable[Any]], Awaitable[Any]]

# What `prompt`, `stream` and `create_session` let one call have different from its client.
OVERRIDES = ["model", "system_prompt", "tools", "max_turns"]


@tool("add", "Add two numbers")
def add(a: int, b: int) -> Any:
    return text_result(str(a + b))


def test_the_signature_is_the_pages() -> None:
    assert inspect.iscoroutinefunction(Chucky.prompt)
    _self, message, *overrides = inspect.signature(Chucky.prompt).parameters.values()
    assert message.name == "message"
    assert message.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert message.default is inspect.Parameter.empty
    on_page, beyond = overrides[: len(OVERRIDES)], overrides[len(OVERRIDES) :]
    assert [each.name for each in on_page] == OVERRIDES
    assert {each.kind for each in on_page} == {inspect.Parameter.KEYWORD_ONLY}
    assert {each.default for each in on_page} == {None}
    assert {each.kind for each in beyond} == {inspect.Parameter.VAR_KEYWORD}
    assert inspect.signature(Chucky.prompt).return_annotation == "PromptResult"


async def test_options_after_the_message_are_keywords_only(client: Chucky) -> None:
    with pytest.raises(TypeError):
        await client.prompt("Hello", "opus")  # type: ignore[call-arg]


async def test_what_a_call_gives_overrides_the_client(peer: Peer, within: Within) -> None:
    client = Chucky("jwt", peer.url, model="opus", system_prompt="Be long.", max_turns=9)
    await within(
        client.prompt("Hello", model="haiku", system_prompt="Be brief.", tools=[add], max_turns=3)
    )
    await within(client.prompt("Hello"))
    one, other = (frame["payload"] for frame in peer.of_type("init"))
    assert (one["model"], one["systemPrompt"], one["maxTurns"]) == ("haiku", "Be brief.", 3)
    assert [each["name"] for server in one["mcpServers"] for each in server["tools"]] == ["add"]
    assert (other["model"], other["systemPrompt"], other["maxTurns"]) == ("opus", "Be long.", 9)
    assert "mcpServers" not in other
    assert [frame["message"]["content"] for frame in peer.of_type("user")] == ["Hello", "Hello"]


async def test_tools_of_a_call_are_available_to_claude(client: Chucky, within: Within) -> None:
    result = await within(client.prompt("Please add 17 and 25.", tools=[add]))
    assert result.subtype == "success"
    assert "42" in result.result
    calls = [
        block
        for message in result.messages
        if message["type"] == "assistant"
        for block in message["message"]["content"]
        if block["type"] == "tool_use"
    ]
    assert [call["input"] for call in calls] == [{"a": 17, "b": 25}]


async def test_max_turns_of_a_call_limits_it(
    client: Chucky, script: Callable[..., str], within: Within
) -> None:
    loop = script(*[{"tools": [{"name": "add", "input": {"a": 1, "b": 1}}]}] * 2, {"text": "end"})
    limited = await within(client.prompt(loop, tools=[add], max_turns=1))
    assert (limited.subtype, limited.error.code) == ("error", "MAX_TURNS")
    assert (await within(client.prompt(loop, tools=[add], max_turns=3))).result == "end"


async def test_the_result_is_a_prompt_result_that_reads_both_ways(
    client: Chucky, within: Within
) -> None:
    result = await within(client.prompt("What is the capital of France?"))
    assert isinstance(result, PromptResult)
    for name in ("result", "total_cost_usd", "session_id", "duration_ms", "num_turns", "subtype"):
        assert getattr(result, name) == result.get(name) == result[name]
    assert result.get("no such field") is None
    assert result.messages[-1] is result or dict(result.messages[-1]) == dict(result)


async def test_the_example_prints_the_answer_and_its_cost(
    run_example: RunExample, client: Chucky
) -> None:
    printed, _names = await run_example("prompt", client=client)
    answer, cost = printed.splitlines()
    assert answer == "The capital of France is Paris."
    assert 0 < float(cost) < 0.01
