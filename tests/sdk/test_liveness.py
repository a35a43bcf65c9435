"""Pings, and telling a server that is silent from one that is slow.

The intervals are short here, and nothing is said about how long anything takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from chucky import ChuckyTimeoutError, Message

if TYPE_CHECKING:
    from tests.sdk.conftest import Peer, StartServer

INTERVAL_SECONDS = 0.05
MORE_THAN_BUFFERS = 16 * 1024 * 1024  # what loopback sockets hold without a reader is less


async def texts(stream: AsyncIterator[Message]) -> list[str]:
    return [str(message) async for message in stream]


async def test_pings_are_sent_while_nothing_happens_and_pongs_are_no_messages(
    scripted_server: StartServer,
) -> None:
    """defect 8: no keep-alive was ever sent."""
    pinged = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn("First.")
        stamps = []
        for _ in range(3):
            ping = await peer.receive()
            assert ping["type"] == "ping"
            stamps.append(ping["payload"]["timestamp"])
            await peer.send(peer.pong(ping))
        assert all(isinstance(stamp, int) for stamp in stamps)
        assert sorted(stamps) == stamps
        pinged.set()
        await peer.turn("Second.")
        await peer.until_closed()

    server = await scripted_server(script)
    async with (
        server.client(keepalive_interval=INTERVAL_SECONDS) as client,
        client.create_session() as session,
    ):
        await session.send("one")
        assert await texts(session.stream()) == ["First.", "First."]
        await pinged.wait()
        await session.send("two")
        assert await texts(session.stream()) == ["Second.", "Second."]


async def test_a_server_that_falls_silent_in_a_turn_is_given_up(
    scripted_server: StartServer,
) -> None:
    """defect 4: a stream waited 300 seconds for each message and then ended silently."""

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.assistant("Once"))
        await peer.receive()  # a ping, which is not answered
        await given_up.wait()

    given_up = asyncio.Event()
    server = await scripted_server(script)
    async with (
        server.client(keepalive_interval=INTERVAL_SECONDS) as client,
        client.create_session() as session,
    ):
        await session.send("Hello")
        await session.send("Hello again")
        stream = session.stream()
        assert str(await anext(stream)) == "Once"
        with pytest.raises(ChuckyTimeoutError, match=r"has sent nothing for 0\.1 s") as first:
            await anext(stream)
        with pytest.raises(ChuckyTimeoutError) as second:
            await texts(session.stream())
        with pytest.raises(ChuckyTimeoutError) as third:
            await session.send("Hello?")
        assert first.value is second.value is third.value
        given_up.set()


@pytest.mark.parametrize("sign", ["pong", "unknown", "message"])
async def test_a_slow_server_that_shows_signs_of_life_is_waited_for(
    scripted_server: StartServer, sign: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        for number in range(6):
            ping = await peer.receive()
            signs = {"pong": peer.pong(ping), "unknown": {"type": "busy"}}
            await peer.send(signs.get(sign, peer.delta(f"{number}")))
        await peer.send(peer.result("At last."))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client(keepalive_interval=INTERVAL_SECONDS) as client:
        assert (await client.prompt("Hello")).result == "At last."


async def test_neither_silence_between_turns_nor_one_interval_of_it_counts(
    scripted_server: StartServer,
) -> None:
    """A server that answers no pings may be silent until it is asked something."""

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn("First.")
        for _ in range(5):
            assert (await peer.receive())["type"] == "ping"
        idle_for_long.set()
        while (await peer.receive())["type"] != "user":
            pass
        for _ in range(2):
            assert (await peer.receive())["type"] == "ping"
        await peer.send(peer.result("Second."))
        await peer.until_closed()

    idle_for_long = asyncio.Event()
    server = await scripted_server(script)
    async with (
        server.client(keepalive_interval=INTERVAL_SECONDS) as client,
        client.create_session() as session,
    ):
        await session.send("one")
        await texts(session.stream())
        await idle_for_long.wait()
        await session.send("two")
        assert await texts(session.stream()) == ["Second."]


async def test_a_server_that_reads_nothing_is_given_up(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn()
        peer.socket.transport.pause_reading()
        stuck.set()
        await peer.socket.wait_closed()

    stuck = asyncio.Event()
    server = await scripted_server(script)
    async with (
        server.client(keepalive_interval=INTERVAL_SECONDS) as client,
        client.create_session() as session,
    ):
        await session.send("Hello")
        await texts(session.stream())
        await stuck.wait()
        await session.send("x" * MORE_THAN_BUFFERS)
        with pytest.raises(ChuckyTimeoutError, match="has sent nothing"):
            await texts(session.stream())
    server.peers[0].abort()


async def test_a_slow_reader_is_waited_for(scripted_server: StartServer) -> None:
    """It answers no ping while it reads, but what is on its way to it becomes less."""
    interval_seconds = 4 * INTERVAL_SECONDS  # such a message keeps the processor busy

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn()
        peer.socket.transport.pause_reading()
        is_slow.set()
        for _ in range(4):
            await asyncio.sleep(interval_seconds)  # the slowness that is tested
            peer.socket.transport.resume_reading()
            for _ in range(20):  # reads of 256 KiB
                await asyncio.sleep(0)
            peer.socket.transport.pause_reading()
        peer.socket.transport.resume_reading()
        await peer.turn("Read at last.")
        await peer.until_closed()

    is_slow = asyncio.Event()
    server = await scripted_server(script)
    async with (
        server.client(keepalive_interval=interval_seconds) as client,
        client.create_session() as session,
    ):
        await session.send("Hello")
        await texts(session.stream())
        await is_slow.wait()
        await session.send("x" * 2 * MORE_THAN_BUFFERS)
        assert (await texts(session.stream()))[-1] == "Read at last."
