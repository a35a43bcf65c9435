"""A server may send anything at all: the client answers, or says what is wrong, and ends."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from chucky import (
    ChuckyError,
    PromptResult,
    StreamEvent,
    Tool,
    get_assistant_text,
    get_result_text,
)

if TYPE_CHECKING:
    from tests.sdk.conftest import Peer, ScriptedServer, StartServer

LIMIT_SECONDS = 10.0
HUGE = "huge"  # stands for a text of 400 KB, which no report of a failure should show

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=8), values, max_size=4)
blocks = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "tool_use", "thinking"]) | values},
    optional={"text": values, "name": values | st.just("mcp__a__b"), "input": values},
)
inner_messages = values | st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": values | st.lists(blocks | values, max_size=4)}
)
messages = st.fixed_dictionaries(
    {"type": st.sampled_from(["system", "assistant", "user", "result", "stream_event", "new"])},
    optional={
        "subtype": st.sampled_from(["init", "success", "error", "error_max_turns"]) | values,
        "message": inner_messages,
        "session_id": values | st.just(HUGE),
        "is_error": values,
        "result": values,
        "error": values,
        "errors": values,
        "event": values,
        "payload": values,
    },
)
tool_calls = st.fixed_dictionaries(
    {},
    optional={
        "callId": st.sampled_from(["1", "2", HUGE]) | values,
        "toolName": st.sampled_from(["echo", "fail", "unknown", HUGE]) | values,
        "input": objects | values,
    },
)
controls = st.fixed_dictionaries(
    {"action": st.sampled_from(["ready", "session_info", "close", "new"]) | values},
    optional={"data": objects | values},
)
errors = st.fixed_dictionaries({}, optional={"message": values, "code": values, "details": values})


def envelopes(kind: str, payloads: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"type": st.just(kind), "payload": payloads | values})


frames = (
    messages
    | envelopes("sdk_message", messages)
    | envelopes("tool_call", tool_calls)
    | envelopes("control", controls)
    | envelopes("error", errors)
    | envelopes("pong", values)
    | values
).map(json.dumps)
raw = (
    st.text(max_size=50)
    | st.binary(max_size=50)
    | st.sampled_from(
        ['{"type":"system","x":"\\ud800"}', '{"type":"system","x":1e999}', "[" * 5000]
    )
)
ready = st.just('{"type":"control","payload":{"action":"ready"}}')
valid = st.sampled_from(
    [
        {"type": "assistant", "message": {"role": "assistant", "content": []}},
        {"type": "result", "subtype": "success", "result": "Hello!"},
        {"type": "tool_call", "payload": {"callId": "1", "toolName": "echo", "input": {"a": 1}}},
        {"type": "tool_call", "payload": {"callId": "2", "toolName": "fail"}},
        {"type": "error", "payload": {"message": "It broke."}},
    ]
).map(json.dumps)

anything = st.lists(frames | valid | valid | raw, max_size=12)
endings = st.sampled_from(["result", "close", "cut", "control"])


class Babbler:
    """A server that says what the current example tells it, and then ends the conversation."""

    def __init__(self) -> None:
        self.server: ScriptedServer
        self.speech: list[str | bytes] = []
        self.ending = ""

    async def script(self, peer: Peer) -> None:
        try:
            for data in self.speech:
                if isinstance(data, str):
                    data = data.replace(HUGE, HUGE * 100_000)
                await peer.send_raw(data)
            await self._end(peer)
            await peer.until_closed()
        except ConnectionClosed:
            pass  # the client has had enough

    async def _end(self, peer: Peer) -> None:
        if self.ending == "cut":
            peer.abort()
        elif self.ending == "control":
            await peer.send(peer.control("close"))
        elif self.ending == "result":
            while (await peer.receive())["type"] != "user":
                pass
            await peer.send(peer.result("The end."))
        else:
            await peer.close(1001, "enough")


async def echo(arguments: dict[str, Any]) -> Any:
    return arguments


async def fail(arguments: dict[str, Any]) -> Any:
    raise ValueError(arguments)


TOOLS = [Tool(f.__name__, "A tool", {"type": "object"}, f) for f in (echo, fail)]


@pytest.fixture
async def babbler(scripted_server: StartServer) -> Babbler:
    """One server for all examples of a test; each example is a connection."""
    babbler = Babbler()
    babbler.server = await scripted_server(babbler.script)
    return babbler


fuzzed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@fuzzed
@given(st.lists(frames, max_size=3), ready, anything, endings)
async def test_a_prompt_ends_in_a_result_or_an_error_of_ours(
    babbler: Babbler, early: list[str], ready: str, late: list[str | bytes], ending: str
) -> None:
    babbler.speech = [*early, ready, *late]
    babbler.ending = ending
    before = asyncio.all_tasks()
    try:
        async with asyncio.timeout(LIMIT_SECONDS), babbler.server.client() as client:
            result = await client.prompt("Hello", tools=TOOLS)
    except ChuckyError:
        pass
    else:
        assert isinstance(result, PromptResult)
        assert result["type"] == "result"
        assert isinstance(str(result), str)
    await babbler.server.end()
    failures, babbler.server.failures = babbler.server.failures, []
    assert not failures
    await all_end(asyncio.all_tasks() - before)


@fuzzed
@given(ready, st.lists(messages.map(json.dumps) | valid, max_size=12), endings)
async def test_whatever_a_stream_yields_can_be_read(
    babbler: Babbler, ready: str, late: list[str], ending: str
) -> None:
    babbler.speech = [ready, *late]
    babbler.ending = ending
    before = asyncio.all_tasks()
    try:
        async with asyncio.timeout(LIMIT_SECONDS), babbler.server.client() as client:
            async for event in client.stream("Hello", tools=TOOLS):
                read(event)
    except ChuckyError:
        pass
    await babbler.server.end()
    failures, babbler.server.failures = babbler.server.failures, []
    assert not failures
    await all_end(asyncio.all_tasks() - before)


async def all_end(tasks: set[asyncio.Task[Any]]) -> None:
    if tasks:
        _done, pending = await asyncio.wait(tasks, timeout=LIMIT_SECONDS)
        assert not pending


def read(event: StreamEvent) -> None:
    assert event.type in ("message", "tool_use", "delta", "error", "result", "done")
    assert isinstance(str(event.data), str)
    assert isinstance(get_assistant_text(event.data), str)
    assert isinstance(get_result_text(event), str | None)
    assert isinstance(event.name, str) == (event.type == "tool_use")
