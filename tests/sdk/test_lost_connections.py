"""Turns that end otherwise than with their result: the reason arrives, at once, every time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from chucky import (
    BudgetExceededError,
    ChuckyConnectionError,
    ChuckyError,
    Message,
    ProtocolError,
    tool,
)

if TYPE_CHECKING:
    from tests.sdk.conftest import Peer, StartServer

# ---- error frames ----------------------------------------------------------------------------


@pytest.mark.parametrize("closes", [False, True])
async def test_an_error_in_a_turn_is_its_result(scripted_server: StartServer, closes: bool) -> None:
    """defect 11: the server's text and code were lost."""

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.assistant("Let me"), peer.error("Limit reached.", "BUDGET_EXCEEDED"))
        if closes:
            await peer.close(1008)
        else:
            await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        result = await client.prompt("Hello")
    assert (result.get("subtype"), result.get("result")) == ("error", "Limit reached.")
    assert (result.is_error, result.error.code) == (True, "BUDGET_EXCEEDED")
    assert [message["type"] for message in result.messages] == ["assistant", "error", "result"]


async def test_a_lower_case_error_in_a_turn_keeps_both_words(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.error("Limit reached.", "user_budget_exhausted", limit=5))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        error = (await client.prompt("Hello")).error
    assert (error.code, error.reason) == ("BUDGET_EXCEEDED", "user_budget_exhausted")
    assert (error.limit, error.message) == (5, "Limit reached.")


async def test_a_session_goes_on_after_an_error_in_a_turn(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.error("Overloaded."))
        await peer.turn("Better now.")
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hello")
        assert [m.type async for m in session.stream()] == ["error", "result"]
        await session.send("Hello again")
        assert [str(m) async for m in session.stream()][-1] == "Better now."


async def test_an_error_is_an_event_before_the_result(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.error("It broke."))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        events = [event async for event in client.stream("Hello")]
    assert [event.type for event in events] == ["error", "result", "done"]
    assert str(events[0].data) == "It broke."


async def test_an_error_with_a_close_right_behind_ready_is_not_lost(
    scripted_server: StartServer,
) -> None:
    """A server may be ready first and look at the token then."""

    async def script(peer: Peer) -> None:
        await peer.send(peer.control("ready"))
        await peer.send(peer.error("Your token has expired.", "token_expired"))
        await peer.close(1008)

    server = await scripted_server(script)
    async with server.client() as client:
        try:
            said: Any = await client.prompt("Hello")
        except ChuckyError as error:
            said = {"result": error.message}
    assert said["result"] == "Your token has expired."


async def test_an_error_between_turns_is_why_the_session_ends(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn()
        await peer.send(peer.error("No money left.", "BUDGET_EXCEEDED"))
        await peer.settle()
        processed.set()
        await peer.until_closed()

    processed = asyncio.Event()
    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hello")
        assert [m.type async for m in session.stream()] == ["assistant", "result"]
        await processed.wait()
        with pytest.raises(BudgetExceededError, match=r"No money left\."):
            await session.send("Hello again")


# ---- lost connections ------------------------------------------------------------------------


async def close_normally(peer: Peer) -> None:
    await peer.close(1000)


async def close_with_a_reason(peer: Peer) -> None:
    await peer.close(1011, "out of memory")


async def cut(peer: Peer) -> None:
    peer.abort()


async def close_by_control(peer: Peer) -> None:
    await peer.send(peer.control("close"))
    await peer.until_closed()


async def send_nonsense(peer: Peer) -> None:
    await peer.send_raw("nonsense")
    await peer.until_closed()


ENDS = [
    pytest.param(close_normally, ChuckyConnectionError, r"\(code 1000\)", id="close 1000"),
    pytest.param(
        close_with_a_reason, ChuckyConnectionError, "1011, 'out of memory'", id="close 1011"
    ),
    pytest.param(cut, ChuckyConnectionError, "without a closing handshake", id="cut"),
    pytest.param(
        close_by_control, ChuckyConnectionError, "server closed the session", id="control close"
    ),
    pytest.param(send_nonsense, ProtocolError, "is not a frame", id="nonsense"),
]


@pytest.mark.parametrize(("end", "kind", "words"), ENDS)
async def test_a_turn_cut_short_yields_what_came_and_then_raises_the_reason(
    scripted_server: StartServer,
    end: Callable[[Peer], Awaitable[None]],
    kind: type[ChuckyError],
    words: str,
) -> None:
    """defect 3, defect 4, defect 5, defect 15: it hung, ended silently, or said nothing."""

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.assistant("Once upon a"))
        await end(peer)

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        for text in ("Tell me a story", "And another", "And another"):
            await session.send(text)
        came: list[str] = []
        with pytest.raises(kind, match=words) as first:
            await collect(session.stream(), came)
        assert came == ["Once upon a"]
        with pytest.raises(kind, match=words) as queued:
            await anext(session.stream())
        with pytest.raises(kind, match=words) as sending:
            await session.send("Hello?")
        assert first.value is queued.value is sending.value
        assert len(server.peers) == 1


@pytest.mark.parametrize(("end", "kind", "words"), ENDS)
async def test_prompt_and_client_stream_raise_the_reason_too(
    scripted_server: StartServer,
    end: Callable[[Peer], Awaitable[None]],
    kind: type[ChuckyError],
    words: str,
) -> None:
    """defect 3"""

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await end(peer)

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(kind, match=words):
            await client.prompt("Hello")
        with pytest.raises(kind, match=words):
            _ = [event async for event in client.stream("Hello")]


async def test_a_lost_connection_is_told_at_once_even_if_a_tool_does_not_end(
    scripted_server: StartServer,
) -> None:
    """defect 3"""
    running, released = asyncio.Event(), asyncio.Event()

    @tool("stubborn", "Ignores that it is cancelled")
    async def stubborn() -> str:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            await released.wait()
        return "never"

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.tool_call("1", "stubborn"))
        await running.wait()
        peer.abort()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session(tools=[stubborn]) as session:
        await session.send("Hello")
        with pytest.raises(ChuckyConnectionError):
            await anext(session.stream())
        with pytest.raises(ChuckyConnectionError):
            await session.send("Hello again")
        released.set()


async def test_what_came_before_the_connection_was_lost_between_turns_is_kept(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn("First.")
        await peer.close(1001)

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hello")
        await session.send("Hello again")
        first, second = session.stream(), session.stream()
        assert [str(m) async for m in first] == ["First.", "First."]
        with pytest.raises(ChuckyConnectionError, match="1001"):
            await anext(second)


async def test_a_frame_beyond_the_limit_ends_the_turn_with_a_reason(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chucky.connection.MAX_FRAME_BYTES", 1000)

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.result("x" * 1001))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ChuckyConnectionError, match="1009"):
            await client.prompt("Write much")


async def test_messages_outside_any_turn_are_ignored(scripted_server: StartServer) -> None:
    strays_are_read = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn("First.")
        await peer.send(peer.result("Once more."), peer.assistant("And more."))
        await peer.settle()
        strays_are_read.set()
        await peer.turn("Second.")
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hello")
        assert [str(m) async for m in session.stream()] == ["First.", "First."]
        await strays_are_read.wait()
        await session.send("Hello again")
        assert [str(m) async for m in session.stream()] == ["Second.", "Second."]


async def collect(stream: AsyncIterator[Message], texts: list[str]) -> None:
    async for message in stream:
        texts.append(str(message))
