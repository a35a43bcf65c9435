"""Servers that do exactly what a test tells them, on real sockets."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed

from chucky import Chucky

WAIT_SECONDS = 5.0
TEST_SECONDS = 20.0
SESSION_ID = "0d6b6f1e-6b5c-4a55-9a53-1f6f3c6a2b11"

Frame = dict[str, Any]

# Tests look at what the client logs; what the server's library has to say is no part of that.
_silent = logging.getLogger("scripted server")
_silent.setLevel(logging.ERROR)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limit the asynchronous tests of this folder: what hangs fails, and shows where."""
    for item in items:
        if not isinstance(item, pytest.Function) or item.path.parent != Path(__file__).parent:
            continue
        if inspect.iscoroutinefunction(item.obj):
            item.obj = _limited(item.obj)


def _limited(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await test(*args, **kwargs)

    return run


class Peer:
    """The server's end of one connection. Every wait has a limit.

    ``send()`` takes frames; ``assistant()``, ``result()`` and the like make them. With
    ``is_wrapped`` the agent's messages travel in envelopes.
    """

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.is_wrapped = False
        self.received: list[Frame] = []

    @property
    def query(self) -> list[tuple[str, str]]:
        """What the client wrote behind the ``?`` of the url, in order."""
        assert self.socket.request
        return parse_qsl(urlsplit(self.socket.request.path).query, keep_blank_values=True)

    @property
    def headers(self) -> Headers:
        """The headers of the client's request."""
        assert self.socket.request
        return self.socket.request.headers

    async def send(self, *frames: Mapping[str, Any]) -> None:
        """Send frames."""
        for frame in frames:
            is_message = "payload" not in frame
            if self.is_wrapped and is_message:
                frame = {"type": "sdk_message", "payload": frame}
            await self.send_raw(json.dumps(frame))

    async def send_raw(self, data: str | bytes) -> None:
        """Send a text or a binary frame as it is."""
        async with asyncio.timeout(WAIT_SECONDS):
            await self.socket.send(data)

    async def receive(self) -> Frame:
        """Wait for the next frame; nothing is done about it."""
        async with asyncio.timeout(WAIT_SECONDS):
            frame = json.loads(await self.socket.recv())
        assert isinstance(frame, dict)
        self.received.append(frame)
        return frame

    async def expect(self, kind: str) -> Frame:
        """Wait for a frame of this type; pings before it are answered, others are failures."""
        while (frame := await self.receive())["type"] != kind:
            assert frame["type"] == "ping", f"expected {kind}, not {frame}"
            await self.send(self.pong(frame))
        return frame

    async def until_closed(self) -> list[Frame]:
        """Collect what comes until the client closes; pings are answered."""
        frames = []
        try:
            while True:
                frame = await self.receive()
                if frame["type"] == "ping":
                    await self.send(self.pong(frame))
                else:
                    frames.append(frame)
        except ConnectionClosed:
            return frames

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the socket with a closing handshake."""
        async with asyncio.timeout(WAIT_SECONDS):
            await self.socket.close(code, reason)

    def abort(self) -> None:
        """Cut the connection as a crash would."""
        self.socket.transport.abort()

    async def start(self, **session_info: Any) -> Frame:
        """Be ready at once and return the payload of the client's ``init``."""
        await self.send(self.control("ready"))
        if session_info:
            await self.send(self.control("session_info", **session_info))
        payload = (await self.expect("init"))["payload"]
        assert isinstance(payload, dict)
        return payload

    async def turn(self, answer: str = "Hello!", **result: Any) -> str:
        """Answer one user message; return what was asked."""
        asked = (await self.expect("user"))["message"]["content"]
        await self.send(self.assistant(answer), self.result(answer, **result))
        assert isinstance(asked, str)
        return asked

    async def settle(self) -> None:
        """Wait until the client has read everything: it answers calls of unknown tools itself."""
        await self.send(self.tool_call(secrets.token_hex(4), "settle"))
        await self.expect("tool_result")

    async def serve(self, answer: str = "Hello!") -> None:
        """Be a server that works: answer every message until the client closes."""
        await self.start()
        try:
            while True:
                frame = await self.receive()
                if frame["type"] == "ping":
                    await self.send(self.pong(frame))
                elif frame["type"] == "user":
                    await self.send(self.assistant(answer), self.result(answer))
        except ConnectionClosed:
            pass

    @staticmethod
    def control(action: str, **data: Any) -> Frame:
        """Make a control frame."""
        payload: Frame = {"action": action}
        if data:
            payload["data"] = data
        return {"type": "control", "payload": payload}

    @staticmethod
    def pong(ping: Frame) -> Frame:
        """Make the answer to a ping."""
        return {"type": "pong", "payload": ping["payload"]}

    @staticmethod
    def error(message: str, code: str = "SESSION_ERROR", **details: Any) -> Frame:
        """Make an error frame."""
        return {"type": "error", "payload": {"message": message, "code": code, "details": details}}

    @staticmethod
    def tool_call(call_id: str, tool_name: str, arguments: Any = None) -> Frame:
        """Ask the client to run a tool."""
        payload = {"callId": call_id, "toolName": tool_name, "input": arguments or {}}
        return {"type": "tool_call", "payload": payload}

    @staticmethod
    def message(kind: str, **fields: Any) -> Frame:
        """Make a message of the agent."""
        return {"type": kind, "uuid": secrets.token_hex(8), "session_id": SESSION_ID, **fields}

    @classmethod
    def system(cls) -> Frame:
        """Make the message that begins a session."""
        return cls.message("system", subtype="init", model="claude-test", tools=[], cwd=".")

    @classmethod
    def assistant(cls, *blocks: str | Frame) -> Frame:
        """Make an assistant message of texts and other blocks."""
        content = [{"type": "text", "text": b} if isinstance(b, str) else b for b in blocks]
        inner = {"role": "assistant", "content": content}
        return cls.message("assistant", message=inner, parent_tool_use_id=None)

    @classmethod
    def delta(cls, text: str) -> Frame:
        """Make a partial message."""
        event = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}
        return cls.message("stream_event", event=event, parent_tool_use_id=None)

    @classmethod
    def result(cls, text: str = "Hello!", **fields: Any) -> Frame:
        """Make the result that ends a turn."""
        usual = {
            "subtype": "success",
            "is_error": False,
            "result": text,
            "duration_ms": 12,
            "duration_api_ms": 9,
            "num_turns": 1,
            "total_cost_usd": 0.0012,
            "usage": {"input_tokens": 3, "output_tokens": 5},
        }
        return cls.message("result", **{**usual, **fields})


