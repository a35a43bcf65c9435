"""Whatever is sent, a message or a typed error comes back, never a fault of the server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
from hypothesis import example, given
from hypothesis import strategies as st

from chucky.offline.app import create_app

JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
        st.sampled_from(["user", "assistant", "text", "tool_use", "object", "auto", "Hello"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.text(max_size=5),
                st.sampled_from(["type", "role", "content", "text", "name", "input_schema", "id"]),
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
TEXTS = st.one_of(
    st.text(min_size=1, max_size=40),
    st.sampled_from(["What is 2 + 2?", "I am Alice", "f 'x' a: 1", "Run get_time", "```offline"]),
)
CALL = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
RESULTS = st.one_of(st.text(max_size=9), st.lists(st.just({"type": "text", "text": "x"})), JSON)
CONVERSATIONS = st.one_of(
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXTS}),
        min_size=1,
        max_size=3,
    ),
    RESULTS.map(
        lambda content: [
            {"role": "user", "content": "f"},
            {"role": "assistant", "content": [CALL]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t", "content": content}],
            },
        ]
    ),
)
STEPS = st.fixed_dictionaries(
    {},
    optional={
        "text": st.one_of(st.text(max_size=20), st.lists(st.text(max_size=5), max_size=4)),
        "thinking": st.text(max_size=20),
        "tools": st.just([{"name": "f", "input": {"a": 1}}]),
        "usage": st.dictionaries(
            st.sampled_from(["input_tokens", "output_tokens", "cache_read_input_tokens"]),
            st.integers(0, 200),
        ),
        "overrun": st.booleans(),
        "error": st.fixed_dictionaries({"status": st.integers(399, 600)}),
    },
)
SCRIPTS = st.lists(st.one_of(STEPS, STEPS, STEPS, JSON), max_size=2).map(
    lambda steps: [{"role": "user", "content": f"```offline\n{json.dumps(steps)}\n```"}]
)
SCHEMAS = st.fixed_dictionaries(
    {"type": st.just("object")},
    optional={
        "properties": st.dictionaries(
            st.sampled_from(["a", "name", "path"]),
            st.one_of(
                JSON,
                st.fixed_dictionaries(
                    {"type": st.sampled_from(["string", "integer", "array", "object", "boolean"])}
                ),
            ),
            max_size=2,
        ),
        "required": st.lists(st.sampled_from(["a", "name"]), unique=True),
    },
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["f", "get_time", "mcp__a__f", "StructuredOutput"]),
            "input_schema": SCHEMAS,
        },
        optional={"description": TEXTS},
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda tool: str(tool["name"]),
)
REQUESTS = st.fixed_dictionaries(
    {
        "model": st.just("claude-sonnet-5-5"),
        "max_tokens": st.integers(0, 100),
        "messages": st.one_of(CONVERSATIONS, SCRIPTS),
    },
    optional={
        "system": TEXTS,
        "tools": TOOLS,
        "tool_choice": st.sampled_from([{"type": "any"}, {"type": "auto"}, {"type": "none"}]),
        "thinking": st.just({"type": "adaptive"}),
        "output_config": st.fixed_dictionaries(
            {"format": st.fixed_dictionaries({"type": st.just("json_schema"), "schema": SCHEMAS})}
        ),
        "stop_sequences": st.lists(st.sampled_from(["e", "4", "I am"]), max_size=3),
        "stream": st.booleans(),
        "metadata": st.just({"user_id": "u"}),
    },
)
FIELDS = ["model", "max_tokens", "messages", "system", "tools", "tool_choice", "thinking"]
FIELDS += ["output_config", "output_format", "stop_sequences", "stream", "metadata"]
# Nearly right requests get deeper in than wild ones.
BODIES = st.one_of(
    REQUESTS,
    st.builds(
        lambda request, field, value: {**request, field: value},
        REQUESTS,
        st.sampled_from(FIELDS),
        JSON,
    ),
    JSON,
)


async def send(path: str, body: Any) -> httpx2.Response:
    # raise_app_exceptions: a fault is seen as itself
    transport = httpx2.ASGITransport(create_app(), raise_app_exceptions=True)
    async with (
        httpx2.AsyncClient(transport=transport, base_url="http://offline", verify=False) as http,
        asyncio.timeout(10),
    ):
        return await http.post(path, content=json.dumps(body).encode())


def check_error(response: httpx2.Response) -> None:
    answer = response.json()
    assert answer["type"] == "error"
    assert answer["error"]["type"]
    assert answer["error"]["message"]
    assert answer["request_id"] == response.headers["request-id"]


@given(body=BODIES)
@example(body={"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "\0"}]})
def test_any_request_gives_a_message_or_a_typed_error(body: Any) -> None:
    response = asyncio.run(send("/v1/messages", body))

    if response.status_code != 200:
        assert 400 <= response.status_code < 600
        check_error(response)
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.startswith("event: message_start\n")
    else:
        assert response.json()["type"] == "message"
        assert response.json()["stop_reason"]


@given(body=BODIES)
def test_any_request_is_counted_or_refused(body: Any) -> None:
    response = asyncio.run(send("/v1/messages/count_tokens", body))

    if response.status_code == 200:
        assert response.json()["input_tokens"] >= 0
    else:
        assert response.status_code == 400
        check_error(response)
