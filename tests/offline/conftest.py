"""A running offline model, and two ways to talk to it: the official client, and plain HTTP."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic

from chucky.offline.app import serve


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    """The base URL of an offline model that runs in a thread of its own."""
    bound: Future[int] = Future()
    stopping: Future[None] = Future()

    async def run() -> None:
        server = asyncio.create_task(serve("127.0.0.1", 0, ready=bound.set_result))
        await asyncio.wait(
            {server, asyncio.wrap_future(stopping)}, return_when=asyncio.FIRST_COMPLETED
        )
        server.cancel()
        await asyncio.wait({server})

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.result(timeout=10)}"
    finally:
        stopping.set_result(None)
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.fixture
async def http(base_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """Plain HTTP, for what the official client would not send or not show."""
    # Not to load the machine's certificates for each test saves most of its time.
    async with httpx2.AsyncClient(base_url=base_url, timeout=20, verify=False) as http:
        yield http


@pytest.fixture
def client(base_url: str, http: httpx2.AsyncClient) -> AsyncAnthropic:
    """The official client; it does not retry, so that a test sees each failure."""
    key = secrets.token_hex(16)
    return AsyncAnthropic(
        base_url=base_url, api_key=key, max_retries=0, http_client=http, timeout=20
    )


@pytest.fixture
def script() -> Callable[..., str]:
    """Make a message that carries a script; each is a turn of its own to the model."""

    def make(*steps: dict[str, Any]) -> str:
        source = json.dumps(steps, ensure_ascii=False)
        return f"Test {secrets.token_hex(8)}.\n```offline\n{source}\n```"

    return make
