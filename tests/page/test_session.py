"""The page's "create_session()", "close()" and "Session Class"."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, Session, tool

if TYPE_CHECKING:
    from tests.page.conftest import Peer, RunExample

Within = Callable[[Awaitable[Any]], Awaitable[Any]]
Read = Callable[[AsyncIterator[Any]], Awaitable[list[Any]]]

# A port that nothing listens on: whoever connects to it fails at once.
NOBODY = "ws://127.0.0.1:1/ws"


@tool("add", "Add two numbers")
def add(a: int, b: int) -> int:
    return a + b


@pytest.fixture
def read(within: Within) -> Read:
    """Read a stream to its end."""

    async def read_all(stream: AsyncIterator[Any]) -> list[Any]:
        async def collect() -> list[Any]:
            return [message async for message in stream]

        messages: list[Any] = await within(collect())
        return messages

    return read_all


# --- create_session() -------------------------------------------------------------------------


def test_create_session_has_the_pages_signature() -> None:
    assert not inspect.iscoroutinefunction(Chucky.create_session)
    signature = inspect.signature(Chucky.create_session)
    _self, *options = signature.parameters.values()
    on_page = ["model", "system_prompt", "tools", "max_turns"]
    assert [each.name for each in options[: len(on_page)]] == on_page
    assert {each.kind for each in options[: len(on_page)]} == {inspect.Parameter.KEYWORD_ONLY}
    assert options[-1].kind is inspect.Parameter.VAR_KEYWORD
    assert {each.default for each in options[: len(on_page)]} == {None}
    assert signature.return_annotation == "Session"


async def test_a_session_is_made_at_once_and_connects_at_the_first_send(
    peer: Peer, within: Within
) -> None:
    assert isinstance(Chucky("jwt", NOBODY).create_session(), Session)
    async with Chucky("jwt", peer.url) as client:
        session = client.create_session()
        assert peer.opened == 0
        await within(session.send("Hello"))
        assert peer.opened == 1
        await within(session.send("Hello again"))
        assert peer.opened == 1


def test_a_session_can_be_made_where_no_event_loop_runs() -> None:
    assert isinstance(Chucky("jwt", NOBODY).create_session(tools=[add]), Session)


async def test_the_options_of_a_session_override_the_clients(peer: Peer, within: Within) -> None:
    async with Chucky("jwt", peer.url, model="opus", max_turns=9) as client:
        session = client.create_session(
            model="haiku", system_prompt="Be brief.", tools=[add], max_turns=3
        )
        await within(session.send("Hello"))
    (init,) = (frame["payload"] for frame in peer.of_type("init"))
    assert (init["model"], init["systemPrompt"], init["maxTurns"]) == ("haiku", "Be brief.", 3)
    assert [each["name"] for each in init["mcpServers"][0]["tools"]] == ["add"]


async def test_the_math_tutor_example_prints_an_answer(
    run_example: RunExample, client: Chucky
) -> None:
    printed, names = await run_example("create_session", client=client)
    assert printed.startswith("Calculus is the mathematics of change.")
    assert printed.count("Calculus") == 1
    with pytest.raises(RuntimeError, match="closed"):
        await names["session"].send("And what is algebra?")


# --- the client's close() ---------------------------------------------------------------------


def test_close_of_client_and_session_are_coroutines_without_parameters() -> None:
    for closable in (Chucky, Session):
        assert inspect.iscoroutinefunction(closable.close)
        assert list(inspect.signature(closable.close).parameters) == ["self"]


async def test_closing_the_client_closes_its_sessions(peer: Peer, within: Within) -> None:
    client = Chucky("jwt", peer.url)
    sessions = [client.create_session() for _ in range(2)]
    for session in sessions:
        await within(session.send("Hello"))
    assert peer.open == 2
    assert await within(client.close()) is None
    await peer.until(lambda: peer.open == 0)
    for session in sessions:
        with pytest.raises(RuntimeError, match="closed"):
            await session.send("Hello?")


async def test_the_close_example_closes_the_client(run_example: RunExample, peer: Peer) -> None:
    client = Chucky("jwt", peer.url)
    await client.create_session().send("Hello")
    await run_example("close", client=client)
    await peer.until(lambda: peer.open == 0)


# --- the session's methods --------------------------------------------------------------------


def test_the_methods_of_a_session_have_the_pages_signatures() -> None:
    assert inspect.iscoroutinefunction(Session.send)
    assert list(inspect.signature(Session.send).parameters) == ["self", "message"]
    for method in (Session.stream, Session.receive):
        assert list(inspect.signature(method).parameters) == ["self"]


async def test_send_returns_nothing_and_stream_yields_the_answer(
    client: Chucky, within: Within, read: Read
) -> None:
    session = client.create_session()
    assert await within(session.send("What is the capital of France?")) is None
    messages = await read(session.stream())
    assert [message["type"] for message in messages] == ["system", "assistant", "result"]
    assert all(isinstance(message, dict) for message in messages)
    assert messages[1]["message"]["role"] == "assistant"
    assert messages[2]["result"] == "The capital of France is Paris."


async def test_stream_is_an_asynchronous_iterator(client: Chucky, within: Within) -> None:
    session = client.create_session()
    await within(session.send("What is 2 + 2?"))
    stream = session.stream()
    assert isinstance(stream, AsyncIterator)
    assert aiter(stream) is stream
    assert (await within(anext(stream)))["type"] == "system"


async def test_receive_does_what_stream_does(client: Chucky, within: Within, read: Read) -> None:
    session = client.create_session()
    await within(session.send("What is 2 + 2?"))
    streamed = await read(session.stream())
    await within(session.send("What is 3 + 3?"))
    received = await read(session.receive())
    assert type(session.receive()) is type(session.stream())
    assert [message["type"] for message in received] == ["assistant", "result"]
    assert "4" in streamed[-1]["result"]
    assert "6" in received[-1]["result"]


async def test_closing_a_session_releases_its_connection(peer: Peer, within: Within) -> None:
    session = Chucky("jwt", peer.url).create_session()
    await within(session.send("Hello"))
    assert await within(session.close()) is None
    await peer.until(lambda: peer.open == 0)
    await within(session.close())  # once more is no mistake
    with pytest.raises(RuntimeError, match="closed"):
        await session.send("Hello?")


async def test_the_session_id_is_a_property_that_names_the_session(
    client: Chucky, within: Within, read: Read
) -> None:
    assert isinstance(inspect.getattr_static(Session, "session_id"), property)
    one, other = client.create_session(), client.create_session()
    assert one.session_id == ""
    for session in (one, other):
        await within(session.send("What is 2 + 2?"))
        for message in await read(session.stream()):
            assert message["session_id"] == session.session_id
    assert isinstance(one.session_id, str)
    assert one.session_id != other.session_id


async def test_the_two_turn_example_keeps_the_context(
    run_example: RunExample, client: Chucky
) -> None:
    from chucky import get_assistant_text

    printed, _names = await run_example(
        "session", client=client, get_assistant_text=get_assistant_text
    )
    assert printed.splitlines() == ["Hello Alice! Nice to meet you.", "Your name is Alice."]


async def test_a_session_has_no_context_of_another(
    client: Chucky, within: Within, read: Read
) -> None:
    for text, expected in (
        ("Hello, I am Alice", "Hello Alice! Nice to meet you."),
        ("What is my name?", "You have not told me your name."),
    ):
        session = client.create_session()
        await within(session.send(text))
        assert (await read(session.stream()))[-1]["result"] == expected
