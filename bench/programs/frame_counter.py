"""Worker: receives streams over raw sockets and counts the frames of partial messages.

Asked with ``address``, ``tokens`` (one socket for each; null for none), ``turns`` and ``record``,
it has so many turns on all sockets at once and answers with ``events`` and ``seconds``: from the
first partial message of all sockets to the last result. With ``record`` it has one turn more before
and keeps its frames in that file, one in each line.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path
from typing import Any

from bench.raw_socket import INIT, RawSocket, user_frame
from bench.worker import work

_EVENT = b'{"type":"stream_event"'
_RESULT = b'{"type":"result"'
_SECONDS = 60


class Count:
    """What has come over all sockets."""

    def __init__(self) -> None:
        self.events = 0
        self.first_at = 0.0

    async def turn(self, socket: RawSocket) -> None:
        """Have one turn on a socket and count its partial messages.

        Raises:
            ConnectionError: The connection ended before the result came.
        """
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_text(payload: bytes) -> None:
            if payload.startswith(_EVENT):
                if not self.events:
                    self.first_at = time.perf_counter()
                self.events += 1
            elif payload.startswith(_RESULT):
                over.set_result(None)

        def on_end(why: str) -> None:
            if not over.done():
                over.set_exception(ConnectionError(why))

        socket.on_text, socket.on_end = on_text, on_end
        socket.send(user_frame("Go.", str(uuid.uuid4())))
        await over


async def record(socket: RawSocket) -> list[bytes]:
    """Have one turn and return its frames."""
    frames: list[bytes] = []
    over = asyncio.Event()

    def on_text(payload: bytes) -> None:
        frames.append(payload)
        if payload.startswith(_RESULT):
            over.set()

    socket.on_text = on_text
    socket.send(user_frame("Go.", str(uuid.uuid4())))
    await over.wait()
    return frames


async def run(given: dict[str, Any]) -> dict[str, Any]:
    """Do what the worker is asked for."""
    async with asyncio.timeout(_SECONDS):
        sockets = [await RawSocket.open(given["address"], token) for token in given["tokens"]]
        for socket in sockets:
            socket.send(INIT)
            await socket.wait_for(b'"session_info"')
        if given["record"]:
            frames = await record(sockets[0])
            await asyncio.to_thread(Path(given["record"]).write_bytes, b"\n".join(frames))
        count = Count()

        async def turns(socket: RawSocket) -> None:
            for _ in range(given["turns"]):
                await count.turn(socket)

        async with asyncio.TaskGroup() as tasks:
            for socket in sockets:
                tasks.create_task(turns(socket))
        seconds = time.perf_counter() - count.first_at
        for socket in sockets:
            socket.on_end = lambda _why: None
            socket.close()
    return {"events": count.events, "seconds": seconds}


if __name__ == "__main__":
    work(run)
