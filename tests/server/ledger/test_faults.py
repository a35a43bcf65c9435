"""A real server that is killed, or whose database fails under it: what the books say then."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import resource
import signal
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, ChuckyError, create_budget, create_token, tool
from chucky.server.ledger.booking import LEASE_MS
from chucky.server.postgres_url import PostgresUrl

if TYPE_CHECKING:
    from tests.server.conftest import Place, PostgresPlace

WAIT_SECONDS = 40
MODEL = "claude-sonnet-5-5"
USERS = ("ann", "bob", "cyd")
COMMAND = Path(sys.executable).parent / "chucky"
_OTHERS = """
    SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND backend_type = 'client backend'
"""


@dataclass
class ServerProcess:
    """A ``chucky serve`` that a test may kill.

    Attributes:
        process: It.
        url: Where it listens.
        place: Its database.
        project: The id and the secret of a project in it.
        said: What it has said.
    """

    process: asyncio.subprocess.Process
    url: str
    place: Place
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


def environment(place: Place) -> dict[str, str]:
    """The environment of a command on a database."""
    db = place.db.secret_url if isinstance(place.db, PostgresUrl) else str(place.db)
    return {**os.environ, "CHUCKY_DB": db}


@asynccontextmanager
async def serving(place: Place) -> AsyncIterator[ServerProcess]:
    """Run a server with the offline model on a database, until it is stopped or killed."""
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, "serve", "--port", "0"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment(place),
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
        project = await asyncio.to_thread(_project, place)
        try:
            yield ServerProcess(process, found[0], place, project, said)
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


def _project(place: Place) -> dict[str, str]:
    query = "SELECT project_id, secret FROM projects JOIN project_keys USING (project_id)"
    [(project_id, secret)] = place.execute(query)
    return {"id": project_id, "secret": secret}


# --- counting again ---------------------------------------------------------------------------


def faults_of_the_books(place: Place) -> list[str]:
    """Count everything again from the entries, and say what does not agree."""
    entries = place.query("SELECT * FROM ledger_entries LEFT JOIN ledger_prices USING (price_id)")
    accounts = place.query("SELECT * FROM ledger_accounts")
    windows = place.query("SELECT * FROM ledger_windows JOIN ledger_accounts USING (account_id)")
    held = place.query("SELECT * FROM ledger_reservations")
    faults = [f"{each['reservation_id']} is still open" for each in held]
    settled, reserved = _sums(entries), _sums(held)
    for account in accounts:
        counted = settled[_key(account)], reserved[_key(account)]
        if (account["settled"], account["reserved"]) != counted:
            faults.append(f"{dict(account)}: {counted} are in the entries")
    for window in windows:
        spent = sum(
            each["amount"]
            for each in entries
            if _is_of(each, window) and window["start_ms"] <= each["at_ms"] < window["end_ms"]
        )
        if spent != window["spent"]:
            faults.append(f"{dict(window)}: {spent} is in the entries")
    return [*faults, *(fault for each in entries for fault in _faults_of_entry(each))]


def _sums(rows: Iterable[Any]) -> Counter[tuple[str, ...]]:
    """What rows come to for each account that they count in."""
    sums: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        project, user, _, meter = _key(row)
        for key in {(project, "", "", meter), (project, user, "", meter), _key(row)}:
            sums[key] += row["amount"]
    return sums


def _key(row: Any) -> tuple[str, str, str, str]:
    return row["project_id"], row["user_id"], row["session_id"], row["meter"]


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


def spent_by_session(place: Place) -> dict[str, int]:
    """What the model calls of each session have cost."""
    query = "SELECT session_id, sum(amount) FROM ledger_entries WHERE meter = 'ai' GROUP BY 1"
    return {session_id: int(amount) for session_id, amount in place.execute(query)}


def expired(place: Place) -> set[str]:
    """The reservations that ended because their process had died."""
    query = "SELECT entry_key FROM ledger_entries WHERE kind = 'expire'"
    return {key for (key,) in place.execute(query)}


def left_open(place: Place) -> set[str]:
    """The reservations that a server left open when it died."""
    if isinstance(place.db, PostgresUrl):
        while place.execute(_OTHERS):  # what it was doing when it died is ended by PostgreSQL
            pass
    return {key for (key,) in place.execute("SELECT reservation_id FROM ledger_reservations")}


def count_of_held(place: Place) -> int:
    """How many reservations are open."""
    [(count,)] = place.execute("SELECT count(*) FROM ledger_reservations")
    return int(count)


async def verify(place: Place) -> None:
    """See that ``chucky verify`` finds nothing wrong either."""
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, "verify"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment(place),
    )
    async with asyncio.timeout(WAIT_SECONDS):
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


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


async def kill_at_one_point(
    place: Place, chance: random.Random, numbers: Iterator[int], least: int
) -> Told:
    """Start a server, let turns run, at least so many to their end, and kill it in the middle."""
    told = Told(wanted=chance.randint(least, 12))
    async with serving(place) as server:
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


def let_leases_end(place: Place) -> None:
    """Let the time pass after which a server that shares a database has to be dead."""
    if isinstance(place.db, PostgresUrl):
        place.execute(f"UPDATE ledger_reservations SET expires_ms = expires_ms - {LEASE_MS}")


async def look_after_a_restart(place: Place, told: dict[str, int]) -> None:
    """Start a server again: nothing is wrong, nothing is missing, and nobody is blocked."""
    await asyncio.to_thread(let_leases_end, place)
    async with serving(place) as server:
        assert await asyncio.to_thread(faults_of_the_books, place) == []
        spent = await asyncio.to_thread(spent_by_session, place)
        missing = {
            each: (told[each], spent.get(each)) for each in told if spent.get(each, 0) < told[each]
        }
        assert not missing
        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
            prompts = [
                group.create_task(server.client(user).prompt("What is 2 + 2?")) for user in USERS
            ]
        assert not any(each.result().is_error for each in prompts)
    assert await asyncio.to_thread(faults_of_the_books, place) == []
    await verify(place)


@pytest.mark.parametrize(
    "points",
    [2, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1_800)])],
)
async def test_a_server_killed_in_the_middle_of_turns_loses_nothing(
    place: Place, seed: int, points: int
) -> None:
    chance = random.Random(seed)
    numbers = iter(range(10**9))
    told: dict[str, int] = {}
    left: set[str] = set()
    for point in range(points):
        least = 0 if told else 1
        told |= (await kill_at_one_point(place, chance, numbers, least)).nanos
        async with asyncio.timeout(WAIT_SECONDS):
            left |= await asyncio.to_thread(left_open, place)
        if point % 10 == 9 or point == points - 1:
            await look_after_a_restart(place, told)
    assert told
    assert await asyncio.to_thread(expired, place) == left


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


async def until_settled(place: Place) -> None:
    """Wait until everything that is due is written."""
    async with asyncio.timeout(WAIT_SECONDS):
        while await asyncio.to_thread(faults_of_the_books, place):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
@pytest.mark.slow
@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
@pytest.mark.parametrize("when", ["before a turn", "in a turn"])
async def test_on_a_full_disk_turns_fail_clearly_and_nothing_is_lost(
    place: Place, when: str
) -> None:
    async with serving(place) as server:
        assert not (await server.client("ann").prompt("What is 2 + 2?")).is_error
        slow = "Hi.\n```offline\n" + json.dumps([{"text": "late", "delay_ms": 1_000}]) + "\n```"
        async with asyncio.timeout(WAIT_SECONDS), AsyncExitStack() as stack:
            if when == "before a turn":
                stack.enter_context(full_disk(server))
            turn = asyncio.create_task(server.client("ann").prompt(slow))
            if when == "in a turn":
                while not await asyncio.to_thread(count_of_held, place):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                stack.enter_context(full_disk(server))
            result = await turn
            assert result.error.code == "STORE_ERROR"
            if when == "before a turn":
                assert "free some space" in result.result or "check the disk" in result.result
        await until_settled(place)
        assert not (await server.client("ann").prompt("What is 2 + 2?")).is_error
        await until_settled(place)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
async def test_while_another_program_locks_the_database_turns_fail_clearly(place: Place) -> None:
    async with serving(place) as server:
        assert not (await server.client("ann").prompt("What is 2 + 2?")).is_error
        with closing(sqlite3.connect(str(place.db), check_same_thread=False)) as connection:
            await asyncio.to_thread(connection.execute, "BEGIN IMMEDIATE")
            result = await server.client("ann").prompt("What is 2 + 2?")
            assert result.error.code == "STORE_ERROR"
            assert "locked" in result.result
            await asyncio.to_thread(connection.execute, "ROLLBACK")
        await until_settled(place)
        assert not (await server.client("ann").prompt("What is 2 + 2?")).is_error


# --- connections ------------------------------------------------------------------------------


def cut_who_waits(place: PostgresPlace) -> None:
    """Cut the first connection that is found waiting for accounts in a transaction."""
    query = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'
    """
    while not place.execute(query):
        pass


