"""Many sessions for a long time, on connections that break: nothing fails, and nothing grows.

``SOAK_SESSIONS`` and ``SOAK_SECONDS`` say how many and for how long. Without ``--all`` a few do it
for some seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, Session, tool

if TYPE_CHECKING:
    from tests.replay.conftest import FaultProxy, MortalServer, StartProxy

WAIT_SECONDS = 120
# So many turns a second are begun in all sessions together: what two cores do in their stride, with
# clients and proxy beside the server.
TURNS_PER_SECOND = 20
TURNS_OF_A_SESSION = 4
SESSIONS_OF_A_USER = 50
CUT_PER_MINUTE = 0.05
CUT_PER_MINUTE_OF_FEW = 20  # so that a sample has some too, also on a machine that is busy
# The first frames begin the session, and until its client knows its id a loss raises.
BEGINNING_FRAMES = 4
SETTINGS = "evict_after_seconds = 2\nreconnect_grace_seconds = 30\n"
MOST_GROWTH = 1.1
MOST_GROWTH_OF_COLD = 1.5  # of a process that runs for some seconds only
KEPT_FILES = 8  # of the database, which are opened when they are first needed
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

Step = dict[str, Any]


def script(*steps: Step) -> str:
    """What a user says to have the offline model do as told."""
    return f"{uuid.uuid4()}\n```offline\n{json.dumps(steps)}\n```"


@dataclass
class Soak:
    """Sessions that are used until it ends.

    Attributes:
        url: Where the proxy is.
        server: The server behind it.
        sessions: How many there are beside each other.
        ends_at: When it ends, by the clock of the loop.
        seed: Where the randomness starts.
        done: How many turns of each kind have ended.
        began: How many sessions have begun.
    """

    url: str
    server: MortalServer
    sessions: int
    ends_at: float
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    began: int = 0

    @property
    def is_over(self) -> bool:
        return asyncio.get_running_loop().time() >= self.ends_at

    async def use(self, number: int) -> None:
        """Be a user's application: one session after the other, with pauses."""
        rng = random.Random(f"{self.seed} {number}")
        longest = 2 * self.sessions / TURNS_PER_SECOND
        client = Chucky(
            self.server.token(f"user-{number // SESSIONS_OF_A_USER}"),
            url=self.url,
            timeout=60,
            include_partial_messages=True,
        )
        async with client:
            await self.pause(rng, longest)
            while not self.is_over:
                await self.hold(client, rng, longest)

    async def pause(self, rng: random.Random, longest: float) -> None:
        """Do nothing for a while: this is what most users do."""
        left = self.ends_at - asyncio.get_running_loop().time()
        await asyncio.sleep(max(0, min(rng.uniform(0, longest), left)))

    async def hold(self, client: Chucky, rng: random.Random, longest: float) -> None:
        """Use one session for some turns."""
        calls: Counter[int] = Counter()

        @tool("double", "Double a number", schema=NUMBER)
        async def double(n: int) -> str:
            calls[n] += 1
            return str(2 * n)

        self.began += 1
        async with client.create_session(tools=[double]) as session:
            for turn in range(TURNS_OF_A_SESSION):
                kind = rng.choice(("text", "tools", "thinking", "interrupt"))
                async with asyncio.timeout(WAIT_SECONDS):
                    await getattr(self, kind)(session, turn)
                self.done[kind] += 1
                tools = self.expected_calls(kind, turn)
                assert [calls.pop(n, 0) for n in tools] == [1] * len(tools)
                assert not calls
                await self.pause(rng, longest)
                if self.is_over:
                    return

    def expected_calls(self, kind: str, turn: int) -> list[int]:
        """The tool calls of a turn."""
        return [10 * turn + each for each in (1, 2, 3)] if kind == "tools" else []

    async def text(self, session: Session, _turn: int) -> None:
        """Get an answer in pieces."""
        answer = ["Once ", "upon ", "a ", "time ", "there ", "was"]
        await self.say(session, "".join(answer), {"text": answer, "chunk_delay_ms": 20})

    async def tools(self, session: Session, turn: int) -> None:
        """Have tools called, twice beside each other."""
        first, second, third = (
            {"name": "double", "input": {"n": n}} for n in self.expected_calls("tools", turn)
        )
        steps = {"tools": [first, second]}, {"tools": [third]}, {"text": "Done."}
        await self.say(session, "Done.", *steps)

    async def thinking(self, session: Session, _turn: int) -> None:
        """Get an answer that was thought about."""
        await self.say(session, "So.", {"thinking": "Hm, let me see.", "text": "So."})

    async def interrupt(self, session: Session, _turn: int) -> None:
        """Interrupt a turn that would take too long."""
        await session.send(script({"text": ["Well"] * 9, "chunk_delay_ms": 60_000}))
        async for message in session.stream():
            if message["type"] == "stream_event":
                await session.interrupt()
            elif message["type"] == "result":
                assert message.error.code == "INTERRUPTED"

    async def say(self, session: Session, expected: str, *steps: Step) -> None:
        """Have a turn, and get what was asked for."""
        await session.send(script(*steps))
        results = [each async for each in session.stream() if each["type"] == "result"]
        assert [each.result for each in results] == [expected]


