"""What a stream yields behaves as a dictionary, as an object and as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chucky import (
    AssistantMessage,
    Message,
    PromptResult,
    ResultMessage,
    StreamEvent,
    TextBlock,
    ToolUseBlock,
    get_assistant_text,
    get_result_text,
)
from chucky.messages import bare_tool_name, result_from_wire

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)
ASSISTANT = {
    "type": "assistant",
    "message": {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Roses "},
            {"type": "tool_use", "id": "t", "name": "mcp__s__n", "input": {}},
            {"type": "text", "text": "are red"},
        ],
    },
}


def test_a_result_is_a_dictionary_and_an_object() -> None:
    result = PromptResult({"type": "result", "result": "Paris", "total_cost_usd": 0.0012})
    assert result.result == result["result"] == result.get("result") == "Paris"
    assert result.get("total_cost_usd", 0) == result.total_cost_usd == 0.0012
    assert result.get("nothing") is None
    assert str(result) == "Paris"


def test_a_missing_attribute_names_what_there_is() -> None:
    with pytest.raises(AttributeError, match="'type'"):
        _ = Message(type="result").subtype


def test_a_result_can_be_built_as_in_version_0_2_0() -> None:
    result = PromptResult("hi", [{"type": "result"}], "s1", 0.5, 12)
    assert (result.result, result.session_id, result.total_cost_usd) == ("hi", "s1", 0.5)
    assert result.messages == [{"type": "result"}]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (ASSISTANT, "Roses are red"),
        ({"type": "result", "result": "done"}, "done"),
        ({"type": "result", "result": None}, ""),
        ({"type": "system", "subtype": "init"}, ""),
        ({"type": "error", "error": {"message": "no"}}, "no"),
        ({"type": "stream_event", "event": {"delta": {"text": "ro"}}}, "ro"),
        ({"type": "stream_event", "event": {"type": "message_stop"}}, ""),
        (
            {"type": "user", "message": {"content": [{"type": "tool_result", "content": "x"}]}},
            "",
        ),
    ],
)
def test_the_text_of_a_message(message: dict[str, object], text: str) -> None:
    assert str(Message(message)) == text


def test_defect_32_assistant_text_survives_every_shape() -> None:
    speaking: list[object] = [
        {"type": "assistant", "message": {"content": "plain"}},
        {"type": "assistant", "message": {"content": [{"type": "text", "text": "plain"}]}},
        AssistantMessage([TextBlock("plain"), ToolUseBlock("i", "n", {})], model="m"),
        StreamEvent("message", {"type": "assistant", "message": {"content": "plain"}}),
    ]
    for message in speaking:
        assert get_assistant_text(message) == "plain"
    silent: list[object] = [
        {"type": "assistant", "message": None},
        {"type": "assistant", "message": {"content": [{"type": "text", "text": None}]}},
        {"type": "result", "result": "x"},
        {},
    ]
    for message in silent:
        assert get_assistant_text(message) == ""


def test_result_text_is_that_of_a_success_only() -> None:
    assert get_result_text({"type": "result", "subtype": "success", "result": "4"}) == "4"
    assert get_result_text({"type": "result", "subtype": "error", "result": "no"}) is None
    assert get_result_text(ASSISTANT) is None
    assert get_result_text(StreamEvent("result", {"subtype": "success", "result": "4"})) == "4"
    assert get_result_text(ResultMessage("success", 1, 1, False, 1, "s", result="4")) == "4"


@given(ANYTHING)
def test_the_helpers_accept_anything(anything: object) -> None:
    assert isinstance(get_assistant_text(anything), str)
    assert get_result_text(anything) is None or isinstance(get_result_text(anything), str)


def test_a_tool_use_event_has_the_name_the_tool_was_defined_with() -> None:
    event = StreamEvent("tool_use", {"name": "mcp__inline-tools__get_time", "input": {}})
    assert event.name == "get_time"
    assert StreamEvent("message", {"name": "x"}).name is None


@pytest.mark.parametrize(
    ("seen", "bare"),
    [("mcp__a__b", "b"), ("mcp__a__b__c", "b__c"), ("b", "b"), ("mcp__b", "mcp__b")],
)
def test_bare_names(seen: str, bare: str) -> None:
    assert bare_tool_name(seen) == bare


@pytest.mark.parametrize(
    ("wire", "code", "text"),
    [
        (
            {"subtype": "error_max_turns", "is_error": True, "errors": ["too many"]},
            "MAX_TURNS",
            "too many",
        ),
        ({"subtype": "error_budget", "result": "spent"}, "BUDGET_EXCEEDED", "spent"),
        ({"subtype": "error", "result": "no"}, "SESSION_ERROR", "no"),
        (
            {
                "subtype": "error_during_execution",
                "error": {"code": "INTERRUPTED", "reason": "interrupted", "message": "stopped"},
            },
            "INTERRUPTED",
            "stopped",
        ),
        ({"subtype": "success", "is_error": True, "result": "hm"}, "SESSION_ERROR", "hm"),
    ],
)
def test_a_failed_result_has_the_documented_form(
    wire: dict[str, object], code: str, text: str
) -> None:
    result = result_from_wire({"type": "result", **wire})
    assert result.subtype == "error"
    assert result.is_error is True
    assert result.result == text
    assert result.error.code == code
    assert result.error.message == text
    assert result.error.subtype == wire["subtype"]


def test_a_success_keeps_its_form() -> None:
    wire = {"type": "result", "subtype": "success", "is_error": False, "result": "4"}
    assert result_from_wire(wire) == wire
