"""Uvicorn, so that it can run inside a program that is not its own.

Started plainly, uvicorn takes the signals of the process, exits the process when it cannot bind
and logs request targets, which may hold a token. This one does none of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

BACKLOG = 2_048
MAX_CLOSING_SECONDS = 5


class Listener(uvicorn.Server):
    """Serves an application on a socket that is bound already.

    Args:
        app: The application.
        ready: Called once connections are accepted.
        config: More of uvicorn's settings.
    """

    def __init__(self, app: ASGIApp, ready: Callable[[], None], **config: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                interface="asgi3",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=MAX_CLOSING_SECONDS,
                **config,
            )
        )
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the program this runs in."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections and report it."""
        await super().startup(sockets)
        self._ready()


async def bind(host: str, port: int) -> socket.socket:
    """Bind a TCP socket.

    Args:
        host: A name or an address of this machine.
        port: The port, 0 for a free one.

    Raises:
        OSError: The address cannot be used; the message says which and why.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    # The protocol is named because asyncio switches Nagle's algorithm off only for sockets that
    # name it; with it on, every small frame may wait 40 ms for the peer's acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening
