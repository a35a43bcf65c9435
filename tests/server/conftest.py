"""A client that sends and receives frames as they are, to look at the server's own words."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
)
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg.rows import dict_row
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chucky import create_budget, create_token
from chucky.listener import Listener
from chucky.server.app import serve
from chucky.server.postgres_url import PostgresUrl
from chucky.server.sessions.memory import SessionMemory
from chucky.server.settings import Settings
from chucky.server.store import Store, postgres_database

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

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
        return await self.receive_until_any(kind)

    async def receive_until_any(self, *kinds: str) -> list[dict[str, Any]]:
        """Collect frames up to the first of some types."""
        frames = [await self.receive()]
        while unwrap(frames[-1])["type"] not in kinds:
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
    """Open a raw socket: ``async with dial(url, token=…, header=…) as client``.

    With ``comes_back_for`` the client says which session it comes back for.
    """

    @asynccontextmanager
    async def open_socket(
        url: str,
        *,
        token: str | None = None,
        header: str | None = None,
        comes_back_for: str | None = None,
    ) -> AsyncIterator[RawClient]:
        target = url if token is None else f"{url}?{urlencode({'token': token})}"
        headers = {} if header is None else {"Authorization": f"Bearer {header}"}
        if comes_back_for is not None:
            headers["Chucky-Session"] = comes_back_for
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
    store: Store
    project_id: str
    secret: str = field(repr=False)

    def token(self, user: str = "user-1", **claims: Any) -> str:
        """Sign a token with the key the default project began with."""
        return create_token(user, self.project_id, self.secret, create_budget(1_000, 100), **claims)


StartServer = Callable[..., AbstractAsyncContextManager[LocalServer]]


@pytest.fixture
def start_server(tmp_path: Path) -> StartServer:
    """Start a server: ``async with start_server(tool_timeout_seconds=1) as server``."""

    @asynccontextmanager
    async def start(
        clock: Callable[[], datetime] = lambda: datetime.now(UTC), **settings: Any
    ) -> AsyncIterator[LocalServer]:
        chosen = {"db": tmp_path / "chucky.db", "port": 0, "drain_seconds": 0, **settings}
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
        store = await asyncio.to_thread(Store.open, read.db)
        project = await asyncio.to_thread(store.find_project, project_id)
        try:
            yield LocalServer(url, store, project_id, project.keys[0].secret)
        finally:
            store.close()
            serving.cancel()
            await asyncio.wait([serving], timeout=WAIT_SECONDS)

    return start


@dataclass
class Evicted:
    """Waits until a session has left memory, of a server in this process."""

    _happened: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self) -> None:
        """Take note that one has."""
        self._happened.set()

    async def wait(self) -> None:
        """Wait until one has since the last wait."""
        async with asyncio.timeout(WAIT_SECONDS):
            await self._happened.wait()
        self._happened.clear()


@pytest.fixture
def evicted(monkeypatch: pytest.MonkeyPatch) -> Evicted:
    """Wait until a session has left memory: ``await evicted.wait()``."""
    evicted, leave = Evicted(), SessionMemory.leave

    def leave_and_tell(memory: SessionMemory) -> None:
        leave(memory)
        evicted.note()

    monkeypatch.setattr(SessionMemory, "leave", leave_and_tell)
    return evicted


# --- a database of each kind, and ways to it past the store ------------------------------------


class Place(Protocol):
    """An empty database, for behaviour that is the same in all of them."""

    @property
    def db(self) -> Path | PostgresUrl:
        """What the settings call it."""
        ...

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement past the store and return the rows it found."""
        ...

    def query(self, statement: str) -> list[dict[str, Any]]:
        """Run a query past the store and return the rows it found, with their names."""
        ...

    def outage(self) -> AbstractContextManager[None]:
        """A time in which nobody can use it."""
        ...


