"""Frames that leave together: their order, their end, and a client that does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chucky.listener import Listener, bind
from chucky.server.edge.outlet import Outlet, OutletProtocol

WAIT_SECONDS = 20
MORE_THAN_A_KERNEL_KEEPS = 64 * 1024 * 1024

Endpoint = Callable[[WebSocket, Outlet], Awaitable[None]]
Dial = Callable[..., Any]


@pytest.fixture
def dial_endpoint() -> Dial:
    """Connect to an endpoint with an outlet: ``async with dial_endpoint(endpoint) as client``."""

    @asynccontextmanager
    async def dialled(endpoint: Endpoint, **settings: Any) -> AsyncIterator[ClientConnection]:
        async def accepting(websocket: WebSocket) -> None:
            await websocket.accept()
            await endpoint(websocket, websocket.state.outlet)

        ready = asyncio.Event()
        with await bind("127.0.0.1", 0) as listening:
            listener = Listener(
                Starlette(routes=[WebSocketRoute("/", accepting)]), ready.set, ws=OutletProtocol
            )
            serving = asyncio.create_task(listener.serve(sockets=[listening]))
            await ready.wait()
            url = f"ws://127.0.0.1:{listening.getsockname()[1]}/"
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    async with connect(url, compression=None, **settings) as client:
                        yield client
            finally:
                listener.should_exit = True
                await serving

    return dialled


async def received(client: ClientConnection) -> list[str]:
    """Everything that comes until the connection is closed."""
    frames = []
    try:
        while True:
            frames.append(str(await client.recv()))
    except ConnectionClosed:
        return frames


async def test_frames_keep_their_order_and_the_close_comes_behind_them(
    dial_endpoint: Dial,
) -> None:
    # Small ones that wait for the end of the pass, and large ones that do not.
    frames = [f"{number} {'ü' * (40_000 if number % 7 == 6 else number)}" for number in range(100)]

    async def endpoint(websocket: WebSocket, outlet: Outlet) -> None:
        for number, frame in enumerate(frames):
            outlet.send(frame)
            if number % 10 == 9:
                await asyncio.sleep(0)
        await websocket.close(1000, "said all")
        outlet.send("too late")

    async with dial_endpoint(endpoint) as client:
        assert await received(client) == frames
        assert (client.close_code, client.close_reason) == (1000, "said all")


async def test_a_client_that_does_not_read_fills_the_outlet_within_a_bound(
    dial_endpoint: Dial,
) -> None:
    sent = 0

    async def endpoint(websocket: WebSocket, outlet: Outlet) -> None:
        nonlocal sent
        # Without giving way to anything else: what is held must be bounded even so.
        while not outlet.is_full and sent * 1_000 < MORE_THAN_A_KERNEL_KEEPS:
            outlet.send(f"{sent:1000}")
            sent += 1
        await websocket.send_text("after waiting")
        await websocket.close()

    async with dial_endpoint(endpoint) as client:
        frames = await received(client)
    assert [int(frame) for frame in frames[:-1]] == list(range(sent))
    assert frames[-1] == "after waiting"
    assert sent * 1_000 < MORE_THAN_A_KERNEL_KEEPS


async def test_whoever_waits_for_a_client_that_leaves_is_freed(dial_endpoint: Dial) -> None:
    waiting, freed = asyncio.Event(), asyncio.Event()

    async def endpoint(_websocket: WebSocket, outlet: Outlet) -> None:
        while not outlet.is_full:
            outlet.send("x" * 60_000)
        waiting.set()
        await outlet.wait_writable()
        outlet.send("to nobody")
        freed.set()

    async with dial_endpoint(endpoint, max_queue=1) as client:
        await waiting.wait()
        client.transport.abort()
        await freed.wait()
