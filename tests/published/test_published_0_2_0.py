"""The published ``chucky-sdk`` 0.2.0, unmodified, against this server."""

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
# What this version's socket takes at most in one frame.
MIB = 1024 * 1024


@pytest.fixture
def run(run_program: RunProgram, server: Server) -> Run:
    """Run a program of this version as a user of the server."""

    def run_as_user(name: str, **arguments: Any) -> dict[str, Any]:
        account = {"url": server.url, "token": server.token("published")}
        return run_program("0.2.0", name, **{**account, **arguments})

    return run_as_user


def test_the_environment_has_the_published_sdk(run: Run) -> None:
    installed = run("installed")
    assert installed["version"] == "0.2.0"
    assert "chucky-sdk-0.2.0" in installed["file"]


def test_prompt_returns_the_result_message(run: Run) -> None:
    (answer,) = run("prompt", messages=["What is the capital of France?"])["answers"]
    result = answer["result"]
    assert result["type"] == "result"
    assert result["subtype"] == "success"
    assert result["result"] == "The capital of France is Paris."
    assert 0 < result["total_cost_usd"] < 0.01
    assert type(result["duration_ms"]) is int


def test_stream_tells_messages_the_result_and_done(run: Run) -> None:
    events = run("stream", message="What is calculus?")["events"]
    assert [kind for kind, _data in events] == ["message", "message", "result", "done"]
    (_, system), (_, assistant), (_, result), (_, done) = events
    assert system["subtype"] == "init"
    assert assistant["message"]["content"][0]["text"] == result["result"]
    assert done == {"sessionId": result["session_id"]}


def test_a_session_remembers_its_turns(run: Run) -> None:
    messages = ["Hello, I am Alice", "What is my name?", "What is 2 + 2?", "Multiply that by 3"]
    turns = run("session", messages=messages)["turns"]
    assert [turn["result"] for turn in turns] == [
        "Hello Alice! Nice to meet you.",
        "Your name is Alice.",
        "2 + 2 = 4.",
        "4 * 3 = 12.",
    ]
    assert [len(turn["messages"]) for turn in turns] == [3, 2, 2, 2]
    assert len({each["session_id"] for turn in turns for each in turn["messages"]}) == 1
    results = [turn["messages"][-1] for turn in turns]
    assert [result["num_turns"] for result in results] == [1, 2, 3, 4]
    costs = [result["total_cost_usd"] for result in results]
    assert costs == sorted(set(costs))


def test_tools_of_a_session_are_run_in_each_turn(run: Run, script: Callable[..., str]) -> None:
    first = script(
        {
            "text": "Working.",
            "tools": [
                {"name": "add", "input": {"a": 17, "b": 25}},
                {"name": "greet", "input": {"name": "Bob"}},
            ],
        },
        {"text": "done"},
    )
    told = run("session", messages=[first, "Please add 1 and 2."])
    assert sorted(told["calls"][:2]) == [["add", 17, 25], ["greet", "Bob", "kindly"]]
    assert told["calls"][2:] == [["add", 1, 2]]
    one, other = told["turns"]
    kinds = [message["type"] for message in one["messages"]]
    assert kinds == ["system", "assistant", "user", "assistant", "result"]
    assert one["assistant"] == ["", "Working.", "", "done", ""]
    assert _tool_texts(one) == ["42", "Hello Bob, kindly"]
    assert "3" in other["result"]


def test_many_calls_at_once_are_all_answered(run: Run, script: Callable[..., str]) -> None:
    calls = [{"name": "add", "input": {"a": n, "b": n}} for n in range(20)]
    (turn,) = run("session", messages=[script({"tools": calls}, {"text": "done"})])["turns"]
    assert _tool_texts(turn) == [str(2 * n) for n in range(20)]
    assert turn["result"] == "done"


def test_a_tool_that_fails_or_refuses_is_an_error_for_the_model_only(
    run: Run, script: Callable[..., str]
) -> None:
    calls = [{"name": "refuse"}, {"name": "fail"}, {"name": "greet", "input": {"nom": "Bob"}}]
    (turn,) = run("session", messages=[script({"tools": calls}, {"text": "so be it"})])["turns"]
    texts = _tool_texts(turn)
    assert texts[:2] == ["I will not.", "Error: out of order"]
    assert "nom" in texts[2]
    assert turn["result"] == "so be it"


def test_the_reason_of_a_refused_token_reaches_the_user(run: Run) -> None:
    (answer,) = run("prompt", token="not.a.token", messages=["Hello"])["answers"]
    assert answer["raised"] == "RuntimeError"
    assert "token" in answer["text"]
    assert answer["text"].endswith(".")
    assert "not.a.token" not in answer["text"]


