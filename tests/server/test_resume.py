"""Sessions that go on after their connection, and after their server."""

from __future__ import annotations

from typing import Any

import pytest

from chucky import Chucky, Message, Session


async def ask(session: Session, text: str) -> Message:
    """The result of one turn."""
    await session.send(text)
    return [each async for each in session.stream()][-1]


@pytest.fixture
def client(server: Any) -> Chucky:
    return Chucky(server.token("resuming"), url=server.url)


async def test_a_resumed_session_knows_what_was_said_and_what_it_cost(client: Chucky) -> None:
    async with client.create_session() as session:
        first = await ask(session, "My name is Alice")
    async with client.create_session(resume=session.session_id) as resumed:
        second = await ask(resumed, "What is my name?")

    assert second.result == "Your name is Alice."
    assert resumed.session_id == session.session_id
    assert second.total_cost_usd > first.total_cost_usd
    assert second.num_turns == 2


async def test_a_fork_goes_on_under_another_id_and_leaves_the_session_alone(client: Chucky) -> None:
    async with client.create_session() as session:
        await ask(session, "My name is Alice")
    async with client.create_session(resume=session.session_id, fork_session=True) as fork:
        assert (await ask(fork, "What is my name?")).result == "Your name is Alice."
        await ask(fork, "My name is Bob")
    async with client.create_session(resume=session.session_id) as resumed:
        assert (await ask(resumed, "What is my name?")).result == "Your name is Alice."

    assert fork.session_id not in ("", session.session_id)


async def test_another_users_session_looks_like_one_that_does_not_exist(
    server: Any, client: Chucky
) -> None:
    async with client.create_session() as session:
        await ask(session, "My secret is 7")
    said = []
    for user, session_id in (("somebody-else", session.session_id), ("resuming", "no-such-id")):
        async with (
            Chucky(server.token(user), url=server.url) as other,
            other.create_session(resume=session_id) as stolen,
        ):
            result = await ask(stolen, "What is my secret?")
        assert result.error.reason == "session_not_found"
        said.append(result.result.replace(session_id, "ID"))

    assert said[0] == said[1]


async def test_the_last_connection_to_resume_a_session_owns_it(client: Chucky) -> None:
    async with client.create_session() as old:
        await ask(old, "My name is Alice")
        async with client.create_session(resume=old.session_id) as new:
            assert (await ask(new, "What is my name?")).result == "Your name is Alice."
