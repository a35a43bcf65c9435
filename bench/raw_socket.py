"""A WebSocket client that does as little as possible, so that it is never what limits a server."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Mapping

from bench.worker import MODEL
from chucky import wire

_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
_LAST_FRAGMENT = 0x80
_MASKED = 0x80
_NO_MASK = bytes(4)  # a mask of zeros leaves the payload as it is

INIT = wire.init_frame({"model": MODEL, "includePartialMessages": True})
"""What a client asks for first; to a bare endpoint it is just a first frame."""


def user_frame(content: str, uuid: str) -> str:
    """A user message."""
    return wire.user_frame(content, uuid=uuid, session_id="")


class RawSocket(asyncio.Protocol):
    """One connection. Pings are answered, whole text frames go to a function.

    Servers do not split frames here, so fragments are not put together.
    """

    def __init__(self, host: str, path: str, headers: Mapping[str, str]) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {host}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self._request = ("\r\n".join(lines) + "\r\n\r\n").encode()
        self._rest = b""
        self._is_open = False
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self.on_text: Callable[[bytes], None] = _ignore
        self.on_end: Callable[[str], None] = _ignore_end

    @classmethod
    async def open(cls, address: str, token: str | None = None) -> RawSocket:
        """Connect to ``host:port``.

        Raises:
            ConnectionError: The server does not open a WebSocket.
        """
        host, _, port = address.partition(":")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        loop = asyncio.get_running_loop()
        _, socket = await loop.create_connection(
            lambda: cls(address, "/ws", headers), host, int(port)
        )
        await socket._opened
        return socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection was lost ({exc})")

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        self._rest = self._take_frames(data) if self._is_open else self._take_head(data)

    def send(self, text: str) -> None:
        """Send a text frame."""
        self._send(_TEXT, text.encode())

    def close(self) -> None:
        """Close without ceremony."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_for(self, part: bytes) -> bytes:
        """Wait for a frame that contains ``part``, and return it.

        Raises:
            ConnectionError: The connection ended before.
        """
        arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def on_text(payload: bytes) -> None:
            if part in payload and not arrived.done():
                arrived.set_result(payload)

        def on_end(why: str) -> None:
            if not arrived.done():
                arrived.set_exception(ConnectionError(f"{why}, before {part!r} came"))

        self.on_text, self.on_end = on_text, on_end
        found = await arrived
        self.on_text, self.on_end = _ignore, _ignore_end
        return found

    def closed(self) -> asyncio.Future[str]:
        """Done when the connection has ended, with how; frames until then are dropped."""
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def on_end(why: str) -> None:
            if not ended.done():
                ended.set_result(why)

        self.on_text, self.on_end = _ignore, on_end
        return ended

    def _take_head(self, data: bytes) -> bytes:
        head, found, rest = data.partition(b"\r\n\r\n")
        if not found:
            return data
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            self._end(f"the server answered {head[:100]!r}")
            return b""
        self._is_open = True
        self._opened.set_result(None)
        return self._take_frames(rest)

    def _take_frames(self, data: bytes) -> bytes:
        position, end = 0, len(data)
        while end - position >= 2:
            length = data[position + 1]
            start = position + 2
            if length >= 126:
                size = 2 if length == 126 else 8
                start += size
                if end < start:
                    break
                length = int.from_bytes(data[start - size : start], "big")
            if end < start + length:
                break
            opcode = data[position] & 0x0F
            position = start + length
            if opcode == _TEXT:
                self.on_text(data[start:position])
            else:
                self._on_control(opcode, data[start:position])
        return data[position:]

    def _on_control(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self._send(_PONG, payload)
        elif opcode == _CLOSE:
            self._end(f"the server closed the connection ({payload[2:]!r})")

    def _send(self, opcode: int, payload: bytes) -> None:
        length = len(payload)
        if length < 126:
            size = bytes([_MASKED | length])
        elif length < 2**16:
            size = bytes([_MASKED | 126]) + length.to_bytes(2, "big")
        else:
            size = bytes([_MASKED | 127]) + length.to_bytes(8, "big")
        assert self._transport is not None
        self._transport.write(bytes([_LAST_FRAGMENT | opcode]) + size + _NO_MASK + payload)

    def _end(self, why: str) -> None:
        if not self._opened.done():
            self._opened.set_exception(ConnectionError(why))
        self.on_end(why)


def _ignore(_payload: bytes) -> None:
    """Nobody waits for this frame."""


def _ignore_end(_why: str) -> None:
    """Nobody waits on this connection."""
