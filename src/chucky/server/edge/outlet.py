"""How frames leave for a client: many in one write.

A frame of its own for each delta of each user's stream is what a server sends most. Written one by
one, the system calls cost more than all the rest of relaying. Here the frames of one pass of the
event loop leave together, in their order; nothing waits for a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

# So many bytes are written without waiting for the end of the pass. It bounds what is held here;
# what the transport holds is bounded by its own limit, of the same size.
_WRITE_AT_BYTES = 65_536


class Outlet:
    """Sends frames to one client."""

    __slots__ = ("_frames", "_is_due", "_transport", "_unwritten_bytes", "_writable")

    def __init__(
        self, frames: ServerProtocol, transport: asyncio.Transport, writable: asyncio.Event
    ) -> None:
        self._frames = frames
        self._transport = transport
        self._writable = writable
        self._is_due = False
        self._unwritten_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether the client has yet to read what was sent before; see :meth:`wait_writable`."""
        return not self._writable.is_set()

    async def wait_writable(self) -> None:
        """Wait until the client has read most of what was sent, or is gone."""
        await self._writable.wait()

    def send(self, frame: str) -> None:
        """Send one frame, with others of this moment; to a client that is gone nothing is sent.

        Whatever else is sent on the socket, its closing included, comes after it.
        """
        if self._frames.state is not OPEN or self._transport.is_closing():
            return
        data = frame.encode()
        # The library keeps it until somebody takes `data_to_send`: this, or uvicorn when it
        # answers a ping or closes.
        self._frames.send_text(data)
        self._unwritten_bytes += len(data)
        if self._unwritten_bytes >= _WRITE_AT_BYTES:
            self._write()
        elif not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._write_due)

    def abandon(self) -> None:
        """Cut off a client that does not read, and forget what it has not read.

        Closing would wait for it to do so, for ever. The endpoint learns of it as of any other
        client that is gone.
        """
        self._transport.abort()

    def _write_due(self) -> None:
        self._is_due = False
        self._write()

    def _write(self) -> None:
        self._unwritten_bytes = 0
        if data := self._frames.data_to_send():
            self._transport.write(b"".join(data))


class OutletProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket with an :class:`Outlet`, which the endpoint finds in its ``state``."""

    def run_asgi(self) -> Coroutine[Any, Any, None]:
        """Hand the socket to the application."""
        self.scope["state"]["outlet"] = Outlet(self.conn, self.transport, self.writable)
        return super().run_asgi()
