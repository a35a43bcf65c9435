"""What a connection gets that goes on where another was lost, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from chucky.server.sessions import mailbox as mailboxes
from chucky.server.sessions.mailbox import Mailbox, Position


@dataclass
class Connection:
    """A connection, which may do something when a frame comes."""

    on_frame: Callable[[], Awaitable[None]] | None = None
    frames: list[tuple[int, int]] = field(default_factory=list)

    async def send(self, frame: str) -> None:
        message = json.loads(frame)
        self.frames.append((message["seq"], message.get("delta", 0)))
        if self.on_frame is not None:
            on_frame, self.on_frame = self.on_frame, None
            await on_frame()


@dataclass
class Talk:
    """A session that says something, and its log."""

    mailbox: Mailbox
    logged: list[tuple[int, str]] = field(default_factory=list)

    async def say(self, seq: int, *, deltas: int = 0) -> None:
        """Say a message, after its partial ones."""
        await self.whisper(deltas)
        self.logged.append((seq, '{"x":1}'))
        await self.mailbox.deliver('{"x":1}', seq)

    async def whisper(self, deltas: int) -> None:
        """Say partial messages."""
        for _ in range(deltas):
            await self.mailbox.deliver_delta('{"y":1}')

    async def complete(self, after_seq: int) -> list[tuple[int, str]]:
        """Read the log."""
        return [(seq, text) for seq, text in self.logged if seq > after_seq]


@pytest.fixture
def talk() -> Talk:
    first = Connection()
    talk = Talk(Mailbox(first))
    talk.mailbox.keep(0)
    talk.mailbox.detach(first)
    return talk


def keep_frames(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the tail hold so many of the frames of these tests."""
    monkeypatch.setattr(mailboxes, "TAIL_BYTES", count * 300)


async def test_what_was_missed_comes_as_it_would_have_come(talk: Talk) -> None:
    await talk.say(1, deltas=2)
    await talk.whisper(2)
    connection = Connection()
    await talk.mailbox.attach(connection, Position(0, 1), talk.complete)
    await talk.say(2, deltas=1)

    assert connection.frames == [(0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]


async def test_nothing_is_lost_that_falls_out_of_the_tail_while_a_connection_catches_up(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_frames(monkeypatch, 2)
    for seq in (1, 2, 3, 4):
        await talk.say(seq)

    async def say_more() -> None:
        for seq in range(5, 12):
            await talk.say(seq)

    connection = Connection(say_more)
    await talk.mailbox.attach(connection, Position(0), talk.complete)

    assert connection.frames == [(seq, 0) for seq in range(1, 12)]


async def test_no_piece_of_a_message_comes_whose_beginning_is_lost(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_frames(monkeypatch, 3)
    await talk.say(1)
    await talk.whisper(5)

    async def say_the_whole() -> None:
        await talk.say(2)

    # It is said while the connection catches up.
    connection = Connection(say_the_whole)
    await talk.mailbox.attach(connection, Position(0), talk.complete)
    await talk.say(3, deltas=1)
    assert connection.frames == [(1, 0), (2, 0), (2, 1), (3, 0)]

    # It is said afterwards.
    await talk.whisper(5)
    connection = Connection()
    await talk.mailbox.attach(connection, Position(3, 1), talk.complete)
    await talk.say(4, deltas=1)
    await talk.say(5, deltas=1)
    assert connection.frames == [(4, 0), (4, 1), (5, 0)]


async def test_a_message_that_is_larger_than_the_tail_comes_from_the_log(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_frames(monkeypatch, 0)
    await talk.say(1, deltas=3)
    await talk.whisper(1)
    connection = Connection()
    await talk.mailbox.attach(connection, Position(0, 2), talk.complete)
    await talk.say(2, deltas=1)

    assert connection.frames == [(1, 0), (2, 0)]


@pytest.mark.parametrize("kept", [0, 100])
async def test_a_connection_that_comes_while_another_catches_up_gets_everything(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    keep_frames(monkeypatch, kept)
    for seq in (1, 2, 3):
        await talk.say(seq)
    last = Connection()

    async def come() -> None:
        await talk.mailbox.attach(last, Position(0), talk.complete)

    overtaken = Connection(come)
    await talk.mailbox.attach(overtaken, Position(0), talk.complete)
    await talk.say(4)

    assert last.frames == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert overtaken.frames == [(1, 0)]


async def test_a_connection_that_is_lost_while_it_catches_up_gets_nothing_more(talk: Talk) -> None:
    for seq in (1, 2):
        await talk.say(seq)

    async def lose() -> None:
        talk.mailbox.detach(lost)

    lost = Connection(lose)
    await talk.mailbox.attach(lost, Position(0), talk.complete)
    await talk.say(3)

    assert lost.frames == [(1, 0)]


async def test_what_was_forgotten_comes_from_the_log(talk: Talk) -> None:
    await talk.say(1, deltas=2)
    talk.mailbox.forget()
    await talk.say(2, deltas=1)
    connection = Connection()
    await talk.mailbox.attach(connection, Position(0), talk.complete)

    assert connection.frames == [(1, 0), (2, 0)]


async def test_a_connection_that_does_not_read_is_no_reason_to_wait_for_the_next(
    talk: Talk,
) -> None:
    stuck = asyncio.Event()

    async def wait() -> None:
        await stuck.wait()

    slow = Connection(wait)
    await talk.mailbox.attach(slow, Position(0), talk.complete)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(talk.say(1))
        await asyncio.sleep(0)
        talk.mailbox.detach(slow)
        quick = Connection()
        await talk.mailbox.attach(quick, Position(0), talk.complete)
        stuck.set()

    assert quick.frames == [(1, 0)]
