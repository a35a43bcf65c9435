"""A client that sends and receives frames as they are, to look at the server's own words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chucky import create_budget, create_token
from chucky.server.app import serve
from chucky.server.settings import Settings
from chucky.server.store import SqliteStore

WAIT_SECONDS = 15

Form = Literal["wrapped", "flat"]


@dataclass
class RawClient:
    """One socket; every wait has a limit."""

    socket: ClientConnection

    async def send(self, **frame: Any) -> None:
        """Send a frame."""
        await self.socket.send(json.dumps(frame))

    async def ask(self, text: str, form: Form = "flat", uuid: str | None = None) -> None:
        """Send a user message in one of the two forms."""
        if form == "wrapped":
            await self.send(type="prompt", payload={"message": text, "options": {}})
            return
        ids = {"uuid": uuid} if uuid else {}
        message = {"role": "user", "content": text}
        await self.send(
            type="user", session_id="unknown", message=message, parent_tool_use_id=None, **ids
        )

    async def receive(self) -> dict[str, Any]:
        """Wait for the next frame."""
        async with asyncio.timeout(WAIT_SECONDS):
            frame = json.loads(await self.socket.recv())
        assert isinstance(frame, dict)
        return frame

    async def receive_until(self, kind: str) -> list[dict[str, Any]]:
        """Collect frames up to the first of a type (looking into wrapped messages)."""
        frames = [await self.receive()]
        while unwrap(frames[-1])["type"] != kind:
            frames.append(await self.receive())
        return frames

    async def result(self) -> dict[str, Any]:
        """Wait for the result of the turn."""
        return unwrap((await self.receive_until("result"))[-1])

    async def closed(self) -> tuple[int | None, list[dict[str, Any]]]:
        """Wait until the server closes; return the code and the frames before it."""
        return await self.closed_or()

    async def closed_or(self, *kinds: str) -> tuple[int | None, list[dict[str, Any]]]:
        """Wait for a frame of one of the types, or the close; the code is None without one."""
        frames: list[dict[str, Any]] = []
        try:
            while not frames or frames[-1]["type"] not in kinds:
                frames.append(await self.receive())
        except ConnectionClosed as closed:
            return (closed.rcvd.code if closed.rcvd else 1006), frames
        return None, frames


def unwrap(frame: dict[str, Any]) -> dict[str, Any]:
    """The message inside a wrapped frame; any other frame itself."""
    payload = frame.get("payload")
    return payload if frame["type"] == "sdk_message" and isinstance(payload, dict) else frame


Connect = Callable[..., AbstractAsyncContextManager[RawClient]]


@pytest.fixture
def dial() -> Connect:
    """Open a raw socket: ``async with dial(url, token=…, header=…) as client``."""

    @asynccontextmanager
    async def open_socket(
        url: str, *, token: str | None = None, header: str | None = None
    ) -> AsyncIterator[RawClient]:
        target = url if token is None else f"{url}?{urlencode({'token': token})}"
        headers = {} if header is None else {"Authorization": f"Bearer {header}"}
        async with connect(target, additional_headers=headers, compression=None) as socket:
            yield RawClient(socket)

    return open_socket


@pytest.fixture
def script() -> Callable[..., str]:
    """A user message that tells the offline model what to do, one step per model call."""

    def write(*steps: dict[str, Any], text: str = "Go.") -> str:
        return f"{text}\n```offline\n{json.dumps(list(steps))}\n```"

    return write


@dataclass(frozen=True)
class LocalServer:
    """A server in this process, with settings of the test's choice."""

    url: str
    store: SqliteStore
    project_id: str
    secret: str = field(repr=False)

    def token(self, user: str = "user-1", **claims: Any) -> str:
        """Sign a token with the key the default project began with."""
        return create_token(user, self.project_id, self.secret, create_budget(1, 1), **claims)


StartServer = Callable[..., AbstractAsyncContextManager[LocalServer]]


@pytest.fixture
def start_server(tmp_path: Path) -> StartServer:
    """Start a server: ``async with start_server(tool_timeout_seconds=1) as server``."""

    @asynccontextmanager
    async def start(
        clock: Callable[[], datetime] = lambda: datetime.now(UTC), **settings: Any
    ) -> AsyncIterator[LocalServer]:
        chosen = {"db": tmp_path / "chucky.db", "port": 0, **settings}
        announced: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
        read = await asyncio.to_thread(Settings.load, chosen, environ={}, directory=tmp_path)
        serving = asyncio.create_task(
            serve(
                read,
                lambda url, project_id, _notice: announced.set_result((url, project_id)),
                clock=clock,
            )
        )
        either: list[asyncio.Future[Any]] = [serving, announced]
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        url, project_id = announced.result()
        store = await asyncio.to_thread(SqliteStore.open, chosen["db"])
        project = await asyncio.to_thread(store.find_project, project_id)
        try:
            yield LocalServer(url, store, project_id, project.keys[0].secret)
        finally:
            store.close()
            serving.cancel()
            await asyncio.wait([serving], timeout=WAIT_SECONDS)

    return start
