"""Several servers on one database: sessions go on at any of them, and survive each."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
import pytest

from chucky import Chucky, Message, Session, create_budget, create_token, tool

if TYPE_CHECKING:
    from tests.conftest import PostgresServer
    from tests.server.conftest import Connect, RawClient

WAIT_SECONDS = 40
POINTS, SAMPLE, CHUNK = 200, 4, 14
SWITCHES, SWITCHES_SAMPLE = 40, 8
# The conversation below has about so many things that can be counted: messages, deltas, calls.
COUNTED = 30
CAPABILITIES = ["replay", "sessions", "interrupt", "error_frames", "result_details"]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chucky.link.FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("chucky.link.LONGEST_PAUSE_SECONDS", 0.2)


# --- servers and what is in front of them -------------------------------------------------------


@dataclass
class Process:
    """A ``chucky serve`` on the database of the test.

    Attributes:
        url: Where it listens.
        server_id: What it is called in the database.
    """

    process: asyncio.subprocess.Process
    url: str
    server_id: str

    def send(self, sent: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(sent)


@dataclass
class Cluster:
    """Servers that share a database."""

    command: str
    directory: Path
    db: str = field(repr=False)
    processes: list[Process] = field(default_factory=list)
    project: dict[str, str] = field(default_factory=dict)

    def token(self, user: str = "alice") -> str:
        """Sign a token."""
        budget = create_budget(1_000, 100)
        return create_token(user, self.project["projectId"], self.project["hmacKey"], budget)

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement past the servers."""

        def run() -> list[tuple[Any, ...]]:
            options = "-c search_path=chucky"
            with psycopg.connect(self.db, autocommit=True, options=options) as connection:
                cursor = connection.execute(statement.encode())
                return cursor.fetchall() if cursor.description else []

        return await asyncio.to_thread(run)

    async def run(self, *arguments: str) -> str:
        """Run a command on the database; return what it prints."""
        process = await asyncio.create_subprocess_exec(
            self.command,
            *arguments,
            cwd=self.directory,
            env={**os.environ, "CHUCKY_DB": self.db},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        async with asyncio.timeout(WAIT_SECONDS):
            printed, _ = await process.communicate()
        assert process.returncode == 0, printed.decode()
        return printed.decode()

    async def start(self) -> Process:
        """Start one more server."""
        process = await asyncio.create_subprocess_exec(
            self.command,
            *("serve", "--port", "0", "--log-level", "error"),
            cwd=self.directory,
            env={**os.environ, "CHUCKY_DB": self.db, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout
        async with asyncio.timeout(WAIT_SECONDS):
            line = (await process.stdout.readline()).decode()
        match = re.search(r"ws://\S+", line)
        assert match, line
        known = {each.server_id for each in self.processes}
        found = {server_id for (server_id,) in await self.query("SELECT server_id FROM servers")}
        [server_id] = found - known
        self.processes.append(Process(process, match[0], server_id))
        return self.processes[-1]

    async def kill(self, killed: Process) -> None:
        """Let a server die at once."""
        with suppress(ProcessLookupError):
            killed.process.kill()
        await killed.process.communicate()

    async def age(self, dead: Process) -> None:
        """Let the lease of a server be over, as it is a while after its death."""
        await self.query(f"""
            UPDATE servers SET lease_ms = 0 WHERE server_id = '{dead.server_id}';
            UPDATE ledger_reservations SET expires_ms = 0 WHERE owner = '{dead.server_id}'
        """)

    async def owner(self, session_id: str) -> Process:
        """The server that has a session."""
        [(owner,)] = await self.query(
            f"SELECT owner FROM sessions WHERE session_id = '{session_id}'"
        )
        return next(each for each in self.processes if each.server_id == owner)

    async def check(self) -> None:
        """Nothing runs, nothing is held, and everything adds up."""
        assert await self.query("SELECT session_id FROM sessions WHERE turn_id <> ''") == []
        assert await self.query("SELECT count(*) FROM ledger_reservations") == [(0,)]
        await self.run("verify")


@pytest.fixture
async def cluster(
    chucky_command: str,
    postgres: PostgresServer,
    postgres_url: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Cluster]:
    """Two servers; more can be started. A parameter is their ``chucky.toml``."""
    (tmp_path / "chucky.toml").write_text(getattr(request, "param", ""))
    started = Cluster(chucky_command, tmp_path, postgres_url)
    await started.start()
    await started.start()
    started.project = json.loads(await started.run("projects", "create", "tests", "--json"))
    yield started
    for each in started.processes:
        with suppress(ProcessLookupError):
            each.send(signal.SIGCONT)
        await started.kill(each)


@dataclass
class Balancer:
    """Leads connections to the server it is told, and cuts those it led to another one.

    Attributes:
        target: Where connections are led.
        connections: How many there were.
    """

    target: str
    connections: int = 0
    port: int = 0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"ws://127.0.0.1:{self.port}/ws"

    def switch(self, target: Process) -> None:
        """Lead to another server from now on."""
        self.target = target.url
        self.cut()

    def cut(self) -> None:
        """Cut all connections."""
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Lead one connection."""
        self.connections += 1
        parts = urlsplit(self.target)
        try:
            from_server, to_server = await asyncio.open_connection(parts.hostname, parts.port)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, to_server}
        self._open |= pair

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            for each in pair:
                each.transport.abort()

        await asyncio.gather(pump(reader, to_server), pump(from_server, writer))
        self._open -= pair


@asynccontextmanager
async def balancing(target: Process) -> AsyncIterator[Balancer]:
    """Put a balancer in front of servers."""
    balancer = Balancer(target.url)
    listener = await asyncio.start_server(balancer.serve, "127.0.0.1", 0)
    balancer.port = listener.sockets[0].getsockname()[1]
    try:
        yield balancer
    finally:
        listener.close()
        balancer.cut()
        await listener.wait_closed()


# --- what is said -------------------------------------------------------------------------------


def script(*steps: dict[str, Any]) -> str:
    return f"{uuid.uuid4()}\n```offline\n{json.dumps(steps)}\n```"


LONG: dict[str, Any] = {"text": [f"{n} " for n in range(2_000)], "chunk_delay_ms": 20}
CALL = {"name": "look_up"}
SAID: list[dict[str, Any]] = [
    {"tools": [CALL, CALL]},
    {"text": ["It ", "is ", "there."], "chunk_delay_ms": 20},
]


@dataclass
class Application:
    """What an application sees, and what happens while it does.

    Attributes:
        happen: What happens at each of the things that it sees, by their count.
        seen: The complete messages of each turn.
        session_id: The session it had.
        calls: How often its tool was run.
        counted: How many things it has seen.
        happened_in: The turns in which something happened.
    """

    happen: dict[int, Callable[[], Any]]
    seen: list[list[Message]] = field(default_factory=list)
    session_id: str = ""
    calls: int = 0
    counted: int = 0
    happened_in: list[int] = field(default_factory=list)

    async def count(self) -> None:
        self.counted += 1
        if (happening := self.happen.get(self.counted)) is not None:
            self.happened_in.append(len(self.seen) - 1)
            done = happening()
            if done is not None:
                await done

    async def ask(self, session: Session, text: str) -> Message:
        await session.send(text)
        return await self.read(session)

    async def read(self, session: Session) -> Message:
        self.seen.append([])
        async with asyncio.timeout(WAIT_SECONDS):
            async for each in session.stream():
                if each.type not in ("stream_event", "error"):
                    self.seen[-1].append(each)
                await self.count()
        return self.seen[-1][-1]

    async def converse(self, cluster: Cluster, url: str, inputs: list[str]) -> list[Message]:
        """Say some things; return what the server has of it."""

        @tool("look_up", "Look something up")
        async def look_up() -> str:
            self.calls += 1
            await self.count()
            return "It is under the oak."

        async with Chucky(cluster.token(), url, include_partial_messages=True) as client:
            session = client.create_session(tools=[look_up])
            for text in inputs:
                await self.ask(session, text)
            self.session_id = session.session_id
            return await session.history()


def bare(messages: Iterable[Message]) -> list[Any]:
    """Messages without what differs from run to run: ids, times, and what was spent before."""
    text = json.dumps([dict(each) for each in messages])
    text = re.sub(r'"(uuid|session_id|id|tool_use_id)": "[^"]*"', r'"\1": ""', text)
    text = re.sub(r'"(duration_ms|duration_api_ms|turn_compute_ms)": \d+', r'"\1": 0', text)
    found: list[Any] = json.loads(text)
    for each in found:
        each.pop("budgets", None)
    return found


def ids(messages: Iterable[Message]) -> list[str]:
    return [each["uuid"] for each in messages]


CONVERSATION = [
    "My name is Alice",
    script(*SAID),
    script({"text": ["One ", "more."], "chunk_delay_ms": 20}),
    "What is my name?",
]


# --- coming back to another server --------------------------------------------------------------


def said_by_agent(history: Iterable[Message]) -> list[Message]:
    """What the server has of a conversation, without what the user said."""
    return [
        each
        for each in history
        if each.type != "user" or isinstance(each["message"]["content"], list)
    ]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(range(SWITCHES_SAMPLE), id="sample"),
        pytest.param(range(SWITCHES_SAMPLE, SWITCHES), id="all", marks=pytest.mark.slow),
    ],
)
async def test_a_client_that_comes_back_to_another_server_sees_what_it_would_have_seen(
    cluster: Cluster, seed: int, numbers: Iterable[int]
) -> None:
    a, b = cluster.processes
    undisturbed = Application({})
    await undisturbed.converse(cluster, a.url, CONVERSATION)

    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        async with balancing(a) as balancer:
            points = sorted(rng.sample(range(1, COUNTED), 1 + number % 4))
            happen: dict[int, Callable[[], Any]] = {
                point: partial(balancer.switch, to)
                for point, to in zip(points, [b, a, b, a], strict=False)
            }
            disturbed = Application(happen)
            history = await disturbed.converse(cluster, balancer.url, CONVERSATION)

        for seen, expected in zip(disturbed.seen, undisturbed.seen, strict=True):
            assert bare(seen) == bare(expected), points
        assert disturbed.calls == undisturbed.calls == 2, points
        assert ids(said_by_agent(history)) == [
            each for turn in disturbed.seen for each in ids(turn)
        ]
    await cluster.check()


async def begun(
    session: Session, text: str, balancer: Balancer, to: Process
) -> AsyncIterator[Message]:
    """Begin a turn, and be on the way to another server when its first messages have come."""
    await session.send(text)
    stream = session.stream()
    for _ in range(3):
        yield await anext(stream)
    balancer.switch(to)
    async for each in stream:
        yield each


async def followed(cluster: Cluster, session_id: str) -> None:
    """Wait until a session is followed from another server; the time limit of the test ends it."""
    while not await cluster.query(
        f"SELECT 1 FROM sessions WHERE session_id = '{session_id}' AND seat <> ''"
    ):
        pass


async def running_turn(cluster: Cluster) -> None:
    """Wait until a turn is known to run; the time limit of the test ends it."""
    while not await cluster.query("SELECT 1 FROM sessions WHERE turn_id <> ''"):
        pass


async def test_a_turn_that_runs_at_another_server_can_be_interrupted(cluster: Cluster) -> None:
    a, b = cluster.processes
    async with (
        balancing(a) as balancer,
        Chucky(cluster.token(), balancer.url, include_partial_messages=True) as client,
        client.create_session() as session,
    ):
        running = begun(session, script(LONG), balancer, b)
        messages = [await anext(running) for _ in range(3)]
        interrupting = asyncio.create_task(interrupt_at(cluster, session))
        messages += [each async for each in running]
        await interrupting
        assert messages[-1].error.reason == "interrupted"
        application = Application({})
        assert (await application.ask(session, "What is 2 + 2?")).subtype == "success"
        assert await cluster.owner(session.session_id) is b
        assert balancer.connections == 2
    await cluster.check()


async def interrupt_at(cluster: Cluster, session: Session) -> None:
    await followed(cluster, session.session_id)
    await session.interrupt()


async def test_a_client_that_closes_elsewhere_ends_its_turn(cluster: Cluster) -> None:
    a, b = cluster.processes
    async with balancing(a) as balancer, Chucky(cluster.token(), balancer.url) as client:
        session = client.create_session(include_partial_messages=True)
        running = begun(session, script(LONG), balancer, b)
        for _ in range(3):
            await anext(running)
        following = asyncio.create_task(follow_and_close(cluster, session))
        with pytest.raises(Exception, match="closed"):
            async for _ in running:
                pass
        await following
        await ended(cluster)
        async with client.resume_session(session.session_id) as again:
            history = await again.history()
        assert history[-1].error.reason == "client_left"
    await cluster.check()


async def follow_and_close(cluster: Cluster, session: Session) -> None:
    await followed(cluster, session.session_id)
    await session.close()


async def test_a_tool_that_runs_while_its_client_changes_servers_is_run_once(
    cluster: Cluster,
) -> None:
    a, b = cluster.processes
    runs: list[int] = []
    async with (
        balancing(a) as balancer,
        Chucky(cluster.token(), balancer.url) as client,
    ):

        @tool("look_up", "Look something up")
        async def look_up() -> str:
            runs.append(len(runs))
            if len(runs) == 1:
                balancer.switch(b)
            await followed(cluster, session.session_id)
            return "It is under the oak."

        session = client.create_session(tools=[look_up])
        application = Application({})
        assert (await application.ask(session, script(*SAID))).result == "It is there."
        [results] = [each for each in application.seen[0] if each.type == "user"]
        assert str(results["message"]).count("It is under the oak.") == 2
        assert len(runs) == 2
        await session.close()
    await cluster.check()


# Long enough to come back to a server that has just begun, on a machine with other things to do.
@pytest.mark.parametrize("cluster", ["reconnect_grace_seconds = 5"], indirect=True, ids=["grace"])
async def test_a_client_that_is_lost_elsewhere_too_has_its_time_to_come_back_and_no_more(
    cluster: Cluster, dial: Connect
) -> None:
    a, b = cluster.processes
    look_up = {
        "name": "look_up",
        "description": "Look something up",
        "inputSchema": {"type": "object", "properties": {}},
        "executeIn": "client",
    }
    tools = {"mcpServers": [{"name": "here", "version": "1", "tools": [look_up]}]}
    async with dial(a.url, header=cluster.token()) as client:
        session_id, seq = await introduced(client, **tools)
        await client.ask(script({"tools": [CALL]}, {"text": "Gone."}))
        called = (await client.receive_until("tool_call"))[-1]
        client.socket.transport.abort()
    async with dial(b.url, header=cluster.token()) as client:
        last_seen = {"seq": seq, "delta": 0}
        await introduced(client, resume=session_id, lastSeen=last_seen, **tools)
        assert (await client.receive_until("tool_call"))[-1] == called
        client.socket.transport.abort()
    await ended(cluster)
    async with Chucky(cluster.token(), b.url) as again:
        history = await again.resume_session(session_id).history()
    assert history[-1].result == "Gone."
    assert "no longer connected" in str(history[-3]["message"])
    await cluster.check()


async def test_what_a_client_sent_and_was_not_begun_is_answered_once_where_it_comes_back(
    cluster: Cluster, dial: Connect
) -> None:
    a, b = cluster.processes
    said = [(script(SAID[1]), "one"), ("My name is Alice", "two"), ("What is my name?", "three")]
    async with dial(a.url, header=cluster.token()) as client:
        session_id, seq = await introduced(client)
        for text, name in said:
            await client.ask(text, uuid=name)
        await client.receive_until("system")
        client.socket.transport.abort()
    async with dial(b.url, header=cluster.token()) as client:
        last_seen = {"seq": seq, "delta": 0}
        await introduced(client, resume=session_id, lastSeen=last_seen)
        for text, name in said:
            await client.ask(text, uuid=name)
        results = [(await client.result())["result"] for _ in said]
        assert results == ["It is there.", "Hello Alice! Nice to meet you.", "Your name is Alice."]
        await client.send(type="control", payload={"action": "close"})
    assert await cluster.query("SELECT count(*) FROM session_events WHERE kind = 'input'") == [(3,)]
    await cluster.check()


async def introduced(client: RawClient, **options: Any) -> tuple[str, int]:
    """Introduce a client; return the session's id, and where its numbers begin."""
    await client.send(type="init", payload={"capabilities": CAPABILITIES, **options})
    while True:
        [*_, frame] = await client.receive_until("control")
        if frame["payload"]["action"] == "session_info":
            data = frame["payload"]["data"]
            return data["sessionId"], data["seq"]


async def test_whoever_resumes_a_session_takes_it_from_the_server_where_it_runs(
    cluster: Cluster, dial: Connect
) -> None:
    a, b = cluster.processes
    async with dial(a.url, header=cluster.token()) as old:
        session_id, _ = await introduced(old)
        await old.ask(script(LONG))
        await old.receive_until("system")
        async with Chucky(cluster.token(), b.url) as client:
            session = client.resume_session(session_id)
            answer = await Application({}).ask(session, "What is 2 + 2?")
            assert answer.subtype == "success"
            assert (await old.result())["error"]["reason"] == "session_taken_over"
            code, _ = await old.closed()
            assert code == 1000
    await cluster.check()


# --- servers that die or are taken to be dead ---------------------------------------------------


async def test_the_turn_of_a_server_that_died_is_ended_where_it_is_followed(
    cluster: Cluster,
) -> None:
    a, b = cluster.processes
    async with (
        balancing(a) as balancer,
        Chucky(cluster.token(), balancer.url, include_partial_messages=True) as client,
        client.create_session() as session,
    ):
        running = begun(session, script(LONG), balancer, b)
        messages = [await anext(running) for _ in range(3)]
        dying = asyncio.create_task(die_followed(cluster, session, a))
        messages += [each async for each in running]
        await dying
        assert messages[-1].error.reason == "server_died"
        assert (await Application({}).ask(session, "What is 2 + 2?")).subtype == "success"
        history = await session.history()
        assert [each.type for each in history].count("result") == 2
    await cluster.check()


async def die_followed(cluster: Cluster, session: Session, dying: Process) -> None:
    await followed(cluster, session.session_id)
    await cluster.kill(dying)
    await cluster.age(dying)


async def test_the_turn_of_a_server_that_died_is_ended_by_another_that_runs(
    cluster: Cluster, dial: Connect
) -> None:
    a, _ = cluster.processes
    async with dial(a.url, header=cluster.token()) as client:
        await introduced(client)
        await client.ask(script(LONG))
        await running_turn(cluster)
        await cluster.kill(a)
    await cluster.age(a)
    await ended(cluster)
    await cluster.check()


async def ended(cluster: Cluster) -> None:
    """Wait until no turn runs; the time limit of the test ends it."""
    while await cluster.query("SELECT 1 FROM sessions WHERE turn_id <> ''"):
        pass


async def test_a_server_that_wakes_up_after_it_was_taken_to_be_dead_writes_nothing(
    cluster: Cluster, dial: Connect
) -> None:
    a, b = cluster.processes
    async with dial(a.url, header=cluster.token()) as client:
        session_id, _ = await introduced(client)
        turn = script({"text": [f"{n} " for n in range(100)], "chunk_delay_ms": 20}, LONG)
        await client.ask(turn)
        await held_money(cluster)  # not before: who is stopped while it writes holds up all others
        a.send(signal.SIGSTOP)
        await cluster.age(a)
        await ended(cluster)
        before = await events(cluster, session_id)
        async with Chucky(cluster.token(), b.url) as other:
            session = other.resume_session(session_id)
            answer = await Application({}).ask(session, "What is 2 + 2?")
            assert answer.subtype == "success"
        a.send(signal.SIGCONT)
        result = await client.result()
        assert (result["error"]["code"], result["error"]["reason"]) == (
            "SESSION_ERROR",
            "session_taken_over",
        )
        assert (await client.closed())[0] == 1000
    after = await events(cluster, session_id)
    turn_ids = list(dict.fromkeys(turn_id for _, turn_id in after))
    assert [each for each in after if each[1] == turn_ids[0]] == before
    assert len(turn_ids) == 2
    await cluster.check()


async def test_what_a_server_spent_that_was_taken_to_be_dead_is_booked_as_its_client_is_told(
    cluster: Cluster, dial: Connect
) -> None:
    a, _ = cluster.processes
    async with dial(a.url, header=cluster.token()) as client:
        await introduced(client)
        await client.ask(script(LONG))
        await answered_in_part(cluster)
        a.send(signal.SIGSTOP)
        await cluster.age(a)
        await ended(cluster)
        a.send(signal.SIGCONT)
        result = await client.result()
    assert result["turn_cost_usd"] > 0
    for meter, told in (
        ("ai", round(result["turn_cost_usd"] * 10**9)),
        ("compute", result["turn_compute_ms"]),
    ):
        booked = await cluster.query(
            "SELECT kind, sum(amount) OVER () FROM ledger_entries "
            f"WHERE meter = '{meter}' ORDER BY entry_id"
        )
        assert booked == [("expire", told), ("late", told)]
    await cluster.check()


async def held_money(cluster: Cluster) -> None:
    """Wait until money is held; the time limit of the test ends it."""
    while not await cluster.query("SELECT 1 FROM ledger_reservations"):
        pass


async def answered_in_part(cluster: Cluster) -> None:
    """Wait until a part of an answer is known to be; the time limit of the test ends it."""
    while not await cluster.query("SELECT 1 FROM ledger_reservations WHERE output_tokens > 1"):
        pass


async def events(cluster: Cluster, session_id: str) -> list[tuple[Any, ...]]:
    return await cluster.query(
        f"SELECT seq, turn_id FROM session_events WHERE session_id = '{session_id}' ORDER BY seq"
    )


async def test_a_server_that_starts_leaves_the_turns_of_others_alone(
    cluster: Cluster, dial: Connect
) -> None:
    a, _ = cluster.processes
    async with dial(a.url, header=cluster.token()) as client:
        await introduced(client)
        await client.ask(script({"text": [f"{n} " for n in range(50)], "chunk_delay_ms": 20}))
        await running_turn(cluster)
        for _ in range(2):
            await cluster.start()
        assert (await client.result())["subtype"] == "success"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "points",
    [
        pytest.param(range(SAMPLE), id="sample"),
        *(
            pytest.param(range(first, min(first + CHUNK, POINTS)), marks=pytest.mark.slow)
            for first in range(SAMPLE, POINTS, CHUNK)
        ),
    ],
)
async def test_a_session_survives_that_one_of_its_servers_is_killed(
    cluster: Cluster, seed: int, points: Iterable[int]
) -> None:
    a, b = cluster.processes
    for point in points:
        await survive(cluster, a, b, 1 + random.Random(f"{seed} {point}").randrange(COUNTED))
        if a.process.returncode is not None:
            a, b = b, await cluster.start()
    await cluster.check()


async def survive(cluster: Cluster, a: Process, b: Process, dies_at: int) -> None:
    """Converse, let the server die at one of the things that are seen, and look what is kept."""
    async with balancing(a) as balancer:

        async def die() -> None:
            await cluster.kill(a)
            balancer.switch(b)
            await cluster.age(a)

        application = Application({dies_at: die})
        history = await application.converse(cluster, balancer.url, CONVERSATION)

    answers = [each for each in history if each.type == "result"]
    assert len(answers) == len(CONVERSATION), dies_at
    died_in = application.happened_in[0] if application.happened_in else None
    if died_in not in (0, 3):
        assert answers[-1].result == "Your name is Alice.", dies_at
    turns: defaultdict[str, list[str]] = defaultdict(list)
    rows = await cluster.query(
        "SELECT turn_id, body FROM session_events "
        f"WHERE kind = 'message' AND session_id = '{application.session_id}' ORDER BY seq"
    )
    for turn_id, body in rows:
        turns[turn_id].append(json.loads(body)["uuid"])
    for number, (kept, seen) in enumerate(zip(turns.values(), application.seen, strict=True)):
        received = ids(seen)
        assert kept[-1] == received[-1], dies_at
        if number != died_in:
            assert kept == received, dies_at
        else:
            # As after the crash of a single server: the end of what was sent may be missing, or
            # all of it, and then the turn was run again.
            last = received[len(received) - len(kept) :]
            assert kept[:-1] in (received[: len(kept) - 1], last[:-1]), dies_at
    if died_in != 1:
        assert application.calls == 2, dies_at
