"""What a client of a server that replays does when a connection is lost, and what it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed

from chucky import (
    AuthenticationError,
    ChuckyConnectionError,
    ChuckyTimeoutError,
    Message,
    SessionError,
    tool,
)

if TYPE_CHECKING:
    from tests.sdk.conftest import Peer, StartServer

SESSION_ID = "0d6b6f1e-6b5c-4a55-9a53-1f6f3c6a2b11"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chucky.link.FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("chucky.link.LONGEST_PAUSE_SECONDS", 0.02)


async def texts(stream: AsyncIterator[Message]) -> list[str]:
    return [str(message) async for message in stream]


async def begin(peer: Peer, *, seq: int = 0) -> dict[str, Any]:
    """Be ready, as a server that replays; return the payload of ``init``."""
    return await peer.start(
        sessionId=SESSION_ID, capabilities=["replay", "interrupt"], seq=seq, maxFrameBytes=10**6
    )


async def numbered_turn(peer: Peer, first: int, answer: str) -> dict[str, Any]:
    """Answer one message with numbered ones; return the message."""
    asked = await peer.expect("user")
    await peer.send({**peer.assistant(answer), "seq": first})
    await peer.send({**peer.result(answer), "seq": first + 1})
    return asked


async def begin_and_lose(peer: Peer) -> None:
    """Lose the connection in the middle of the first turn."""
    await begin(peer)
    await peer.expect("user")
    await peer.send({**peer.assistant("Once"), "seq": 2})
    await peer.settle()
    peer.abort()


async def go_on(peer: Peer) -> None:
    """Go on with the turn that was lost."""
    await begin(peer, seq=2)
    await numbered_turn(peer, 3, "upon a time")
    await peer.until_closed()


@dataclass
class Holder:
    """Accepts a connection and is never ready on it."""

    came: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def hold(self, peer: Peer) -> None:
        self.came.set()
        await peer.until_closed()
        self.left.set()


async def test_a_client_says_what_it_has_and_sends_the_open_message_again(
    scripted_server: StartServer,
) -> None:
    seen: list[dict[str, Any]] = []

    async def first(peer: Peer) -> None:
        await begin(peer)
        seen.append(await peer.expect("user"))
        await peer.send({**peer.assistant("Once"), "seq": 2})
        await peer.send({**peer.delta("up"), "seq": 2, "delta": 1})
        await peer.settle()
        peer.abort()

    async def second(peer: Peer) -> None:
        init = await begin(peer, seq=2)
        last_seen = {"seq": 2, "delta": 1, "mayBeUnknown": False}
        assert (init["resume"], init["lastSeen"]) == (SESSION_ID, last_seen)
        assert "forkSession" not in init
        assert peer.headers["Chucky-Session"] == SESSION_ID
        # What it has is not shown twice.
        await peer.send({**peer.delta("up"), "seq": 2, "delta": 1})
        seen.append(await numbered_turn(peer, 3, "upon a time"))
        await peer.until_closed()

    server = await scripted_server(first, second)
    async with (
        server.client(include_partial_messages=True) as client,
        client.create_session(resume="another", fork_session=True) as session,
    ):
        await session.send("Tell me")
        messages = [message async for message in session.stream()]
    assert [m["type"] for m in messages] == ["assistant", "stream_event", "assistant", "result"]
    assert seen[0] == seen[1]
    assert all("seq" not in message for message in messages)


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013])
async def test_a_connection_that_is_closed_for_now_is_taken_up_again(
    scripted_server: StartServer, code: int
) -> None:
    async def first(peer: Peer) -> None:
        await begin(peer)
        await peer.expect("user")
        await peer.close(code)

    async def second(peer: Peer) -> None:
        await begin(peer)
        await numbered_turn(peer, 1, "Hello!")
        await peer.until_closed()

    server = await scripted_server(first, second)
    async with server.client() as client:
        assert (await client.prompt("Hi")).result == "Hello!"


@pytest.mark.parametrize("code", [1000, 1002, 1008, 4000])
async def test_a_connection_that_is_closed_on_purpose_is_not(
    scripted_server: StartServer, code: int
) -> None:
    async def script(peer: Peer) -> None:
        await begin(peer)
        await peer.expect("user")
        await peer.close(code)

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hi")
        with pytest.raises(ChuckyConnectionError) as raised:
            await texts(session.stream())
    assert raised.value.close_code == code
    assert len(server.peers) == 1


async def test_a_server_that_says_close_means_it(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await begin(peer)
        await peer.expect("user")
        await peer.send(peer.control("close"))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hi")
        with pytest.raises(ChuckyConnectionError, match="closed the session"):
            await texts(session.stream())
    assert len(server.peers) == 1


async def test_without_replay_a_lost_connection_raises_as_ever(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start(sessionId=SESSION_ID, capabilities=["interrupt"])
        await peer.expect("user")
        peer.abort()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hi")
        with pytest.raises(ChuckyConnectionError):
            await texts(session.stream())
        with pytest.raises(ChuckyConnectionError):
            await session.send("Still there?")
    assert len(server.peers) == 1


async def test_between_turns_the_next_message_makes_the_next_connection(
    scripted_server: StartServer,
) -> None:
    lost = asyncio.Event()

    async def first(peer: Peer) -> None:
        await begin(peer)
        await numbered_turn(peer, 1, "One.")
        peer.abort()
        lost.set()

    async def second(peer: Peer) -> None:
        init = await begin(peer, seq=2)
        assert init["lastSeen"]["seq"] == 2
        await numbered_turn(peer, 3, "Two.")
        await peer.until_closed()

    server = await scripted_server(first, second)
    async with server.client() as client, client.create_session() as session:
        await session.send("1")
        assert (await texts(session.stream()))[-1] == "One."
        await lost.wait()
        await session.send("2")
        assert (await texts(session.stream()))[-1] == "Two."
    assert len(server.peers) == 2


async def test_a_server_that_falls_silent_in_a_turn_is_left_for_another_connection(
    scripted_server: StartServer,
) -> None:
    left = asyncio.Event()

    async def first(peer: Peer) -> None:
        await begin(peer)
        await peer.expect("user")
        await left.wait()  # says nothing any more, not even to pings

    async def second(peer: Peer) -> None:
        left.set()
        await begin(peer)
        await numbered_turn(peer, 1, "Hello!")
        await peer.until_closed()

    server = await scripted_server(first, second)
    async with server.client(keepalive_interval=0.05) as client:
        assert (await client.prompt("Hi")).result == "Hello!"


async def test_a_message_that_is_sent_meanwhile_waits_for_the_same_connection(
    scripted_server: StartServer,
) -> None:
    came, may_come = asyncio.Event(), asyncio.Event()

    async def second(peer: Peer) -> None:
        came.set()
        await may_come.wait()
        await begin(peer, seq=2)
        await numbered_turn(peer, 3, "First.")
        await numbered_turn(peer, 5, "Second.")
        await peer.until_closed()

    server = await scripted_server(begin_and_lose, second)
    async with server.client() as client, client.create_session() as session:
        await session.send("1")
        await came.wait()
        sending = asyncio.create_task(session.send("2"))
        may_come.set()
        await sending
        assert (await texts(session.stream()))[-1] == "First."
        assert (await texts(session.stream()))[-1] == "Second."
    assert len(server.peers) == 2


async def test_closing_ends_the_attempts_to_connect_again(scripted_server: StartServer) -> None:
    holder = Holder()
    server = await scripted_server(begin_and_lose, holder.hold)
    async with server.client() as client:
        session = client.create_session()
        await session.send("Hi")
        await holder.came.wait()
        await session.close()
        with pytest.raises(SessionError, match="closed"):
            await texts(session.stream())


async def test_a_turn_that_takes_too_long_also_ends_the_attempts_to_connect_again(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chucky.session.INTERRUPT_TIMEOUT_SECONDS", 0.05)
    holder = Holder()
    server = await scripted_server(begin_and_lose, holder.hold)
    async with server.client(turn_timeout=0.3) as client, client.create_session() as session:
        await session.send("Hi")
        with pytest.raises(ChuckyTimeoutError, match="turn_timeout"):
            await texts(session.stream())
        await holder.left.wait()
        with pytest.raises(ChuckyTimeoutError, match="turn_timeout"):
            await session.send("And now?")


async def test_an_interrupt_is_not_lost_with_the_connection(scripted_server: StartServer) -> None:
    came, may_come = asyncio.Event(), asyncio.Event()

    async def second(peer: Peer) -> None:
        came.set()
        await may_come.wait()
        await begin(peer, seq=2)
        await peer.expect("user")
        assert (await peer.expect("control"))["payload"]["action"] == "interrupt"
        await peer.send({**peer.result("Interrupted."), "seq": 3})
        await numbered_turn(peer, 5, "Next.")
        await peer.until_closed()

    server = await scripted_server(begin_and_lose, second)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hi")
        await came.wait()
        await session.interrupt()
        may_come.set()
        assert (await texts(session.stream()))[-1] == "Interrupted."
        await session.send("Next")
        assert (await texts(session.stream()))[-1] == "Next."


async def test_a_token_function_is_asked_again_and_may_be_out_of_reach_for_a_while(
    scripted_server: StartServer,
) -> None:
    asked: list[str] = []

    async def token() -> str:
        asked.append(f"token-{len(asked)}")
        if len(asked) in (2, 3):
            raise LookupError("the network is gone")
        return asked[-1]

    async def second(peer: Peer) -> None:
        assert peer.headers["Authorization"] == "Bearer token-3"
        await go_on(peer)

    server = await scripted_server(begin_and_lose, second)
    async with server.client(token=token) as client:
        assert (await client.prompt("Hi")).result == "upon a time"


async def test_a_token_that_is_refused_raises_at_once(scripted_server: StartServer) -> None:
    async def second(peer: Peer) -> None:
        await peer.send(peer.error("The token has expired.", "token_expired"))
        await peer.close(1008)

    server = await scripted_server(begin_and_lose, second)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hi")
        with pytest.raises(AuthenticationError, match="expired"):
            await texts(session.stream())
    assert len(server.peers) == 2


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("SESSION_ERROR", {"reason": "server_stopping"}),
        ("CONCURRENCY_LIMIT", {"reason": "server_full", "retry_after": 0.01}),
        ("CONCURRENCY_LIMIT", {"reason": "concurrent_limit_reached"}),
    ],
)
async def test_a_server_that_cannot_have_the_session_just_now_is_asked_again(
    scripted_server: StartServer, code: str, details: dict[str, Any]
) -> None:
    async def second(peer: Peer) -> None:
        await peer.send(peer.error("Not now.", code, **details))
        await peer.close(1012)

    server = await scripted_server(begin_and_lose, second, second, go_on)
    async with server.client() as client:
        assert (await client.prompt("Hi")).result == "upon a time"
    assert len(server.peers) == 4


async def test_after_the_time_for_it_is_over_the_error_names_the_session(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chucky.link.RECONNECT_SECONDS", 0.1)

    async def refuse(peer: Peer) -> None:
        peer.abort()

    server = await scripted_server(begin_and_lose, refuse)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hi")
        with pytest.raises(ChuckyConnectionError, match="taken up again within") as raised:
            await texts(session.stream())
    assert raised.value.session_id == SESSION_ID


async def test_a_server_that_drops_every_connection_is_given_up(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chucky.link.RECONNECT_SECONDS", 0.3)

    async def drop(peer: Peer) -> None:
        with suppress(ConnectionClosed):  # the client gives up at any moment
            await begin(peer, seq=2)
            await peer.expect("user")
        peer.abort()

    server = await scripted_server(begin_and_lose, drop)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hi")
        with pytest.raises(ChuckyConnectionError, match="taken up again within"):
            await texts(session.stream())


async def test_a_server_that_lost_messages_gives_their_numbers_to_others(
    scripted_server: StartServer,
) -> None:
    async def first(peer: Peer) -> None:
        await begin(peer)
        await numbered_turn(peer, 50, "One.")
        peer.abort()

    async def second(peer: Peer) -> None:
        await begin(peer, seq=10)
        await numbered_turn(peer, 12, "Two.")
        await peer.until_closed()

    server = await scripted_server(first, second)
    async with server.client() as client, client.create_session() as session:
        await session.send("1")
        await texts(session.stream())
        await session.send("2")
        assert (await texts(session.stream()))[-1] == "Two."


async def test_a_call_that_comes_again_gets_the_same_answer_and_runs_once(
    scripted_server: StartServer,
) -> None:
    runs: list[int] = []
    ran, may_end = asyncio.Event(), asyncio.Event()

    @tool("count", "Count the calls")
    async def count() -> str:
        runs.append(len(runs))
        ran.set()
        await may_end.wait()
        return f"run {len(runs)}"

    async def first(peer: Peer) -> None:
        await begin(peer)
        await peer.expect("user")
        await peer.send(peer.tool_call("call-1", "count"))
        await ran.wait()
        peer.abort()

    answers: list[Any] = []

    async def second(peer: Peer) -> None:
        await begin(peer)
        await peer.expect("user")
        await peer.send(peer.tool_call("call-1", "count"))  # it runs still
        await peer.settle()
        may_end.set()
        answers.append(await peer.expect("tool_result"))
        peer.abort()

    async def third(peer: Peer) -> None:
        await begin(peer)
        await peer.expect("user")
        await peer.send(peer.tool_call("call-1", "count"))  # its answer was lost
        answers.append(await peer.expect("tool_result"))
        await peer.send({**peer.result("Done."), "seq": 1})
        await peer.until_closed()

    server = await scripted_server(first, second, third)
    async with server.client() as client:
        assert (await client.prompt("Hi", tools=[count])).result == "Done."
    assert runs == [0]
    assert answers[0] == answers[1]
    assert "run 1" in str(answers[0])


async def test_what_many_large_answers_may_hold_in_memory_is_bounded(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chucky.toolanswers._REMEMBERED_BYTES", 25_000)
    runs: list[int] = []

    @tool("large", "Return much")
    async def large() -> str:
        runs.append(len(runs))
        return "x" * 10_000

    calls = ["call-1", "call-2", "call-3"]

    async def first(peer: Peer) -> None:
        await begin(peer)
        await peer.expect("user")
        for call in calls:
            await peer.send(peer.tool_call(call, "large"))
            await peer.expect("tool_result")
        peer.abort()

    async def second(peer: Peer) -> None:
        await begin(peer)
        await peer.expect("user")
        kept = []
        for call in calls:
            await peer.send(peer.tool_call(call, "large"))
            result = (await peer.expect("tool_result"))["payload"]["result"]
            kept.append(result["content"][0]["text"])
        assert "lost on the way" in kept[0]
        assert kept[1:] == ["x" * 10_000] * 2
        await peer.send({**peer.result("Done."), "seq": 1})
        await peer.until_closed()

    server = await scripted_server(first, second)
    async with server.client() as client:
        assert (await client.prompt("Hi", tools=[large])).result == "Done."
    assert len(runs) == 3
