"""The API as a client sees it: messages, streams, errors, counting, the list of models."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import ToolParam

MODEL = "claude-sonnet-5-5"
TIME_TOOL: ToolParam = {"name": "get_time", "input_schema": {"type": "object", "properties": {}}}


def body(**changes: Any) -> dict[str, Any]:
    """A request that is fine, but for the changes; ``...`` leaves a field out."""
    fields: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "Hello"}],
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


async def test_a_message_has_the_shape_of_the_api(client: AsyncAnthropic) -> None:
    message = await client.messages.create(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": "What is 2 + 2?"}]
    )

    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].type == "text"
    assert "4" in message.content[0].text
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens == 4  # 14 characters
    assert message.usage.output_tokens == 3  # 10 characters
    assert message.usage.cache_creation_input_tokens == 0
    assert message.usage.cache_read_input_tokens == 0
    assert message.usage.cache_creation
    assert message.usage.cache_creation.ephemeral_5m_input_tokens == 0


async def test_a_stream_has_the_events_of_the_api_in_their_order(http: httpx2.AsyncClient) -> None:
    wanted = body(stream=True, thinking={"type": "adaptive"}, tools=[TIME_TOOL])
    wanted["messages"][0]["content"] = "What time is it?"

    async with http.stream("POST", "/v1/messages?beta=true", json=wanted) as response:
        text = (await response.aread()).decode()

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["request-id"].startswith("req_")
    events = [part.split("\n") for part in text.split("\n\n") if part]
    data = [json.loads(lines[1].removeprefix("data: ")) for lines in events]
    assert [lines[0] for lines in events] == [f"event: {each['type']}" for each in data]
    kinds = [each.get("delta", {}).get("type") or each["type"] for each in data]
    assert [
        kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before
    ] == [
        "message_start",
        "content_block_start",
        "ping",
        "thinking_delta",
        "signature_delta",
        "content_block_stop",
        "content_block_start",
        "input_json_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert data[0]["message"]["content"] == []
    assert data[0]["message"]["stop_reason"] is None
    assert data[0]["message"]["usage"]["output_tokens"] == 1
    assert data[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert data[-2]["usage"]["output_tokens"] > 1
    assert set(data[0]["message"]["usage"]) - set(data[-2]["usage"]) == {"cache_creation"}


async def test_a_stream_and_a_message_say_the_same(client: AsyncAnthropic) -> None:
    asked: Any = {
        "model": MODEL,
        "max_tokens": 2_000,
        "thinking": {"type": "enabled", "budget_tokens": 1_024},
        "messages": [{"role": "user", "content": "What is calculus?"}],
    }

    whole = await client.messages.create(**asked)
    async with client.messages.stream(**asked) as stream:
        deltas = [event.delta.type async for event in stream if event.type == "content_block_delta"]
        streamed = await stream.get_final_message()

    assert len(deltas) > 5
    assert [block.model_dump(exclude_none=True) for block in streamed.content] == [
        block.model_dump(exclude_none=True) for block in whole.content
    ]
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert streamed.usage.input_tokens == whole.usage.input_tokens


async def test_thinking_comes_first_and_is_signed(client: AsyncAnthropic) -> None:
    message = await client.messages.create(
        model=MODEL,
        max_tokens=2_000,
        thinking={"type": "enabled", "budget_tokens": 1_024},
        messages=[{"role": "user", "content": "Hello"}],
    )

    thinking, text = message.content
    assert thinking.type == "thinking"
    assert thinking.thinking
    assert thinking.signature
    assert text.type == "text"


@pytest.mark.parametrize("thinking", [None, {"type": "disabled"}])
async def test_without_thinking_there_is_none(http: httpx2.AsyncClient, thinking: Any) -> None:
    response = await http.post("/v1/messages", json=body(thinking=thinking))

    assert [block["type"] for block in response.json()["content"]] == ["text"]


async def test_max_tokens_ends_the_answer(client: AsyncAnthropic) -> None:
    message = await client.messages.create(
        model=MODEL, max_tokens=3, messages=[{"role": "user", "content": "What is calculus?"}]
    )

    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 3
    assert message.content[0].type == "text"
    assert message.content[0].text == "Calculus is "  # 3 tokens of 4 characters


async def test_a_tool_call_that_does_not_fit_is_left_out(client: AsyncAnthropic) -> None:
    message = await client.messages.create(
        model=MODEL,
        max_tokens=1,
        tools=[TIME_TOOL],
        messages=[{"role": "user", "content": "What time is it?"}],
    )

    assert message.stop_reason == "max_tokens"
    assert message.content == []


async def test_no_tokens_give_no_answer(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/messages", json=body(max_tokens=0))

    assert response.json()["content"] == []
    assert response.json()["usage"]["output_tokens"] == 0


async def test_a_stop_sequence_ends_the_answer_before_it(client: AsyncAnthropic) -> None:
    message = await client.messages.create(
        model=MODEL,
        max_tokens=100,
        stop_sequences=["nowhere", " is Paris", "Paris"],
        messages=[{"role": "user", "content": "What is the capital of France?"}],
    )

    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " is Paris")
    assert message.content[0].type == "text"
    assert message.content[0].text == "The capital of France"


async def test_tokens_are_counted_alike_before_and_in_the_call(client: AsyncAnthropic) -> None:
    asked: Any = {
        "model": MODEL,
        "system": "Be brief. " * 20,
        "tools": [TIME_TOOL],
        "messages": [{"role": "user", "content": "Hello there"}],
    }

    counted = await client.messages.count_tokens(**asked)
    message = await client.messages.create(**asked, max_tokens=50)

    assert counted.input_tokens == message.usage.input_tokens
    # 200 of the system prompt, 11 of the message, 8 and 33 of the tool's name and schema
    assert counted.input_tokens == (200 + 11 + 8 + 33) / 4


async def test_an_image_counts_as_a_fixed_number_of_tokens(client: AsyncAnthropic) -> None:
    counted = await client.messages.count_tokens(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "url", "url": "https://example.com/a"}},
                    {"type": "text", "text": "Look"},
                ],
            }
        ],
    )

    assert counted.input_tokens == 1_601


# --- models ---------------------------------------------------------------------------------------


async def test_models_are_listed_page_by_page(client: AsyncAnthropic) -> None:
    pages = await client.models.list(limit=2)

    listed = [model.id async for model in pages]

    assert len(listed) > 2
    assert len(set(listed)) == len(listed)
    assert {"chucky-offline", MODEL} <= set(listed)
    before = await client.models.list(before_id=listed[2], limit=1)
    assert [model.id for model in before.data] == [listed[1]]
    assert before.has_more


async def test_a_model_describes_itself_as_offline(client: AsyncAnthropic) -> None:
    model = await client.models.retrieve(MODEL)

    assert model.id == MODEL
    assert "offline" in model.display_name


async def test_an_unknown_model_is_not_found_but_answers(client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve("claude-nobody-1")

    message = await client.messages.create(
        model="claude-nobody-1", max_tokens=9, messages=[{"role": "user", "content": "Hello"}]
    )
    assert message.model == "claude-nobody-1"


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=99999999999", "after_id=nobody"])
async def test_a_wrong_page_is_refused(http: httpx2.AsyncClient, query: str) -> None:
    response = await http.get(f"/v1/models?{query}")

    assert response.status_code == 400
    assert query.split("=")[0] in response.json()["error"]["message"]


# --- errors ---------------------------------------------------------------------------------------

TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "get_time", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "noon"}
HELLO = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": ...}, "model: Field required"),
        ({"model": ""}, "model: String should have"),
        ({"messages": ...}, "messages: Field required"),
        ({"messages": []}, "messages: at least one message"),
        ({"messages": "Hello"}, "messages: Input should be a valid list"),
        ({"max_tokens": ...}, "max_tokens: Field required"),
        ({"max_tokens": -1}, "max_tokens: Input should be greater"),
        ({"max_tokens": True}, "max_tokens: Input should be a valid integer"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0: all messages must have"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages.0.content.0.type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
            "text content blocks must be non-empty",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "song"}]}]},
            "Input tag 'song'",
        ),
        (
            {"messages": [{"role": "user", "content": [TOOL_USE]}]},
            "`tool_use` blocks can only be in `assistant` messages",
        ),
        (
            {"messages": [HELLO, {"role": "assistant", "content": [TOOL_USE]}, HELLO]},
            "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: "
            "toolu_1.",
        ),
        (
            {"messages": [HELLO, {"role": "assistant", "content": [TOOL_USE]}]},
            "messages.1: `tool_use` ids were found without `tool_result`",
        ),
        (
            {"messages": [HELLO, {"role": "user", "content": [RESULT]}]},
            "messages.1: unexpected `tool_use_id` found in `tool_result` blocks: toolu_1.",
        ),
        (
            {
                "messages": [
                    HELLO,
                    {"role": "assistant", "content": [TOOL_USE]},
                    {"role": "user", "content": [RESULT, RESULT]},
                ]
            },
            "each tool_use must have a single result",
        ),
        ({"system": [{"type": "image"}]}, "system.0.type"),
        ({"tools": [{"name": "get time", "input_schema": {"type": "object"}}]}, "tools.0.custom."),
        ({"tools": [{"name": "get_time"}]}, "tools.0.custom.input_schema: Field required"),
        ({"tools": [TIME_TOOL, TIME_TOOL]}, "tools: Tool names must be unique."),
        ({"tool_choice": {"type": "any"}}, "tool_choice: may only be specified"),
        (
            {"tools": [TIME_TOOL], "tool_choice": {"type": "tool", "name": "get_place"}},
            "Tool 'get_place' not found",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 10}}, "budget_tokens: Input should"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1_024}},
            "`max_tokens` must be greater than `thinking.budget_tokens`",
        ),
        ({"stop_sequences": ["\n"]}, "stop_sequences.0: must contain non-whitespace"),
        ({"stream": "yes"}, "stream: Input should be a valid boolean"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id: Input should be a valid string"),
    ],
)
async def test_a_wrong_request_is_refused_by_the_name_of_its_field(
    http: httpx2.AsyncClient, changes: dict[str, Any], says: str
) -> None:
    response = await http.post("/v1/messages", json=body(**changes))

    assert response.status_code == 400
    answer = response.json()
    assert answer["type"] == "error"
    assert answer["error"]["type"] == "invalid_request_error"
    assert says in answer["error"]["message"]
    assert answer["request_id"] == response.headers["request-id"]


@pytest.mark.parametrize(
    "messages",
    [
        [HELLO, HELLO],
        [{"role": "assistant", "content": "Hi"}, HELLO],
        [HELLO, {"role": "assistant", "content": ""}],
        [HELLO, {"role": "system", "content": "Be brief."}],
        [
            HELLO,
            {"role": "assistant", "content": [TOOL_USE]},
            {"role": "assistant", "content": [{**TOOL_USE, "id": "toolu_2"}]},
            {"role": "user", "content": [RESULT]},
            {"role": "user", "content": [{**RESULT, "tool_use_id": "toolu_2", "content": []}]},
        ],
    ],
    ids=["neighbours", "assistant first", "prefill", "system", "results in two messages"],
)
async def test_conversations_the_api_allows_are_allowed(
    http: httpx2.AsyncClient, messages: list[dict[str, Any]]
) -> None:
    response = await http.post("/v1/messages", json=body(messages=messages))

    assert response.status_code == 200


async def test_interleaved_thinking_may_think_more_than_it_says(http: httpx2.AsyncClient) -> None:
    wanted = body(thinking={"type": "enabled", "budget_tokens": 4_096})

    response = await http.post(
        "/v1/messages",
        json=wanted,
        headers={"anthropic-beta": "interleaved-thinking-2025-05-14", "anthropic-version": "any"},
    )

    assert response.status_code == 200


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "Expecting value"),
        (b'{"model": ', "Expecting value"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b'{"max_tokens": NaN}', "NaN is not a JSON value"),
        (b'{"max_tokens": 1e999}', "a number is too large"),
        (b'{"model": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 101 + b"]" * 101, "nested deeper than 100 levels"),
        (b"[" * 200_000, "nested deeper than 100 levels"),
        (b"[]", "body: Input should be a valid dictionary"),
    ],
    ids=["empty", "cut", "not UTF-8", "NaN", "infinite", "surrogate", "deep", "very deep", "list"],
)
async def test_what_is_no_json_object_is_refused(
    http: httpx2.AsyncClient, content: bytes, says: str
) -> None:
    response = await http.post("/v1/messages", content=content)

    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert says in response.json()["error"]["message"]


async def test_a_body_that_is_too_large_is_refused(client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        await client.messages.create(
            model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "x" * (33 * 2**20)}]
        )

    assert caught.value.status_code == 413
    assert caught.value.body is not None
    assert '"request_too_large"' in json.dumps(caught.value.body)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("POST", "/v1/complete", 404, "not_found_error"),
        ("POST", "/v1/messages/", 404, "not_found_error"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
    ],
)
async def test_an_unknown_path_is_answered_in_the_shape_of_the_api(
    http: httpx2.AsyncClient, method: str, path: str, status: int, kind: str
) -> None:
    response = await http.request(method, path, json={})

    assert response.status_code == status
    assert response.json()["error"]["type"] == kind
    assert response.headers["request-id"] == response.json()["request_id"]


@pytest.mark.parametrize("path", ["/", "/healthz", "/api/hello"])
async def test_it_says_that_it_is_there(http: httpx2.AsyncClient, path: str) -> None:
    asked = await http.get(path)
    knocked = await http.head(path)

    assert asked.json() == {"status": "ok", "model": "chucky-offline"}
    assert (knocked.status_code, knocked.content) == (200, b"")


async def test_fifty_calls_at_once_each_get_their_own_answer(client: AsyncAnthropic) -> None:
    async def ask(number: int) -> str:
        async with client.messages.stream(
            model=MODEL,
            max_tokens=100,
            messages=[{"role": "user", "content": f"What is {number} + {number}?"}],
        ) as stream:
            return await stream.get_final_text()

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask(number)) for number in range(50)]

    assert [task.result() for task in asked] == [
        f"{number} + {number} = {2 * number}." for number in range(50)
    ]
