"""A real server that is killed, or whose disk is full or locked: what the books say then."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import resource
import signal
import sqlite3
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chucky import Chucky, ChuckyError, create_budget, create_token, tool

WAIT_SECONDS = 40
MODEL = "claude-sonnet-5-5"
USERS = ("ann", "bob", "cyd")
# What one turn of the test costs: 3 calls of 1,000 tokens in and 50 out.
TURN_NANOS = 3 * (1_000 * 2_000 + 50 * 10_000)


@dataclass
class ServerProcess:
    """A ``chucky serve`` that a test may kill.

    Attributes:
        process: It.
        url: Where it listens.
        db: Its database.
        said: What it has said.
    """

    process: asyncio.subprocess.Process
    url: str
    db: Path
    project: dict[str, str]
    said: list[str] = field(default_factory=list)

    def client(self, user: str, ai_dollars: float = 50.0) -> Chucky:
        """A client of a user."""
        token = create_token(
            user, self.project["id"], self.project["secret"], create_budget(ai_dollars, 100)
        )
        return Chucky(token, self.url, model=MODEL, include_partial_messages=False)

    async def kill(self) -> None:
        """End it as a loss of power would."""
        self.process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(WAIT_SECONDS):
            await self.process.wait()


@asynccontextmanager
async def serving(db: Path) -> AsyncIterator[ServerProcess]:
    """Run a server with the offline model on a database, until it is stopped or killed."""
    command = Path(sys.executable).parent / "chucky"
    process = await asyncio.create_subprocess_exec(
        *(command, "serve", "--port", "0", "--db", db),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=db.parent,
    )
    said: list[str] = []
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not (found := re.search(r"ws://\S+", said[-1] if said else "")):
                line = await process.stdout.readline()
                assert line, "".join(said)
                said.append(line.decode())
        reading = asyncio.create_task(_read(process.stdout, said))
        project = await asyncio.to_thread(_project, db)
        try:
            yield ServerProcess(process, found[0], db, project, said)
        finally:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(WAIT_SECONDS):
                await process.wait()
                await reading
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _read(stream: asyncio.StreamReader, said: list[str]) -> None:
    while line := await stream.readline():
        said.append(line.decode())


def _project(db: Path) -> dict[str, str]:
    with closing(sqlite3.connect(db)) as connection:
        [row] = connection.execute(
            "SELECT project_id, secret FROM projects JOIN project_keys USING (project_id)"
        ).fetchall()
    return {"id": row[0], "secret": row[1]}


# --- counting again ---------------------------------------------------------------------------


def faults_of_the_books(db: Path) -> list[str]:
    """Count everything again from the entries, and say what does not agree."""
    with closing(sqlite3.connect(db)) as connection:
        connection.row_factory = sqlite3.Row
        entries = connection.execute(
            "SELECT * FROM ledger_entries LEFT JOIN ledger_prices USING (price_id)"
        ).fetchall()
        accounts = connection.execute("SELECT * FROM ledger_accounts").fetchall()
        windows = connection.execute(
            "SELECT * FROM ledger_windows JOIN ledger_accounts USING (account_id)"
        ).fetchall()
        held = connection.execute("SELECT * FROM ledger_reservations").fetchall()
    faults = [f"{each['reservation_id']} is still open" for each in held]
    for account in accounts:
        settled = sum(each["amount"] for each in entries if _is_of(each, account))
        reserved = sum(each["amount"] for each in held if _is_of(each, account))
        if (account["settled"], account["reserved"]) != (settled, reserved):
            faults.append(f"{dict(account)}: {settled} and {reserved} are in the entries")
    for window in windows:
        spent = sum(
            each["amount"]
            for each in entries
            if _is_of(each, window) and window["start_ms"] <= each["at_ms"] < window["end_ms"]
        )
        if spent != window["spent"]:
            faults.append(f"{dict(window)}: {spent} is in the entries")
    return [*faults, *(fault for each in entries for fault in _faults_of_entry(each))]


def _is_of(row: Any, account: Any) -> bool:
    return (
        row["project_id"] == account["project_id"]
        and row["meter"] == account["meter"]
        and account["user_id"] in ("", row["user_id"])
        and account["session_id"] in ("", row["session_id"])
    )


def _faults_of_entry(entry: Any) -> Iterator[str]:
    if entry["excess"] != max(entry["amount"] - entry["reserved"], 0) or entry["excess"]:
        yield f"{dict(entry)} has an excess"
    if entry["meter"] == "ai" and entry["kind"] == "settle":
        price = json.loads(entry["price"])
        nanos = entry["input_tokens"] * price["input"] + entry["output_tokens"] * price["output"]
        if -(-nanos // 10**6) != entry["amount"]:
            yield f"{dict(entry)} is not what its tokens cost"


def spent_by_session(db: Path) -> dict[str, int]:
    """What the model calls of each session have cost."""
    with closing(sqlite3.connect(db)) as connection:
        return dict(
            connection.execute(
                "SELECT session_id, sum(amount) FROM ledger_entries WHERE meter = 'ai' GROUP BY 1"
            ).fetchall()
        )


def count_of_expired(db: Path) -> int:
    """How many reservations ended because their process had died."""
    with closing(sqlite3.connect(db)) as connection:
        query = "SELECT count(*) FROM ledger_entries WHERE kind = 'expire'"
        return int(connection.execute(query).fetchone()[0])


def count_of_held(db: Path) -> int:
    """How many reservations are open."""
    with closing(sqlite3.connect(db)) as connection:
        return int(connection.execute("SELECT count(*) FROM ledger_reservations").fetchone()[0])


# --- kill -9 ----------------------------------------------------------------------------------


@tool("look", "Look something up")
def look() -> str:
    return "found"


def work(number: int) -> str:
    """A message whose answer takes three model calls and two calls of a tool."""
    usage = {"usage": {"input_tokens": 1_000, "output_tokens": 50}, "chunk_delay_ms": 2}
    steps = [{"tools": [{"name": "look"}], **usage}] * 2 + [{"text": ["a"] * 10, **usage}]
    return f"Work {number}.\n```offline\n{json.dumps(steps)}\n```"


@dataclass
class Told:
    """What clients were told, by session.

    Attributes:
        nanos: What a session has cost, at least.
        results: How many results there were.
        enough: Set when there are as many as the test waits for.
    """

    nanos: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    results: int = 0
    wanted: int = 0
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, result: Any) -> None:
        """Note a result."""
        # Dollars are rounded up to the micro-dollar.
        self.nanos[result.session_id] = round(result.total_cost_usd * 10**6) * 1_000 - 999
        self.results += 1
        if self.results >= self.wanted:
            self.enough.set()


async def work_until_killed(server: ServerProcess, told: Told, numbers: Iterator[int]) -> None:
    """Turns of several users at the same time, each user in several sessions."""

    async def worker(user: str) -> None:
        with contextlib.suppress(ChuckyError, OSError):
            async with server.client(user) as chucky:
                while True:
                    told.take(await chucky.prompt(work(next(numbers)), tools=[look]))

    async with asyncio.TaskGroup() as workers:
        for user in USERS * 3:
            workers.create_task(worker(user))


async def kill_at_one_point(db: Path, chance: random.Random, numbers: Iterator[int]) -> Told:
    """Start a server, let turns run, and kill it in the middle of them."""
    told = Told(wanted=chance.randint(0, 12))
    async with serving(db) as server:
        working = asyncio.create_task(work_until_killed(server, told, numbers))
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                if told.wanted:
                    await told.enough.wait()
                # Anywhere in a turn: they take some tens of milliseconds.
                await asyncio.sleep(chance.uniform(0, 0.1))
                await server.kill()
        finally:
            working.cancel()
            await asyncio.wait([working], timeout=WAIT_SECONDS)
    return told


async def look_after_a_restart(db: Path, told: dict[str, int]) -> None:
    """Start a server again: nothing is wrong, nothing is missing, and nobody is blocked."""
    async with serving(db) as server:
        assert await asyncio.to_thread(faults_of_the_books, db) == []
        spent = await asyncio.to_thread(spent_by_session, db)
        missing = {
            each: (told[each], spent.get(each)) for each in told if spent.get(each, 0) < told[each]
        }
        assert not missing
        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
            prompts = [
                group.create_task(server.client(user).prompt("What is 2 + 2?")) for user in USERS
            ]
        assert not any(each.result().is_error for each in prompts)
    assert await asyncio.to_thread(faults_of_the_books, db) == []


@pytest.mark.parametrize(
    "points",
    [4, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1_800)])],
)
async def test_a_server_killed_in_the_middle_of_turns_loses_nothing(
    tmp_path: Path, seed: int, points: int
) -> None:
    chance, db = random.Random(seed), tmp_path / "chucky.db"
    numbers = iter(range(10**9))
    told: dict[str, int] = {}
    for point in range(points):
        told |= (await kill_at_one_point(db, chance, numbers)).nanos
        if point % 10 == 9 or point == points - 1:
            await look_after_a_restart(db, told)
    assert told
    assert await asyncio.to_thread(count_of_expired, db) > 0


# --- disks and locks --------------------------------------------------------------------------


@contextmanager
def full_disk(server: ServerProcess) -> Iterator[None]:
    """Let the server write no byte to any file."""
    _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, most))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, most))


async def until_settled(db: Path) -> None:
    """Wait until everything that is due is written."""
    async with asyncio.timeout(WAIT_SECONDS):
        while await asyncio.to_thread(faults_of_the_books, db):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
@pytest.mark.slow
@pytest.mark.parametrize("when", ["before a turn", "in a turn"])
async def test_on_a_full_disk_turns_fail_clearly_and_nothing_is_lost(
    tmp_path: Path, when: str
) -> None:
    async with serving(tmp_path / "chucky.db") as server:
        assert not (await server.client("ann").prompt("What is 2 + 2?")).is_error
        slow = "Hi.\n```offline\n" + json.dumps([{"text": "late", "delay_ms": 1_000}]) + "\n```"
        async with asyncio.timeout(WAIT_SECONDS), AsyncExitStack() as stack:
            if when == "before a turn":
                stack.enter_context(full_disk(server))
            turn = asyncio.create_task(server.client("ann").prompt(slow))
            if when == "in a turn":
                while not await asyncio.to_thread(count_of_held, server.db):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                stack.enter_context(full_disk(server))
            result = await turn
            assert result.error.code == "STORE_ERROR"
            if when == "before a turn":
                assert "free some space" in result.result or "check the disk" in result.result
        await until_settled(server.db)
        assert not (await server.client("ann").prompt("What is 2 + 2?")).is_error
        await until_settled(server.db)


@pytest.mark.slow
async def test_while_another_program_locks_the_database_turns_fail_clearly(tmp_path: Path) -> None:
    async with serving(tmp_path / "chucky.db") as server:
        assert not (await server.client("ann").prompt("What is 2 + 2?")).is_error
        with closing(sqlite3.connect(server.db, check_same_thread=False)) as connection:
            await asyncio.to_thread(connection.execute, "BEGIN IMMEDIATE")
            result = await server.client("ann").prompt("What is 2 + 2?")
            assert result.error.code == "STORE_ERROR"
            assert "locked" in result.result
            await asyncio.to_thread(connection.execute, "ROLLBACK")
        await until_settled(server.db)
        assert not (await server.client("ann").prompt("What is 2 + 2?")).is_error
