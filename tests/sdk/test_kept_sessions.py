"""What an application finds of its user's sessions: the list, what was said, and how to go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

import chucky.sync
from chucky import (
    Chucky,
    ChuckyConnectionError,
    ChuckyTimeoutError,
    Message,
    ProtocolError,
    Session,
    SessionError,
    SessionSummary,
    ValidationError,
    tool,
)

if TYPE_CHECKING:
    from tests.sdk.conftest import Peer, StartServer

Client = Callable[[str], Chucky]


@tool("add", "Add two numbers")
def add(a: int, b: int) -> int:
    """Be a tool of these tests."""
    return a + b


async def ask(session: Session, text: str) -> Message:
    """The result of one turn."""
    await session.send(text)
    return [each async for each in session.stream()][-1]


@pytest.fixture
def client(server: Any) -> Client:
    return lambda user: Chucky(server.token(user), url=server.url)


async def test_a_users_sessions_are_listed_the_latest_first(client: Client) -> None:
    began = datetime.now(UTC)
    async with client("lister") as mine, client("somebody-else") as other:
        assert await mine.list_sessions() == []
        async with mine.create_session() as first, other.create_session() as foreign:
            await ask(first, "My name is Alice")
            result = await ask(first, "What is my name?")
            await ask(foreign, "Hello")
        async with mine.create_session(resume=first.session_id, fork_session=True) as second:
            await ask(second, "What is my name?")
        listed = await mine.list_sessions()
        assert await mine.list_sessions(limit=1) == listed[:1]

    assert [each.session_id for each in listed] == [second.session_id, first.session_id]
    latest, earlier = listed
    assert latest.forked_from == first.session_id
    assert earlier == SessionSummary(
        session_id=first.session_id,
        forked_from=None,
        model=result.model,  # the default one, or its successor
        created_at=earlier.created_at,
        last_activity_at=earlier.last_activity_at,
        is_running=False,
        turns=2,
        num_turns=2,
        total_cost_usd=result.total_cost_usd,
    )
    # The server keeps milliseconds.
    assert began.replace(microsecond=0) <= earlier.created_at <= earlier.last_activity_at


@pytest.mark.parametrize("limit", [0, 1001, True, "5", None])
async def test_a_limit_that_is_none_is_refused(client: Client, limit: Any) -> None:
    with pytest.raises(ValidationError, match="limit must be a whole number from 1 to 1000"):
        await client("lister").list_sessions(limit=limit)


async def test_a_running_turn_shows_in_the_list(client: Client) -> None:
    called, go_on = asyncio.Event(), asyncio.Event()

    @tool("wait", "Wait")
    async def wait() -> str:
        called.set()
        await go_on.wait()
        return "done"

    async with client("runner") as mine, mine.create_session(tools=[wait]) as session:
        await session.send(
            'Go.\n```offline\n[{"tools": [{"name": "wait"}]}, {"text": ["Done."]}]\n```'
        )
        await called.wait()
        [running] = await mine.list_sessions()
        go_on.set()
        [_ async for _ in session.stream()]
        [ended] = await mine.list_sessions()

    assert (running.is_running, running.turns) == (True, 0)
    assert (ended.is_running, ended.turns) == (False, 1)


async def test_the_history_is_what_was_said_and_what_was_streamed(client: Client) -> None:
    asked = ["What is 7 + 15? Use the tool add.", "Thank you"]
    streamed: list[Message] = []
    async with client("historian") as mine:
        async with mine.create_session(tools=[add]) as session:
            for text in asked:
                await session.send(text)
                streamed += [each async for each in session.stream()]
            during = await session.history()
        later = await mine.resume_session(session.session_id).history()

    assert later == during
    inputs = [each for each in during if str(each) in asked]
    assert [(each.type, each.message["content"]) for each in inputs] == [
        ("user", text) for text in asked
    ]
    assert [each for each in during if each not in inputs] == streamed
    assert during[0] is inputs[0]
    assert {each.session_id for each in during} == {session.session_id}


async def test_a_failed_turn_is_in_the_history_as_it_was_streamed(client: Client) -> None:
    async with client("failing") as mine, mine.create_session() as session:
        result = await ask(session, 'Go.\n```offline\n[{"error": {"status": 400}}]\n```')
        [*_, last] = await session.history()

    assert last == result
    assert last.subtype == "error"


async def test_the_history_of_a_new_session_is_empty_and_costs_no_turn(client: Client) -> None:
    async with client("silent") as mine:
        async with mine.create_session() as session:
            assert await session.history() == []
        assert await mine.list_sessions() == []


async def test_a_long_history_comes_in_pages(client: Client) -> None:
    texts = [f"{number} " + "x" * 50_000 for number in range(12)]  # more than a page holds
    async with client("long") as mine, mine.create_session() as session:
        for text in texts:
            await ask(session, text)
        history = await session.history()

    said = [str(each) for each in history if each.type == "user"]
    assert said == texts


@pytest.mark.parametrize("session_id", ["no-such-session", "somebody-elses"])
async def test_the_history_of_a_session_that_is_not_ones_own_cannot_be_had(
    client: Client, session_id: str
) -> None:
    async with client("owner") as owner, owner.create_session() as session:
        await ask(session, "My secret is 7")
    if session_id == "somebody-elses":
        session_id = session.session_id
    async with client("thief") as thief:
        with pytest.raises(SessionError) as caught:
            await thief.resume_session(session_id).history()

    assert caught.value.reason == "session_not_found"
    assert str(caught.value) == (
        f"There is no session {session_id!r}; leave out 'resume' to begin one."
    )


async def test_continue_takes_the_session_in_which_something_happened_last(client: Client) -> None:
    async with client("continuing") as mine:
        async with mine.create_session(continue_session=True) as none:
            assert (await ask(none, "Hello")).error.reason == "session_not_found"
        for name in ("Alice", "Bob"):
            async with mine.create_session() as session:
                await ask(session, f"My name is {name}")
        async with mine.create_session(continue_session=True) as latest:
            assert (await ask(latest, "What is my name?")).result == "Your name is Bob."

    assert latest.session_id == session.session_id


async def test_a_session_can_go_on_after_one_of_its_messages(client: Client) -> None:
    async with client("rewinding") as mine:
        async with mine.create_session() as session:
            first = await ask(session, "My name is Alice")
            await ask(session, "My name is Bob")
        at = first.uuid
        async with mine.resume_session(session.session_id, resume_session_at=at) as rewound:
            assert (await ask(rewound, "What is my name?")).result == "Your name is Alice."
        assert len(await mine.resume_session(session.session_id).history()) == 7
        async with mine.resume_session(session.session_id, resume_session_at="none") as lost:
            assert (await ask(lost, "Hello")).error.reason == "message_not_found"

    assert rewound.session_id != session.session_id


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"resume": "a", "continue_session": True}, "give one of them"),
        ({"fork_session": True}, "fork_session needs a session"),
        ({"resume_session_at": "a"}, "resume_session_at needs a session"),
        ({"continue_session": "yes"}, "continue_session must be True or False"),
        ({"resume": ""}, "resume must not be empty"),
    ],
)
async def test_wishes_that_do_not_fit_together_are_refused_at_once(
    client: Client, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        client("anybody").create_session(**options)


def test_the_blocking_client_resumes_lists_and_tells_too(server: Any) -> None:
    with chucky.sync.Chucky(server.token("blocking"), url=server.url) as client:
        with client.create_session() as session:
            session.send("My name is Alice")
            streamed = list(session.stream())
        [listed] = client.list_sessions()
        with client.resume_session(listed.session_id) as resumed:
            history = resumed.history()
            resumed.send("What is my name?")
            [*_, result] = resumed.stream()

    assert history[1:] == streamed
    assert isinstance(result, Message)
    assert result.result == "Your name is Alice."


async def test_a_server_without_sessions_is_named_in_a_sentence(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start(capabilities=["interrupt"])
        assert await peer.until_closed() == [peer.control("close")]

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(SessionError, match="This server cannot tell about sessions"):
            await client.list_sessions()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"sessions": "none"}, "answer to 'list_sessions' is none"),
        ({"sessions": [{"sessionId": "a"}]}, "describes a session in a wrong way"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_named(
    scripted_server: StartServer, answer: dict[str, Any], sentence: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start(capabilities=["sessions"])
        data = (await peer.expect("control"))["payload"]["data"]
        await peer.send(peer.control("list_sessions", requestId="another", sessions=[]))
        await peer.send(peer.control("list_sessions", requestId=data["requestId"], **answer))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ProtocolError, match=sentence):
            await client.list_sessions()


async def test_a_question_fails_with_its_connection(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start(capabilities=["sessions"])
        await peer.expect("control")
        peer.abort()

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ChuckyConnectionError):
            await client.list_sessions()


async def test_a_question_that_is_not_answered_ends_in_time(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start(capabilities=["sessions"])
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client(timeout=0.2) as client:
        with pytest.raises(ChuckyTimeoutError, match=r"did not answer 'list_sessions' within 0\.2"):
            await client.list_sessions()
