"""Tools that the server calls while a session runs: beside the reading, and side by side."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Message, SessionError, create_mcp_server, tool
from chucky.toolrunner import MAX_RUNNING_TOOLS

if TYPE_CHECKING:
    from tests.sdk.conftest import Frame, Peer, StartServer

WAIT_SECONDS = 5.0


async def types(stream: AsyncIterator[Message]) -> list[str]:
    return [message["type"] async for message in stream]


def reply(frame: Frame) -> tuple[str, bool]:
    """The text of a tool_result frame, and whether it is an error."""
    result = frame["payload"]["result"]
    return result["content"][0]["text"], result["isError"]


@tool("add", "Add two numbers")
async def add(a: int, b: int) -> int:
    return a + b


@tool("picky", "Wants a number")
async def picky(number: int) -> int:
    return number


async def test_a_tool_call_gets_its_answer_in_the_turn(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        init = await peer.start()
        [offered] = init["mcpServers"]
        assert (offered["name"], offered["version"]) == ("inline-tools", "1.0.0")
        assert [t["name"] for t in offered["tools"]] == ["add"]
        assert set(offered["tools"][0]) == {"name", "description", "inputSchema", "executeIn"}
        await peer.expect("user")
        await peer.send(peer.tool_call("c-1", "add", {"a": 7, "b": 15}))
        assert (await peer.expect("tool_result"))["payload"] == {
            "callId": "c-1",
            "result": {"content": [{"type": "text", "text": "22"}], "isError": False},
        }
        await peer.send(peer.result("22"))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        assert (await client.prompt("What is 7 + 15?", tools=[add])).result == "22"


@pytest.mark.parametrize(
    ("value", "text"),
    [({"time": "now"}, '{"time": "now"}'), ("now", "now"), (None, "null"), ([1, 2], "[1, 2]")],
)
async def test_a_handler_may_return_plain_values(
    scripted_server: StartServer, value: Any, text: str
) -> None:
    """defect 1: the reader died and nothing was answered."""

    @tool("get", "Get it")
    def get() -> Any:
        return value

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.tool_call("1", "get"))
        assert reply(await peer.expect("tool_result")) == (text, False)
        await peer.send(peer.result())
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        assert (await client.prompt("Get it", tools=[get])).subtype == "success"


async def test_what_goes_wrong_in_a_tool_is_told_to_the_model(scripted_server: StartServer) -> None:
    @tool("broken", "Raises")
    async def broken() -> str:
        raise ValueError("no such city")

    @tool("gone", "Waits for something that is cancelled")
    async def gone() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        for name, arguments, words in [
            ("broken", {}, "no such city"),
            ("picky", {"number": "many"}, "number"),
            ("picky", None, "number"),
            ("gone", {}, "was cancelled"),
            ("unknown", {}, "Unknown tool: unknown"),
            ("mcp__inline-tools__broken", {}, "Unknown tool"),
        ]:
            await peer.send(peer.tool_call("1", name, arguments))
            text, is_error = reply(await peer.expect("tool_result"))
            assert is_error, text
            assert words in text
        await peer.send(peer.result("Sorry."))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        result = await client.prompt("Try", tools=[broken, picky, gone])
    assert result.result == "Sorry."


# ---- beside the reading ----------------------------------------------------------------------


async def test_tools_run_side_by_side(scripted_server: StartServer) -> None:
    """defect 7: they ran one after the other."""
    ping, pong = asyncio.Event(), asyncio.Event()

    @tool("one", "Waits for two")
    async def one() -> str:
        ping.set()
        async with asyncio.timeout(WAIT_SECONDS):
            await pong.wait()
        return "one"

    @tool("two", "Waits for one")
    async def two() -> str:
        pong.set()
        async with asyncio.timeout(WAIT_SECONDS):
            await ping.wait()
        return "two"

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.tool_call("1", "one"), peer.tool_call("2", "two"))
        replies = [await peer.expect("tool_result") for _ in range(2)]
        assert {f["payload"]["callId"]: reply(f) for f in replies} == {
            "1": ("one", False),
            "2": ("two", False),
        }
        await peer.send(peer.result("Both."))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        assert (await client.prompt("Both", tools=[one, two])).result == "Both."


async def test_reading_and_pinging_go_on_while_a_tool_runs(scripted_server: StartServer) -> None:
    """defect 7, defect 8: nothing else was read meanwhile."""
    released = asyncio.Event()

    @tool("wait", "Waits")
    async def wait() -> str:
        async with asyncio.timeout(WAIT_SECONDS):
            await released.wait()
        return "done"

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.tool_call("1", "wait"))
        for _ in range(3):
            await peer.send(peer.pong(await peer.expect("ping")))
        await peer.send(peer.assistant("Still waiting."))
        assert reply(await peer.expect("tool_result")) == ("done", False)
        await peer.send(peer.result("Done."))
        await peer.until_closed()

    server = await scripted_server(script)
    async with (
        server.client(keepalive_interval=0.05) as client,
        client.create_session(tools=[wait]) as session,
    ):
        await session.send("Wait")
        stream = session.stream()
        assert str(await anext(stream)) == "Still waiting."
        released.set()
        assert await types(stream) == ["result"]


async def test_a_plain_function_may_block_without_holding_up_anything(
    scripted_server: StartServer,
) -> None:
    """defect 7: it blocked the whole loop."""
    released = threading.Event()

    @tool("block", "Blocks")
    def block() -> str:
        return "released" if released.wait(WAIT_SECONDS) else "timed out"

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.tool_call("1", "block"), peer.assistant("Meanwhile."))
        assert reply(await peer.expect("tool_result")) == ("released", False)
        await peer.send(peer.result())
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session(tools=[block]) as session:
        await session.send("Block")
        stream = session.stream()
        assert str(await anext(stream)) == "Meanwhile."
        released.set()
        assert await types(stream) == ["result"]


async def test_a_call_that_is_repeated_while_it_runs_runs_once(
    scripted_server: StartServer,
) -> None:
    released = asyncio.Event()
    runs: list[int] = []

    @tool("pay", "Pays")
    async def pay() -> str:
        runs.append(1)
        await released.wait()
        return "paid"

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(*[peer.tool_call("same", "pay")] * 3)
        await peer.settle()
        released.set()
        assert reply(await peer.expect("tool_result")) == ("paid", False)
        await peer.settle()
        await peer.send(peer.result())
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        await client.prompt("Pay", tools=[pay])
    assert runs == [1]


async def test_calls_beyond_the_limit_are_answered_and_not_run(
    scripted_server: StartServer,
) -> None:
    released = asyncio.Event()
    runs: list[int] = []

    @tool("wait", "Waits")
    async def wait() -> str:
        runs.append(1)
        await released.wait()
        return "done"

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(*(peer.tool_call(f"{n}", "wait") for n in range(MAX_RUNNING_TOOLS + 2)))
        for _ in range(2):
            text, is_error = reply(await peer.expect("tool_result"))
            assert (text, is_error) == ("100 tools are running; try again later.", True)
        released.set()
        for _ in range(MAX_RUNNING_TOOLS):
            assert reply(await peer.expect("tool_result")) == ("done", False)
        await peer.send(peer.result())
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        await client.prompt("Wait", tools=[wait])
    assert len(runs) == MAX_RUNNING_TOOLS


async def test_a_tool_may_use_the_client_itself(scripted_server: StartServer) -> None:
    async def outer(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.tool_call("1", "ask"))
        assert reply(await peer.expect("tool_result")) == ("Inner.", False)
        await peer.send(peer.result("Outer."))
        await peer.until_closed()

    async def inner(peer: Peer) -> None:
        await peer.serve("Inner.")

    server = await scripted_server(outer, inner)
    async with server.client() as client:

        @tool("ask", "Asks another agent")
        async def ask() -> str:
            return str((await client.prompt("Help")).result)

        assert (await client.prompt("Ask", tools=[ask])).result == "Outer."


async def test_tools_of_servers_are_offered_under_the_names_they_were_given(
    scripted_server: StartServer,
) -> None:
    @tool("look", "Looks")
    async def look() -> str:
        return "seen"

    async def script(peer: Peer) -> None:
        init = await peer.start()
        offered = {s["name"]: [t["name"] for t in s["tools"]] for s in init["mcpServers"]}
        assert offered == {"math": ["add"], "inline-tools": ["look"]}
        await peer.expect("user")
        await peer.send(peer.tool_call("1", "add", {"a": 1, "b": 1}))
        assert reply(await peer.expect("tool_result")) == ("2", False)
        await peer.send(peer.result())
        await peer.until_closed()

    server = await scripted_server(script)
    servers = {"math": create_mcp_server("another-name", [add])}
    async with server.client(mcp_servers=servers) as client:
        await client.prompt("Add", tools=[look])


# ---- closing while tools run -----------------------------------------------------------------


class Waiting:
    """A tool that waits for ever, and how that ended."""

    def __init__(self) -> None:
        self.is_running = asyncio.Event()
        self.was_cancelled = False
        self.tool = tool("wait", "Waits")(self.wait)

    async def wait(self) -> None:
        self.is_running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


async def call_wait(peer: Peer) -> None:
    await peer.start()
    await peer.expect("user")
    await peer.send(peer.tool_call("1", "wait"))
    assert await peer.until_closed() == [peer.control("close")]


async def test_closing_cancels_running_tools_and_not_the_caller(
    scripted_server: StartServer,
) -> None:
    waiting = Waiting()
    server = await scripted_server(call_wait)
    async with server.client() as client, client.create_session(tools=[waiting.tool]) as session:
        await session.send("Wait")
        await waiting.is_running.wait()
        await session.close()
        assert waiting.was_cancelled
        task = asyncio.current_task()
        assert task
        assert not task.cancelling()
        with pytest.raises(SessionError, match=r"^The session was closed\.$"):
            await types(session.stream())


async def test_a_lost_connection_cancels_running_tools(scripted_server: StartServer) -> None:
    waiting = Waiting()

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.tool_call("1", "wait"))
        await waiting.is_running.wait()
        peer.abort()

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ConnectionError):
            await client.prompt("Wait", tools=[waiting.tool])
    assert waiting.was_cancelled


@pytest.mark.parametrize("how", ["session", "client", "task", "twice"])
async def test_a_tool_may_close_its_own_session_and_runs_on(
    scripted_server: StartServer, how: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.tool_call("1", "wait"), peer.tool_call("2", "close"))
        assert await peer.until_closed() == [peer.control("close")]

    server = await scripted_server(script)
    waiting = Waiting()
    ran_on = asyncio.Event()
    client = server.client()

    @tool("close", "Ends the conversation")
    async def close() -> str:
        await waiting.is_running.wait()
        if how == "client":
            await client.close()
        elif how == "task":
            await asyncio.create_task(session.close())
        else:
            await session.close()
        if how == "twice":
            await session.close()
        await asyncio.sleep(0)  # where a cancellation would arrive
        ran_on.set()
        return "closed"

    session = client.create_session(tools=[waiting.tool, close])
    await session.send("Goodbye")
    with pytest.raises(SessionError, match=r"^The session was closed\.$"):
        await types(session.stream())
    await ran_on.wait()
    await client.close()
    await session.close()
    assert waiting.was_cancelled


async def test_closing_does_not_wait_for_ever_for_a_tool(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("chucky.session.STOP_TIMEOUT_SECONDS", 0.05)
    running, released = asyncio.Event(), asyncio.Event()

    async def ignore_cancellation() -> str:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            await released.wait()
        return "never"

    server = await scripted_server(call_wait)
    async with server.client() as client:
        session = client.create_session(tools=[tool("wait", "Waits")(ignore_cancellation)])
        await session.send("Wait")
        await running.wait()
        with caplog.at_level(logging.WARNING, "chucky"):
            await session.close()
        assert "a tool does not end; it is left" in caplog.text
        released.set()


async def test_closing_leaves_a_blocked_thread_behind(scripted_server: StartServer) -> None:
    running, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @tool("wait", "Blocks")
    def wait() -> str:
        loop.call_soon_threadsafe(running.set)
        released.wait(WAIT_SECONDS)
        return "too late"

    server = await scripted_server(call_wait)
    async with server.client() as client, client.create_session(tools=[wait]) as session:
        await session.send("Wait")
        await running.wait()
        await session.close()
        assert not released.is_set()
        released.set()