@contextmanager
def accounts_held(place: PostgresPlace) -> Iterator[None]:
    """Hold all accounts, so that who books waits in the middle of a transaction."""
    with place.connect() as connection:
        connection.execute("SELECT 1 FROM ledger_accounts FOR UPDATE")
        yield


async def test_a_connection_cut_in_a_transaction_fails_a_turn_clearly_or_not_at_all(
    postgres_place: PostgresPlace,
) -> None:
    place = postgres_place
    usage = {"usage": {"input_tokens": 1_000, "output_tokens": 50}}
    slow = json.dumps([{"text": "late", "delay_ms": 1_000, **usage}])

    async with serving(place) as server, asyncio.timeout(WAIT_SECONDS):

        def ask() -> asyncio.Task[Any]:
            prompt = f"Hi.\n```offline\n{slow}\n```"
            return asyncio.create_task(server.client("ann").prompt(prompt))

        assert not (await server.client("ann").prompt("What is 2 + 2?")).is_error
        before = await asyncio.to_thread(spent_by_session, place)

        # When a call is reserved: nothing is granted, and nothing remains of it.
        with accounts_held(place):
            turn = ask()
            await asyncio.to_thread(cut_who_waits, place)
        refused = await turn
        assert refused.error.code == "STORE_ERROR"
        assert "did not answer to the end" in refused.result
        await until_settled(place)
        spent = await asyncio.to_thread(spent_by_session, place)
        assert sum(spent.values()) == sum(before.values())

        # When it is settled: that is written again, and the turn has its answer.
        turn = ask()
        while not await asyncio.to_thread(count_of_held, place):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        with accounts_held(place):
            await asyncio.to_thread(cut_who_waits, place)
        answered = await turn
        assert not answered.is_error
        await until_settled(place)
        spent = await asyncio.to_thread(spent_by_session, place)
        told = round(answered.total_cost_usd * 10**6) * 1_000
        assert told - 1_000 < spent[answered.session_id] <= told

        assert not (await server.client("ann").prompt("What is 2 + 2?")).is_error
        await until_settled(place)
        await verify(place)
