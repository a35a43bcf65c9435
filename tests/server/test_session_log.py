"""The log of a session: whole, in order, without commits of its own, also on a bad database."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chucky import Chucky, Message, Session, tool
from chucky.server.ledger import ledger, payer
from chucky.server.sessions import archive
from chucky.server.sessions.log import SessionLog, SessionRecord, Write
from chucky.server.store.database import store_error
from chucky.server.store.session_rows import KeptSessions
from chucky.server.store.sqlite_file import SqliteFile
from chucky.server.store.sqlite_ledger import SqliteLedgerRows, SqliteLedgerTransaction

WAIT_SECONDS = 30
SCHEDULES = 6


@tool("look_up", "Look something up")
async def look_up() -> str:
    return "It is under the oak."


async def ask(session: Session, text: str) -> list[Message]:
    async with asyncio.timeout(WAIT_SECONDS):
        await session.send(text)
        return [each async for each in session.stream() if each.type != "error"]


@dataclass
class Transactions:
    """Counts the transactions of the server's ledger, and lets them fail.

    Attributes:
        count: How many there were.
        fault: Says of the next one whether it fails: ``before`` or ``after`` its commit.
    """

    count: int = 0
    fault: Callable[[], str] = field(default=lambda: "")
    _begun: threading.Condition = field(default_factory=threading.Condition)

    def begin(self) -> None:
        """Count one more."""
        with self._begun:
            self.count += 1
            self._begun.notify_all()

    async def reach(self, count: int) -> None:
        """Wait until so many have begun."""

        def wait() -> bool:
            with self._begun:
                return self._begun.wait_for(lambda: self.count >= count, WAIT_SECONDS)

        assert await asyncio.to_thread(wait)


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> Transactions:
    counted, begin = Transactions(), SqliteLedgerRows.transaction

    @contextmanager
    def transaction(self: SqliteLedgerRows) -> Iterator[SqliteLedgerTransaction]:
        counted.begin()
        fault = counted.fault()
        if fault == "before":
            raise store_error("The database is locked by a test.")
        with begin(self) as begun:
            yield begun
        if fault == "after":
            raise store_error("The answer of the database was lost by a test.")

    monkeypatch.setattr(SqliteLedgerRows, "transaction", transaction)
    # What is written from time to time would be counted in a turn that takes long enough.
    monkeypatch.setattr(ledger, "BEAT_SECONDS", 3_600)
    monkeypatch.setattr(archive, "BEAT_SECONDS", 3_600)
    monkeypatch.setattr(ledger, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(ledger, "_LONGEST_PAUSE_SECONDS", 0.01)
    return counted


async def kept_of(db: Path, session_id: str) -> tuple[Any, list[Any]]:
    """A session's record and its events, as they are in the file."""

    def read() -> tuple[Any, list[Any]]:
        kept = KeptSessions(SqliteFile.open(db))
        try:
            return kept.session(session_id), kept.events(session_id)
        finally:
            kept.close()

    return await asyncio.to_thread(read)


@pytest.mark.parametrize("log", [True, False])
async def test_a_turn_of_one_call_commits_twice_with_the_log_and_without(
    start_server: Any, transactions: Transactions, log: bool
) -> None:
    async with (
        start_server(session_log=log) as server,
        Chucky(server.token(), server.url) as client,
    ):
        await client.prompt("The server's first turn waits for the way to the model to be open.")
        session = client.create_session()
        counts = []
        for text in ("Hello", "How are you?", "Good"):
            before = transactions.count
            await ask(session, text)
            counts.append(transactions.count - before)

    assert counts == [2, 2, 2]


async def test_a_turn_with_a_tool_commits_no_more_often_with_the_log(
    start_server: Any, transactions: Transactions, script: Callable[..., str], tmp_path: Path
) -> None:
    counts = {}

    @tool("look_up", "Look something up, once the call that asked for it is being booked")
    async def look_up_later() -> str:
        # An answer that comes before is written in the same transaction, or just not.
        await transactions.reach(before + 2)
        return "It is under the oak."

    for log in (False, True):
        settings = {"session_log": log, "db": tmp_path / f"{log}.db"}
        async with start_server(**settings) as server, Chucky(server.token(), server.url) as client:
            await client.prompt("As above")
            session = client.create_session(tools=[look_up_later])
            before = transactions.count
            await ask(session, script({"tools": [{"name": "look_up"}]}, {"text": "There."}))
            counts[log] = transactions.count - before

    assert counts == {False: 4, True: 4}


async def test_the_log_says_what_was_streamed_and_what_it_cost(
    start_server: Any, script: Callable[..., str], tmp_path: Path
) -> None:
    streamed = []
    async with start_server() as server, Chucky(server.token(), server.url) as client:
        session = client.create_session(tools=[look_up])
        streamed += await ask(session, script({"tools": [{"name": "look_up"}]}, {"text": "Oak."}))
        streamed += await ask(session, "Thank you")
    record, events = await kept_of(tmp_path / "chucky.db", session.session_id)

    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [json.loads(each.body) for each in events if each.kind == "message"] == streamed
    assert (record.last_seq, record.turns, record.turn_id) == (len(events), 2, "")
    assert record.calls == streamed[-1].num_turns == 3
    assert record.spent_nanos == round(streamed[-1].total_cost_usd * 1e9)
    turn_ids = {event.turn_id for event in events}
    assert len(turn_ids) == 2
    assert "" not in turn_ids


