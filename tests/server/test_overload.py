"""What a server does that is stopped, full, told to read its settings again, or stuck."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse

from chucky.errors import ValidationError
from chucky.server.reloading import Reloading
from chucky.server.settings import Settings

if TYPE_CHECKING:
    from tests.server.conftest import Connect, LocalServer, RawClient, StartProvider, StartServer

pytestmark = pytest.mark.timeout(30)
CAPABILITIES = ["replay", "error_frames", "result_details"]

Script = Callable[..., str]
Visit = Callable[..., AbstractAsyncContextManager["RawClient"]]


@pytest.fixture
def visit(dial: Connect) -> Visit:
    """Begin a session: ``async with visit(server) as client``."""

    @asynccontextmanager
    async def begin(
        server: LocalServer, user: str = "user-1", capabilities: list[str] = CAPABILITIES
    ) -> AsyncIterator[RawClient]:
        async with dial(server.url, header=server.token(user)) as client:
            await client.receive()
            await client.send(type="init", payload={"capabilities": capabilities})
            await client.receive()
            yield client

    return begin


# ---- stopping ----------------------------------------------------------------------------------


async def test_a_server_that_is_stopped_lets_turns_end_and_lets_nobody_in(
    start_server: StartServer, visit: Visit, dial: Connect, script: Script
) -> None:
    async with AsyncExitStack() as running:
        server = await running.enter_async_context(start_server(drain_seconds=20))
        async with visit(server) as busy, visit(server) as idle:
            await busy.ask(script({"text": ["All ", "of ", "it."], "chunk_delay_ms": 300}))
            await busy.receive_until("system")
            stopping = asyncio.create_task(running.aclose())
            # To a client that goes on with the next server it is no error.
            assert await idle.closed() == (1012, [])
            async with dial(server.url, header=server.token()) as late:
                code, (frame,) = await late.closed()
            assert (code, frame["payload"]["details"]["reason"]) == (1012, "server_stopping")
            address = server.url.replace("ws", "http", 1).removesuffix("/ws")
            async with httpx2.AsyncClient(base_url=address) as web:
                assert (await web.get("/healthz")).status_code == 503
            assert (await busy.result())["result"] == "All of it."
            assert await busy.closed() == (1012, [])
        await stopping


async def test_a_turn_that_takes_longer_is_ended_with_a_result(
    start_server: StartServer, visit: Visit, script: Script
) -> None:
    async with AsyncExitStack() as running:
        server = await running.enter_async_context(start_server(drain_seconds=0.1))
        async with visit(server) as client:
            await client.ask(script({"text": "never", "delay_ms": 60_000}))
            await client.receive_until("system")
            stopping = asyncio.create_task(running.aclose())
            assert (await client.result())["error"]["reason"] == "server_stopping"
            assert (await client.closed())[0] == 1012
        await stopping


async def test_a_client_that_cannot_come_back_is_told_why_it_is_closed(
    start_server: StartServer, visit: Visit
) -> None:
    async with AsyncExitStack() as running:
        server = await running.enter_async_context(start_server(drain_seconds=20))
        async with visit(server, capabilities=["error_frames", "sessions"]) as client:
            stopping = asyncio.create_task(running.aclose())
            code, (frame,) = await client.closed()
            assert (code, frame["payload"]["details"]["reason"]) == (1012, "server_stopping")
        await stopping


# ---- too much ----------------------------------------------------------------------------------


async def test_sessions_that_are_too_many_for_the_server_are_told_when_to_try_again(
    start_server: StartServer, visit: Visit, dial: Connect
) -> None:
    async with (
        start_server(max_sessions=2) as server,
        visit(server, "one"),
        visit(server, "two"),
        dial(server.url, header=server.token("three")) as client,
    ):
        code, (frame,) = await client.closed()
    assert code == 1013
    assert frame["payload"]["code"] == "CONCURRENCY_LIMIT"
    assert frame["payload"]["details"] == {"reason": "server_full", "retry_after": 2.0}


async def test_turns_that_are_too_many_for_the_server_are_told_when_to_try_again(
    start_server: StartServer, visit: Visit, script: Script
) -> None:
    async with (
        start_server(max_running_turns=1) as server,
        visit(server, "one") as first,
        visit(server, "two") as second,
    ):
        await first.ask(script({"text": ["1", "2"], "chunk_delay_ms": 60_000}))
        await first.receive_until("system")
        await second.ask("What is 2 + 2?")
        error = (await second.result())["error"]
        assert (error["code"], error["reason"]) == ("CONCURRENCY_LIMIT", "server_full")
        assert error["retry_after"] == 2.0
        await first.send(type="control", payload={"action": "close"})
        await first.closed()
        await second.ask("What is 2 + 2?")
        assert (await second.result())["subtype"] == "success"


# ---- stuck -------------------------------------------------------------------------------------


async def test_a_turn_in_which_nothing_happens_is_ended(
    start_server: StartServer, start_provider: StartProvider, visit: Visit
) -> None:
    async def never(_request: Request) -> StreamingResponse:
        async def wait() -> AsyncIterator[str]:
            await asyncio.Event().wait()
            yield ""

        return StreamingResponse(wait(), media_type="text/event-stream")

    async with start_provider() as provider:
        provider.respond_as = never
        async with (
            start_server(upstream_url=provider.url, stall_timeout_seconds=0.2) as server,
            visit(server) as client,
        ):
            await client.ask("Hello")
            error = (await client.result())["error"]
    assert (error["code"], error["reason"]) == ("TIMEOUT", "turn_stalled")


async def test_a_slow_answer_and_a_slow_tool_are_not_stuck(
    start_server: StartServer, dial: Connect, script: Script
) -> None:
    tools = [
        {
            "name": "t",
            "version": "1",
            "tools": [
                {
                    "name": "slow",
                    "description": "Be slow",
                    "inputSchema": {"type": "object", "properties": {}},
                    "executeIn": "client",
                }
            ],
        }
    ]
    async with (
        start_server(stall_timeout_seconds=1, tool_timeout_seconds=2.5) as server,
        dial(server.url, header=server.token()) as client,
    ):
        await client.receive()
        await client.send(type="init", payload={"mcpServers": tools})
        await client.ask(
            script(
                {"tools": [{"name": "slow", "input": {}}]},
                {"text": ["still "] * 6 + ["here"], "chunk_delay_ms": 300},
            )
        )
        result = await client.result()
    assert result["result"] == "still " * 6 + "here"


# ---- settings that change ----------------------------------------------------------------------


async def test_settings_that_can_change_do_and_the_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = Settings(db=tmp_path / "chucky.db")
    new = Settings(db=tmp_path / "chucky.db", port=1, max_sessions=7, drain_seconds=1.0)
    said: list[Any] = [ValidationError("port is wrong."), new]

    def read() -> Settings:
        following = said.pop(0)
        if not said:
            return new
        asked.set()  # again, when this has failed
        raise following

    asked = asyncio.Event()
    asked.set()
    merged = await Reloading(asked, read).next(old)
    assert (merged.port, merged.max_sessions, merged.drain_seconds) == (old.port, 7, 1.0)
    assert "change with the next start: port" in caplog.text
    assert "the settings stay as they are: port is wrong." in caplog.text
