"""Runs the examples of the client page, and plays a server whose view of the client is looked at.

The examples are kept in ``examples/`` word for word; ``requirements.toml`` has their checksums.
What is replaced in them before they run is in ``_REPLACEMENTS`` and nowhere else.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from chucky import Chucky

if TYPE_CHECKING:
    from tests.conftest import Server

EXAMPLES = Path(__file__).parent / "examples"
LIMIT_SECONDS = 15

T = TypeVar("T")


# --- examples ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """What a reader of the page puts in where an example has a placeholder."""

    url: str
    token: str
    project_id: str
    hmac_key: str = field(repr=False)


# The words of the page, and what stands in their place. An example that names no url finds that
# of the server in CHUCKY_URL.
_REPLACEMENTS: tuple[tuple[str, Callable[[Place], str]], ...] = (
    ("url='wss://conjure.chucky.cloud/ws'", lambda place: f"url={place.url!r}"),
    ("token='your-jwt-token'", lambda place: f"token={place.token!r}"),
    ("token='...'", lambda place: f"token={place.token!r}"),
    ("project_id='your-project-id'", lambda place: f"project_id={place.project_id!r}"),
    ("secret='your-hmac-secret'", lambda place: f"secret={place.hmac_key!r}"),
)


class RunExample(Protocol):
    """Runs an example and returns what it printed and the names it left behind."""

    async def __call__(
        self, name: str, *, url: str | None = None, token: str | None = None, **names: Any
    ) -> tuple[str, dict[str, Any]]:
        """Run it, with ``names`` already defined, as earlier examples would have done."""
        ...


CompileExample = Callable[..., CodeType]


@pytest.fixture
def compile_example(server: Server, monkeypatch: pytest.MonkeyPatch) -> CompileExample:
    """Compile an example for the server of the tests, or for another place."""

    def compile_for(name: str, *, url: str | None = None, token: str | None = None) -> CodeType:
        place = Place(
            url or server.url, token or server.token("page"), server.project_id, server.hmac_key
        )
        monkeypatch.setenv("CHUCKY_URL", place.url)
        path = EXAMPLES / f"{name}.py"
        source = path.read_text(encoding="utf-8")
        for said, put_in in _REPLACEMENTS:
            source = source.replace(said, put_in(place))
        # Tests stay on this machine, also when a placeholder is spelt in a way unheard of above.
        assert "wss://" not in source
        code = compile(source, str(path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        assert isinstance(code, CodeType)
        return code

    return compile_for


@pytest.fixture
async def run_example(
    compile_example: CompileExample, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[RunExample]:
    """Run an example in this event loop; the clients it made are closed after the test."""
    namespaces: list[dict[str, Any]] = []

    async def run(
        name: str, *, url: str | None = None, token: str | None = None, **names: Any
    ) -> tuple[str, dict[str, Any]]:
        code = compile_example(name, url=url, token=token)
        namespace: dict[str, Any] = {"__name__": "__main__", **names}
        namespaces.append(namespace)
        capsys.readouterr()
        async with asyncio.timeout(LIMIT_SECONDS):
            if code.co_flags & inspect.CO_COROUTINE:
                await eval(code, namespace)
            else:
                exec(code, namespace)
        return capsys.readouterr().out, namespace

    yield run
    for namespace in namespaces:
        if isinstance(client := namespace.get("client"), Chucky):
            await client.close()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Chucky]:
    """A client of the server, as the page's other examples expect one."""
    async with Chucky(server.token("page"), url=server.url) as made:
        yield made


@pytest.fixture
def script() -> Callable[..., str]:
    """A message that tells the offline model what to do, one step per model call."""

    def write(*steps: dict[str, Any]) -> str:
        return f"Go.\n```offline\n{json.dumps(list(steps))}\n```"

    return write


@pytest.fixture
def within() -> Callable[[Awaitable[T]], Awaitable[T]]:
    """Wait for something, but not for ever."""

    async def wait(awaitable: Awaitable[T]) -> T:
        async with asyncio.timeout(LIMIT_SECONDS):
            return await awaitable

    return wait


# --- a server of one's own --------------------------------------------------------------------


class Peer:
    """A server that is ready at once, answers every message the same way, and takes notes."""

    def __init__(self, *, is_ready: bool) -> None:
        self.url = ""
        self.frames: list[dict[str, Any]] = []
        self.opened = 0
        self.open = 0
        self._is_ready = is_ready
        self._changed = asyncio.Condition()

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """The frames of a type that came so far."""
        return [frame for frame in self.frames if frame["type"] == kind]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what the peer has seen makes a condition true."""
        async with asyncio.timeout(LIMIT_SECONDS), self._changed:
            await self._changed.wait_for(condition)

    async def serve(self, connection: ServerConnection) -> None:
        """Serve one socket until the client leaves."""
        await self._note(1)
        try:
            if self._is_ready:
                await _say(connection, type="control", payload={"action": "ready"})
            async for text in connection:
                self.frames.append(json.loads(text))
                if self.frames[-1]["type"] == "user":
                    await _answer(connection)
                async with self._changed:
                    self._changed.notify_all()
        except ConnectionClosed:
            pass  # noted below, as every end is
        finally:
            await self._note(-1)

    async def _note(self, change: int) -> None:
        self.opened += max(change, 0)
        self.open += change
        async with self._changed:
            self._changed.notify_all()


async def _say(connection: ServerConnection, **frame: Any) -> None:
    await connection.send(json.dumps(frame))


async def _answer(connection: ServerConnection) -> None:
    ids = {"uuid": "u", "session_id": "the-id", "parent_tool_use_id": None}
    content = [{"type": "text", "text": "Yes."}]
    message = {"role": "assistant", "content": content}
    await _say(connection, type="assistant", message=message, **ids)
    await _say(connection, type="result", subtype="success", result="Yes.", **ids)


@asynccontextmanager
async def _serving(peer: Peer) -> AsyncIterator[Peer]:
    async with serve(peer.serve, "127.0.0.1", 0) as listening:
        host, port = next(iter(listening.sockets)).getsockname()
        peer.url = f"ws://{host}:{port}/ws"
        yield peer


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """A server that shows what the client sends."""
    async with _serving(Peer(is_ready=True)) as made:
        yield made


@pytest.fixture
async def silent_peer() -> AsyncIterator[Peer]:
    """A server that takes the connection and never says anything."""
    async with _serving(Peer(is_ready=False)) as made:
        yield made
