"""A proxy that breaks connections where it is told to, and servers that can be killed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

import pytest

from chucky import create_budget, create_token
from chucky.server.app import serve
from chucky.server.settings import Settings
from chucky.server.store import Store

WAIT_SECONDS = 30

Fault = Literal["cut", "cut_behind", "half_close", "silence", "delay"]
"""What happens to a connection at a frame.

cut         the frame does not arrive, and the connection is cut
cut_behind  the frame arrives, and then the connection is cut
half_close  the frame does not arrive; its sender seems to have closed, and is still heard
silence     from the frame on nothing arrives, in either direction, and nobody is told
delay       the frame arrives late
"""

DELAY_SECONDS = 0.02
# The first frames begin the session, and until its client knows its id a loss raises.
BEGINNING_FRAMES = 4
_BEGUN = b'"session_info"'
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


@dataclass(eq=False)
class _Pair:
    """The two ends of one connection through the proxy, and how many frames have passed."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    is_silent: bool = False
    frames: int = 0

    def cut(self) -> None:
        """Let it end as a lost network does."""
        self.client.transport.abort()
        self.server.transport.abort()

    async def close(self) -> None:
        """Let it end after what was written before has arrived."""
        for writer in (self.client, self.server):
            writer.close()
        for writer in (self.client, self.server):
            with suppress(ConnectionError):
                await writer.wait_closed()


@dataclass
class FaultProxy:
    """Passes WebSocket frames between clients and a server, and does harm at given frames.

    Attributes:
        target: The server's address.
        faults: What happens at which frame; they are counted over all connections and both
            directions. What comes before a client knows its session, also of a machine that is
            so slow that pings come in between, counts as its first frames.
        frames: How many frames have come.
        connections: How many connections have come.
    """

    target: str
    faults: Mapping[int, Fault]
    frames: int = 0
    connections: int = 0
    port: int = 0
    _has_begun: bool = False
    _open: set[_Pair] = field(default_factory=set)
    _awaited: dict[int, asyncio.Event] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    async def reach(self, frame: int) -> None:
        """Wait until so many frames have come."""
        if self.frames < frame:
            await self._awaited.setdefault(frame, asyncio.Event()).wait()

    def skip_to(self, frame: int) -> None:
        """Count up to a frame."""
        self.frames = max(self.frames, frame)
        for awaited in [each for each in self._awaited if each <= self.frames]:
            self._awaited.pop(awaited).set()

    def cut_some(self, choose: Callable[[int], bool]) -> None:
        """Cut those of the open connections that are chosen by how many frames have passed."""
        for pair in list(self._open):
            if choose(pair.frames):
                pair.cut()

    def close(self) -> None:
        """Cut everything."""
        self.cut_some(lambda _frames: True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        parts = urlsplit(self.target)
        try:
            from_server, to_server = await asyncio.open_connection(parts.hostname, parts.port)
        except OSError:  # the server is away
            writer.transport.abort()
            return
        pair = _Pair(writer, to_server)
        self._open.add(pair)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, to_server, pair))
                tasks.create_task(self._pass(from_server, writer, pair))
        finally:
            self._open.discard(pair)
            pair.cut()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: _Pair
    ) -> None:
        try:
            writer.write(await reader.readuntil(_HEAD_END))
            while True:
                frame = await read_frame(reader)
                self._has_begun |= _BEGUN in frame
                if self._has_begun or self.frames < BEGINNING_FRAMES - 1:
                    self.skip_to(self.frames + 1)
                pair.frames += 1
                if not await self._survives(frame, self.faults.get(self.frames), writer, pair):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            if not pair.is_silent:
                pair.cut()

    async def _survives(
        self, frame: bytes, fault: Fault | None, writer: asyncio.StreamWriter, pair: _Pair
    ) -> bool:
        """Pass a frame on, or not; whether more can follow."""
        pair.is_silent |= fault == "silence"
        if pair.is_silent:
            return True
        if fault == "cut":
            pair.cut()
            return False
        if fault == "half_close":
            writer.write_eof()
            return False
        if fault == "delay":
            await asyncio.sleep(DELAY_SECONDS)  # this is the fault, and nobody waits for it
        writer.write(frame)
        await writer.drain()
        if fault == "cut_behind":
            await pair.close()
            return False
        return True


