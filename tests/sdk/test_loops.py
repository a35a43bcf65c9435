"""One event loop for each session: other loops and threads are told so, and never left hanging."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, Session, SessionError
from chucky.loopthread import LoopThread

if TYPE_CHECKING:
    from tests.conftest import Server

WAIT_SECONDS = 20
WORDS = r"^This session belongs to the event loop it was first used on, .* or use chucky\.sync\.$"


@pytest.fixture
def client(server: Server) -> Chucky:
    return Chucky(server.token("loops"), url=server.url)


@pytest.fixture
def elsewhere() -> Iterator[LoopThread]:
    """Another event loop, in a thread."""
    with LoopThread() as loop:
        yield loop


async def answer(session: Session) -> str:
    return str([message async for message in session.stream()][-1])


async def ask(session: Session, text: str) -> str:
    await session.send(text)
    return await answer(session)


def test_a_client_may_be_used_in_one_loop_after_another(client: Chucky) -> None:
    for number in range(3):
        result = asyncio.run(client.prompt(f"What is {number} + 1?"))
        assert result.result == f"{number} + 1 = {number + 1}."
    asyncio.run(client.close())


@pytest.mark.parametrize("use", [Session.send, Session.interrupt, answer])
def test_a_session_says_that_its_loop_has_ended(client: Chucky, use: Any) -> None:
    session = client.create_session()
    asyncio.run(session.send("Hello"))
    arguments = ["Hello"] if use is Session.send else []
    with pytest.raises(SessionError, match=WORDS):
        asyncio.run(use(session, *arguments))
    asyncio.run(client.close())
    with pytest.raises(SessionError, match="This session is closed"):
        asyncio.run(session.send("Hello"))


def test_a_session_says_that_its_loop_is_another(client: Chucky, elsewhere: LoopThread) -> None:
    session = client.create_session()
    assert elsewhere.run(ask(session, "What is 2 + 2?")) == "2 + 2 = 4."

    async def use() -> None:
        for call in (session.send("Hello"), answer(session), session.interrupt(), session.close()):
            with pytest.raises(SessionError, match=WORDS):
                await call

    asyncio.run(use())
    assert elsewhere.run(ask(session, "What is 3 + 3?")) == "3 + 3 = 6."
    elsewhere.run(client.close())


def test_closing_a_client_closes_what_is_on_this_loop_and_names_the_rest(
    client: Chucky, elsewhere: LoopThread
) -> None:
    far = client.create_session()
    elsewhere.run(ask(far, "Hello"))

    async def use() -> None:
        near = client.create_session()
        await ask(near, "Hello")
        with pytest.raises(SessionError, match=WORDS):
            await client.close()
        with pytest.raises(SessionError, match="This session is closed"):
            await near.send("Hello")

    asyncio.run(use())
    assert elsewhere.run(ask(far, "What is 2 + 2?")) == "2 + 2 = 4."
    elsewhere.run(client.close())


def test_one_client_may_serve_loops_in_several_threads(client: Chucky) -> None:
    answers: list[Future[str]] = [Future() for _ in range(4)]

    def serve(number: int) -> None:
        result = asyncio.run(client.prompt(f"What is {number} + 1?"))
        answers[number].set_result(result.result)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    said = [each.result(WAIT_SECONDS) for each in answers]
    assert said == [f"{number} + 1 = {number + 1}." for number in range(4)]
