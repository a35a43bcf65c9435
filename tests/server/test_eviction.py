"""Sessions in which nothing happens leave memory, and come back with the next message."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from chucky.errors import ChuckyError
from chucky.server.engines.history import History
from chucky.server.store.session_rows import KeptSessions

if TYPE_CHECKING:
    from tests.server.conftest import (
        ApiEvents,
        Connect,
        Evicted,
        LocalServer,
        RawClient,
        StartServer,
    )

pytestmark = pytest.mark.timeout(30)
SOON = {"reconnect_grace_seconds": 0.1, "evict_after_seconds": 0.1}
FACT, QUESTION = "My name is Ada.", "What is my name?"

Visit = Callable[..., AbstractAsyncContextManager[tuple["RawClient", str]]]


@pytest.fixture
def visit(dial: Connect) -> Visit:
    """Begin a session: ``async with visit(server) as (client, session_id)``."""

    @asynccontextmanager
    async def begin(server: LocalServer, **options: Any) -> AsyncIterator[tuple[RawClient, str]]:
        async with dial(server.url, header=server.token()) as client:
            await client.receive()
            payload = {"capabilities": ["result_details"], **options}
            await client.send(type="init", payload=payload)
            yield client, (await client.receive())["payload"]["data"]["sessionId"]

    return begin


@pytest.fixture
def histories(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[History]:
    """The conversations that are in memory."""
    found: weakref.WeakSet[History] = weakref.WeakSet()
    begin = History.__init__

    def note(history: History, *arguments: Any) -> None:
        begin(history, *arguments)
        found.add(history)

    monkeypatch.setattr(History, "__init__", note)
    return found


async def answered(client: RawClient, text: str, uuid: str | None = None) -> dict[str, Any]:
    """Ask something, and wait for the result."""
    await client.ask(text, uuid=uuid)
    return await client.result()


@pytest.mark.parametrize("capabilities", [["result_details"], ["result_details", "replay"]])
async def test_an_idle_session_keeps_its_connection_and_nothing_that_was_said(
    start_server: StartServer,
    visit: Visit,
    evicted: Evicted,
    histories: weakref.WeakSet[History],
    capabilities: list[str],
) -> None:
    async with (
        start_server(**SOON) as server,
        visit(server, capabilities=capabilities) as (client, _),
    ):
        await answered(client, FACT)
        gc.collect()
        assert len(histories) == 1
        await evicted.wait()
        gc.collect()
        assert len(histories) == 0

        result = await answered(client, QUESTION)
        assert "Ada" in result["result"]
        assert result["num_turns"] == 2
        gc.collect()
        assert len(histories) == 1


async def test_a_message_is_not_run_twice_that_came_before(
    start_server: StartServer,
    start_provider: Any,
    api: ApiEvents,
    visit: Visit,
    evicted: Evicted,
) -> None:
    async with (
        start_provider(api.says("One."), api.says("Two.")) as provider,
        start_server(upstream_url=provider.url, **SOON) as server,
        visit(server) as (client, _),
    ):
        await answered(client, "first", "a")
        await evicted.wait()
        for text, uuid in (("first", "a"), ("second", "b"), ("second", "b"), ("first", "a")):
            await client.ask(text, uuid=uuid)
        assert (await client.result())["result"] == "Two."
        await evicted.wait()
        # What came only twice makes no turn, and leaves again.
        await client.ask("second", uuid="b")
        await evicted.wait()
    assert len(provider.requests) == 2


async def test_a_message_that_comes_while_the_log_cannot_be_read_is_told_so(
    start_server: StartServer, visit: Visit, evicted: Evicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise ChuckyError("The database cannot be read.", code="STORE_ERROR")

    async with start_server(**SOON) as server, visit(server) as (client, _):
        await answered(client, FACT)
        await evicted.wait()
        with monkeypatch.context() as patch:
            patch.setattr(KeptSessions, "events", fail)
            result = await answered(client, QUESTION)
        assert result["error"]["code"] == "STORE_ERROR"
        assert "Ada" in (await answered(client, QUESTION))["result"]


async def test_a_session_that_was_deleted_meanwhile_does_not_come_back(
    start_server: StartServer, visit: Visit, evicted: Evicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_server(**SOON) as server, visit(server) as (client, session_id):
        await answered(client, FACT)
        await evicted.wait()
        with monkeypatch.context() as patch:
            patch.setattr(KeptSessions, "session", lambda *_: None)
            result = await answered(client, QUESTION)
    assert result["session_id"] == session_id
    assert result["error"]["reason"] == "session_not_found"


async def test_a_session_that_is_new_waits_for_its_first_message(
    start_server: StartServer, visit: Visit, evicted: Evicted
) -> None:
    async with start_server(**SOON) as server, visit(server) as (client, _):
        await evicted.wait()
        assert (await answered(client, FACT))["subtype"] == "success"


async def test_a_session_that_is_kept_nowhere_else_stays(
    start_server: StartServer, visit: Visit, evicted: Evicted
) -> None:
    async with (
        start_server(session_log=False, **SOON) as server,
        visit(server) as (client, _),
    ):
        await answered(client, FACT)
        await evicted.wait()
        assert "Ada" in (await answered(client, QUESTION))["result"]


async def test_a_session_that_was_interrupted_while_it_is_read_again_is_usable(
    start_server: StartServer, visit: Visit, evicted: Evicted
) -> None:
    async with (
        start_server(**SOON) as server,
        visit(server, capabilities=["interrupt", "result_details"]) as (client, _),
    ):
        await answered(client, FACT)
        await evicted.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(client.ask(QUESTION))
            tasks.create_task(client.send(type="control", payload={"action": "interrupt"}))
        assert (await client.result())["error"]["code"] == "INTERRUPTED"
        assert "Ada" in (await answered(client, QUESTION))["result"]
