"""What a connection gets that goes on where another was lost, whatever happens meanwhile."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from chucky.server.sessions import mailbox as mailboxes
from chucky.server.sessions.mailbox import Mailbox, Position


@dataclass
class Connection:
    """A connection, which may do something when a frame comes, or read nothing for a while."""

    on_frame: Callable[[], Awaitable[None]] | None = None
    frames: list[tuple[int, int]] = field(default_factory=list)
    is_full: bool = False
    catch_up: Callable[[], Awaitable[None]] | None = None

    def fall_behind(self, catch_up: Callable[[], Awaitable[None]]) -> None:
        assert self.catch_up is None
        self.catch_up = catch_up

    async def read_on(self) -> None:
        """Read again."""
        assert self.catch_up is not None
        self.is_full, catch_up, self.catch_up = False, self.catch_up, None
        await catch_up()

    async def send(self, frame: str) -> None:
        assert not self.is_full
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
    times_sent_again: int = 0

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
        """Read the log, two messages at a time."""
        return [(seq, text) for seq, text in self.logged if seq > after_seq][:2]

    async def again(self) -> None:
        """Send again what a connection that has caught up may have missed."""
        self.times_sent_again += 1


@pytest.fixture
def talk() -> Talk:
    first = Connection()
    talk = Talk(Mailbox(first))
    talk.mailbox.keep(0, talk.complete, talk.again)
    talk.mailbox.detach(first)
    return talk


def keep_frames(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the tail hold so many of the frames of these tests."""
    monkeypatch.setattr(mailboxes, "TAIL_BYTES", count * 300)


async def test_what_was_missed_comes_as_it_would_have_come(talk: Talk) -> None:
    await talk.say(1, deltas=2)
    await talk.whisper(2)
    connection = Connection()
    await talk.mailbox.attach(connection, Position(0, 1))
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
    await talk.mailbox.attach(connection, Position(0))

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
    await talk.mailbox.attach(connection, Position(0))
    await talk.say(3, deltas=1)
    assert connection.frames == [(1, 0), (2, 0), (2, 1), (3, 0)]

    # It is said afterwards.
    await talk.whisper(5)
    connection = Connection()
    await talk.mailbox.attach(connection, Position(3, 1))
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
    await talk.mailbox.attach(connection, Position(0, 2))
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
        await talk.mailbox.attach(last, Position(0))

    overtaken = Connection(come)
    await talk.mailbox.attach(overtaken, Position(0))
    await talk.say(4)

    assert last.frames == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert overtaken.frames == [(1, 0)]


async def test_a_connection_that_is_lost_while_it_catches_up_gets_nothing_more(talk: Talk) -> None:
    for seq in (1, 2):
        await talk.say(seq)

    async def lose() -> None:
        talk.mailbox.detach(lost)

    lost = Connection(lose)
    await talk.mailbox.attach(lost, Position(0))
    await talk.say(3)

    assert lost.frames == [(1, 0)]


async def test_what_was_forgotten_comes_from_the_log(talk: Talk) -> None:
    await talk.say(1, deltas=2)
    talk.mailbox.forget()
    await talk.say(2, deltas=1)
    connection = Connection()
    await talk.mailbox.attach(connection, Position(0))

    assert connection.frames == [(1, 0), (2, 0)]


# ---- a connection that does not read -----------------------------------------------------------


async def read_slowly(talk: Talk) -> Connection:
    """Have a connection that has read one message, and reads no more."""
    slow = Connection()
    await talk.mailbox.attach(slow, Position(0))
    await talk.say(1)
    slow.is_full = True
    return slow


async def test_what_a_connection_did_not_read_comes_when_it_reads_again(talk: Talk) -> None:
    slow = await read_slowly(talk)
    await talk.whisper(2)
    await talk.say(2, deltas=1)
    assert slow.frames == [(1, 0)]

    await slow.read_on()
    await talk.say(3)
    assert slow.frames == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (3, 0)]


async def test_what_has_fallen_out_until_it_reads_again_comes_from_the_log(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_frames(monkeypatch, 2)
    slow = await read_slowly(talk)
    for seq in range(2, 8):
        await talk.say(seq, deltas=2)

    await slow.read_on()
    assert slow.frames == [(seq, 0) for seq in range(1, 8)]


async def test_pieces_that_were_left_out_stay_so_for_a_connection_that_reads_slowly(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_frames(monkeypatch, 3)
    await talk.whisper(5)
    slow = Connection()
    await talk.mailbox.attach(slow, Position(0))
    slow.is_full = True
    await talk.whisper(1)
    await talk.mailbox.send_passing("{}")  # only with this it is noticed that it does not read
    monkeypatch.setattr(mailboxes, "TAIL_BYTES", 100_000)
    await talk.whisper(1)

    await slow.read_on()
    await talk.say(1, deltas=1)
    await talk.say(2, deltas=1)
    assert slow.frames == [(1, 0), (1, 1), (2, 0)]


async def test_it_may_stop_reading_again_and_again(talk: Talk) -> None:
    slow = await read_slowly(talk)
    for seq in range(2, 6):
        await talk.say(seq, deltas=1)
        await slow.read_on()
        slow.is_full = True

    assert slow.frames == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1), (5, 0)]


async def test_what_is_sent_in_passing_is_sent_again_to_one_that_has_caught_up(talk: Talk) -> None:
    slow = await read_slowly(talk)
    before = talk.times_sent_again
    await talk.mailbox.send_passing("{}")
    await talk.mailbox.send_passing("{}")
    assert talk.times_sent_again == before

    await slow.read_on()
    assert talk.times_sent_again == before + 1


async def test_one_that_reads_again_too_late_takes_nothing_from_the_next(talk: Talk) -> None:
    slow = await read_slowly(talk)
    await talk.say(2)
    talk.mailbox.detach(slow)
    quick = Connection()
    await talk.mailbox.attach(quick, Position(0))
    await slow.read_on()
    await talk.say(3)

    assert slow.frames == [(1, 0)]
    assert quick.frames == [(1, 0), (2, 0), (3, 0)]
