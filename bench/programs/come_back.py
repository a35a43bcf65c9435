"""Worker: loses its connection and comes back, again and again, and times it.

Asked with ``address``, ``token``, ``message`` and ``is_lost`` it has a turn in a new session, and
answers with the session's ``id``. Asked with ``id`` and ``comings`` in the place of the message it
comes back so often to that session, having seen nothing of it, and answers with two numbers for
each time, in milliseconds from before the connection: ``handshakes`` to the end of the WebSocket
handshake, ``events`` to the first message that is sent again. With ``is_lost`` connections are cut,
so that the session goes on meanwhile; otherwise they are closed, so that only its log is left.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from bench.raw_socket import RawSocket, user_frame
from bench.worker import MODEL, work
from chucky import wire

_SECONDS = 100
_OPTIONS = {"model": MODEL, "capabilities": [wire.REPLAY]}
_FIRST = b'"type":"system"'
_RESULT = b'"type":"result"'


async def begin(given: dict[str, Any]) -> dict[str, Any]:
    """Have a turn in a new session."""
    socket = await RawSocket.open(given["address"], given["token"])
    socket.send(wire.init_frame(_OPTIONS))
    socket.send(user_frame(given["message"], str(uuid.uuid4())))
    result = wire.parse_server_frame((await socket.wait_for(_RESULT)).decode())
    await leave(socket, is_lost=given["is_lost"])
    assert isinstance(result, wire.SdkMessage)
    return {"id": result.message["session_id"]}


async def leave(socket: RawSocket, *, is_lost: bool) -> None:
    """Lose a connection, or close it and wait until the session has ended."""
    if is_lost:
        socket.close()
        return
    closed = socket.closed()
    socket.send(wire.control_frame("close"))
    await closed


async def come_back(given: dict[str, Any], init: str) -> tuple[float, float]:
    """Come back once; until the handshake is done, and until the first message has come."""
    started_at = time.perf_counter()
    socket = await RawSocket.open(given["address"], given["token"])
    connected_at = time.perf_counter()
    socket.send(init)
    await socket.wait_for(_FIRST)
    came_at = time.perf_counter()
    await leave(socket, is_lost=given["is_lost"])
    return (connected_at - started_at) * 1000, (came_at - started_at) * 1000


async def run(given: dict[str, Any]) -> dict[str, Any]:
    """Do what the worker is asked for."""
    async with asyncio.timeout(_SECONDS):
        if "message" in given:
            return await begin(given)
        seen = {"seq": 0, "delta": 0}
        init = wire.init_frame({**_OPTIONS, "resume": given["id"], "lastSeen": seen})
        await come_back(given, init)
        times = [await come_back(given, init) for _ in range(given["comings"])]
    handshakes, events = zip(*times, strict=True)
    return {"handshakes": handshakes, "events": events}


if __name__ == "__main__":
    work(run)
