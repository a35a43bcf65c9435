"""Uvicorn, so that it can run inside a program that is not its own.

Started plainly, uvicorn takes the signals of the process, exits the process when it cannot bind,
and leaves open connections behind when it is cancelled. This one does none of that, and lets an
application drop its connection without that being logged as a fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

DROP_CONNECTION: Final = "chucky.drop_connection"
"""Key in the scope's ``state``: a function without arguments that closes the connection."""

BACKLOG = 2_048
KEEP_ALIVE_SECONDS = 75
MAX_CLOSING_SECONDS = 5


class _Connection(H11Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # uvicorn types it this way too: it is only ever given transports that can be written to.
        super().connection_made(transport)
        self.app_state = {**self.app_state, DROP_CONNECTION: transport.close}


class Listener(uvicorn.Server):
    """Serves an application until it is cancelled.

    Args:
        app: The application.
        ready: Called once connections are accepted.
    """

    def __init__(self, app: ASGIApp, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Connection,
                ws="none",
                interface="asgi3",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=MAX_CLOSING_SECONDS,
            )
        )
        self._ready = ready

    async def run_on(self, listening: socket.socket) -> None:
        """Serve on a bound socket until cancelled; then end open responses and all connections."""
        try:
            await self.serve(sockets=[listening])
        finally:
            if self.started:
                for connection in list(self.server_state.connections):
                    # Aborted, not closed: a peer that reads slowly must not hold up the end.
                    connection.transport.abort()
                await self.shutdown(sockets=[listening])

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
    listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    listening.setblocking(False)
    return listening
