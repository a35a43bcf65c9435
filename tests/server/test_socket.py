"""What happens on the server's socket, frame by frame (docs/protocol.md)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

TOOL = {
    "name": "add",
    "description": "Add two numbers",
    "inputSchema": {"type": "object", "properties": {"a": {}, "b": {}}},
    "executeIn": "client",
}
CALC = [{"name": "calc", "version": "1.0.0", "tools": [TOOL]}]
RESULT_KEYS = {
    "type",
    "subtype",
    "uuid",
    "session_id",
    "duration_ms",
    "duration_api_ms",
    "is_error",
    "num_turns",
    "result",
    "total_cost_usd",
    "usage",
}


async def test_ready_is_the_first_frame_and_needs_no_init(server: Any, dial: Any) -> None:
    async with dial(server.url, token=server.token()) as client:
        ready = await client.receive()
    assert ready == {"type": "control", "payload": {"action": "ready"}}


@pytest.mark.parametrize("how", ["query", "header", "init"])
async def test_the_token_is_read_from_three_places(server: Any, dial: Any, how: str) -> None:
    token = server.token()
    where = {"query": {"token": token}, "header": {"header": token}, "init": {}}[how]
    async with dial(server.url, **where) as client:
        if how == "init":
            await client.send(type="init", payload={"token": token})
        else:
            assert (await client.receive())["payload"] == {"action": "ready"}
            await client.send(type="init", payload={})
        frames = await client.receive_until("control")
        if how == "init":
            assert frames[-1]["payload"] == {"action": "ready"}
            frames = await client.receive_until("control")
        assert frames[-1]["payload"]["action"] == "session_info"


@pytest.mark.parametrize("where", [{"token": ""}, {"token": "nonsense"}, {"header": "nonsense"}])
async def test_a_bad_token_gets_its_reason_before_ready_and_a_close(
    server: Any, dial: Any, where: dict[str, str]
) -> None:
    async with dial(server.url, **where) as client:
        code, frames = await client.closed()
    assert code == 1008
    (error,) = frames
    assert error["type"] == "error"
    assert error["payload"]["code"] == "AUTHENTICATION_ERROR"
    assert error["payload"]["details"]["reason"].startswith("token_")
    assert error["payload"]["message"].endswith(".")
    assert "nonsense" not in json.dumps(error)


async def test_a_sandbox_named_in_the_url_is_refused_like_one_in_init(
    server: Any, dial: Any
) -> None:
    async with dial(f"{server.url}?vessel=v", header=server.token()) as client:
        await client.send(type="init", payload={})
        await client.ask("hi")
        assert "'vessel'" in (await client.result())["result"]


async def test_a_malformed_first_frame_is_named_whether_or_not_a_token_was_given(
    server: Any, dial: Any
) -> None:
    async with dial(server.url) as client:
        await client.socket.send("{")
        code, frames = await client.closed()
    assert code == 1002
    assert [frame["payload"]["details"]["reason"] for frame in frames] == ["malformed_frame"]


async def test_without_a_token_anything_but_init_is_refused(server: Any, dial: Any) -> None:
    async with dial(server.url) as client:
        await client.ask("hi")
        _code, frames = await client.closed()
    assert [frame["payload"]["details"]["reason"] for frame in frames] == ["token_missing"]


async def test_a_turn_has_only_documented_shapes(server: Any, dial: Any) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.receive()
        await client.send(type="init", payload={"mcpServers": CALC, "model": "sonnet"})
        await client.ask("What is the capital of France?")
        info, *messages = await client.receive_until("result")
    data = info["payload"]["data"]
    assert data["sessionId"] == messages[-1]["session_id"]
    assert [message["type"] for message in messages] == ["system", "assistant", "result"]
    system, assistant, result = messages
    assert {key: system[key] for key in ("subtype", "tools", "mcp_servers", "permissionMode")} == {
        "subtype": "init",
        "tools": ["mcp__calc__add"],
        "mcp_servers": [{"name": "calc", "status": "connected"}],
        "permissionMode": "default",
    }
    assert system["model"] == data["model"]
    assert isinstance(system["cwd"], str)
    assert set(assistant) == {"type", "uuid", "session_id", "message", "parent_tool_use_id"}
    assert set(assistant["message"]) == {"role", "content"}
    assert set(result) == RESULT_KEYS
    assert result["subtype"] == "success"
    assert "Paris" in result["result"]
    assert result["total_cost_usd"] > 0
    for name in ("duration_ms", "duration_api_ms", "num_turns"):
        assert type(result[name]) is int
    assert all(type(count) is int for count in result["usage"].values())


@pytest.mark.parametrize(
    ("first", "wrapped"),
    [
        ({"type": "prompt", "payload": {"message": "hi", "options": {}}}, True),
        ({"type": "sdk_message", "payload": {"type": "user", "message": "hi"}}, True),
        ({"type": "sdk_message", "payload": {"type": "user_message", "content": "hi"}}, True),
        ({"type": "user", "session_id": "unknown", "message": {"content": "hi"}}, False),
    ],
)
async def test_the_form_of_the_answer_is_that_of_the_input(
    server: Any, dial: Any, first: dict[str, Any], wrapped: bool
) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.receive()
        await client.send(type="init", payload=[])
        await client.send(**first)
        frames = await client.receive_until("result")
    forms = {frame["type"] == "sdk_message" for frame in frames if frame["type"] != "control"}
    assert forms == {wrapped}


async def test_input_before_init_uses_defaults_and_late_init_is_refused(
    server: Any, dial: Any
) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.ask("What is 2 + 2?")
        assert "4" in (await client.result())["result"]
        await client.send(type="init", payload={})
        code, frames = await client.closed()
    assert code == 1002
    assert frames[-1]["payload"]["code"] == "VALIDATION_ERROR"


async def test_the_options_of_a_prompt_count_where_there_was_no_init(
    server: Any, dial: Any
) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.send(
            type="prompt", payload={"message": "hi", "options": {"model": "claude-nonsense"}}
        )
        assert "claude-nonsense" in (await client.result())["result"]


async def test_several_turns_share_one_conversation(server: Any, dial: Any) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.ask("Hello, I am Alice", "wrapped")
        first = await client.result()
        await client.ask("What is my name?", "flat")
        frames = await client.receive_until("result")
    second = frames[-1]
    assert "Alice" in second["result"]
    assert second["num_turns"] == 2
    assert second["total_cost_usd"] > first["total_cost_usd"]
    assert [frame["type"] for frame in frames] == ["assistant", "result"]  # no second init


async def test_queued_inputs_are_answered_in_order_each_with_one_result(
    server: Any, dial: Any
) -> None:
    async with dial(server.url, token=server.token()) as client:
        for number in (1, 2, 3):
            await client.ask(f"What is {number} + {number}?")
        results = [(await client.result())["result"] for _ in range(3)]
    for expected, result in zip("246", results, strict=True):
        assert expected in result


async def test_one_uuid_starts_one_turn(server: Any, dial: Any) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.ask("What is 1 + 1?", uuid="same")
        await client.ask("What is 1 + 1?", uuid="same")
        await client.ask("What is 3 + 3?", uuid="other")
        first, second = await client.result(), await client.result()
    assert "2" in first["result"]
    assert "6" in second["result"]


async def test_too_many_queued_inputs_are_refused_by_name(
    server: Any, dial: Any, script: Callable[..., str]
) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.ask(script({"text": "slow", "delay_ms": 60_000}))
        await client.receive_until("system")
        for _ in range(17):
            await client.ask("more")
        _code, frames = await client.closed()
    assert frames[-1]["payload"]["code"] == "RATE_LIMIT"


async def test_tool_calls_carry_the_bare_name_and_accept_any_result(
    server: Any, dial: Any, script: Callable[..., str]
) -> None:
    answers: list[Any] = [
        {"content": [{"type": "text", "text": "22"}], "isError": False},
        "a bare string",
        None,
        {"content": [{"type": "resource", "uri": "x:y", "text": "deep"}]},
        {"content": [], "isError": True},
    ]
    for answer in answers:
        async with dial(server.url, token=server.token()) as client:
            await client.send(type="init", payload={"mcpServers": CALC})
            await client.ask(
                script({"tools": [{"name": "add", "input": {"a": 7}}]}, {"text": "done"})
            )
            call = (await client.receive_until("tool_call"))[-1]["payload"]
            assert call["toolName"] == "add"
            assert call["input"] == {"a": 7}
            await client.send(
                type="tool_result", payload={"callId": call["callId"], "result": answer}
            )
            frames = await client.receive_until("result")
            user = next(frame for frame in frames if frame["type"] == "user")
            (block,) = user["message"]["content"]
            assert block["type"] == "tool_result"
            assert block.get("is_error", False) is (answer == answers[-1])
            assert frames[-1]["result"] == "done"


async def test_parallel_tool_calls_are_sent_together_and_unknown_ids_ignored(
    server: Any, dial: Any, script: Callable[..., str]
) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.send(type="init", payload={"mcpServers": CALC})
        calls = [{"name": "add", "input": {"a": n}} for n in range(10)]
        await client.ask(script({"tools": calls}, {"text": "done"}))
        pending = [(await client.receive_until("tool_call"))[-1]["payload"] for _ in calls]
        assert sorted(call["input"]["a"] for call in pending) == list(range(10))
        await client.send(type="tool_result", payload={"callId": "never-asked", "result": "x"})
        for call in pending:
            reply = {"callId": call["callId"], "result": str(call["input"]["a"])}
            await client.send(type="tool_result", payload=reply)
            await client.send(type="tool_result", payload=reply)  # doubled: the second is dropped
        frames = await client.receive_until("result")
    user = next(frame for frame in frames if frame["type"] == "user")
    texts = [block["content"][0]["text"] for block in user["message"]["content"]]
    assert texts == [str(n) for n in range(10)]


async def test_partial_messages_come_only_when_asked_for(server: Any, dial: Any) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.send(type="init", payload={"includePartialMessages": True})
        await client.ask("What is calculus?", "wrapped")
        received = await client.receive_until("result")
    frames = [frame["payload"] for frame in received if frame["type"] == "sdk_message"]
    events = [frame for frame in frames if frame["type"] == "stream_event"]
    pieces = [e["event"]["delta"].get("text", "") for e in events if "delta" in e["event"]]
    assert "".join(pieces) == frames[-1]["result"]
    assert {"uuid", "session_id", "parent_tool_use_id"} <= set(events[0])


async def test_ping_is_answered_with_its_timestamp(server: Any, dial: Any) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.receive()
        await client.send(type="ping", payload={"timestamp": 1234})
        assert await client.receive() == {"type": "pong", "payload": {"timestamp": 1234}}


async def test_unknown_frames_are_ignored(server: Any, dial: Any) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.send(type="novelty", payload={})
        await client.send(type="control", payload={"action": "end_input"})
        await client.ask("What is 2 + 2?")
        assert (await client.result())["subtype"] == "success"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{not json", "The frame"),
        ('{"type":"user"}', "message"),
        ('{"type":"user","message":{"role":"assistant","content":"x"}}', "message.role"),
        ('{"type":"tool_result","payload":{}}', "payload.callId"),
    ],
)
async def test_a_malformed_frame_is_named_and_the_socket_closed(
    server: Any, dial: Any, text: str, field: str
) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.receive()
        await client.socket.send(text)
        code, frames = await client.closed()
    assert code == 1002
    (error,) = frames
    assert error["payload"]["message"].startswith(field)
    assert error["payload"]["details"] == {"reason": "malformed_frame"}


async def test_a_frame_over_the_limit_closes_the_socket(server: Any, dial: Any) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.receive()
        with contextlib.suppress(ConnectionClosed):  # the close may come while it is being sent
            await client.socket.send("x" * (16 * 1024 * 1024 + 1))
        code, _frames = await client.closed()
    assert code == 1009


async def test_control_close_ends_the_session(server: Any, dial: Any) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.receive()
        await client.send(type="control", payload={"action": "close"})
        assert await client.closed() == (1000, [])


async def test_interrupt_works_only_for_clients_that_named_it(
    server: Any, dial: Any, script: Callable[..., str]
) -> None:
    slow = script({"text": "never", "delay_ms": 60_000})
    async with dial(server.url, token=server.token()) as client:
        await client.send(type="init", payload={"capabilities": ["interrupt", "result_details"]})
        await client.ask(slow)
        await client.receive_until("system")
        await client.send(type="control", payload={"action": "interrupt"})
        stopped = await client.result()
        await client.ask("What is 2 + 2?")
        assert (await client.result())["subtype"] == "success"
    assert stopped["subtype"] == "error_during_execution"
    assert stopped["is_error"] is True
    assert stopped["error"]["code"] == "INTERRUPTED"

    async with dial(server.url, token=server.token()) as client:
        await client.send(type="init", payload={})
        await client.ask(script({"text": "finished"}))
        await client.receive_until("system")
        await client.send(type="control", payload={"action": "interrupt"})
        assert (await client.result())["result"] == "finished"


async def test_extensions_travel_only_after_both_sides_named_them(server: Any, dial: Any) -> None:
    extra: set[str] = set()
    for capabilities in ([], ["result_details"]):
        async with dial(server.url, token=server.token()) as client:
            await client.send(type="init", payload={"capabilities": capabilities})
            await client.ask("hi")
            extra = set(await client.result()) - RESULT_KEYS
            assert bool(extra) is bool(capabilities)
    assert extra == {"model", "turn_cost_usd", "turn_compute_ms", "budgets", "stop_reason"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"model": "claude-sonnet-4-5-bogus"}, "claude-sonnet-4-5-bogus"),
        ({"model": 7}, "'model'"),
        ({"maxTurns": 0}, "'maxTurns'"),
        ({"maxTurns": "2"}, "'maxTurns'"),
        ({"systemPrompt": 7}, "'systemPrompt'"),
        ({"includePartialMessages": "yes"}, "'includePartialMessages'"),
        ({"tools": ["Bash"]}, "claude_code"),
        ({"agents": {"a": {}}}, "claude_code"),
        ({"vessel": "v"}, "claude_code"),
        ({"settingSources": ["project"]}, "claude_code"),
        ({"mcpServers": [{"name": "x", "command": "ls"}]}, "claude_code"),
        ({"mcpServers": [{"name": "x", "type": "http", "url": "http://x"}]}, "'x'"),
        ({"mcpServers": "x"}, "'mcpServers'"),
        ({"mcpServers": [{"tools": []}]}, "name"),
        ({"mcpServers": CALC + CALC}, "'calc'"),
        ({"mcpServers": [*CALC, {"name": "b", "tools": [TOOL]}]}, "'add'"),
        ({"mcpServers": [{"name": "b", "tools": [{**TOOL, "name": "no spaces"}]}]}, "no spaces"),
        ({"mcpServers": [{"name": "b", "tools": [{**TOOL, "executeIn": "server"}]}]}, "handler"),
        ({"mcpServers": [{"name": "b", "tools": [{**TOOL, "inputSchema": 7}]}]}, "inputSchema"),
        (
            {
                "mcpServers": [
                    {"name": "b", "tools": [{**TOOL, "inputSchema": {"properties": {"a": 7}}}]}
                ]
            },
            "inputSchema",
        ),
        ({"sessionId": 7}, "'sessionId'"),
        ({"maxBudgetUsd": -1}, "'maxBudgetUsd'"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_as_the_result_of_each_input(
    server: Any, dial: Any, options: dict[str, Any], word: str
) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.send(type="init", payload={**options, "capabilities": ["result_details"]})
        for _ in range(2):
            await client.ask("hi")
            result = await client.result()
            assert result["error"]["code"] == "VALIDATION_ERROR"
            assert word in result["result"]
            assert result["errors"] == [result["result"]]
            assert result["total_cost_usd"] == 0


async def test_what_has_no_effect_is_accepted_and_listed(server: Any, dial: Any) -> None:
    options = {
        "systemPrompt": {"type": "preset", "preset": "claude_code", "append": "Be brief."},
        "tools": {"type": "preset", "preset": "claude_code"},
        "permissionMode": "plan",
        "allowDangerouslySkipPermissions": True,
        "allowedTools": ["*"],
        "env": {"A": "b"},
        "jobId": "j",
        "unheard": "of",
    }
    async with dial(server.url, token=server.token()) as client:
        await client.receive()
        await client.send(type="init", payload=options)
        info = (await client.receive())["payload"]
        await client.ask("What is 2 + 2?")
        assert (await client.result())["subtype"] == "success"
    assert set(info["data"]["ignored"]) == {
        "systemPrompt.preset",
        "tools",
        "permissionMode",
        "allowDangerouslySkipPermissions",
        "allowedTools",
        "env",
        "jobId",
    }
    assert any("offline" in notice for notice in info["data"]["notices"])


async def test_php_oddities_in_schemas_are_tolerated(server: Any, dial: Any) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": [], "required": None}
    servers = [{"name": "p", "tools": [{**TOOL, "executeIn": "browser", "inputSchema": schema}]}]
    async with dial(server.url, token=server.token()) as client:
        await client.send(type="init", payload={"mcpServers": servers})
        await client.ask("hi")
        assert (await client.result())["subtype"] == "success"


PIXEL = {"type": "base64", "media_type": "image/png", "data": "aGk="}


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text"},
        {"type": "text", "text": "  "},
        {"type": "image"},
        {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x.png"}},
        {"type": "image", "source": {"type": "file", "file_id": "f"}},
        {"type": "image", "source": {**PIXEL, "media_type": "image/svg+xml"}},
        {"type": "document", "source": {**PIXEL, "media_type": "text/html"}},
    ],
)
async def test_a_block_of_another_form_is_refused_and_the_session_goes_on(
    server: Any, dial: Any, block: dict[str, Any]
) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.send(type="init", payload={"capabilities": ["result_details"]})
        content = [{"type": "text", "text": "Look:"}, block]
        await client.send(type="user", message={"role": "user", "content": content})
        result = await client.result()
        assert result["error"]["reason"] == "content_invalid"
        assert result["result"].startswith("Block 2 ")
        await client.ask("What is 2 + 2?")
        assert (await client.result())["subtype"] == "success"


async def test_an_empty_message_is_an_error_result(server: Any, dial: Any) -> None:
    async with dial(server.url, token=server.token()) as client:
        await client.ask("   ")
        result = await client.result()
    assert result["is_error"] is True
    assert "empty" in result["result"]


async def test_a_closed_socket_frees_the_users_slot(server: Any, dial: Any) -> None:
    # More than the limit of 100 in all, but one after the other.
    token = server.token("slots")
    for _ in range(105):
        async with dial(server.url, token=token) as client:
            assert (await client.receive())["payload"] == {"action": "ready"}


async def test_more_sessions_than_allowed_are_refused_by_name(server: Any, dial: Any) -> None:
    token = server.token("crowd")
    async with asyncio.TaskGroup() as tasks:
        leave = asyncio.Event()

        async def stay(entered: asyncio.Event) -> None:
            async with dial(server.url, token=token) as client:
                await client.receive()
                entered.set()
                await leave.wait()

        entries = [asyncio.Event() for _ in range(100)]
        for entry in entries:
            tasks.create_task(stay(entry))
        for entry in entries:
            await entry.wait()
        async with dial(server.url, token=token) as client:
            _code, frames = await client.closed()
        leave.set()
    assert frames[0]["payload"]["code"] == "CONCURRENCY_LIMIT"
    assert frames[0]["payload"]["details"]["reason"] == "concurrent_limit_reached"


async def test_a_wrong_path_is_not_found_and_no_matter_of_the_token(server: Any, dial: Any) -> None:
    async with dial(server.url.replace("/ws", "/nope"), header=server.token()) as client:
        code, frames = await client.closed()
    assert code == 1008
    assert [frame["payload"]["details"]["reason"] for frame in frames] == ["wrong_path"]


def test_healthz_says_that_the_server_is_ready(server: Any) -> None:
    with urllib.request.urlopen(f"{server.http_url}/healthz", timeout=10) as response:
        assert response.status == 200


def test_a_browser_at_the_sockets_address_is_told_what_it_is(server: Any) -> None:
    with pytest.raises(urllib.error.HTTPError, match="426") as caught:
        urllib.request.urlopen(f"{server.http_url}/ws", timeout=10)
    caught.value.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.lists(
        st.text(max_size=60)
        | st.builds(
            lambda kind, payload, message: json.dumps(
                {"type": kind, "payload": payload, "message": message}
            ),
            st.sampled_from(["init", "user", "control", "ping", "tool_result", "x"]),
            st.dictionaries(
                st.sampled_from(["action", "callId", "model", "mcpServers", "maxTurns", "tools"]),
                st.none() | st.integers() | st.text(max_size=9) | st.lists(st.integers()),
            ),
            st.none() | st.fixed_dictionaries({"content": st.text(max_size=9)}),
        ),
        max_size=6,
    )
)
async def test_any_frames_are_answered_or_named_and_the_server_lives_on(
    server: Any, dial: Any, frames: list[str]
) -> None:
    async with dial(server.url, token=server.token("fuzz")) as client:
        for frame in frames:
            await client.socket.send(frame)
        await client.socket.send('{"type":"ping","payload":{"timestamp":"last"}}')
        # A frame may itself be a `close`; then the code says so and no frame does.
        code, answers = await client.closed_or("pong", "error")
    assert code == 1000 or answers[-1]["type"] in ("pong", "error")
    async with dial(server.url, token=server.token("fuzz")) as client:
        assert (await client.receive())["payload"] == {"action": "ready"}