@dataclass(frozen=True)
class SqlitePlace:
    """A file."""

    db: Path

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement past the store and return the rows it found."""
        with closing(sqlite3.connect(self.db, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()

    def query(self, statement: str) -> list[dict[str, Any]]:
        """Run a query past the store and return the rows it found, with their names."""
        with closing(sqlite3.connect(self.db)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(statement)]

    @contextmanager
    def outage(self) -> Iterator[None]:
        """A time in which the file is not there."""
        kept = self.db.rename(self.db.with_name("kept"))
        yield
        kept.rename(self.db)


@dataclass(frozen=True)
class PostgresPlace:
    """A database on a server."""

    db: PostgresUrl
    server: PostgresServer

    @property
    def name(self) -> str:
        """What the server calls it."""
        return self.db.secret_url.rpartition("/")[2]

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement past the store and return the rows it found."""
        with self.connect(autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def query(self, statement: str) -> list[dict[str, Any]]:
        """Run a query past the store and return the rows it found, with their names."""
        with self.connect() as connection:
            return connection.cursor(row_factory=dict_row).execute(statement.encode()).fetchall()

    def connect(self, *, autocommit: bool = False) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection past the store."""
        options = "-c search_path=chucky"
        return psycopg.connect(self.db.secret_url, autocommit=autocommit, options=options)

    def cut(self) -> None:
        """Cut every connection to it."""
        self.server.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'"
        )

    @contextmanager
    def outage(self) -> Iterator[None]:
        """A time in which the server accepts no connection to it."""
        self.server.execute(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false")
        self.cut()
        yield
        self.server.execute(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS true")


@pytest.fixture
def postgres_place(
    postgres: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> PostgresPlace:
    """An empty PostgreSQL database."""
    monkeypatch.setattr(postgres_database, "WAIT_SECONDS", 1.0)  # outages are part of the tests
    return PostgresPlace(PostgresUrl(postgres_url), postgres)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty database, of each kind in turn."""
    if request.param == "sqlite":
        return SqlitePlace(tmp_path / "chucky.db")
    made = request.getfixturevalue("postgres_place")
    assert isinstance(made, PostgresPlace)
    return made


# --- a provider whose answers the test decides ------------------------------------------------


Event = dict[str, Any]


@dataclass
class ApiEvents:
    """Makes the events of the Messages API."""

    def message(self, *blocks: Event, stop_reason: str = "end_turn", **usage: int) -> list[Event]:
        """The events of a message around those of its blocks."""
        usage = {"input_tokens": 5, "output_tokens": 1, **usage}
        start = {"id": "m", "type": "message", "role": "assistant", "content": [], "usage": usage}
        end = {"delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": 2}}
        return [
            {"type": "message_start", "message": start},
            {"type": "ping"},
            {"type": "novel_event", "whatever": 1},
            *blocks,
            {"type": "message_delta", **end},
            {"type": "message_stop"},
        ]

    def block(self, start: Event, *deltas: Event, index: int = 0) -> list[Event]:
        """The events of a block."""
        return [
            {"type": "content_block_start", "index": index, "content_block": start},
            *({"type": "content_block_delta", "index": index, "delta": each} for each in deltas),
            {"type": "content_block_stop", "index": index},
        ]

    def text_block(self, text: str, index: int = 0) -> list[Event]:
        """The events of a text block."""
        delta = {"type": "text_delta", "text": text}
        return self.block({"type": "text", "text": ""}, delta, index=index)

    def thinking_block(self, thinking: str, signature: str, index: int = 0) -> list[Event]:
        """The events of a signed thinking block."""
        return self.block(
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": thinking},
            {"type": "signature_delta", "signature": signature},
            index=index,
        )

    def says(self, text: str) -> list[Event]:
        """The events of a message that is one text."""
        return self.message(*self.text_block(text))


@pytest.fixture(scope="session")
def api() -> ApiEvents:
    """Events of the Messages API."""
    return ApiEvents()


@dataclass
class Provider:
    """A provider that keeps what it was asked.

    Attributes:
        answer: Makes of a request's body the events of the answer, or an HTTP status and the
            body of an error.
        requests: The bodies of the requests.
        headers: Their headers.
        paths: Where they went.
        respond_as: Answers in the place of all this, where it is set.
        url: Where it listens.
    """

    answer: Callable[[dict[str, Any]], list[Event] | tuple[int, Any]]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    respond_as: Callable[[Request], Awaitable[Response]] | None = None
    url: str = ""

    async def respond(self, request: Request) -> Response:
        """Answer a call."""
        if self.respond_as is not None:
            return await self.respond_as(request)
        body = json.loads(await request.body())
        self.paths.append(request.url.path)
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        answer = self.answer(body)
        if isinstance(answer, tuple):
            return JSONResponse(answer[1], answer[0])
        return StreamingResponse(_as_stream(answer), media_type="text/event-stream")


async def _as_stream(events: list[Event]) -> AsyncIterator[str]:
    for event in events:
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


StartProvider = Callable[..., AbstractAsyncContextManager[Provider]]


@pytest.fixture
def start_provider(api: ApiEvents) -> StartProvider:
    """Start a provider: ``async with start_provider(lambda request: api.says("Hi."))``.

    Instead of a function, the answers may be given, one for each call and the last for all others.
    """

    @asynccontextmanager
    async def start(*answers: Any) -> AsyncIterator[Provider]:
        remaining = list(answers) or [api.says("Yes.")]

        def answer(body: dict[str, Any]) -> Any:
            following = remaining.pop(0) if len(remaining) > 1 else remaining[0]
            return following(body) if callable(following) else following

        provider = Provider(answer)
        app = Starlette(routes=[Route("/{path:path}", provider.respond, methods=["POST"])])
        started = asyncio.Event()
        web = Listener(app, started.set)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(web.serve([listener]))
            async with asyncio.timeout(WAIT_SECONDS):
                await started.wait()
            provider.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            try:
                yield provider
            finally:
                web.should_exit = True
                await asyncio.wait([serving], timeout=WAIT_SECONDS)

    return start
