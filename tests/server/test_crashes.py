"""A server that is killed at any moment: its sessions go on, with all that was in their logs."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chucky import Chucky, Message, Session, create_budget, create_token, tool
from chucky.server.store import Store

WAIT_SECONDS = 40
POINTS, SAMPLE = 200, 5
# The conversation below has about so many things that can be counted: messages, deltas, calls.
COUNTED = 30


@dataclass
class Server:
    """A ``chucky serve`` that can be killed and started again at the same address."""

    command: list[str]
    directory: Path
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            cwd=self.directory,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self.process.stdout
        async with asyncio.timeout(WAIT_SECONDS):
            line = (await self.process.stdout.readline()).decode()
        match = re.search(r"ws://\S+", line)
        assert match, line
        return match[0]

    async def kill(self) -> None:
        assert self.process
        self.process.kill()
        await self.process.wait()

    async def restart(self) -> None:
        await self.kill()
        await self.start()


@pytest.fixture
def killable_server(chucky_command: str, free_port: int, tmp_path: Path) -> Callable[[], Any]:
    """Start a server on a file of its own: ``async with killable_server() as (server, url)``."""

    @asynccontextmanager
    async def start() -> AsyncIterator[tuple[Server, str]]:
        options = ["--port", str(free_port), "--db", "chucky.db", "--log-level", "error"]
        server = Server([chucky_command, "serve", *options], tmp_path)
        url = await server.start()
        try:
            yield server, url
        finally:
            await server.kill()

    return start


def make_token(db: Path) -> str:
    with closing(Store.open(db)) as store:
        [project] = store.list_projects()
    budget = create_budget(1_000, 100)
    return create_token("alice", project.project_id, project.keys[0].secret, budget)


@dataclass
class Application:
    """What an application sees, and when its server dies.

    Attributes:
        server: The server.
        dies_at: At which of the things it sees.
        seen: The complete messages of each turn.
        died_in: The turn in which the server died.
    """

    server: Server
    dies_at: int
    seen: list[list[Message]] = field(default_factory=list)
    died_in: int | None = None
    counted: int = 0

    async def count(self) -> None:
        self.counted += 1
        if self.counted == self.dies_at:
            self.died_in = len(self.seen) - 1
            await self.server.restart()

    async def ask(self, session: Session, text: str) -> Message:
        self.seen.append([])
        async with asyncio.timeout(WAIT_SECONDS):
            await session.send(text)
            async for each in session.stream():
                if each.type not in ("stream_event", "error"):
                    self.seen[-1].append(each)
                await self.count()
        return self.seen[-1][-1]


def script(*steps: dict[str, Any]) -> str:
    return f"Go.\n```offline\n{json.dumps(steps)}\n```"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "point",
    [pytest.param(n, marks=[pytest.mark.slow] if n >= SAMPLE else []) for n in range(POINTS)],
)
async def test_a_session_survives_that_its_server_is_killed(
    killable_server: Any, tmp_path: Path, seed: int, point: int
) -> None:
    dies_at = 1 + random.Random(f"{seed} {point}").randrange(COUNTED)
    async with killable_server() as (server, url):
        token = await asyncio.to_thread(make_token, tmp_path / "chucky.db")
        application = Application(server, dies_at)

        @tool("look_up", "Look something up")
        async def look_up() -> str:
            await application.count()
            return "It is under the oak."

        call = {"name": "look_up"}
        inputs = [
            "My name is Alice",
            script({"tools": [call, call]}, {"text": ["It ", "is ", "there."]}),
            script({"text": ["One ", "more."]}),
        ]
        async with Chucky(token, url, include_partial_messages=True) as client:
            session = client.create_session(tools=[look_up])
            for text in inputs:
                await application.ask(session, text)
            if application.died_in is None:
                await server.restart()
            answer = await application.ask(session, "What is my name?")
            history = await session.history()
            [listed] = await client.list_sessions()

    assert answer.subtype == "success"
    if application.died_in != 0:
        assert answer.result == "Your name is Alice."
    assert not listed.is_running
    assert listed.turns == 4
    assert [str(each) for each in history if str(each) in inputs] == inputs
    turns = by_turn(tmp_path / "chucky.db")
    assert len(turns) == 4
    for number, (kept, seen) in enumerate(zip(turns, application.seen, strict=True)):
        assert [each["type"] for each in kept].count("result") == 1
        assert kept[-1]["uuid"] == seen[-1]["uuid"]
        if number != application.died_in:
            assert [each["uuid"] for each in kept] == [each["uuid"] for each in seen]
        else:
            # What was on its way to the file may be missing at the end, and nothing before it; a
            # turn that was not in the file at all was run again.
            complete = [each["uuid"] for each in kept[:-1]]
            received = [each["uuid"] for each in seen[:-1]]
            last = received[len(received) - len(complete) :]
            assert complete in (received[: len(complete)], last)


def by_turn(db: Path) -> list[list[dict[str, Any]]]:
    """The messages in the log, turn by turn; nothing else may be open."""
    turns: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    with closing(sqlite3.connect(db)) as connection:
        query = "SELECT turn_id, body FROM session_events WHERE kind = 'message' ORDER BY seq"
        for turn_id, body in connection.execute(query):
            turns[turn_id].append(json.loads(body))
        assert connection.execute("SELECT count(*) FROM ledger_reservations").fetchone() == (0,)
        assert connection.execute("SELECT turn_id FROM sessions").fetchall() == [("",)]
    return list(turns.values())
