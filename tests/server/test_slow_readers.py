"""A client that can come back and does not read: nobody waits for it, and it misses nothing."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky
from chucky.server.edge import websocket
from chucky.server.edge.outlet import Outlet
from chucky.server.sessions import mailbox
from chucky.server.store.opening import open_database
from chucky.server.store.session_rows import KeptSessions

if TYPE_CHECKING:
    from tests.server.conftest import ApiEvents, Connect, LocalServer, RawClient, StartServer

pytestmark = pytest.mark.timeout(60)
WAIT_SECONDS = 30
# More than the system keeps for a connection that does not read.
FLOOD_EVENTS = 20_000
EVENT_CHARACTERS = 1_000
FLOOD_BYTES = FLOOD_EVENTS * EVENT_CHARACTERS
PEEK = {
    "name": "peek",
    "description": "Look",
    "inputSchema": {"type": "object", "properties": {}},
    "executeIn": "client",
}
OPTIONS = {
    "capabilities": ["replay", "sessions", "result_details"],
    "includePartialMessages": True,
    "model": "claude-sonnet-5-5",
    "mcpServers": [{"name": "t", "version": "1", "tools": [PEEK]}],
}

Frame = dict[str, Any]
Visit = Callable[..., AbstractAsyncContextManager[tuple["RawClient", str]]]


@pytest.fixture
def visit(dial: Connect) -> Visit:
    """Connect as a client that can come back: ``async with visit(server) as (client, id)``."""

    @asynccontextmanager
    async def open_visit(
        server: LocalServer, **options: Any
    ) -> AsyncIterator[tuple[RawClient, str]]:
        name = options.get("resume")
        async with dial(server.url, header=server.token(), comes_back_for=name) as client:
            await client.receive()
            await client.send(type="init", payload={**OPTIONS, **options})
            info = (await client.receive())["payload"]["data"]
            yield client, info["sessionId"]

    return open_visit


@pytest.fixture
def flood(api: ApiEvents) -> Callable[..., list[Frame]]:
    """The events of a message with very many others, which no conversation keeps."""

    def make(*blocks: Frame, stop_reason: str = "end_turn") -> list[Frame]:
        junk = {"type": "novel_event", "data": "x" * EVENT_CHARACTERS}
        return api.message(*[junk] * FLOOD_EVENTS, *blocks, stop_reason=stop_reason)

    return make


Kept = Callable[[Callable[[KeptSessions], bool]], Awaitable[None]]


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    """Wait until something is in the database of the server: ``await kept(lambda sessions: …)``."""
    opened: list[KeptSessions] = []

    async def wait(is_there: Callable[[KeptSessions], bool]) -> None:
        if not opened:
            database = await asyncio.to_thread(open_database, tmp_path / "chucky.db")
            opened.append(KeptSessions(database))
        async with asyncio.timeout(WAIT_SECONDS):
            while not await asyncio.to_thread(is_there, opened[0]):
                pass

    yield wait
    for each in opened:
        await asyncio.to_thread(each.close)


def ended(session_id: str, turns: int = 1) -> Callable[[KeptSessions], bool]:
    """Whether so many turns of a session have ended."""

    def look(sessions: KeptSessions) -> bool:
        record = sessions.session(session_id)
        return record is not None and record.turns == turns

    return look


def numbers(frames: list[Frame]) -> list[tuple[int, int]]:
    """The places of the numbered ones among some frames."""
    return [(each["seq"], each.get("delta", 0)) for each in frames if "seq" in each]


def kinds(frames: list[Frame]) -> list[str]:
    """What kinds of messages there are among some frames, without partial ones."""
    return [each["type"] for each in frames if each["type"] != "stream_event"]


async def test_a_turn_does_not_wait_for_a_client_that_does_not_read(
    start_server: StartServer,
    start_provider: Any,
    api: ApiEvents,
    visit: Visit,
    kept: Kept,
    flood: Callable[..., list[Frame]],
) -> None:
    answers = [flood(*api.text_block("One.")), flood(*api.text_block("Two.")), api.says("Three.")]
    async with (
        start_provider(*answers) as provider,
        start_server(upstream_url=provider.url) as server,
        visit(server) as (slow, session_id),
    ):
        slow.socket.transport.pause_reading()
        for text in ("1", "2", "3"):
            await slow.ask(text)
        await kept(ended(session_id, turns=3))
        result = await Chucky(server.token("other"), server.url).prompt("Hello")
        assert result.subtype == "success"

        slow.socket.transport.resume_reading()
        frames: list[Frame] = []
        for _ in range(3):
            frames += await slow.receive_until("result")

    assert kinds(frames) == ["system", *["assistant", "result"] * 3]
    assert [each["result"] for each in frames if each["type"] == "result"] == [
        *("One.", "Two.", "Three.")
    ]
    places = numbers(frames)
    assert places == sorted(set(places))
    # What had fallen out of the tail came without its pieces.
    assert 0 < len(frames) < 2 * FLOOD_EVENTS


async def test_where_the_tail_holds_everything_comes_as_it_would_have_come(
    start_server: StartServer,
    start_provider: Any,
    api: ApiEvents,
    visit: Visit,
    kept: Kept,
    flood: Callable[..., list[Frame]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailbox, "TAIL_BYTES", 10 * FLOOD_BYTES)
    async with (
        start_provider(flood(*api.text_block("One."))) as provider,
        start_server(upstream_url=provider.url) as server,
        visit(server) as (slow, session_id),
    ):
        slow.socket.transport.pause_reading()
        await slow.ask("1")
        await kept(ended(session_id))
        slow.socket.transport.resume_reading()
        frames = await slow.receive_until("result")

    places = numbers(frames)
    assert places == sorted(set(places))
    pieces = [delta for _, delta in places if delta]
    assert pieces == list(range(1, len(pieces) + 1))
    assert len(pieces) > FLOOD_EVENTS


async def test_what_a_client_does_not_read_is_not_held_for_it(
    start_server: StartServer,
    start_provider: Any,
    api: ApiEvents,
    visit: Visit,
    kept: Kept,
    flood: Callable[..., list[Frame]],
) -> None:
    async with (
        start_provider(flood(*api.text_block("One."))) as provider,
        start_server(upstream_url=provider.url) as server,
        visit(server) as (slow, session_id),
    ):
        slow.socket.transport.pause_reading()
        tracemalloc.start()
        try:
            await slow.ask("1")
            await kept(ended(session_id))
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        slow.socket.transport.resume_reading()
        await slow.receive_until("result")

    assert held < 3 * mailbox.TAIL_BYTES < FLOOD_BYTES / 5


async def test_a_call_of_a_tool_reaches_a_client_that_did_not_read_it(
    start_server: StartServer,
    start_provider: Any,
    api: ApiEvents,
    visit: Visit,
    kept: Kept,
    flood: Callable[..., list[Frame]],
) -> None:
    start = {"type": "tool_use", "id": "a", "name": "mcp__t__peek", "input": {}}
    call = flood(*api.block(start), stop_reason="tool_use")
    async with (
        start_provider(call, api.says("Seen.")) as provider,
        start_server(upstream_url=provider.url) as server,
        visit(server) as (slow, session_id),
    ):
        slow.socket.transport.pause_reading()
        await slow.ask("1")
        await kept(lambda sessions: len(sessions.messages(session_id, 0, 10, 10_000)) == 3)
        slow.socket.transport.resume_reading()
        calls = [(await slow.receive_until("tool_call"))[-1]]
        reply = {"content": [{"type": "text", "text": "4"}]}
        call_id = calls[0]["payload"]["callId"]
        await slow.send(type="tool_result", payload={"callId": call_id, "result": reply})
        frames = await slow.receive_until("result")

    assert frames[-1]["result"] == "Seen."
    assert "tool_call" not in kinds(frames)


async def test_a_client_that_does_not_read_for_long_is_closed_and_may_come_back(
    start_server: StartServer,
    start_provider: Any,
    api: ApiEvents,
    visit: Visit,
    kept: Kept,
    flood: Callable[..., list[Frame]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "SEND_TIMEOUT_SECONDS", 0.2)
    left = asyncio.Event()
    abandon = Outlet.abandon

    def leave(outlet: Outlet) -> None:
        abandon(outlet)
        left.set()

    monkeypatch.setattr(Outlet, "abandon", leave)
    async with (
        start_provider(flood(*api.text_block("One."))) as provider,
        start_server(upstream_url=provider.url) as server,
    ):
        async with visit(server) as (slow, session_id):
            slow.socket.transport.pause_reading()
            await slow.ask("1")
            await kept(ended(session_id))
            async with asyncio.timeout(WAIT_SECONDS):
                await left.wait()
            slow.socket.transport.abort()
        last_seen = {"seq": 0, "delta": 0}
        async with visit(server, resume=session_id, lastSeen=last_seen) as (client, _):
            frames = await client.receive_until("result")

    assert kinds(frames) == ["system", "assistant", "result"]
