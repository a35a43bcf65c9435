"""Worker: has a long turn in one session after the other, and holds the connections or loses them.

Asked with ``address``, ``tokens`` (one session for each) and ``message`` it has them all, and
answers with how many there are. With ``is_lost`` it cuts the connections after the turn.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Iterator
from typing import Any

from bench.raw_socket import RawSocket, user_frame
from bench.worker import MODEL, answer
from chucky import wire

_AT_ONCE = 8
_SECONDS = 250


class Held:
    """The connections that are held."""

    def __init__(self) -> None:
        self._sockets: list[RawSocket] = []

    async def do(self, given: dict[str, Any]) -> dict[str, Any]:
        """Do what the worker is asked for."""
        waiting = iter(given["tokens"])
        async with asyncio.timeout(_SECONDS), asyncio.TaskGroup() as tasks:
            for _ in range(_AT_ONCE):
                tasks.create_task(self._talk(given, waiting))
        return {"sessions": len(given["tokens"])}

    async def _talk(self, given: dict[str, Any], tokens: Iterator[str]) -> None:
        for token in tokens:
            socket = await RawSocket.open(given["address"], token)
            socket.send(wire.init_frame({"model": MODEL, "capabilities": [wire.REPLAY]}))
            socket.send(user_frame(given["message"], str(uuid.uuid4())))
            result = await socket.wait_for(b'"type":"result"')
            assert b'"subtype":"success"' in result, result
            if given["is_lost"]:
                socket.close()
            else:
                # As every client does after a while. The library holds the last frame until then.
                socket.send(wire.ping_frame(0))
                self._sockets.append(socket)


async def main() -> None:
    """Work until the input ends; the connections are alive meanwhile."""
    held = Held()
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer(await held.do(json.loads(line)))


if __name__ == "__main__":
    asyncio.run(main())
