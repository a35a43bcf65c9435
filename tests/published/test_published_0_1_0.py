"""The published ``chucky-sdk`` 0.1.0, unmodified, against this server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.published.conftest import RunProgram

# The first test of a machine makes the environment.
pytestmark = [pytest.mark.published, pytest.mark.timeout(400)]

Run = Callable[..., dict[str, Any]]

BROKEN = {"status": 400, "type": "invalid_request_error", "message": "Broken."}


@pytest.fixture
def run(run_program: RunProgram, server: Server) -> Run:
    """Run a program of this version as a user of the server."""

    def run_as_user(name: str, **arguments: Any) -> dict[str, Any]:
        account = {"url": server.url, "token": server.token("published")}
        return run_program("0.1.0", name, **{**account, **arguments})

    return run_as_user


def test_the_environment_has_the_published_sdk(run: Run) -> None:
    installed = run("installed")
    assert installed["version"] == "0.1.0"
    assert "chucky-sdk-0.1.0" in installed["file"]


def test_prompt_returns_a_result_with_attributes(run: Run) -> None:
    (answer,) = run("prompt", messages=["What is the capital of France?"])["answers"]
    assert answer["class"] == "PromptResult"
    assert answer["result"] == "The capital of France is Paris."
    assert [message["type"] for message in answer["messages"]] == ["system", "assistant"]
    assert answer["session_id"] == answer["messages"][0]["session_id"]
    assert 0 < answer["total_cost_usd"] < 0.01
    assert type(answer["duration_ms"]) is int


def test_each_prompt_is_a_conversation_of_its_own(run: Run) -> None:
    one, other = run("prompt", messages=["Hello, I am Alice", "What is my name?"])["answers"]
    assert one["result"] == "Hello Alice! Nice to meet you."
    assert other["result"] == "You have not told me your name."
    assert one["session_id"] != other["session_id"]


def test_stream_tells_messages_the_result_and_done(run: Run) -> None:
    events = run("stream", message="What is calculus?")["events"]
    assert [kind for kind, _data in events] == ["message", "message", "result", "done"]
    (_, system), (_, assistant), (_, result), (_, done) = events
    assert system["subtype"] == "init"
    assert assistant["message"]["content"][0]["text"] == result["result"]
    assert result["subtype"] == "success"
    assert done == {"sessionId": result["session_id"]}


def test_tools_of_both_kinds_are_run_and_answered(run: Run, script: Callable[..., str]) -> None:
    told = run(
        "tools",
        message=script(
            {
                "text": "Working.",
                "tools": [
                    {"name": "add", "input": {"a": 17, "b": 25}},
                    {"name": "greet", "input": {"name": "Bob"}},
                ],
            },
            {"tools": [{"name": "greet", "input": {"name": "Eve", "style": "coldly"}}]},
            {"text": "done"},
        ),
    )
    assert sorted(told["calls"][:2]) == [["add", 17, 25], ["greet", "Bob", "kindly"]]
    assert told["calls"][2:] == [["greet", "Eve", "coldly"]]
    results = _tool_results(told["messages"])
    assert [block["content"][0]["text"] for block in results] == [
        "42",
        "Hello Bob, kindly",
        "Hello Eve, coldly",
    ]
    assert told["messages"][-1]["result"] == "done"
    assert told["messages"][0]["tools"] == [
        "mcp__calculator__add",
        "mcp__inline-tools__greet",
        "mcp__inline-tools__refuse",
        "mcp__inline-tools__fail",
    ]


def test_many_calls_at_once_are_all_answered(run: Run, script: Callable[..., str]) -> None:
    calls = [{"name": "add", "input": {"a": n, "b": n}} for n in range(20)]
    told = run("tools", message=script({"tools": calls}, {"text": "done"}))
    texts = [block["content"][0]["text"] for block in _tool_results(told["messages"])]
    assert texts == [str(2 * n) for n in range(20)]
    assert told["messages"][-1]["subtype"] == "success"


def test_a_tool_that_fails_or_refuses_is_an_error_for_the_model_only(
    run: Run, script: Callable[..., str]
) -> None:
    calls = [{"name": "refuse"}, {"name": "fail"}, {"name": "greet", "input": {"nom": "Bob"}}]
    told = run("tools", message=script({"tools": calls}, {"text": "so be it"}))
    results = _tool_results(told["messages"])
    assert [block["is_error"] for block in results] == [True, True, True]
    texts = [block["content"][0]["text"] for block in results]
    assert texts[:2] == ["I will not.", "Error: out of order"]
    assert "nom" in texts[2]
    assert told["messages"][-1]["result"] == "so be it"


def test_the_reason_of_a_refused_token_reaches_the_user(run: Run) -> None:
    (answer,) = run("prompt", token="not.a.token", messages=["Hello"])["answers"]
    assert answer["raised"] == "RuntimeError"
    assert "token" in answer["text"]
    assert answer["text"].endswith(".")
    assert "not.a.token" not in answer["text"]


def test_what_went_wrong_in_a_turn_is_the_text_of_its_result(
    run: Run, script: Callable[..., str]
) -> None:
    broken, empty = run("prompt", messages=[script({"error": BROKEN}), " "])["answers"]
    assert "Broken." in broken["result"]
    assert "empty" in empty["result"]
    (unknown,) = run("prompt", messages=["Hello"], options={"model": "no-such-model"})["answers"]
    assert "no-such-model" in unknown["result"]
    (limited,) = run("prompt", messages=["Hello"], client={"max_turns": 1})["answers"]
    assert limited["result"].startswith("Hello!")


def _tool_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        block
        for message in messages
        if message["type"] == "user"
        for block in message["message"]["content"]
    ]