@pytest.mark.parametrize("keeps_budgets", [True, False])
@pytest.mark.parametrize("number", range(SCHEDULES))
async def test_a_database_that_fails_for_a_while_costs_no_event_and_doubles_none(
    start_server: Any,
    transactions: Transactions,
    monkeypatch: pytest.MonkeyPatch,
    script: Callable[..., str],
    tmp_path: Path,
    seed: int,
    number: int,
    keeps_budgets: bool,
) -> None:
    monkeypatch.setattr(payer, "_SETTLING_SECONDS", 0.05)
    chance = random.Random(f"{seed} {number}")
    streamed: list[Message] = []
    inputs = [script({"tools": [{"name": "look_up"}]}, {"text": f"{n}."}) for n in range(6)]
    async with (
        start_server(ledger=keeps_budgets) as server,
        Chucky(server.token(), server.url) as client,
    ):
        session = client.create_session(tools=[look_up])
        await ask(session, "Hello")
        transactions.fault = lambda: chance.choice(("before", "after", "", "", ""))
        for text in inputs:
            streamed += await ask(session, text)
        transactions.fault = str
        history = await session.history()
        last = (await ask(session, "Good bye"))[-1]
    record, events = await kept_of(tmp_path / "chucky.db", session.session_id)

    assert [str(each) for each in history if str(each) in inputs] == inputs
    messages = [each for each in history[4:] if str(each) not in inputs]
    assert [each.uuid for each in messages] == [each.uuid for each in streamed]
    for kept, seen in zip(messages, streamed, strict=True):
        # What a client is told of a turn that could not be written in time is not the last word.
        assert kept == seen or is_late(seen)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert (record.turns, record.turn_id) == (8, "")
    assert record.calls == last.num_turns
    assert record.spent_nanos == round(last.total_cost_usd * 1e9)


def is_late(message: Message) -> bool:
    error = message.get("error") or {}
    return message.type == "result" and error.get("code") == "STORE_ERROR"


async def test_what_is_written_late_leaves_no_gap_and_says_nothing_about_what_runs_now(
    tmp_path: Path,
) -> None:
    posted: list[Write] = []

    def post(_session_id: str, write: Write) -> asyncio.Future[None]:
        posted.append(write)
        return asyncio.get_running_loop().create_future()  # not done: the database fails

    log = SessionLog(SessionRecord("s", "p", "u"), post)
    log.begin_turn("first", "flat", '{"uuid":"a"}')
    await asyncio.sleep(0)
    log.append("message", '"one"')
    await asyncio.sleep(0)
    ending = log.end_turn()
    ending.post(ending.writing('"result"', 1, 7))
    log.begin_turn("second", "flat", '{"uuid":"b"}')
    await asyncio.sleep(0)
    begin, message, end, second = posted

    def write_all() -> list[tuple[list[int], str, int]]:
        rows = SqliteLedgerRows.open(tmp_path / "chucky.db")
        kept = KeptSessions(SqliteFile.open(tmp_path / "chucky.db"))
        states = []
        for write in (message, begin, second, end, end, message):
            with rows.transaction() as transaction:
                write(transaction)
            record = kept.session("s")
            assert record
            seqs = [event.seq for event in kept.events("s")]
            states.append((seqs, record.turn_id, record.turns))
        rows.close()
        kept.close()
        return states

    assert await asyncio.to_thread(write_all) == [
        ([1, 2], "first", 0),
        ([1, 2], "first", 0),
        ([1, 2, 4], "second", 0),  # the third is the result, which the end of the turn brings
        ([1, 2, 3, 4], "second", 1),
        ([1, 2, 3, 4], "second", 1),
        ([1, 2, 3, 4], "second", 1),
    ]


async def test_a_turn_that_the_database_has_failed_does_not_wait_for_it(
    start_server: Any, transactions: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payer, "_SETTLING_SECONDS", 3_600)
    async with start_server() as server, Chucky(server.token(), server.url) as client:
        session = client.create_session()
        await ask(session, "Hello")
        transactions.fault = lambda: "before"
        # It would wait for an hour.
        refused = (await ask(session, "What is 2 + 2?"))[-1]
        assert is_late(refused)
        assert "locked by a test" in refused.result
        transactions.fault = str
        assert (await ask(session, "What is 3 + 3?"))[-1].subtype == "success"
        assert [each.uuid for each in await session.history() if each.uuid == refused.uuid]


async def test_an_answer_waits_for_a_database_that_fails_for_a_moment(
    start_server: Any, transactions: Transactions
) -> None:
    async with start_server() as server, Chucky(server.token(), server.url) as client:
        session = client.create_session()
        await ask(session, "Hello")
        faults = iter(["", *["before"] * 5])
        transactions.fault = lambda: next(faults, "")
        assert (await ask(session, "What is 2 + 2?"))[-1].result == "2 + 2 = 4."
        assert list(faults) == []
