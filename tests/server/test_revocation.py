"""Rotating a key and disabling a project act on a running server, its sockets and its turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chucky import create_budget, create_token
from chucky.server.projects import ProjectDirectory

WAIT_SECONDS = 15


async def _ready(client: Any, *capabilities: str) -> None:
    await client.receive()
    await client.send(type="init", payload={"capabilities": list(capabilities)})
    await client.receive_until("control")


@pytest.mark.parametrize("how", ["rotate", "disable"])
async def test_a_running_turn_ends_with_a_result_and_the_socket_is_closed(
    start_server: Any, dial: Any, script: Callable[..., str], how: str
) -> None:
    async with (
        start_server() as server,
        dial(server.url, token=server.token()) as busy,
        dial(server.url, token=server.token()) as idle,
        dial(server.url, token=server.token()) as old,
    ):
        await _ready(busy, "result_details")
        await _ready(idle, "error_frames")
        await _ready(old)
        await busy.ask(script({"text": "never", "delay_ms": 60_000}))
        await busy.receive_until("system")
        act = server.store.rotate_key if how == "rotate" else server.store.disable_project
        await asyncio.to_thread(act, server.project_id)

        code, frames = await busy.closed()
        assert code == 1008
        (result,) = frames
        assert result["type"] == "result"
        reason = {"rotate": "token_signature", "disable": "project_disabled"}[how]
        assert (result["error"]["code"], result["error"]["reason"]) == (
            "AUTHENTICATION_ERROR",
            reason,
        )
        code, frames = await idle.closed()
        assert code == 1008
        assert [frame["payload"]["details"]["reason"] for frame in frames] == [reason]
        # A client that did not name the extension gets no frame it would not expect.
        assert await old.closed() == (1008, [])

        async with dial(server.url, token=server.token()) as again:
            _code, frames = await again.closed()
        assert frames[0]["payload"]["details"]["reason"] == reason


async def test_keeping_the_old_key_keeps_its_sockets(start_server: Any, dial: Any) -> None:
    async with start_server() as server, dial(server.url, token=server.token()) as client:
        await _ready(client)
        key = await asyncio.to_thread(server.store.rotate_key, server.project_id, keep_old=True)
        token = create_token("new", server.project_id, key.secret, create_budget(1, 1))
        async with dial(server.url, token=token) as fresh:
            # The new key works at once, so the change has been seen when this is answered.
            assert (await fresh.receive())["payload"] == {"action": "ready"}
        await client.ask("What is 2 + 2?")
        assert (await client.result())["subtype"] == "success"


async def test_a_project_made_while_the_server_runs_works_at_once(
    start_server: Any, dial: Any
) -> None:
    async with start_server() as server:
        project, key = await asyncio.to_thread(server.store.create_project, "fresh")
        token = create_token("u", project.project_id, key.secret, create_budget(1, 1))
        async with dial(server.url, token=token) as client:
            assert (await client.receive())["payload"] == {"action": "ready"}


async def test_a_project_is_found_also_when_the_regular_look_at_the_store_comes_first(
    start_server: Any, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh = ProjectDirectory.refresh

    async def too_late(directory: ProjectDirectory) -> None:
        await asyncio.to_thread(directory.reload)
        await refresh(directory)

    monkeypatch.setattr(ProjectDirectory, "refresh", too_late)
    async with start_server() as server:
        project, key = await asyncio.to_thread(server.store.create_project, "fresh")
        token = create_token("u", project.project_id, key.secret, create_budget(1, 1))
        async with dial(server.url, token=token) as client:
            assert (await client.receive())["payload"] == {"action": "ready"}


async def test_a_token_is_checked_again_at_each_turn(start_server: Any, dial: Any) -> None:
    ahead = timedelta()
    async with (
        start_server(clock=lambda: datetime.now(UTC) + ahead) as server,
        dial(server.url, token=server.token(expires_in=60)) as client,
    ):
        await _ready(client, "result_details")
        await client.ask("What is 2 + 2?")
        assert (await client.result())["subtype"] == "success"
        ahead = timedelta(seconds=121)  # beyond its minute and the leeway of another
        await client.ask("What is 2 + 2?")
        result = await client.result()
    assert result["error"]["reason"] == "token_expired"


async def test_stopping_the_server_ends_turns_with_a_result(
    start_server: Any, dial: Any, script: Callable[..., str]
) -> None:
    async with asyncio.timeout(WAIT_SECONDS), AsyncExitStack() as running:
        server = await running.enter_async_context(start_server())
        async with dial(server.url, token=server.token()) as client:
            await _ready(client, "result_details")
            for _ in range(3):  # the one that runs and those that wait
                await client.ask(script({"text": "never", "delay_ms": 60_000}))
            await client.receive_until("system")
            await running.aclose()
            code, frames = await client.closed()
    assert code == 1012
    assert [frame["error"]["reason"] for frame in frames] == ["server_stopping"] * 3


async def test_without_its_database_the_server_is_not_healthy(
    start_server: Any, tmp_path: Path
) -> None:
    db = tmp_path / "chucky.db"
    async with (
        asyncio.timeout(WAIT_SECONDS),
        start_server() as server,
        httpx2.AsyncClient(base_url=server.url.replace("ws", "http", 1).removesuffix("/ws")) as web,
    ):
        assert (await web.get("/healthz")).status_code == 200
        await asyncio.to_thread(db.rename, tmp_path / "away")
        while (await web.get("/healthz")).status_code == 200:
            pass
        await asyncio.to_thread((tmp_path / "away").rename, db)
        while (await web.get("/healthz")).status_code == 503:
            pass
