"""Worker: opens sessions, one after the other, and times each.

Asked with ``address``, ``token``, ``turns`` and ``message`` it has so many turns with that message
in a new session, and answers with its ``id``. Asked with ``openings`` and ``resume`` (the id of a
session, or null for new ones) it answers with ``milliseconds``, one number for each: from `init` on
a connection that is open to `session_info`.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

from bench.raw_socket import RawSocket, user_frame
from bench.worker import MODEL, work
from chucky import wire

_SECONDS = 280
_INFO = b'"session_info"'
_RESULT = b'"type":"result"'


async def have_turns(given: dict[str, Any]) -> dict[str, Any]:
    """Fill a new session."""
    socket = await RawSocket.open(given["address"], given["token"])
    socket.send(wire.init_frame({"model": MODEL}))
    await socket.wait_for(_INFO)
    results: list[bytes] = []
    for _ in range(given["turns"]):
        socket.send(user_frame(given["message"], str(uuid.uuid4())))
        results.append(await socket.wait_for(_RESULT))
    last = json.loads(results[-1])
    assert last["subtype"] == "success", last
    assert last["num_turns"] == given["turns"], last
    await close(socket)
    return {"id": last["session_id"]}


async def opening_ms(given: dict[str, Any]) -> float:
    """Open a session on a new connection."""
    socket = await RawSocket.open(given["address"], given["token"])
    started_at = time.perf_counter()
    socket.send(wire.init_frame({"model": MODEL, "resume": given["resume"]}))
    info = await socket.wait_for(_INFO)
    spent = time.perf_counter() - started_at
    data = json.loads(info)["payload"]["data"]
    assert given["resume"] in (None, data["sessionId"]), data
    await close(socket)
    return spent * 1000


async def close(socket: RawSocket) -> None:
    """Close, and wait until the server has; the next opening must not wait for that."""
    closed = socket.closed()
    socket.send(wire.control_frame("close"))
    await closed


async def run(given: dict[str, Any]) -> dict[str, Any]:
    """Do what the worker is asked for."""
    async with asyncio.timeout(_SECONDS):
        if "turns" in given:
            return await have_turns(given)
        return {"milliseconds": [await opening_ms(given) for _ in range(given["openings"])]}


if __name__ == "__main__":
    work(run)
