"""A proxy that breaks connections where it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

_HEAD_END = b"\r\n\r\n"
_LONGEST_LENGTHS = {126: 2, 127: 8}
_MASK_BYTES = 4


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """Read one WebSocket frame, whole and untouched (RFC 6455, 5.2)."""
    head = await reader.readexactly(2)
    length = head[1] & 0x7F
    extended = await reader.readexactly(_LONGEST_LENGTHS.get(length, 0))
    if extended:
        length = int.from_bytes(extended)
    mask = await reader.readexactly(_MASK_BYTES if head[1] & 0x80 else 0)
    return head + extended + mask + await reader.readexactly(length)


@dataclass
class FaultProxy:
    """Passes WebSocket frames between clients and a server, and cuts at given frames.

    Attributes:
        target: The server's address.
        cuts: The numbers of the frames, counted over all connections and both directions, that do
            not arrive: the connection is cut instead.
        frames: How many frames have come.
        connections: How many connections have come.
    """

    target: str
    cuts: Collection[int] = ()
    frames: int = 0
    connections: int = 0
    port: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        parts = urlsplit(self.target)
        to_server = await asyncio.open_connection(parts.hostname, parts.port)
        writers = (writer, to_server[1])
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, to_server[1], writers))
                tasks.create_task(self._pass(to_server[0], writer, writers))
        finally:
            for each in writers:
                each.transport.abort()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        writers: tuple[asyncio.StreamWriter, ...],
    ) -> None:
        try:
            writer.write(await reader.readuntil(_HEAD_END))
            while True:
                frame = await read_frame(reader)
                self.frames += 1
                if self.frames in self.cuts:
                    break
                writer.write(frame)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        for each in writers:
            each.transport.abort()


StartProxy = Callable[..., "object"]


@pytest.fixture
def fault_proxy() -> Callable[..., object]:
    """Put a proxy in front of a server: ``async with fault_proxy(url, cuts=…) as proxy``."""

    @asynccontextmanager
    async def start(target: str, cuts: Collection[int] = ()) -> AsyncIterator[FaultProxy]:
        proxy = FaultProxy(target, cuts)
        listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        proxy.port = listener.sockets[0].getsockname()[1]
        async with listener:
            yield proxy
            listener.close()

    return start