class StartProxy(Protocol):
    """What the fixture ``fault_proxy`` is."""

    def __call__(
        self, target: str, faults: Mapping[int, Fault] | None = None
    ) -> AbstractAsyncContextManager[FaultProxy]:
        """Put a proxy in front of a server."""


@pytest.fixture
def fault_proxy() -> StartProxy:
    """Put a proxy in front of a server: ``async with fault_proxy(url, {7: "cut"}) as proxy``."""

    @asynccontextmanager
    async def start(
        target: str, faults: Mapping[int, Fault] | None = None
    ) -> AsyncIterator[FaultProxy]:
        proxy = FaultProxy(target, faults or {})
        listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        proxy.port = listener.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            listener.close()
            proxy.close()
            await listener.wait_closed()

    return start


# ---- servers that can be stopped ---------------------------------------------------------------


@dataclass
class MortalServer:
    """A ``chucky serve`` process on one port and one database, however often it is started.

    Attributes:
        port: Its port, the same every time.
        directory: Where its database and its settings are.
    """

    command: str
    directory: Path
    port: int
    process: asyncio.subprocess.Process | None = None
    _project: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def db(self) -> Path:
        return self.directory / "chucky.db"

    def token(self, user: str) -> str:
        """Sign a token."""
        budget = create_budget(1_000, 100)
        return create_token(user, self._project["projectId"], self._project["hmacKey"], budget)

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        self.process = await asyncio.create_subprocess_exec(
            self.command,
            *("serve", "--port", str(self.port), "--db", str(self.db)),
            cwd=self.directory,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout
        async with asyncio.timeout(WAIT_SECONDS):
            line = await self.process.stdout.readline()
        assert self.url.encode() in line
        if not self._project:
            self._project = json.loads(await self.run("projects", "create", "tests", "--json"))

    async def run(self, *arguments: str) -> bytes:
        """Run a command on its database; return what it prints."""
        process = await asyncio.create_subprocess_exec(
            self.command,
            *(*arguments, "--db", str(self.db)),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        async with asyncio.timeout(WAIT_SECONDS):
            printed, _ = await process.communicate()
        assert process.returncode == 0, printed
        return printed

    async def kill(self) -> None:
        """Let it die at once."""
        await self._end("kill")

    async def stop(self) -> None:
        """Stop it as an operator does; it exits with 0."""
        assert await self._end("terminate") == 0

    async def _end(self, how: Literal["kill", "terminate"]) -> int:
        assert self.process
        with suppress(ProcessLookupError):
            getattr(self.process, how)()
        async with asyncio.timeout(WAIT_SECONDS):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@pytest.fixture
async def mortal_server(
    chucky_command: str, free_port: int, tmp_path: Path
) -> AsyncIterator[MortalServer]:
    """A server to be killed and started again. A file ``chucky.toml`` in its directory counts."""
    server = MortalServer(chucky_command, tmp_path, free_port)
    await server.start()
    yield server
    await server.kill()


@dataclass(frozen=True)
class OwnServer:
    """A server in this process, in which constants can be changed."""

    url: str
    project_id: str
    secret: str = field(repr=False)

    def token(self, user: str) -> str:
        """Sign a token."""
        return create_token(user, self.project_id, self.secret, create_budget(1_000, 100))


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[OwnServer]:
    """Start a server in this process."""
    given = {"db": tmp_path / "chucky.db", "port": 0, "drain_seconds": 0}
    settings = await asyncio.to_thread(Settings.load, given, environ={}, directory=tmp_path)
    announced: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        serve(settings, lambda url, project, _notice: announced.set_result((url, project)))
    )
    async with asyncio.timeout(WAIT_SECONDS):
        url, project_id = await announced
    store = await asyncio.to_thread(Store.open, settings.db)
    project = await asyncio.to_thread(store.find_project, project_id)
    store.close()
    try:
        yield OwnServer(url, project_id, project.keys[0].secret)
    finally:
        serving.cancel()
        await asyncio.wait([serving], timeout=WAIT_SECONDS)
