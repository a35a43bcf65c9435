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
BLOCKS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=40)}),
    st.fixed_dictionaries(
        {"type": st.just("tool_use"), "id": st.just("t"), "name": st.just("f"), "input": JSON}
    ),
    st.fixed_dictionaries(
        {"type": st.just("tool_result"), "tool_use_id": st.just("t"), "content": JSON}
    ),
    JSON,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system"]),
            "content": st.one_of(st.text(max_size=40), st.lists(BLOCKS, max_size=3)),
        }
    ),
    max_size=4,
)
STEPS = st.lists(
    st.dictionaries(
        st.sampled_from(["text", "thinking", "tools", "usage", "error", "overrun", "other"]),
        st.one_of(JSON, st.text(), st.lists(st.text(max_size=5), max_size=4)),
        max_size=3,
    ),
    max_size=3,
)
SCRIPTS = STEPS.map(
    lambda steps: [{"role": "user", "content": f"```offline\n{json.dumps(steps)}\n```"}]
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "system": st.one_of(st.text(), JSON),
    "tools": st.one_of(
        JSON,
        st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["f", "get_time", "mcp__a__f"]),
                    "input_schema": st.fixed_dictionaries(
                        {"type": st.just("object")}, optional={"properties": JSON, "required": JSON}
                    ),
                }
            ),
            max_size=2,
        ),
    ),
    "tool_choice": st.one_of(
        JSON, st.sampled_from([{"type": "any"}, {"type": "tool", "name": "f"}])
    ),
    "thinking": st.one_of(JSON, st.just({"type": "adaptive"})),
    "output_config": st.one_of(
        JSON,
        st.fixed_dictionaries(
            {"format": st.fixed_dictionaries({"type": st.just("json_schema"), "schema": JSON})}
        ),
    ),
    "stop_sequences": st.one_of(JSON, st.lists(st.text(min_size=1, max_size=2), max_size=3)),
    "stream": st.one_of(JSON, st.booleans()),
    "metadata": JSON,
}
REQUESTS = st.fixed_dictionaries(
    {
        "model": st.one_of(st.just("claude-sonnet-5-5"), JSON),
        "max_tokens": st.one_of(st.integers(0, 100), JSON),
        "messages": st.one_of(MESSAGES, SCRIPTS, JSON),
    },
    optional=FIELDS,
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


@given(body=st.one_of(REQUESTS, JSON))
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


@given(body=st.one_of(REQUESTS, JSON))
def test_any_request_is_counted_or_refused(body: Any) -> None:
    response = asyncio.run(send("/v1/messages/count_tokens", body))

    if response.status_code == 200:
        assert response.json()["input_tokens"] >= 0
    else:
        assert response.status_code == 400
        check_error(response)