Script = Callable[[Peer], Awaitable[None]]


class ScriptedServer:
    """A running server; connection number n is treated by script number n, or by the last."""

    def __init__(self, scripts: tuple[Script, ...]) -> None:
        self.url = ""
        self.token = secrets.token_hex(16)
        self.peers: list[Peer] = []
        self.failures: list[Exception] = []
        self._scripts = scripts
        self._running: set[asyncio.Task[Any]] = set()

    def client(self, **options: Any) -> Chucky:
        """Make a client of this server."""
        return Chucky(**{"token": self.token, "url": self.url, "timeout": WAIT_SECONDS, **options})

    async def handle(self, socket: ServerConnection) -> None:
        """Play the script of a connection."""
        script = self._scripts[min(len(self.peers), len(self._scripts) - 1)]
        peer = Peer(socket)
        self.peers.append(peer)
        task = asyncio.current_task()
        assert task
        self._running.add(task)
        try:
            await script(peer)
        except Exception as failure:
            self.failures.append(failure)
            await socket.close(1011, "the script failed")
        finally:
            self._running.discard(task)

    async def end(self) -> None:
        """Wait until every script that has begun has been played."""
        if self._running:
            _done, late = await asyncio.wait(self._running, timeout=WAIT_SECONDS)
            self.failures += [AssertionError(f"still waiting: {task}") for task in late]


class StartServer(Protocol):
    """What the fixture ``scripted_server`` is."""

    async def __call__(self, *scripts: Script, **options: Any) -> ScriptedServer:
        """Start a server that plays these scripts; the options are those of ``serve``."""


@pytest.fixture
async def scripted_server(no_task_is_left: None) -> AsyncIterator[StartServer]:
    """Start servers: ``server = await scripted_server(script, …)``.

    A script that fails, or does not come to its end, makes its test fail.
    """
    started: list[tuple[ScriptedServer, Server]] = []

    async def start(*scripts: Script, **options: Any) -> ScriptedServer:
        server = ScriptedServer(scripts)
        usual = {"compression": None, "max_size": None, "close_timeout": 1, "logger": _silent}
        options = {**usual, **options}
        listener = await serve(server.handle, "127.0.0.1", 0, **options)
        server.url = f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}/ws"
        started.append((server, listener))
        return server

    yield start
    failures: list[Exception] = []
    for server, listener in started:
        await server.end()
        listener.close()
        await listener.wait_closed()
        failures += server.failures
    if failures:
        raise ExceptionGroup("the script of a server failed", failures)


StartTcp = Callable[
    [Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]], Awaitable[str]
]


@pytest.fixture
async def tcp_server(no_task_is_left: None) -> AsyncIterator[StartTcp]:
    """Start servers that know nothing of WebSockets; returns ``ws://host:port/ws``."""
    servers: list[asyncio.Server] = []

    async def start(
        handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    ) -> str:
        async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handle(reader, writer)
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
        servers.append(server)
        return f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest.fixture(autouse=True)
def _patient_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test hang, and so fail, whose closing ends by running out of time only."""
    monkeypatch.setattr("chucky.connection.CLOSE_TIMEOUT_SECONDS", 60)
    monkeypatch.setattr("chucky.session.STOP_TIMEOUT_SECONDS", 60)


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    """Fail a test after which something still runs in the background."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _done, pending = await asyncio.wait(left, timeout=1)
        assert not pending, f"left behind: {pending}"