async def cut(proxy: FaultProxy, per_minute: float, seed: int) -> None:
    """Cut connections, each with the same probability in each second."""
    rng = random.Random(seed)
    while True:
        await asyncio.sleep(1)
        proxy.cut_some(lambda frames: frames > BEGINNING_FRAMES and rng.random() < per_minute / 60)


@dataclass
class Watch:
    """Looks at a process, once a second."""

    pid: int
    resident_kib: list[int] = field(default_factory=list)

    async def look(self) -> None:
        """Look until it is cancelled."""
        while True:
            self.resident_kib.append(await asyncio.to_thread(resident_kib, self.pid))
            await asyncio.sleep(1)

    def growth(self) -> float:
        """What it grew by from the middle, when it is warm, to the end."""
        part = max(1, len(self.resident_kib) // 10)
        middle = len(self.resident_kib) // 2
        warm = self.resident_kib[middle : middle + part]
        return max(self.resident_kib[-part:]) / max(warm)


def resident_kib(pid: int) -> int:
    """The memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("it has ended")


def open_files(pid: int) -> int:
    """How many descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@pytest.fixture
def size(request: pytest.FixtureRequest) -> tuple[int, float]:
    """How many sessions for how many seconds."""
    is_sample = request.config.getoption("-m") == "not slow"
    sessions, seconds = (20, 8.0) if is_sample else (2_000, 600.0)
    return (
        int(os.environ.get("SOAK_SESSIONS", sessions)),
        float(os.environ.get("SOAK_SECONDS", seconds)),
    )


@pytest.fixture
def pid_of(require_part: Any) -> Any:
    """The id of a server's process, where the system tells about processes."""
    require_part("/proc", Path("/proc/self/status").exists(), "Linux has it")

    def pid(server: MortalServer) -> int:
        assert server.process
        return server.process.pid

    return pid


@pytest.mark.timeout(3600)
async def test_many_sessions_on_connections_that_break_see_no_error_and_leave_nothing(
    mortal_server: MortalServer,
    fault_proxy: StartProxy,
    pid_of: Any,
    size: tuple[int, float],
    seed: int,
) -> None:
    sessions, seconds = size
    await mortal_server.stop()
    (mortal_server.directory / "chucky.toml").write_text(SETTINGS)
    await mortal_server.start()
    pid = pid_of(mortal_server)
    async with fault_proxy(mortal_server.url) as proxy:
        clock = asyncio.get_running_loop().time
        await Soak(mortal_server.url, mortal_server, 1, clock() + 1, seed).use(0)
        files = await asyncio.to_thread(open_files, pid)

        soak = Soak(proxy.url, mortal_server, sessions, clock() + seconds, seed)
        watch = Watch(pid)
        is_short = seconds < 60
        cutting = cut(proxy, CUT_PER_MINUTE_OF_FEW if is_short else CUT_PER_MINUTE, seed)
        beside = [asyncio.create_task(each) for each in (cutting, watch.look())]
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(sessions):
                    tasks.create_task(soak.use(number))
        finally:
            for task in beside:
                task.cancel()
        print(
            f"{sessions} sessions, {seconds:g} s: {soak.began} begun, turns {dict(soak.done)}, "
            f"{proxy.connections} connections, growth {watch.growth():.3f}, "
            f"from {watch.resident_kib[len(watch.resident_kib) // 2]} KiB"
        )
    assert soak.done.total() >= sessions
    assert proxy.connections > soak.began
    assert watch.growth() < (MOST_GROWTH_OF_COLD if is_short else MOST_GROWTH)
    async with asyncio.timeout(WAIT_SECONDS):
        while await asyncio.to_thread(open_files, pid) > files + KEPT_FILES:
            pass
    await mortal_server.stop()
    assert b"adds up" in await mortal_server.run("verify")
