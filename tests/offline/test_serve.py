"""Running the offline model inside a program: start, signals, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator

import httpx2
import pytest

from chucky.offline.app import serve

STREAM = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 99,
    "stream": True,
    "messages": [
        {
            "role": "user",
            "content": '```offline\n[{"text": ["a", "b"], "chunk_delay_ms": 600000}]\n```',
        }
    ],
}


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[asyncio.Task[None], httpx2.AsyncClient]]:
    """An offline model in this event loop, and a client of it."""
    bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(20):
        task = asyncio.create_task(serve("127.0.0.1", 0, ready=bound.set_result))
        try:
            url = f"http://127.0.0.1:{await bound}"
            async with httpx2.AsyncClient(base_url=url, timeout=10, verify=False) as http:
                yield task, http
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_it_says_when_and_where_it_listens() -> None:
    async with running() as (_, http):
        assert (await http.get("/healthz")).status_code == 200


async def test_it_leaves_the_signals_alone() -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    async with running():
        during = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    assert during == before


async def test_cancelling_it_ends_open_streams_and_frees_the_port(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        running() as (task, http),
        http.stream("POST", "/v1/messages", json=STREAM) as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == "event: message_start"

        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        with pytest.raises(httpx2.TransportError):
            async for _ in lines:
                pass
        with pytest.raises(httpx2.ConnectError):
            await http.get("/healthz")
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_client_that_goes_away_ends_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as (_, http):
        before = asyncio.all_tasks()
        async with http.stream("POST", "/v1/messages", json=STREAM) as response:
            assert await anext(response.aiter_lines()) == "event: message_start"
            assert asyncio.all_tasks() - before

        if waiting := asyncio.all_tasks() - before:  # the time limit of running() ends it
            await asyncio.wait(waiting)
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_client_that_goes_away_while_it_asks_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as (_, http):
        before = asyncio.all_tasks()
        _, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
        writer.write(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        while not (asking := asyncio.all_tasks() - before):
            await http.get("/healthz")

        writer.close()
        await asyncio.wait(asking)
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_dropped_connection_is_no_fault_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = '```offline\n[{"text": "a", "cut_after_chunks": 1}]\n```'
    wanted = {**STREAM, "messages": [{"role": "user", "content": told}]}

    async with running() as (_, http):
        with pytest.raises(httpx2.RemoteProtocolError):
            await http.post("/v1/messages", json=wanted)

    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_port_that_is_taken_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with asyncio.timeout(10):
            await serve("127.0.0.1", taken.getsockname()[1])


async def test_it_runs_without_being_asked_to_report(free_port: int) -> None:
    task = asyncio.create_task(serve("127.0.0.1", free_port))
    async with asyncio.timeout(20):
        while True:
            await asyncio.sleep(0)
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", free_port)
                break
        writer.close()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
