"""Which tools the rules call, and with what."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message, MessageParam, ToolChoiceParam, ToolParam, ToolResultBlockParam

MODEL = "claude-sonnet-5-5"

Ask = Callable[..., Awaitable[Message]]


def tool(name: str, description: str = "", /, **properties: Any) -> ToolParam:
    """Make a tool; a property whose name ends with ``_`` is optional."""
    return {
        "name": name,
        "description": description,
        "input_schema": {
            "type": "object",
            "properties": {key.rstrip("_"): schema for key, schema in properties.items()},
            "required": [key for key in properties if not key.endswith("_")],
        },
    }


STRING = {"type": "string"}
NUMBER = {"type": "number"}
INTEGER = {"type": "integer"}
GET_TIME = tool("get_time", "Get current time")
GET_WEATHER = tool("get_weather", "The weather in a city", city=STRING)
# As the Claude CLI offers them: none of these may get in the way of a conversation.
CLI_TOOLS = [
    tool("Bash", "Executes a given bash command with optional timeout", command=STRING),
    tool("Read", "Reads a file from the local filesystem", file_path=STRING),
    tool("Write", "Writes a file to the filesystem", file_path=STRING, content=STRING),
    tool("TodoWrite", "Manage a list of todos", todos={"type": "array", "items": {}}),
    tool("Task", "Launch an agent", description=STRING, prompt=STRING, subagent_type=STRING),
]


@pytest.fixture
def ask(client: AsyncAnthropic) -> Ask:
    async def ask(
        text: str,
        tools: list[ToolParam],
        choice: ToolChoiceParam | None = None,
        then: list[MessageParam] | None = None,
    ) -> Message:
        return await client.messages.create(
            model=MODEL,
            max_tokens=1_000,
            tools=tools,
            tool_choice=choice or {"type": "auto"},
            messages=[{"role": "user", "content": text}, *(then or [])],
        )

    return ask


def calls_of(message: Message) -> list[tuple[str, Any]]:
    return [(each.name, each.input) for each in message.content if each.type == "tool_use"]


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def with_results(message: Message, *results: str | dict[str, Any]) -> list[MessageParam]:
    """The answer that called tools, and a message with what they returned."""
    blocks: list[ToolResultBlockParam] = []
    uses = [block for block in message.content if block.type == "tool_use"]
    for use, result in zip(uses, results, strict=True):
        block: ToolResultBlockParam = {"type": "tool_result", "tool_use_id": use.id}
        block.update(result if isinstance(result, dict) else {"content": result})  # type: ignore[typeddict-item]
        blocks.append(block)
    return [
        {"role": "assistant", "content": list(message.content)},
        {"role": "user", "content": blocks},
    ]


async def test_a_fitting_tool_is_called_and_its_result_told(ask: Ask) -> None:
    called = await ask("What time is it?", [GET_TIME, GET_WEATHER])

    assert called.stop_reason == "tool_use"
    assert calls_of(called) == [("get_time", {})]

    told = await ask("What time is it?", [GET_TIME, GET_WEATHER], then=with_results(called, "noon"))

    assert told.stop_reason == "end_turn"
    assert text_of(told) == "The tool get_time answered: noon"


async def test_a_tool_is_called_by_the_name_it_is_offered_under(ask: Ask) -> None:
    called = await ask("What time is it?", [tool("mcp__chucky-tools__get_time")])

    assert calls_of(called) == [("mcp__chucky-tools__get_time", {})]
    told = await ask(
        "What time is it?",
        [tool("mcp__chucky-tools__get_time")],
        then=with_results(called, {"content": [{"type": "text", "text": "noon"}]}),
    )
    assert text_of(told) == "The tool get_time answered: noon"


async def test_a_failed_tool_is_told_of(ask: Ask) -> None:
    called = await ask("What time is it?", [GET_TIME])

    told = await ask(
        "What time is it?",
        [GET_TIME],
        then=with_results(called, {"content": "the clock is broken", "is_error": True}),
    )

    assert text_of(told) == "The tool get_time failed: the clock is broken"


@pytest.mark.parametrize(
    ("text", "offered", "arguments"),
    [
        ("What's the weather in Paris?", GET_WEATHER, {"city": "Paris"}),
        ("How is the weather for New York today?", GET_WEATHER, {"city": "New York"}),
        ("Add 2 and 3.5", tool("add", a=NUMBER, b=NUMBER), {"a": 2, "b": 3.5}),
        ("Add b=7 to 3", tool("add", a=NUMBER, b=NUMBER), {"a": 3, "b": 7}),
        ("Add -4 and 4", tool("add", a=INTEGER, b=INTEGER), {"a": -4, "b": 4}),
        (
            "Search for 'blue cats', limit: 5",
            tool("search", query=STRING, limit_=INTEGER, offset_=INTEGER),
            {"query": "blue cats", "limit": 5},
        ),
        ("Search for cats", tool("search", query=STRING), {"query": "Search for cats"}),
        ("Where is order 17?", tool("find_order", order_id=STRING), {"order_id": "17"}),
        ("Where is order A-17?", tool("find_order", order_id=STRING), {"order_id": "A-17"}),
        ("Where is order 17?", tool("find_order", order_id=INTEGER), {"order_id": 17}),
        (
            "Please greet Alice, not loud",
            tool("greet", name=STRING, loud_={"type": "boolean"}),
            {"name": "Alice", "loud": False},
        ),
        (
            "Set the lamp: colour is RED, on: yes",
            tool("set_lamp", colour={"enum": ["green", "red"]}, on={"type": "boolean"}),
            {"colour": "red", "on": True},
        ),
        (
            "Sum 1, 2 and 3",
            tool("sum", numbers={"type": "array", "items": INTEGER}),
            {"numbers": [1, 2, 3]},
        ),
        (
            "Tag it, tags: red, green and blue",
            tool("tag", tags={"type": "array", "items": STRING}),
            {"tags": ["red", "green", "blue"]},
        ),
        (
            "Mail it to bob@example.org",
            tool("mail", to={"type": "string", "format": "email"}),
            {"to": "bob@example.org"},
        ),
        (
            "What is the status of order A17?",
            tool("order_status", order_id=STRING),
            {"order_id": "A17"},
        ),
        (
            'Quote the ticker "ACME"',
            tool("quote", ticker={"type": "string", "pattern": "^[A-Z]+$"}),
            {"ticker": "ACME"},
        ),
        ("Read src/app.py", tool("Read", file_path=STRING), {"file_path": "src/app.py"}),
        (
            "Use the calculator for 2 + 2",
            tool("calculator", expression=STRING),
            {"expression": "2 + 2"},
        ),
        (
            "Book a table",
            tool(
                "book", seats={"type": "integer", "default": 2}, note={"type": ["string", "null"]}
            ),
            {"seats": 2, "note": None},
        ),
    ],
)
async def test_arguments_are_taken_from_the_message(
    ask: Ask, text: str, offered: ToolParam, arguments: dict[str, Any]
) -> None:
    assert calls_of(await ask(text, [offered])) == [(offered["name"], arguments)]


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("Add 7", tool("add", a=NUMBER, b=NUMBER)),
        ("Read the file", tool("Read", file_path=STRING)),
        ("Add a user", tool("add_user", email=STRING)),
        ("Set the lamp to purple", tool("set_lamp", colour={"enum": ["green", "red"]})),
        ("Quote it", tool("quote", ticker={"type": "string", "pattern": "^[A-Z]+$"})),
        ("Copy this", tool("copy", source=STRING, target=STRING)),
        ("Plan it", tool("plan", steps={"type": "array", "items": {"type": "object"}})),
    ],
)
async def test_a_tool_whose_arguments_are_not_told_is_not_called(
    ask: Ask, text: str, offered: ToolParam
) -> None:
    assert calls_of(await ask(text, [offered])) == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("What is 2 + 2?", "2 + 2 = 4."),
        ("Write a poem about coding", "A line about coding,"),
        ("Hello, I am Alice", "Hello Alice!"),
        ("What is calculus?", "Calculus is"),
        ("What is the capital of France?", "The capital of France is Paris."),
    ],
)
async def test_tools_that_do_not_fit_are_left_alone(ask: Ask, text: str, answer: str) -> None:
    message = await ask(text, [*CLI_TOOLS, GET_TIME, GET_WEATHER])

    assert calls_of(message) == []
    assert text_of(message).startswith(answer)


async def test_a_tool_can_fit_by_its_description(ask: Ask) -> None:
    assert calls_of(await ask("What time is it?", [tool("clock")])) == []

    # ... but a rule of our own comes first
    assert calls_of(await ask("What time is it?", [tool("clock", "Current time")])) == []
    described = tool("zoo_db", "Look up facts about whales and seals")
    assert calls_of(await ask("Any facts about whales?", [described])) == [("zoo_db", {})]


async def test_a_tool_is_called_if_its_name_is_written_out(ask: Ask) -> None:
    offered = [GET_TIME, tool("set_the_time_zone_of_user", zone_=STRING)]

    called = await ask("Please run set_the_time_zone_of_user now, whatever the time", offered)

    assert calls_of(called) == [("set_the_time_zone_of_user", {})]


async def test_a_name_that_is_written_out_is_the_only_one_called(ask: Ask) -> None:
    called = await ask("Use get_time, not the weather", [tool("get_weather"), GET_TIME])

    assert calls_of(called) == [("get_time", {})]


BOTH = "What time is it, and what's the weather in Paris?"


async def test_two_tools_are_called_at_once(ask: Ask) -> None:
    called = await ask(BOTH, [GET_TIME, GET_WEATHER])

    assert sorted(calls_of(called)) == [("get_time", {}), ("get_weather", {"city": "Paris"})]
    told = await ask(BOTH, [GET_TIME, GET_WEATHER], then=with_results(called, "noon", "sunny"))
    assert calls_of(told) == []
    assert "noon" in text_of(told)
    assert "sunny" in text_of(told)


async def test_two_tools_are_called_one_by_one_if_the_request_says_so(ask: Ask) -> None:
    alone: ToolChoiceParam = {"type": "auto", "disable_parallel_tool_use": True}
    offered = [GET_TIME, GET_WEATHER]

    first = await ask(BOTH, offered, alone)
    then = with_results(first, "noon")
    second = await ask(BOTH, offered, alone, then)
    then = [*then, *with_results(second, "sunny")]
    told = await ask(BOTH, offered, alone, then)

    assert calls_of(first) == [("get_time", {})]
    assert calls_of(second) == [("get_weather", {"city": "Paris"})]
    assert calls_of(told) == []
    assert "noon" in text_of(told)
    assert "sunny" in text_of(told)


async def test_a_word_of_the_message_is_for_one_tool_only(ask: Ask) -> None:
    called = await ask("List the orders", [tool("get_order"), tool("list_orders")])

    assert calls_of(called) == [("list_orders", {})]


async def test_no_tool_is_called_if_none_may_be(ask: Ask) -> None:
    message = await ask("What time is it?", [GET_TIME], {"type": "none"})

    assert calls_of(message) == []
    assert "no clock" in text_of(message)


async def test_some_tool_is_called_if_one_must_be(ask: Ask) -> None:
    fitting = await ask("What time is it?", [GET_WEATHER, GET_TIME], {"type": "any"})
    other = await ask("Hello", [GET_WEATHER, GET_TIME], {"type": "any"})

    assert calls_of(fitting) == [("get_time", {})]
    assert [name for name, _ in calls_of(other)] == ["get_weather"]


async def test_the_named_tool_is_called_with_whatever_conforms(ask: Ask) -> None:
    offered = tool(
        "record",
        name=STRING,
        age={"type": "integer", "minimum": 18},
        kind={"enum": ["guest", "member"]},
    )

    called = await ask("Alice is 30", [GET_TIME, offered], {"type": "tool", "name": "record"})
    bare = await ask("Hm", [GET_TIME, offered], {"type": "tool", "name": "record"})

    assert calls_of(called) == [("record", {"name": "Alice", "age": 30, "kind": "guest"})]
    ((_, arguments),) = calls_of(bare)
    assert (arguments["age"], arguments["kind"]) == (18, "guest")


async def test_a_forced_tool_without_possible_arguments_is_an_error(ask: Ask) -> None:
    offered = tool("impossible", x={"type": "integer", "minimum": 5, "maximum": 4})

    with pytest.raises(anthropic.BadRequestError, match="'impossible'"):
        await ask("Hello", [offered], {"type": "tool", "name": "impossible"})


async def test_the_next_user_message_may_call_the_tool_again(ask: Ask) -> None:
    called = await ask("What time is it?", [GET_TIME])
    then = with_results(called, "noon")
    then += [
        {"role": "assistant", "content": "It is noon."},
        {"role": "user", "content": "And what time is it now?"},
    ]

    assert calls_of(await ask("What time is it?", [GET_TIME], then=then)) == [("get_time", {})]


async def test_the_input_of_a_tool_is_streamed_as_json(client: AsyncAnthropic) -> None:
    parts: list[str] = []
    async with client.messages.stream(
        model=MODEL,
        max_tokens=1_000,
        tools=[GET_WEATHER],
        messages=[{"role": "user", "content": "What's the weather in New York?"}],
    ) as stream:
        async for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "input_json_delta":
                parts.append(event.delta.partial_json)

    assert len(parts) > 1
    assert json.loads("".join(parts)) == {"city": "New York"}
