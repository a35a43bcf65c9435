"""Calls with a key: what is free of what goes wrong, and where a key never goes."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from chucky.server.model import keyed_http
from chucky.server.model.keyed_http import KeyedHttp
from chucky.server.model.upstream import ModelRequest, UpstreamError

BODY = {"model": "m", "messages": []}
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHello"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """A server that does with its connections what a test wants."""

    def __init__(self) -> None:
        self.address = ""
        self.heads: list[str] = []

    async def read_request(self, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        lengths = [line for line in head.splitlines() if line.lower().startswith("content-length")]
        await reader.readexactly(int(lengths[0].partition(":")[2]))


@asynccontextmanager
async def peer(handle: Callable[[Peer], Handler]) -> AsyncIterator[Peer]:
    started = Peer()
    handler = handle(started)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    started.address = f"{host}:{port}"
    try:
        yield started
    finally:
        server.close()


def answers(text: bytes) -> Callable[[Peer], Handler]:
    """Read a request and answer with this."""

    def handle(started: Peer) -> Handler:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await started.read_request(reader)
            writer.write(text)
            await writer.drain()

        return handler

    return handle


def waits(ended: asyncio.Event, text: bytes = b"") -> Callable[[Peer], Handler]:
    """Answer with the beginning of something, and go on when the test has ended."""

    def handle(_started: Peer) -> Handler:
        async def handler(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(text)
            await ended.wait()

        return handler

    return handle


@asynccontextmanager
async def calls(address: str, key: str = "") -> AsyncIterator[KeyedHttp]:
    url = f"http://{address}/v1/messages"
    http = KeyedHttp(url, {"x-api-key": key}, ssl.create_default_context())
    try:
        yield http
    finally:
        await http.close()


def request(**more: object) -> ModelRequest:
    return ModelRequest({**BODY, **more})


async def ask(http: KeyedHttp, **more: object) -> bytes:
    async with asyncio.timeout(20), http.stream(request(**more), {}) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def refusal(http: KeyedHttp, **more: object) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        await ask(http, **more)
    return raised.value


async def test_a_connection_that_cannot_be_made_is_free() -> None:
    async with peer(answers(ANSWER)) as gone:
        pass
    async with calls(gone.address) as http:
        error = await refusal(http)
    assert (error.reason, error.is_free, error.retryable) == ("model_unreachable", True, True)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nHello"], ids=["none", "half"]
)
async def test_a_request_that_was_sent_is_not_free_though_its_answer_is_lost(
    answer: bytes,
) -> None:
    async with peer(answers(answer)) as lost, calls(lost.address) as http:
        error = await refusal(http)
    assert (error.reason, error.is_free, error.retryable) == ("model_unreachable", False, True)
    assert len(lost.heads) == 1, "a call is made once"


async def test_an_answer_that_does_not_begin_is_given_up_and_not_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keyed_http, "_ANSWER_SECONDS", 0.2)
    ended = asyncio.Event()
    async with peer(waits(ended)) as silent, calls(silent.address) as http:
        # So much does not fit between the two: it is also a request that is not taken.
        error = await refusal(http, messages=["x" * 20_000_000])
        ended.set()
    assert (error.reason, error.is_free) == ("model_timeout", False)


async def test_a_call_that_gets_no_connection_is_given_up_and_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keyed_http, "_MOST_CONNECTIONS", 1)
    monkeypatch.setattr(keyed_http, "_POOL_SECONDS", 0.0)
    monkeypatch.setattr(keyed_http, "_CONNECT_SECONDS", 0.2)
    ended = asyncio.Event()
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nHello"
    async with peer(waits(ended, half)) as slow, calls(slow.address) as http:
        async with http.stream(request(), {}):
            error = await refusal(http)
        ended.set()
    assert (error.reason, error.is_free) == ("model_timeout", True)


async def test_of_a_call_that_is_left_it_is_known_whether_anything_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keyed_http, "_MOST_CONNECTIONS", 1)
    ended = asyncio.Event()
    sent, waiting = request(), request()
    sent.is_unsent = True

    async def call(wanted: ModelRequest) -> None:
        async with http.stream(wanted, {}):
            raise AssertionError("nobody answers")

    async with peer(waits(ended)) as silent, calls(silent.address) as http:
        async with asyncio.timeout(20):
            first = asyncio.create_task(call(sent))
            while sent.is_unsent:  # noqa: ASYNC110 - it is noted, and told to nobody
                await asyncio.sleep(0.001)
            second = asyncio.create_task(call(waiting))
            while not waiting.is_unsent:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        for each in (first, second):
            each.cancel()
        await asyncio.wait([first, second], timeout=20)
        ended.set()
    assert (sent.is_unsent, waiting.is_unsent) == (False, True)


async def test_a_redirection_is_an_error_and_takes_the_key_nowhere() -> None:
    key = secrets.token_urlsafe()
    async with peer(answers(ANSWER)) as elsewhere:
        to = b"HTTP/1.1 307 Moved\r\nLocation: http://%s/\r\nContent-Length: 0\r\n\r\n"
        async with (
            peer(answers(to % elsewhere.address.encode())) as moved,
            calls(moved.address, key) as http,
        ):
            error = await refusal(http)
    assert error.is_free
    assert "HTTP 307" in str(error)
    assert key in moved.heads[0]
    assert elsewhere.heads == []


async def test_proxies_of_the_environment_are_used_but_for_what_they_leave_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with peer(answers(ANSWER)) as proxy, peer(answers(ANSWER)) as local:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with calls("model.invalid") as http:
            assert await ask(http) == b"Hello"
        async with calls(local.address) as http:
            assert await ask(http) == b"Hello"
    assert proxy.heads[0].startswith("POST http://model.invalid/v1/messages HTTP/1.1")
    assert local.heads[0].startswith("POST /v1/messages HTTP/1.1")
