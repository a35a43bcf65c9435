"""Sessions that go on after their connection, and after their server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from chucky import Chucky, ChuckyError, Message, Session, ValidationError


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


async def test_a_connection_that_is_taken_over_is_told_and_closed(server: Any, dial: Any) -> None:
    token = server.token("taken-over")
    async with dial(server.url, token=token) as old, dial(server.url, token=token) as new:
        await old.send(type="init", payload={"capabilities": ["error_frames"]})
        await old.ask("My name is Alice")
        session_id = (await old.result())["session_id"]
        await new.send(type="init", payload={"resume": session_id})
        code, frames = await old.closed()
        await new.ask("What is my name?")
        assert (await new.result())["result"] == "Your name is Alice."

    assert (
        code == 1000
    )  # not one after which a client comes back by itself, and takes it over again
    assert frames[-1]["type"] == "error"
    assert frames[-1]["payload"]["details"] == {"reason": "session_taken_over"}


async def test_a_turn_ends_with_its_connection_when_the_session_is_taken_over(
    server: Any, dial: Any, script: Callable[..., str]
) -> None:
    token = server.token("taken-over-in-a-turn")
    async with dial(server.url, token=token) as old, dial(server.url, token=token) as new:
        await old.send(type="init", payload={"capabilities": ["result_details"]})
        await old.ask("My name is Alice")
        session_id = (await old.result())["session_id"]
        await old.ask(script({"wait_ms": 60_000, "text": "Too late."}))
        await new.send(type="init", payload={"resume": session_id})
        assert (await old.result())["error"]["reason"] == "session_taken_over"
        await new.ask("What is my name?")
        assert (await new.result())["result"] == "Your name is Alice."


async def test_of_many_that_resume_a_session_at_once_one_has_it_and_nothing_is_lost(
    server: Any, client: Chucky
) -> None:
    async with client.create_session() as session:
        await ask(session, "My name is Alice")
    resumed = [client.resume_session(session.session_id) for _ in range(8)]

    async def try_to(number: int) -> list[Message]:
        try:
            await resumed[number].send(f"Hello {number}")
            return [each async for each in resumed[number].stream()]
        except ChuckyError:
            return []

    ends = await asyncio.gather(*map(try_to, range(len(resumed))))
    answered = [end[-1] for end in ends if end and end[-1].subtype == "success"]
    async with client.resume_session(session.session_id) as last:
        history = await last.history()
        assert (await ask(last, "What is my name?")).result == "Your name is Alice."

    kept = {each.uuid for each in history if each.type == "result"}
    assert answered
    assert {each.uuid for each in answered} <= kept
    assert len(kept) == len([each for each in history if each.type == "user"])


@pytest.mark.parametrize("option", [{"resume": "an-id"}, {"continue_session": True}])
async def test_without_a_log_nothing_can_be_resumed_and_the_sentence_says_so(
    start_server: Any, option: dict[str, Any]
) -> None:
    async with (
        start_server(session_log=False) as local,
        Chucky(local.token(), url=local.url) as client,
    ):
        async with client.create_session() as session:
            assert (await ask(session, "My name is Alice")).subtype == "success"
        async with client.create_session(**option) as resumed:
            result = await ask(resumed, "What is my name?")
        with pytest.raises(ValidationError) as caught:
            await client.list_sessions()

    assert result.error.reason == caught.value.reason == "session_log_off"
    assert result.result == str(caught.value)


async def test_an_input_that_was_never_begun_can_be_sent_again(
    server: Any, dial: Any, script: Callable[..., str]
) -> None:
    token = server.token("queueing")
    async with dial(server.url, token=token) as old:
        await old.send(type="init", payload={})
        await old.ask("My name is Alice", uuid="first")
        session_id = (await old.result())["session_id"]
        await old.ask(script({"wait_ms": 60_000, "text": "Too late."}), uuid="second")
        await old.ask("What is my name?", uuid="third")
        await old.send(type="control", payload={"action": "close"})
        await old.closed()
    async with dial(server.url, token=token) as new:
        await new.send(type="init", payload={"resume": session_id})
        for uuid in ("first", "second", "third"):
            await new.ask("What is my name?", uuid=uuid)
        assert (await new.result())["result"] == "Your name is Alice."
        await new.send(type="control", payload={"action": "close"})
        _code, frames = await new.closed()

    assert [frame for frame in frames if frame["type"] == "result"] == []
