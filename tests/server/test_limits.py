"""Every wait of the server has a limit, and each limit is reached here."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from chucky import Chucky, ValidationError, tool
from chucky.server.edge import websocket
from chucky.server.model import keyed_http

WAIT_SECONDS = 20


async def test_a_client_that_sends_no_token_at_all_is_told_so(
    start_server: Any, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "TOKEN_WAIT_SECONDS", 0.05)
    async with start_server() as server, dial(server.url) as client:
        code, frames = await client.closed()
    assert code == 1008
    assert [frame["payload"]["details"]["reason"] for frame in frames] == ["token_missing"]


async def test_an_idle_session_is_closed_and_a_busy_one_is_not(
    start_server: Any, dial: Any, script: Callable[..., str]
) -> None:
    async with (
        start_server(idle_timeout_seconds=1) as server,
        dial(server.url, token=server.token()) as idle,
        dial(server.url, token=server.token()) as busy,
    ):
        await busy.ask(script({"text": "took its time", "delay_ms": 1_500}))
        code, frames = await idle.closed()
        assert code == 1000
        assert [frame["payload"] for frame in frames] == [{"action": "ready"}]
        assert (await busy.result())["result"] == "took its time"


async def test_a_client_that_does_not_read_is_left_and_others_notice_nothing(
    start_server: Any, dial: Any, script: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "SEND_TIMEOUT_SECONDS", 0.2)
    async with start_server(max_sessions_per_user=1) as server:
        host, port = server.url.removeprefix("ws://").removesuffix("/ws").split(":")
        # A socket of our own: a WebSocket library would read on behind our back.
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(WAIT_SECONDS):
            await loop.sock_connect(deaf, (host, int(port)))
            await loop.sock_sendall(deaf, _upgrade(server.token("deaf")))
            upgraded = b""
            while not upgraded.endswith(b"\r\n\r\n"):
                upgraded += await loop.sock_recv(deaf, 1)
            assert b" 101 " in upgraded
            await loop.sock_sendall(deaf, _text_frame({"type": "init", "payload": {}}))
            flood = script({"text": ["x" * 4_000_000], "overrun": True})
            user = {"type": "user", "message": {"role": "user", "content": flood}}
            for _ in range(4):  # more than the kernel keeps for a slow reader
                await loop.sock_sendall(deaf, _text_frame(user))
            # Its slot is free again once the server has given it up.
            while True:
                async with dial(server.url, token=server.token("deaf")) as second:
                    if (await second.receive())["type"] == "control":
                        break
            # What it had not read by then is not kept for it: the end is in the middle of a frame.
            assert not _are_whole_frames(await _received(deaf))
        result = await Chucky(server.token("other"), server.url).prompt("What is 2 + 2?")
        assert result.subtype == "success"


async def _received(deaf: socket.socket) -> bytes:
    """Everything that still comes."""
    parts = []
    try:
        while part := await asyncio.get_running_loop().sock_recv(deaf, 65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    finally:
        deaf.close()
    return b"".join(parts)


def _are_whole_frames(data: bytes) -> bool:
    position = 0
    while position + 2 <= len(data):
        length = data[position + 1]
        size = {126: 2, 127: 8}.get(length, 0)
        position += 2 + size
        if size:
            length = int.from_bytes(data[position - size : position], "big")
        position += length
    return position == len(data)


def _upgrade(token: str) -> bytes:
    return (
        f"GET /ws?token={token} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()


def _text_frame(fields: dict[str, Any]) -> bytes:
    return Frame(Opcode.TEXT, json.dumps(fields).encode()).serialize(mask=True)


async def test_a_model_that_falls_silent_is_given_up(
    start_server: Any, script: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyed_http, "_SECONDS_BETWEEN_EVENTS", 0.3)
    silent = script({"text": ["one ", "two"], "chunk_delay_ms": 60_000})
    async with start_server(model_attempts=1) as server:
        result = await Chucky(server.token(), server.url).prompt(silent)
    assert result.error.reason == "model_timeout"


async def test_a_stop_does_not_wait_for_a_client_that_does_not_take_its_result(
    start_server: Any, dial: Any, script: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "STOP_SECONDS", 0.0)
    async with start_server() as server, dial(server.url, token=server.token()) as client:
        await client.ask(script({"text": "never", "delay_ms": 60_000}))
        await client.receive_until("system")
        await asyncio.to_thread(server.store.disable_project, server.project_id)
        code, _frames = await client.closed()
    assert code == 1008


async def test_what_is_larger_than_the_server_takes_is_said_and_costs_no_connection(
    start_server: Any, script: Callable[..., str]
) -> None:
    @tool("dump", "Returns far too much")
    def dump() -> str:
        return "x" * 70_000

    call = script({"tools": [{"name": "dump", "input": {}}]}, {"text": "went on"})
    async with start_server(max_frame_bytes=65_536) as server:
        client = Chucky(server.token(), server.url)
        async with client.create_session(tools=[dump]) as session:
            await session.send(call)
            messages = [message async for message in session.stream()]
            assert messages[-1].result == "went on"
            told = next(message for message in messages if message.type == "user")
            assert "65536" in json.dumps(told)
            with pytest.raises(ValidationError, match="65536"):
                await session.send("x" * 70_000)
            await session.send("What is 2 + 2?")
            assert [m async for m in session.stream()][-1].subtype == "success"
