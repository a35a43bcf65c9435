"""Worker: opens connections and holds them, doing nothing but answering pings.

Asked with ``address`` and ``tokens`` (one connection for each; null for none) it opens them, waits
until the server says that each is ready, and answers with their number. Asked with ``close`` it
closes them all.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

from bench.raw_socket import INIT, RawSocket
from bench.worker import answer

_AT_ONCE = 32
_SECONDS = 100


class Held:
    """The connections that are held."""

    def __init__(self) -> None:
        self._sockets: list[RawSocket] = []

    async def do(self, given: dict[str, Any]) -> dict[str, Any]:
        """Do what the worker is asked for."""
        if given.get("close"):
            for socket in self._sockets:
                socket.close()
            self._sockets.clear()
        else:
            waiting = iter(given["tokens"])
            async with asyncio.timeout(_SECONDS), asyncio.TaskGroup() as tasks:
                for _ in range(_AT_ONCE):
                    tasks.create_task(self._open(given["address"], waiting))
        return {"open": len(self._sockets)}

    async def _open(self, address: str, tokens: Iterator[str | None]) -> None:
        for token in tokens:
            socket = await RawSocket.open(address, token)
            socket.send(INIT)
            await socket.wait_for(b'"session_info"')
            self._sockets.append(socket)


async def main() -> None:
    """Work until the input ends; the connections are alive meanwhile."""
    held = Held()
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer(await held.do(json.loads(line)))


if __name__ == "__main__":
    asyncio.run(main())
