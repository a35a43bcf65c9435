"""A server that is stopped or dies in the middle of turns, and clients that go on by themselves."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from chucky import Chucky, ChuckyError, ConcurrencyLimitError, Message, Session, tool

if TYPE_CHECKING:
    from tests.replay.conftest import FaultProxy, MortalServer, StartProxy


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chucky.link.FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("chucky.link.LONGEST_PAUSE_SECONDS", 0.2)


def script(*steps: dict[str, Any]) -> str:
    return f"{uuid.uuid4()}\n```offline\n{json.dumps(steps)}\n```"


NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
LONG = script({"text": [f"{n} " for n in range(1000)], "chunk_delay_ms": 50})


async def ask(session: Session, text: str) -> list[Message]:
    """The messages of one turn."""
    await session.send(text)
    return [message async for message in session.stream()]


def results(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message["type"] == "result"]


async def restart(server: MortalServer, how: str) -> None:
    await getattr(server, how)()
    await server.start()


async def assert_nothing_runs(server: MortalServer) -> None:
    """Look into the database past the server: no turn runs, and nothing is held."""

    def look() -> list[tuple[int, int]]:
        with closing(sqlite3.connect(server.db)) as connection:
            return connection.execute(
                "SELECT (SELECT count(*) FROM sessions WHERE turn_id <> ''), "
                "(SELECT count(*) FROM ledger_reservations)"
            ).fetchall()

    assert await asyncio.to_thread(look) == [(0, 0)]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("stop", ("SESSION_ERROR", "server_stopping")),
        ("kill", ("INTERRUPTED", "server_died")),
    ],
)
async def test_a_turn_in_the_middle_of_which_the_server_restarts_ends_once_and_the_session_goes_on(
    mortal_server: MortalServer, how: str, error: tuple[str, str]
) -> None:
    (mortal_server.directory / "chucky.toml").write_text("drain_seconds = 0.2")
    await restart(mortal_server, "stop")
    async with (
        Chucky(
            mortal_server.token("restarting"),
            url=mortal_server.url,
            include_partial_messages=True,
        ) as client,
        client.create_session() as session,
    ):
        await ask(session, "My name is Alice")
        await session.send(LONG)
        messages = []
        async for message in session.stream():
            messages.append(message)
            if len(messages) == 5:
                restarting = asyncio.create_task(restart(mortal_server, how))
        await restarting
        (result,) = results(messages)
        assert result.is_error
        assert (result.error.code, result.error.reason) == error

        (result,) = results(await ask(session, "What is my name?"))
        assert result.result == "Your name is Alice."
        history = await session.history()
    assert [each["subtype"] for each in results(history)] == ["success", "error", "success"]
    await assert_nothing_runs(mortal_server)


async def test_a_turn_that_ends_while_the_server_waits_for_it_is_whole(
    mortal_server: MortalServer,
) -> None:
    restarts: list[asyncio.Task[None]] = []

    @tool("wait", "Wait")
    async def wait() -> str:
        restarts.append(asyncio.create_task(restart(mortal_server, "stop")))
        await refuses(mortal_server)
        return "waited"

    turn = script({"tools": [{"name": "wait", "input": {}}]}, {"text": "All of it."})
    async with (
        Chucky(mortal_server.token("draining"), url=mortal_server.url) as client,
        client.create_session(tools=[wait]) as session,
    ):
        (result,) = results(await ask(session, turn))
        assert result.result == "All of it."
        await restarts[0]
        (result,) = results(await ask(session, "What is 2 + 2?"))
        assert result.subtype == "success"


async def test_a_server_reads_its_settings_again_at_a_signal(mortal_server: MortalServer) -> None:
    (mortal_server.directory / "chucky.toml").write_text("max_sessions_per_user = 1")
    client = Chucky(mortal_server.token("many"), url=mortal_server.url)
    async with client.create_session() as first:
        await ask(first, "What is 2 + 2?")
        assert mortal_server.process
        mortal_server.process.send_signal(signal.SIGHUP)
        while True:  # until it has
            try:
                await client.prompt("What is 2 + 2?")
            except ConcurrencyLimitError:
                break
        (result,) = results(await ask(first, "What is 2 + 2?"))
        assert result.subtype == "success"


async def refuses(server: MortalServer) -> None:
    """Wait until a server lets nobody in, and see that it tells why."""
    # Not by asking: a session that was let in just before waits for the next server.
    address = server.url.replace("ws", "http", 1).removesuffix("/ws")
    async with httpx2.AsyncClient(base_url=address) as web:
        while (await web.get("/healthz")).status_code == 200:
            pass
    with pytest.raises(ChuckyError, match="is stopping") as refused:
        await Chucky(server.token("another"), url=server.url).prompt("What is 2 + 2?")
    assert refused.value.reason == "server_stopping"


@pytest.mark.timeout(900)
async def test_wherever_the_server_dies_every_turn_ends_once(
    mortal_server: MortalServer,
    fault_proxy: StartProxy,
    seed: int,
    request: pytest.FixtureRequest,
) -> None:
    calls: list[int] = []

    @tool("double", "Double a number", schema=NUMBER)
    async def double(n: int) -> str:
        calls.append(n)
        return str(2 * n)

    rng = random.Random(seed)
    is_sample = request.config.getoption("-m") == "not slow"
    count = 4 if is_sample else 50
    async with (
        fault_proxy(mortal_server.url) as proxy,
        Chucky(
            mortal_server.token("dying"), url=proxy.url, include_partial_messages=True
        ) as client,
        client.create_session(tools=[double]) as session,
    ):
        await ask(session, "My name is Alice")
        for number in range(count):
            turn = script(
                {"text": ["Let ", "me "], "tools": [{"name": "double", "input": {"n": number}}]},
                {"text": ["Once ", "upon ", "a ", "time"], "chunk_delay_ms": 2},
            )
            dies_at = proxy.frames + rng.randint(1, 25)
            dying = asyncio.create_task(die_at_frame(mortal_server, proxy, dies_at))
            messages = await ask(session, turn)
            assert len(results(messages)) == 1, number
            proxy.skip_to(dies_at)  # if there were fewer frames
            await dying
            assert calls.count(number) <= 1, number
            (result,) = results(await ask(session, "What is my name?"))
            assert result.result == "Your name is Alice.", number
        assert len(results(await session.history())) == 2 * count + 1
    await assert_nothing_runs(mortal_server)


async def die_at_frame(server: MortalServer, proxy: FaultProxy, frame: int) -> None:
    await proxy.reach(frame)
    await restart(server, "kill")
