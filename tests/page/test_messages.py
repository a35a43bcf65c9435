"""The page's "Message Types" and "Helper Functions"."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, get_assistant_text, get_result_text, tool

if TYPE_CHECKING:
    from tests.page.conftest import RunExample

Within = Callable[[Awaitable[Any]], Awaitable[Any]]

RESULT_FIELDS = {
    "type": str,
    "subtype": str,
    "result": str,
    "session_id": str,
    "total_cost_usd": float,
    "duration_ms": int,
    "num_turns": int,
}


@tool("add", "Add two numbers")
def add(a: int, b: int) -> int:
    return a + b


@pytest.fixture
async def messages(
    client: Chucky, script: Callable[..., str], within: Within
) -> list[dict[str, Any]]:
    """The messages of a turn that says something, uses a tool and says something again."""
    call = {"name": "add", "input": {"a": 17, "b": 25}}
    asked = script({"text": "Let me add.", "tools": [call]}, {"text": ["It is ", "42."]})
    result = await within(client.prompt(asked, tools=[add]))
    return list(result.messages)


def test_messages_are_dictionaries_that_json_can_hold(messages: list[dict[str, Any]]) -> None:
    kinds = [message["type"] for message in messages]
    assert kinds == ["system", "assistant", "user", "assistant", "result"]
    for message in messages:
        assert isinstance(message, dict)
        assert json.loads(json.dumps(message)) == message


def test_a_result_has_the_pages_fields(messages: list[dict[str, Any]]) -> None:
    result = messages[-1]
    assert {name: type(result[name]) for name in RESULT_FIELDS} == RESULT_FIELDS
    assert result["type"] == "result"
    assert result["subtype"] == "success"
    assert result["result"] == "It is 42."
    assert result["total_cost_usd"] > 0
    assert result["num_turns"] == 2


async def test_a_failed_result_has_the_same_fields_and_subtype_error(
    client: Chucky, within: Within
) -> None:
    result = await within(client.prompt("Hello", model="no-such-model"))
    assert {name: type(result[name]) for name in RESULT_FIELDS} == RESULT_FIELDS
    assert result["subtype"] == "error"
    assert "no-such-model" in result["result"]


def test_an_assistant_message_holds_text_and_tool_use_blocks(
    messages: list[dict[str, Any]],
) -> None:
    assistant = messages[1]
    assert assistant["type"] == "assistant"
    assert assistant["message"]["role"] == "assistant"
    text, call = assistant["message"]["content"]
    assert text == {"type": "text", "text": "Let me add."}
    assert isinstance(call.pop("id"), str)
    assert call == {
        "type": "tool_use",
        "name": "mcp__inline-tools__add",
        "input": {"a": 17, "b": 25},
    }


def test_get_assistant_text_concatenates_the_text_blocks(messages: list[dict[str, Any]]) -> None:
    assert get_assistant_text(messages[1]) == "Let me add."
    blocks = [{"type": "text", "text": "a"}, {"type": "tool_use"}, {"type": "text", "text": "b"}]
    assert get_assistant_text({"type": "assistant", "message": {"content": blocks}}) == "ab"
    assert get_assistant_text(messages[-1]) == ""


def test_get_result_text_is_the_result_or_none(messages: list[dict[str, Any]]) -> None:
    assert get_result_text(messages[-1]) == "It is 42."
    assert [get_result_text(message) for message in messages[:-1]] == [None] * 4
    assert get_result_text({"type": "result", "subtype": "error", "result": "No."}) is None


async def test_the_helpers_example_reads_any_message(
    run_example: RunExample, messages: list[dict[str, Any]]
) -> None:
    found = []
    for message in messages:
        _printed, names = await run_example("helpers", msg=message)
        found.append((names["text"], names["result"]))
    assert found == [
        ("", None),
        ("Let me add.", None),
        ("", None),
        ("It is 42.", None),
        ("", "It is 42."),
    ]
