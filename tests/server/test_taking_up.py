"""Sessions whose connection was lost, frame by frame: who gets them, and what they cost others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, ChuckyError
from chucky.server.store.session_rows import KeptSessions

if TYPE_CHECKING:
    from tests.server.conftest import Connect, LocalServer, RawClient, StartServer

WAIT_SECONDS = 15
pytestmark = pytest.mark.timeout(30)
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
DOUBLE = {
    "name": "double",
    "description": "Double it",
    "inputSchema": NUMBER,
    "executeIn": "client",
}
TOOLS = {"mcpServers": [{"name": "numbers", "version": "1", "tools": [DOUBLE]}]}
CAPABILITIES = ["replay", "sessions", "interrupt", "error_frames", "result_details"]

Frame = dict[str, Any]
Script = Callable[..., str]
Visit = Callable[..., AbstractAsyncContextManager[tuple["RawClient", Frame]]]


class _Abandoned(logging.Handler):
    """Waits until the server has given up waiting for a client."""

    def __init__(self) -> None:
        super().__init__()
        self._happened = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().endswith("its client stays away"):
            self._happened.set()

    async def wait(self) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            await self._happened.wait()


@pytest.fixture
async def abandoned() -> AsyncIterator[_Abandoned]:
    """Wait until the server has given up waiting for a client: ``await abandoned.wait()``."""
    handler, logger = _Abandoned(), logging.getLogger("chucky.server")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture
def visit(dial: Connect) -> Visit:
    """Connect as a client that can come back: ``async with visit(server) as (client, info)``.

    ``back_for`` names the session it comes back for, and the last message it has.
    """

    @asynccontextmanager
    async def open_visit(
        server: LocalServer, back_for: tuple[str, int] | None = None, **options: Any
    ) -> AsyncIterator[tuple[RawClient, Frame]]:
        name = None if back_for is None else back_for[0]
        async with dial(server.url, header=server.token(), comes_back_for=name) as client:
            assert (await client.receive())["type"] == "control"
            if back_for is not None:
                last_seen = {"seq": back_for[1], "delta": 0}
                options = {"resume": name, "lastSeen": last_seen, **options}
            await client.send(type="init", payload={"capabilities": CAPABILITIES, **options})
            yield client, (await client.receive())["payload"]["data"]

    return open_visit


def cut(client: RawClient) -> None:
    """End a connection as a lost network does."""
    client.socket.transport.abort()


def waits(script: Script) -> str:
    """What a user says to have a turn that waits for the tool, and then says something."""
    return script({"tools": [{"name": "double", "input": {"n": 2}}]}, {"text": "Done."})


async def called(client: RawClient) -> str:
    """Wait for a call of the tool; return its id."""
    call_id = (await client.receive_until("tool_call"))[-1]["payload"]["callId"]
    assert isinstance(call_id, str)
    return call_id


async def answer(client: RawClient, call_id: str) -> None:
    """Answer a call of the tool."""
    result = {"content": [{"type": "text", "text": "4"}]}
    await client.send(type="tool_result", payload={"callId": call_id, "result": result})


# ---- two connections of one session ------------------------------------------------------------


async def test_a_connection_that_still_looks_alive_is_closed_for_the_one_that_comes_back(
    start_server: StartServer, visit: Visit, script: Script
) -> None:
    async with start_server() as server, visit(server, **TOOLS) as (old, info):
        await old.ask(waits(script))
        call_id = await called(old)
        async with visit(server, (info["sessionId"], 0), **TOOLS) as (new, _):
            assert (await old.closed()) == (1000, [])
            assert await called(new) == call_id
            await answer(new, call_id)
            assert (await new.result())["result"] == "Done."


async def test_of_many_connections_that_come_back_at_once_the_last_gets_the_session(
    start_server: StartServer, visit: Visit, script: Script
) -> None:
    async with start_server() as server, visit(server, **TOOLS) as (first, info):
        await first.ask(waits(script))
        await called(first)
        arrived = asyncio.Semaphore(0)

        async def come() -> None:
            async with visit(server, (info["sessionId"], 0), **TOOLS) as (client, _):
                arrived.release()
                assert (await client.closed())[0] == 1000

        async with asyncio.TaskGroup() as tasks:
            for _ in range(10):
                tasks.create_task(come())
            for _ in range(10):
                await arrived.acquire()
            async with visit(server, (info["sessionId"], 0), **TOOLS) as (last, _):
                await answer(last, await called(last))
                assert (await last.result())["result"] == "Done."


async def test_the_user_who_may_have_one_session_gets_it_back_while_the_old_connection_looks_alive(
    start_server: StartServer, visit: Visit, dial: Connect, script: Script
) -> None:
    async with (
        start_server(max_sessions_per_user=1) as server,
        visit(server, **TOOLS) as (old, info),
    ):
        await old.ask(waits(script))
        await called(old)
        async with dial(server.url, header=server.token()) as another:
            code, frames = await another.closed()
            assert (code, frames[0]["payload"]["code"]) == (1008, "CONCURRENCY_LIMIT")
        async with visit(server, (info["sessionId"], 0), **TOOLS) as (new, _):
            await answer(new, await called(new))
            assert (await new.result())["result"] == "Done."


async def test_a_session_with_nothing_to_do_whose_client_is_away_makes_room(
    start_server: StartServer, visit: Visit
) -> None:
    async with start_server(max_sessions_per_user=1) as server:
        async with visit(server) as (client, info):
            await client.ask("My name is Alice")
            await client.result()
            cut(client)
        async with visit(server) as (other, _):
            await other.ask("What is 2 + 2?")
            assert (await other.result())["subtype"] == "success"
        # It is none the worse for it.
        async with visit(server, (info["sessionId"], 1000)) as (client, _):
            await client.ask("What is my name?")
            assert (await client.result())["result"] == "Your name is Alice."


async def test_a_turn_whose_client_is_away_counts_for_its_user(
    start_server: StartServer, visit: Visit, script: Script
) -> None:
    async with start_server(max_sessions_per_user=1) as server:
        async with visit(server, **TOOLS) as (client, _):
            await client.ask(waits(script))
            await called(client)
            cut(client)
        async with visit(server) as (other, _):
            await other.ask("What is 2 + 2?")
            assert (await other.result())["error"]["code"] == "CONCURRENCY_LIMIT"


async def test_a_client_that_comes_back_does_not_get_the_session_of_one_that_cannot(
    start_server: StartServer, visit: Visit, dial: Connect
) -> None:
    async with start_server() as server:
        async with visit(server) as (client, info):
            await client.ask("My name is Alice")
            seq = (await client.result())["seq"]
            cut(client)
        async with dial(server.url, header=server.token()) as plain:
            await plain.receive()
            await plain.send(type="init", payload={"resume": info["sessionId"]})
            await plain.ask("My name is Bob")
            await plain.result()
            async with visit(server, (info["sessionId"], seq)) as (client, _):
                assert (await plain.closed())[0] == 1000
                said = await client.result()
                await client.ask("What is my name?")
                assert (await client.result())["result"] == "Your name is Bob."
                assert said["seq"] > seq


# ---- clients that stay away --------------------------------------------------------------------


async def test_tools_of_a_client_that_stays_away_fail_for_the_model_and_the_turn_ends(
    start_server: StartServer, visit: Visit, script: Script, abandoned: _Abandoned
) -> None:
    async with start_server(reconnect_grace_seconds=0.1) as server:
        async with visit(server, **TOOLS) as (client, info):
            await client.ask(waits(script))
            await called(client)
            cut(client)
        await abandoned.wait()
        async with visit(server, (info["sessionId"], 0), **TOOLS) as (client, _):
            frames = await client.receive_until("result")
    (said,) = [frame["message"]["content"] for frame in frames if frame["type"] == "user"]
    assert said[0]["is_error"]
    assert "no longer connected" in str(said)
    assert frames[-1]["result"] == "Done."


async def test_tools_work_again_when_the_client_comes_back_after_all(
    start_server: StartServer, visit: Visit, script: Script, abandoned: _Abandoned
) -> None:
    double = {"tools": [{"name": "double", "input": {"n": 1}}]}
    turn = script(double, {"text": "Wait.", "delay_ms": 60_000})
    async with start_server(reconnect_grace_seconds=0.1) as server:
        async with visit(server, **TOOLS) as (client, info):
            await client.ask(turn)
            await called(client)
            cut(client)
        await abandoned.wait()
        async with visit(server, (info["sessionId"], 0), **TOOLS) as (client, _):
            await client.receive_until("user")
            await client.send(type="control", payload={"action": "interrupt"})
            await client.result()
            await client.ask(waits(script))
            await answer(client, await called(client))
            assert (await client.result())["result"] == "Done."


async def test_a_session_that_stays_alone_leaves_nothing_behind(
    start_server: StartServer, visit: Visit
) -> None:
    async with start_server(reconnect_grace_seconds=0.1, max_sessions=3) as server:
        for _ in range(3):
            async with visit(server) as (client, _info):
                await client.ask("What is 2 + 2?")
                await client.result()
                cut(client)
        somebody = Chucky(server.token("somebody else"), server.url)
        while True:  # until there is room again
            try:
                assert (await somebody.prompt("What is 2 + 2?")).subtype == "success"
            except ChuckyError as error:
                if error.reason != "server_full":
                    raise
            else:
                break


async def test_a_revoked_key_ends_the_turn_of_a_client_that_is_away(
    start_server: StartServer, visit: Visit, script: Script
) -> None:
    async with start_server() as server:
        async with visit(server, **TOOLS) as (client, info):
            await client.ask(waits(script))
            await called(client)
            cut(client)
        key = await asyncio.to_thread(server.store.rotate_key, server.project_id)
        fresh = type(server)(server.url, server.store, server.project_id, key.secret)
        async with visit(fresh, (info["sessionId"], 0), **TOOLS) as (client, _):
            result = await client.result()
    assert (result["error"]["code"], result["error"]["reason"]) == (
        "AUTHENTICATION_ERROR",
        "token_signature",
    )


# ---- what a client says of itself --------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 4000])
async def test_a_connection_that_is_closed_on_purpose_ends_its_turn(
    start_server: StartServer, visit: Visit, script: Script, code: int
) -> None:
    async with start_server() as server:
        async with visit(server, **TOOLS) as (client, info):
            await client.ask(waits(script))
            await called(client)
            await client.socket.close(code)
        async with visit(server, (info["sessionId"], 0), **TOOLS) as (client, _):
            result = await client.result()
    assert result["error"]["reason"] == "client_left"


async def test_a_client_that_knows_more_than_the_log_is_told_and_misses_nothing(
    start_server: StartServer, visit: Visit
) -> None:
    async with start_server() as server:
        async with visit(server) as (client, info):
            await client.ask("What is 1 + 1?")
            seq = (await client.result())["seq"]
            cut(client)
        for _ in range(2):
            async with visit(server, (info["sessionId"], seq + 100)) as (client, told):
                assert told["seq"] == seq
                await client.ask("What is 2 + 2?")
                seq = (await client.result())["seq"]
                cut(client)


@pytest.mark.parametrize("last_seen", [5, {"seq": -1, "delta": 0}, {"seq": "1", "delta": 0}, {}])
async def test_a_last_message_that_makes_no_sense_is_a_malformed_frame(
    start_server: StartServer, dial: Connect, last_seen: Any
) -> None:
    async with start_server() as server:
        for token_in_init in (False, True):
            token = server.token()
            async with dial(server.url, header=None if token_in_init else token) as client:
                payload = {"capabilities": ["replay"], "lastSeen": last_seen, "resume": "x"}
                if token_in_init:
                    payload["token"] = token
                await client.send(type="init", payload=payload)
                code, frames = await client.closed()
            assert code == 1002
            assert "lastSeen" in frames[-1]["payload"]["message"]


async def test_what_an_old_connection_still_says_is_ignored(
    start_server: StartServer, visit: Visit, script: Script
) -> None:
    async with start_server() as server, visit(server, **TOOLS) as (old, info):
        await old.ask(waits(script))
        call_id = await called(old)
        old.socket.transport.pause_reading()  # it does not know that it was replaced
        async with visit(server, (info["sessionId"], 0), **TOOLS) as (new, _):
            await called(new)
            await old.send(type="control", payload={"action": "interrupt"})
            await old.send(type="control", payload={"action": "close"})
            await answer(new, call_id)
            assert (await new.result())["result"] == "Done."
        old.socket.transport.resume_reading()


async def test_an_interrupt_right_behind_its_message_ends_the_turn(
    start_server: StartServer, visit: Visit, script: Script
) -> None:
    async with start_server() as server, visit(server) as (client, _):
        for _ in range(20):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(client.ask(script({"text": "never", "delay_ms": 60_000})))
                tasks.create_task(client.send(type="control", payload={"action": "interrupt"}))
            assert (await client.result())["error"]["code"] == "INTERRUPTED"


async def test_a_client_that_comes_back_while_the_log_cannot_be_read_may_try_again(
    start_server: StartServer, visit: Visit, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chucky.server.sessions.mailbox.TAIL_BYTES", 0)
    async with start_server() as server:
        async with visit(server, **TOOLS) as (client, info):
            await client.ask(waits(script))
            await called(client)
            cut(client)

        def fail(*_args: object) -> None:
            raise ChuckyError("The database cannot be read.", code="STORE_ERROR")

        with monkeypatch.context() as patch:
            patch.setattr(KeptSessions, "messages", fail)
            async with visit(server, (info["sessionId"], 0), **TOOLS) as (client, _):
                assert (await client.closed())[0] == 1011
        async with visit(server, (info["sessionId"], 0), **TOOLS) as (client, _):
            await answer(client, await called(client))
            assert (await client.result())["result"] == "Done."


async def test_an_idle_connection_of_a_client_that_can_come_back_is_closed_so_that_it_does(
    start_server: StartServer, visit: Visit
) -> None:
    async with start_server(idle_timeout_seconds=0.2) as server, visit(server) as (client, _):
        assert await client.closed() == (1001, [])