def test_an_unknown_model_is_named_in_a_failed_result(run: Run) -> None:
    (answer,) = run("prompt", messages=["Hello"], options={"model": "no-such-model"})["answers"]
    result = answer["result"]
    assert result["subtype"] == "error_during_execution"
    assert result["is_error"] is True
    assert "no-such-model" in result["result"]
    assert result["errors"] == [result["result"]]


def test_a_failed_turn_is_a_result_and_the_session_goes_on(
    run: Run, script: Callable[..., str]
) -> None:
    loop = script(*[{"tools": [{"name": "refuse"}]}] * 3, {"text": "never"})
    turns = run(
        "session",
        messages=["Hello, I am Alice", script({"error": BROKEN}), " ", loop, "What is my name?"],
        options={"max_turns": 2},
    )["turns"]
    results = [turn["messages"][-1] for turn in turns]
    assert [result["subtype"] for result in results] == [
        "success",
        "error_during_execution",
        "error_during_execution",
        "error_max_turns",
        "success",
    ]
    assert "Broken." in results[1]["result"]
    assert [turn["result"] for turn in turns[1:4]] == [None, None, None]
    assert turns[-1]["result"] == "Your name is Alice."


def test_leaving_in_a_turn_frees_the_users_seat(run: Run, script: Callable[..., str]) -> None:
    # More in all than the 100 sessions a user may have open at once.
    slow = script({"text": "never", "delay_ms": 60_000})
    told = run("leave", times=105, slow=slow, last="What is 2 + 2?")
    assert told["result"]["result"] == "2 + 2 = 4."


def test_many_clients_at_once_do_not_get_in_each_others_way(
    run: Run, server: Server, script: Callable[..., str]
) -> None:
    names = [f"{letter}lice" for letter in "ABCDEFGHIJKLMNOP"]
    users = {name: server.token(f"published-{name}") for name in names}
    users["Same"] = users["Alice"]
    use_tool = script({"tools": [{"name": "secret"}]}, {"text": "told"})
    told = run("crowd", users=users, use_tool=use_tool)
    for name in users:
        assert told[name] == [
            f"Hello {name}! Nice to meet you.",
            f"the secret of {name}",
            "told",
            f"Your name is {name}.",
        ]


# --- frames beyond what its socket takes ------------------------------------------------------


def test_an_answer_of_almost_a_mebibyte_arrives_whole(run: Run, script: Callable[..., str]) -> None:
    text = "many words " * 85_000
    assert len(text) > 0.85 * MIB
    (answer,) = run("prompt", messages=[script({"text": text, "overrun": True})])["answers"]
    assert answer["result"]["result"] == text


def test_a_tool_result_too_large_for_a_frame_comes_back_as_a_note_of_its_size(
    run: Run, script: Callable[..., str]
) -> None:
    calls = [
        {"name": "fill", "input": {"characters": 2 * MIB}},
        {"name": "add", "input": {"a": 1, "b": 2}},
    ]
    fill, ask = script({"tools": calls}, {"text": "done"}), "What is 2 + 2?"
    one, other = run("session", messages=[fill, ask])["turns"]
    note, small = _tool_texts(one)
    assert small == "3"
    assert note.startswith("[2097")
    assert "\n" not in note
    assert one["result"] == "done"
    # The model has read all of it, at four characters to the token.
    assert one["messages"][-1]["usage"]["input_tokens"] > 2 * MIB / 4
    assert other["result"] == "2 + 2 = 4."


def test_tool_results_too_large_together_come_back_as_notes(
    run: Run, script: Callable[..., str]
) -> None:
    calls = [{"name": "fill", "input": {"characters": MIB // 4}}] * 10
    (turn,) = run("session", messages=[script({"tools": calls}, {"text": "done"})])["turns"]
    texts = _tool_texts(turn)
    assert len(texts) == 10
    assert all("bytes of tool result" in text for text in texts)
    assert turn["result"] == "done"


def test_tool_results_that_fit_a_frame_come_back_whole(
    run: Run, script: Callable[..., str]
) -> None:
    calls = [{"name": "fill", "input": {"characters": 450_000}}] * 2
    (turn,) = run("session", messages=[script({"tools": calls}, {"text": "done"})])["turns"]
    assert _tool_texts(turn) == ["x" * 450_000] * 2


def _tool_texts(turn: dict[str, Any]) -> list[str]:
    return [
        block["content"][0]["text"]
        for message in turn["messages"]
        if message["type"] == "user"
        for block in message["message"]["content"]
    ]
