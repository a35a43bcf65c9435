"""A listener whose connections an application can drop, as a broken network would."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from chucky.listener import Listener

DROP_CONNECTION: Final = "chucky.drop_connection"
"""Key in the scope's ``state``: a function without arguments that closes the connection."""

KEEP_ALIVE_SECONDS = 75


class _Connection(H11Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # uvicorn types it this way too: it is only ever given transports that can be written to.
        super().connection_made(transport)
        self.app_state = {**self.app_state, DROP_CONNECTION: transport.close}


class DroppingListener(Listener):
    """Serves an application until it is cancelled.

    A connection that the application drops is not logged as a fault.

    Args:
        app: The application.
        ready: Called once connections are accepted.
    """

    def __init__(self, app: ASGIApp, ready: Callable[[], None]) -> None:
        super().__init__(
            app, ready, http=_Connection, ws="none", timeout_keep_alive=KEEP_ALIVE_SECONDS
        )

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
