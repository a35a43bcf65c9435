"""Closing, leaving and cancelling, at every moment: nothing is left behind, nothing hangs."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chucky import (
    Chucky,
    ChuckyError,
    ChuckyTimeoutError,
    Message,
    ProtocolError,
    Session,
    SessionError,
)

if TYPE_CHECKING:
    from tests.sdk.conftest import Peer, StartServer, StartTcp

# What loopback sockets can hold without anybody reading is less.
MORE_THAN_BUFFERS = 16 * 1024 * 1024


async def texts(stream: AsyncIterator[Message]) -> list[str]:
    return [str(message) async for message in stream]


class Stage:
    """A server that goes so far and no further; `reached` is set when it is there."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.farewell: list[Any] = []

    async def before_ready(self, peer: Peer) -> None:
        await peer.expect("init")
        await self._wait(peer)

    async def in_turn(self, peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await self._wait(peer)

    async def in_answer(self, peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.assistant("Once"))
        await self._wait(peer)

    async def between_turns(self, peer: Peer) -> None:
        await peer.start()
        await peer.turn()
        await self._wait(peer)

    async def _wait(self, peer: Peer) -> None:
        self.reached.set()
        self.farewell = await peer.until_closed()
        assert peer.socket.close_code == 1000


# ---- closing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["in_turn", "in_answer", "between_turns"])
async def test_closing_says_goodbye_and_ends_open_turns(
    scripted_server: StartServer, stage: str
) -> None:
    """defect 18: the server was not told."""
    at = Stage()
    server = await scripted_server(getattr(at, stage))
    client = server.client()
    session = client.create_session()
    await session.send("Hello")
    reading = asyncio.create_task(texts(session.stream()))
    await at.reached.wait()
    if stage == "between_turns":
        assert await reading == ["Hello!", "Hello!"]
    await session.close()
    await server.end()
    assert at.farewell == [{"type": "control", "payload": {"action": "close"}}]
    if stage != "between_turns":
        with pytest.raises(SessionError, match=r"^The session was closed\.$"):
            await reading


async def test_a_closed_session_stays_closed(scripted_server: StartServer) -> None:
    """defect 15: send() after close() opened a connection without the history."""
    server = await scripted_server(lambda peer: peer.serve())
    async with server.client().create_session() as session:
        await session.send("Hello")
        assert await texts(session.stream()) == ["Hello!", "Hello!"]
    for _ in range(2):
        with pytest.raises(SessionError, match=r"is closed; make a new one with create_session"):
            await session.send("Hello again")
        with pytest.raises(SessionError, match="is closed"):
            await texts(session.stream())
        await session.close()
    assert len(server.peers) == 1


async def test_closing_what_was_never_connected_does_nothing() -> None:
    client = Chucky("a-token", url="ws://127.0.0.1:1/ws")
    session = client.create_session()
    await session.close()
    await client.close()
    with pytest.raises(SessionError, match="is closed"):
        await session.send("Hello")


async def test_closing_several_times_at_once_says_goodbye_once(
    scripted_server: StartServer,
) -> None:
    at = Stage()
    server = await scripted_server(at.in_turn)
    async with server.client() as client:
        session = client.create_session()
        await session.send("Hello")
        await at.reached.wait()
        await asyncio.gather(*(session.close() for _ in range(3)))
        await server.end()
    assert at.farewell == [{"type": "control", "payload": {"action": "close"}}]


async def test_closing_does_not_wait_for_the_time_a_turn_may_take(
    scripted_server: StartServer,
) -> None:
    at = Stage()
    server = await scripted_server(at.in_turn)
    async with server.client(turn_timeout=600) as client, client.create_session() as session:
        await session.send("Hello")
        await at.reached.wait()


async def test_closing_ends_a_handshake(scripted_server: StartServer) -> None:
    at = Stage()
    server = await scripted_server(at.before_ready)
    session = server.client(timeout=60).create_session()
    sending = [asyncio.create_task(session.send(f"{number}")) for number in range(2)]
    await at.reached.wait()
    await session.close()
    await server.end()
    for task in sending:
        with pytest.raises(SessionError, match="is closed"):
            await task


async def test_closing_ends_connecting_to_what_does_not_answer(tcp_server: StartTcp) -> None:
    connected = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        connected.set()
        while await reader.read(1000):
            pass

    client = Chucky("a-token", url=await tcp_server(handle), timeout=60)
    sending = asyncio.create_task(client.prompt("Hello"))
    await connected.wait()
    await client.close()
    with pytest.raises(SessionError, match="is closed"):
        await sending


async def test_closing_ends_waiting_for_a_token() -> None:
    asked = asyncio.Event()

    async def never() -> str:
        asked.set()
        await asyncio.Event().wait()
        return ""

    client = Chucky(never, url="ws://127.0.0.1:1/ws", timeout=60)
    sending = asyncio.create_task(client.prompt("Hello"))
    await asked.wait()
    await client.close()
    with pytest.raises(SessionError, match="is closed"):
        await sending


async def test_closing_the_client_closes_all_its_sessions(scripted_server: StartServer) -> None:
    stages = [Stage() for _ in range(3)]
    server = await scripted_server(*(stage.in_turn for stage in stages))
    client = server.client()
    sessions = [client.create_session() for _ in stages]
    for session in sessions:
        await session.send("Hello")
    for stage in stages:
        await stage.reached.wait()
    await client.close()
    await server.end()
    for session in sessions:
        with pytest.raises(SessionError, match="was closed"):
            await texts(session.stream())


async def test_a_server_that_does_not_read_cannot_hold_up_closing(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chucky.connection.CLOSE_TIMEOUT_SECONDS", 0.05)
    stuck = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn()
        peer.socket.transport.pause_reading()
        stuck.set()
        await peer.socket.wait_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        session = client.create_session()
        await session.send("Hello")
        await texts(session.stream())
        await stuck.wait()
        sending = asyncio.create_task(session.send("x" * MORE_THAN_BUFFERS))
        await asyncio.sleep(0)
        assert not sending.done()
        await session.close()
        await sending
        with pytest.raises(SessionError, match="was closed"):
            await texts(session.stream())
    server.peers[0].abort()


@pytest.mark.parametrize("is_ready", [False, True])
async def test_unread_frames_do_not_hold_up_closing(
    scripted_server: StartServer, is_ready: bool
) -> None:
    """The library stops reading when many frames are unread, and the goodbye is behind them."""

    async def script(peer: Peer) -> None:
        if is_ready:
            await peer.start()
            await peer.expect("user")
        await peer.send_raw("nonsense")
        await peer.send(*[{"type": "more"}] * 200)
        await peer.until_closed()
        assert peer.socket.close_code == 1000

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ProtocolError):
            await client.prompt("Hello")


# ---- cancelling ------------------------------------------------------------------------------


async def prompt(client: Chucky) -> None:
    await client.prompt("Hello")


async def stream(client: Chucky) -> None:
    async for _event in client.stream("Hello"):
        pass


async def converse(client: Chucky) -> None:
    async with client.create_session() as session:
        await session.send("Hello")
        await texts(session.stream())


@pytest.mark.parametrize("use", [prompt, stream, converse])
@pytest.mark.parametrize("stage", ["before_ready", "in_turn", "in_answer"])
async def test_cancelling_closes_the_socket(
    scripted_server: StartServer, use: Callable[[Chucky], Awaitable[None]], stage: str
) -> None:
    """defect 17: the socket stayed open."""
    at = Stage()
    server = await scripted_server(getattr(at, stage))
    task = asyncio.ensure_future(use(server.client()))
    await at.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.end()
    assert at.farewell == [{"type": "control", "payload": {"action": "close"}}]


async def test_a_timeout_of_the_caller_stays_the_callers(scripted_server: StartServer) -> None:
    at = Stage()
    server = await scripted_server(at.in_turn)
    with pytest.raises(TimeoutError) as caught:
        async with server.client() as client, asyncio.timeout(0.05):
            await client.prompt("Hello")
    assert not isinstance(caught.value, ChuckyError)
    await server.end()


async def test_cancelling_twice_cuts_the_connection(scripted_server: StartServer) -> None:
    """The second one arrives while the closing handshake waits for a server that is stuck."""
    stuck = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        peer.socket.transport.pause_reading()
        stuck.set()
        await peer.socket.wait_closed()

    server = await scripted_server(script)
    task = asyncio.create_task(prompt(server.client()))
    await stuck.wait()
    task.cancel()
    await asyncio.wait([task], timeout=0.01)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.peers[0].abort()


async def test_a_program_that_cancels_all_tasks_ends_open_turns(
    scripted_server: StartServer,
) -> None:
    at = Stage()
    server = await scripted_server(at.in_turn)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hello")
        await at.reached.wait()
        for task in asyncio.all_tasks():
            if "Session." in str(task.get_coro()):
                task.cancel()
        with pytest.raises(SessionError, match=r"^The session was cancelled\.$"):
            await texts(session.stream())
        with pytest.raises(SessionError, match="was cancelled"):
            await session.send("Hello again")


async def test_closing_the_event_generator_early_closes_the_socket(
    scripted_server: StartServer,
) -> None:
    at = Stage()
    server = await scripted_server(at.in_answer)
    events = server.client().stream("Hello")
    assert str((await anext(events)).data) == "Once"
    await events.aclose()
    await server.end()
    assert at.farewell == [{"type": "control", "payload": {"action": "close"}}]


async def test_breaking_out_of_the_events_closes_the_socket(scripted_server: StartServer) -> None:
    at = Stage()
    server = await scripted_server(at.in_answer)
    async for event in server.client().stream("Hello"):
        assert str(event.data) == "Once"
        break
    await server.end()
    assert at.farewell == [{"type": "control", "payload": {"action": "close"}}]


async def test_a_program_that_forgets_to_close_still_says_goodbye(
    scripted_server: StartServer,
) -> None:
    at = Stage()
    server = await scripted_server(at.in_turn)

    async def program() -> None:
        await server.client().create_session().send("Hello")

    await asyncio.to_thread(asyncio.run, program())
    await server.end()
    assert at.farewell == [{"type": "control", "payload": {"action": "close"}}]


# ---- nothing is left -------------------------------------------------------------------------


async def test_a_client_forgets_sessions_that_are_over(scripted_server: StartServer) -> None:
    """defect 16: those of prompt() and stream() were kept for ever."""
    server = await scripted_server(lambda peer: peer.serve())
    before = count_sessions()
    async with server.client() as client:
        for _ in range(3):
            await client.prompt("Hello")
            _ = [event async for event in client.stream("Hello")]
            async with client.create_session() as session:
                await session.send("Hello")
        del session
        assert count_sessions() == before


def count_sessions() -> int:
    gc.collect()
    # By their types: to ask a weak proxy for its class may find that its object is gone.
    return sum(issubclass(type(each), Session) for each in gc.get_objects())


async def test_a_hundred_sessions_leave_no_tasks_and_no_sockets(
    scripted_server: StartServer,
) -> None:
    server = await scripted_server(lambda peer: peer.serve())
    tasks, sockets = asyncio.all_tasks(), open_files()

    async def use(client: Chucky, number: int) -> None:
        session = client.create_session()
        await session.send(f"{number}")
        if number % 3:
            assert await texts(session.stream()) == ["Hello!", "Hello!"]
        if number % 2:
            await session.close()

    async with server.client() as client:
        await asyncio.gather(*(use(client, number) for number in range(100)))
    await server.end()
    gc.collect()
    assert asyncio.all_tasks() == tasks
    assert open_files() == sockets


def open_files() -> int:
    """How many files and sockets this process has open, where the system tells."""
    listing = Path("/proc/self/fd")
    return len(list(listing.iterdir())) if listing.exists() else 0


async def test_what_failed_leaves_nothing_either(scripted_server: StartServer) -> None:
    """defect 17: after a time-out the socket stayed open."""

    async def never_ready(peer: Peer) -> None:
        await peer.expect("init")
        await peer.until_closed()
        assert peer.socket.close_code == 1000

    server = await scripted_server(never_ready)
    client = server.client(timeout=0.05)
    session = client.create_session()
    with pytest.raises(ChuckyTimeoutError):
        await session.send("Hello")
    await server.end()  # although neither the session nor the client is closed
    assert len(server.peers) == 1
    await client.close()


async def test_after_a_failed_attempt_the_same_session_can_connect(
    scripted_server: StartServer,
) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.close(1013, "try again later")

    server = await scripted_server(refuse, lambda peer: peer.serve())
    async with server.client() as client, client.create_session() as session:
        with pytest.raises(ConnectionError, match="try again later"):
            await session.send("Hello")
        await session.send("Hello")
        assert await texts(session.stream()) == ["Hello!", "Hello!"]
