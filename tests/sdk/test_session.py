"""Conversations of several turns: which stream yields what, and what may be left unread."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from chucky import (
    ChuckyConnectionError,
    ChuckyTimeoutError,
    Message,
    SessionError,
    ValidationError,
)
from chucky.session import MAX_WAITING_TURNS

if TYPE_CHECKING:
    from tests.sdk.conftest import Peer, StartServer


async def texts(stream: AsyncIterator[Message]) -> list[str]:
    return [str(message) async for message in stream]


# ---- turns and streams -----------------------------------------------------------------------


async def test_turns_follow_one_another_on_one_connection(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        assert await peer.turn("Hello Alice.") == "I am Alice"
        assert await peer.turn("You are Alice.") == "Who am I?"
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("I am Alice")
        assert await texts(session.stream()) == ["Hello Alice."] * 2
        await session.send("Who am I?")
        assert await texts(session.receive()) == ["You are Alice."] * 2
    assert len(server.peers) == 1


@pytest.mark.parametrize("how", ["break", "aclose", "exception"])
async def test_leaving_a_stream_early_drops_only_the_rest_of_its_turn(
    scripted_server: StartServer, how: str
) -> None:
    has_left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.assistant("One."))
        await has_left.wait()
        await peer.send(peer.assistant("Two."), peer.result("Three."))
        await peer.turn("Second.")
        await peer.until_closed()

    async def leave(stream: Any) -> None:
        async with aclosing(stream):
            async for message in stream:
                assert str(message) == "One."
                if how == "exception":
                    raise KeyError
                return

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("First")
        if how == "break":
            async for message in session.stream():
                assert str(message) == "One."
                break
        else:
            try:
                await leave(session.stream())
            except KeyError:
                assert how == "exception"
        await session.send("Second")
        has_left.set()
        assert await texts(session.stream()) == ["Second.", "Second."]
        with pytest.raises(SessionError, match="nothing to stream"):
            await texts(session.stream())


async def test_a_second_message_waits_here_until_the_first_is_answered(
    scripted_server: StartServer,
) -> None:
    """defect 6: two sends and two streams lost or mixed a turn."""

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.settle()  # and not the second message
        await peer.send(peer.assistant("First."), peer.result("First."))
        await peer.turn("Second.")
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("one")
        await session.send("two")
        assert await texts(session.stream()) == ["First.", "First."]
        assert await texts(session.stream()) == ["Second.", "Second."]
    asked = [f["message"]["content"] for f in server.peers[0].received if f["type"] == "user"]
    assert asked == ["one", "two"]


async def test_unread_answers_wait_for_their_streams(scripted_server: StartServer) -> None:
    """defect 6: what was not read was dropped by the next send()."""

    async def script(peer: Peer) -> None:
        await peer.start()
        for number in range(3):
            await peer.turn(f"Answer {number}.")
        all_are_sent.set()
        await peer.until_closed()

    all_are_sent = asyncio.Event()
    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        for number in range(3):
            await session.send(f"Question {number}")
        await all_are_sent.wait()
        for number in range(3):
            assert await texts(session.stream()) == [f"Answer {number}."] * 2


async def test_streams_read_at_once_get_a_turn_each_in_order(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        for number in range(3):
            await peer.turn(f"Answer {number}.")
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        for number in range(3):
            await session.send(f"Question {number}")
        answers = await asyncio.gather(*(texts(session.stream()) for _ in range(3)))
    assert answers == [[f"Answer {number}."] * 2 for number in range(3)]


async def test_two_readers_of_one_stream_share_its_messages(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(*(peer.assistant(f"{number}") for number in range(20)), peer.result("20"))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Count")
        stream = session.stream()
        one, two = await asyncio.gather(texts(stream), texts(stream))
    assert sorted(map(int, one + two)) == list(range(21))
    assert await texts(stream) == []


async def test_messages_sent_at_once_share_one_connection(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.serve()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await asyncio.gather(*(session.send(f"{number}") for number in range(10)))
        for _ in range(10):
            assert len(await texts(session.stream())) == 2
    assert len(server.peers) == 1


async def test_a_stream_without_a_message_says_what_is_missing(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.serve()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        with pytest.raises(SessionError, match=r"call send\(\) first"):
            await texts(session.stream())
        await session.send("Hello")
        await texts(session.stream())
        with pytest.raises(SessionError, match=r"call send\(\) first"):
            await texts(session.stream())


async def test_content_blocks_are_sent_as_they_are(scripted_server: StartServer) -> None:
    blocks: list[dict[str, Any]] = [
        {"type": "text", "text": "What is this?"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
    ]

    async def script(peer: Peer) -> None:
        await peer.start()
        assert (await peer.expect("user"))["message"] == {"role": "user", "content": blocks}
        await peer.send(peer.result())
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        assert (await client.prompt(blocks)).result == "Hello!"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ([], "non-empty list"),
        (None, "not NoneType"),
        (5, "not int"),
        (b"hello", "not bytes"),
        ({"type": "text", "text": "x"}, "not dict"),
        (["hello"], "types document, image, text"),
        ([{"type": "audio"}], "types document, image, text"),
        ([{"type": ["text"]}], "types document, image, text"),
        ([{"type": "text"}], "text of a content block must be a string"),
        ([{"type": "image", "source": {"data": b"\x00"}}], "as base64"),
        ("half \ud83d", "surrogate pair at position 5"),
        ([{"type": "text", "text": "\udc00"}], "surrogate pair"),
    ],
)
async def test_a_message_that_cannot_be_sent_is_refused_before_anything_is_connected(
    scripted_server: StartServer, message: Any, words: str
) -> None:
    async def script(_peer: Peer) -> None:
        raise AssertionError("no connection may come about")

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        with pytest.raises(ValidationError, match=words):
            await session.send(message)


# ---- the session's id ------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["session_info", "system", "assistant", "result"])
async def test_the_session_id_comes_from_whatever_names_it(
    scripted_server: StartServer, source: str
) -> None:
    """defect 9: it was always empty."""

    async def script(peer: Peer) -> None:
        await peer.start(**({"sessionId": "my-id"} if source == "session_info" else {}))
        await peer.expect("user")
        named = {"system": peer.system(), "assistant": peer.assistant("Hi")}.get(source)
        if named:
            await peer.send({**named, "session_id": "my-id"})
        result = {**peer.result(), "session_id": "my-id"}
        if source != "result":
            del result["session_id"]
        await peer.send(result)
        second = await peer.expect("user")
        assert second["session_id"] == "my-id"
        await peer.send(peer.control("session_info", sessionId=""))
        await peer.send({**peer.result(), "session_id": None})
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        assert session.session_id == ""
        for _ in range(2):
            await session.send("Hello")
            await texts(session.stream())
            assert session.session_id == "my-id"


# ---- limits ----------------------------------------------------------------------------------


async def test_partial_messages_nobody_reads_are_dropped_before_anything_else(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chucky.turn.MAX_UNREAD_MESSAGES", 10)
    all_is_read = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(*(peer.delta(f"{number}") for number in range(100)))
        await peer.send(peer.assistant("whole"), peer.result("whole"))
        await peer.settle()
        all_is_read.set()
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Write")
        await all_is_read.wait()
        assert await texts(session.stream()) == ["0", "1", "2", "3", "4", "whole", "whole"]


async def test_too_many_unread_messages_end_their_turn_with_a_reason(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chucky.turn.MAX_UNREAD_MESSAGES", 3)
    all_is_read = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(*(peer.assistant(f"{number}") for number in range(5)), peer.result("end"))
        await peer.settle()
        all_is_read.set()
        await peer.turn("Second.")
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Write")
        await all_is_read.wait()
        stream = session.stream()
        assert [str(await anext(stream)) for _ in range(3)] == ["0", "1", "2"]
        with pytest.raises(SessionError, match=r"3 messages of this turn were not read; iterate"):
            await anext(stream)
        await session.send("Go on")
        assert await texts(session.stream()) == ["Second.", "Second."]


async def test_the_first_reason_a_turn_fails_for_is_the_one_it_raises(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chucky.turn.MAX_UNREAD_MESSAGES", 2)

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(*(peer.assistant(f"{number}") for number in range(4)))
        peer.abort()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("one")
        await session.send("two")
        first, second = session.stream(), session.stream()
        assert str(await anext(first)) == "0"
        with pytest.raises(ChuckyConnectionError):
            await anext(second)
        with pytest.raises(SessionError, match="were not read"):
            await texts(first)


@pytest.mark.parametrize("how", ["break", "aclose"])
async def test_what_is_left_of_a_turn_that_was_left_takes_no_memory(
    scripted_server: StartServer, how: str
) -> None:
    has_left, all_is_read = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(*(peer.assistant(f"{number}") for number in range(50)))
        await peer.settle()
        all_is_read.set()
        await has_left.wait()
        await peer.send(*(peer.assistant(f"{number}") for number in range(50)))
        await peer.settle()
        await peer.send(peer.result())
        await peer.turn()
        await peer.until_closed()

    server = await scripted_server(script)
    before = count_messages()
    async with server.client() as client, client.create_session() as session:
        await session.send("Count")
        await all_is_read.wait()
        stream = session.stream()
        async for _message in stream:
            break
        if how == "aclose":
            await stream.aclose()
        else:
            del stream
        has_left.set()
        await session.send("And now?")
        async for message in session.stream():
            if message.type == "result":
                break
        assert count_messages() <= before + 2


def count_messages() -> int:
    gc.collect()
    return sum(isinstance(each, Message) for each in gc.get_objects())


@pytest.mark.parametrize("answered", [False, True])
async def test_too_many_messages_without_reading_are_refused_and_room_comes_back(
    scripted_server: StartServer, answered: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        if answered:
            for _ in range(MAX_WAITING_TURNS):
                await peer.turn()
        all_is_sent.set()
        await is_refused.wait()
        while not answered and len(peer.received) <= MAX_WAITING_TURNS:
            await peer.turn()
        await peer.turn("Last.")
        await peer.until_closed()

    all_is_sent, is_refused = asyncio.Event(), asyncio.Event()
    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        for number in range(MAX_WAITING_TURNS):
            await session.send(f"{number}")
        await all_is_sent.wait()
        with pytest.raises(SessionError, match=r"100 messages are waiting; read them with stream"):
            await session.send("One more")
        is_refused.set()
        await texts(session.stream())
        await session.send("One more")
        for _ in range(MAX_WAITING_TURNS - 1):
            assert await texts(session.stream()) == ["Hello!", "Hello!"]
        assert await texts(session.stream()) == ["Last.", "Last."]


async def test_messages_that_wait_while_their_streams_are_read_are_limited_too(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await is_refused.wait()
        await peer.turn()
        await peer.until_closed()

    is_refused = asyncio.Event()
    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        reading = []
        for number in range(1 + MAX_WAITING_TURNS):
            await session.send(f"{number}")
            reading.append(asyncio.create_task(texts(session.stream())))
            await asyncio.sleep(0)
        with pytest.raises(SessionError, match="100 messages are waiting"):
            await session.send("One more")
        is_refused.set()
        assert await reading[0] == ["Hello!", "Hello!"]
        await session.send("One more")
    ends = await asyncio.gather(*reading, return_exceptions=True)
    assert all(isinstance(end, SessionError) for end in ends[1:])


# ---- stopping a turn -------------------------------------------------------------------------


async def test_interrupt_stops_the_turn_and_the_session_goes_on(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        init = await peer.start(capabilities=["interrupt", "something_new"])
        assert "interrupt" in init["capabilities"]
        await peer.expect("user")
        await peer.send(peer.assistant("One, two,"))
        assert (await peer.expect("control"))["payload"] == {"action": "interrupt"}
        await peer.send(peer.result(subtype="error_during_execution", errors=["Interrupted."]))
        await peer.turn("Fine.")
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.interrupt()  # nothing is running yet
        await session.send("Count")
        stream = session.stream()
        assert str(await anext(stream)) == "One, two,"
        await session.interrupt()
        assert [m.type async for m in stream] == ["error", "result"]
        await session.interrupt()
        await session.send("And now?")
        assert await texts(session.stream()) == ["Fine.", "Fine."]


async def test_interrupt_says_when_the_server_cannot(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start(sessionId="x", capabilities="interrupt")
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Count")
        with pytest.raises(SessionError, match="cannot interrupt a turn; close the session"):
            await session.interrupt()


async def test_a_turn_that_takes_too_long_is_interrupted_and_the_session_goes_on(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start(capabilities=["interrupt"])
        await peer.expect("user")
        assert (await peer.expect("control"))["payload"] == {"action": "interrupt"}
        await has_failed.wait()
        await peer.send(peer.assistant("too late"), peer.result("Stopped."))
        await peer.turn("Fine.")
        await peer.until_closed()

    has_failed = asyncio.Event()
    server = await scripted_server(script)
    async with server.client(turn_timeout=0.05) as client, client.create_session() as session:
        await session.send("Count")
        with pytest.raises(ChuckyTimeoutError, match=r"longer than turn_timeout \(0\.05 s\)"):
            await texts(session.stream())
        has_failed.set()
        session.options.turn_timeout = None
        await session.send("And now?")
        assert await texts(session.stream()) == ["Fine.", "Fine."]


async def test_what_comes_after_the_time_is_up_is_not_read(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start(capabilities=["interrupt"])
        await peer.expect("user")
        await peer.send(peer.assistant("in time"))
        await peer.expect("control")
        await peer.send(peer.assistant("too late"))
        await peer.settle()
        all_is_read.set()
        await peer.until_closed()

    all_is_read = asyncio.Event()
    server = await scripted_server(script)
    async with server.client(turn_timeout=0.05) as client, client.create_session() as session:
        await session.send("Count")
        await all_is_read.wait()
        stream = session.stream()
        assert str(await anext(stream)) == "in time"
        with pytest.raises(ChuckyTimeoutError):
            await anext(stream)


async def test_a_turn_that_cannot_be_interrupted_ends_its_session(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        assert await peer.until_closed() == [peer.control("close")]

    server = await scripted_server(script)
    async with server.client(turn_timeout=0.05) as client, client.create_session() as session:
        await session.send("Count")
        await session.send("And again")
        for _ in range(2):
            with pytest.raises(ChuckyTimeoutError, match="turn_timeout"):
                await texts(session.stream())
        with pytest.raises(ChuckyTimeoutError, match="turn_timeout"):
            await session.send("And now?")


async def test_an_interrupt_that_is_ignored_ends_the_session(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chucky.session.INTERRUPT_TIMEOUT_SECONDS", 0.05)

    async def script(peer: Peer) -> None:
        await peer.start(capabilities=["interrupt"])
        await peer.expect("user")
        assert await peer.until_closed() == [peer.control("interrupt"), peer.control("close")]

    server = await scripted_server(script)
    async with server.client(turn_timeout=0.05) as client, client.create_session() as session:
        await session.send("Count")
        await session.send("And again")
        for _ in range(2):
            with pytest.raises(ChuckyTimeoutError, match="turn_timeout"):
                await texts(session.stream())


async def test_a_turn_in_time_is_left_alone(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.serve()

    server = await scripted_server(script)
    async with server.client(turn_timeout=5) as client, client.create_session() as session:
        for _ in range(2):
            await session.send("Hello")
            assert await texts(session.stream()) == ["Hello!", "Hello!"]
