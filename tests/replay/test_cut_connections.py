"""What an application sees when its connection breaks: what it would have seen otherwise."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, tool
from chucky.server.sessions import mailbox

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.replay.conftest import Fault, OwnServer, StartProxy

WAIT_SECONDS = 60
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
# What differs from run to run, whatever breaks.
_OWN = frozenset(
    {"uuid", "session_id", "duration_ms", "duration_api_ms", "turn_compute_ms", "budgets"}
)
_IDS = frozenset({"id", "tool_use_id"})
# The first frames begin the session, and until its client knows its id a loss raises.
_BEGINNING_FRAMES = 4
_AT_ONCE = 20
FAULTS: tuple[Fault, ...] = ("cut", "cut_behind", "half_close", "silence", "delay")


@dataclass
class Seen:
    """What an application saw of a conversation.

    Attributes:
        messages: The complete messages, without what differs from run to run.
        deltas: The text of the partial ones.
        calls: The tool calls that ran.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    deltas: str = ""
    calls: list[int] = field(default_factory=list)


def script(*steps: dict[str, Any]) -> str:
    return f"{uuid.uuid4()}\n```offline\n{json.dumps(steps)}\n```"


CONVERSATION = (
    ({"text": ["Once ", "upon ", "a time"]},),
    (
        {
            "thinking": "Two calls.",
            "tools": [{"name": "double", "input": {"n": n}} for n in (1, 2)],
        },
        {"tools": [{"name": "double", "input": {"n": 3}}]},
        {"text": ["Two ", "and ", "four ", "and ", "six"]},
    ),
    ({"text": "The end."},),
)
TEXT = "Once upon a timeTwo and four and sixThe end."


async def converse(url: str, token: str, *, keepalive_interval: float = 30.0) -> Seen:
    """Have the conversation, and see."""
    seen = Seen()

    @tool("double", "Double a number", schema=NUMBER)
    async def double(n: int) -> str:
        seen.calls.append(n)
        return str(2 * n)

    client = Chucky(
        token,
        url=url,
        timeout=5,
        include_partial_messages=True,
        keepalive_interval=keepalive_interval,
    )
    async with (
        asyncio.timeout(WAIT_SECONDS),
        client,
        client.create_session(tools=[double]) as session,
    ):
        for steps in CONVERSATION:
            await session.send(script(*steps))
            async for message in session.stream():
                if message["type"] == "stream_event":
                    seen.deltas += message["event"].get("delta", {}).get("text", "")
                else:
                    seen.messages.append(_stable(message))
    return seen


def _stable(value: Any) -> Any:
    """The message without what differs from run to run."""
    if isinstance(value, dict):
        return {k: _stable(v) for k, v in value.items() if k not in _OWN | _IDS}
    return [_stable(each) for each in value] if isinstance(value, list) else value


@pytest.fixture
def is_sample(request: pytest.FixtureRequest) -> bool:
    """Whether a sample is to do."""
    return bool(request.config.getoption("-m") == "not slow")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chucky.link.FIRST_PAUSE_SECONDS", 0.02)


async def see_each(
    schedules: list[dict[int, Fault]], server: Server | OwnServer, fault_proxy: StartProxy
) -> list[tuple[Seen, int]]:
    """What an application sees by each schedule of faults, and on how many connections."""
    seen: list[tuple[Seen, int] | None] = [None] * len(schedules)
    remaining = iter(enumerate(schedules))

    async def work(worker: int) -> None:
        for number, faults in remaining:
            interval = 0.3 if "silence" in faults.values() else 30.0
            try:
                async with fault_proxy(server.url, faults) as proxy:
                    token = server.token(f"cut-{worker}")
                    saw = await converse(proxy.url, token, keepalive_interval=interval)
            except Exception as error:
                error.add_note(f"the faults were {faults}")
                raise
            seen[number] = (saw, proxy.connections)

    async with asyncio.TaskGroup() as tasks:
        for worker in range(_AT_ONCE):
            tasks.create_task(work(worker))
    return [each for each in seen if each is not None]


async def undisturbed(server: Server | OwnServer, fault_proxy: StartProxy) -> tuple[Seen, int]:
    """What an application sees when nothing breaks, and how many frames there are until its end."""
    async with fault_proxy(server.url) as proxy:
        seen = await converse(proxy.url, server.token("undisturbed"))
        # The last three close the connection.
        frames = proxy.frames - 3
    assert (seen.deltas, seen.calls) == (TEXT, [1, 2, 3])
    return seen, frames


@pytest.mark.parametrize("fault", FAULTS)
async def test_wherever_a_connection_breaks_the_application_sees_the_same(
    server: Server, fault_proxy: StartProxy, seed: int, is_sample: bool, fault: Fault
) -> None:
    expected, frames = await undisturbed(server, fault_proxy)
    positions = list(range(_BEGINNING_FRAMES + 1, frames + 1))
    if is_sample:
        positions = random.Random(f"{seed} {fault}").sample(positions, 8)
    schedules: list[dict[int, Fault]] = [{position: fault} for position in positions]
    for schedule, (seen, connections) in zip(
        schedules, await see_each(schedules, server, fault_proxy), strict=True
    ):
        assert seen == expected, schedule
        # Behind the last frame nothing is missed.
        needs_one = fault == "delay" or schedule == {frames: "cut_behind"}
        assert connections == 1 if needs_one else connections >= 2, schedule


def random_schedule(rng: random.Random, frames: int, *kinds: Fault) -> dict[int, Fault]:
    """Some faults somewhere, close to each other as a rule."""
    position = rng.randint(_BEGINNING_FRAMES + 1, frames)
    faults: dict[int, Fault] = {}
    for _ in range(rng.randint(1, 6)):
        faults[position] = rng.choice(kinds)
        position += rng.choice((1, 2, 3, 5, 8, 13))
    return faults


@pytest.mark.timeout(3600)
async def test_whatever_breaks_however_often_the_application_sees_the_same(
    server: Server, fault_proxy: StartProxy, seed: int, is_sample: bool
) -> None:
    expected, frames = await undisturbed(server, fault_proxy)
    rng = random.Random(seed)
    loud = [fault for fault in FAULTS if fault != "silence"]
    for number in range(1 if is_sample else 100):
        # Silence takes its time to be noticed, so that most go without.
        kinds = loud if number % 10 else list(FAULTS)
        schedules = [random_schedule(rng, frames, *kinds) for _ in range(40 if is_sample else 100)]
        for schedule, (seen, _) in zip(
            schedules, await see_each(schedules, server, fault_proxy), strict=True
        ):
            assert seen == expected, schedule


@pytest.mark.timeout(600)
async def test_where_the_tail_is_too_short_complete_messages_come_in_the_place_of_partial_ones(
    own_server: OwnServer,
    fault_proxy: StartProxy,
    seed: int,
    is_sample: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, frames = await undisturbed(own_server, fault_proxy)
    monkeypatch.setattr(mailbox, "TAIL_BYTES", 1_000)
    rng = random.Random(seed)
    schedules = [
        random_schedule(rng, frames, "cut", "cut_behind", "half_close", "delay")
        for _ in range(25 if is_sample else 1_000)
    ]
    for schedule, (seen, _) in zip(
        schedules, await see_each(schedules, own_server, fault_proxy), strict=True
    ):
        assert (seen.messages, seen.calls) == (expected.messages, expected.calls), schedule
