"""Sessions held against a model of them, in any order of what clients, users and crashes do."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from chucky import wire
from chucky.server.admission import Grant
from chucky.server.auth import Identity
from chucky.server.engines.base import Answer, Content, Memory, SessionSpec, ToolSpec, Turn
from chucky.server.ledger import ledger as ledger_module
from chucky.server.ledger.accounts import Holder
from chucky.server.ledger.ledger import Ledger
from chucky.server.ledger.payer import TurnLimits, TurnPayer
from chucky.server.ledger.rows import LedgerRows
from chucky.server.model.catalog import Model
from chucky.server.model.meter import Meter
from chucky.server.model.payment import Charge, Quote
from chucky.server.model.pricing import Price, Rate, Usage
from chucky.server.postgres_url import PostgresUrl
from chucky.server.sessions.archive import Archive
from chucky.server.sessions.capacity import TurnSlots
from chucky.server.sessions.limits import Limits
from chucky.server.sessions.mailbox import Position
from chucky.server.sessions.past import Resumption
from chucky.server.sessions.session import Session
from chucky.server.store.database import now_ms, store_error
from chucky.server.store.opening import open_database, open_ledger
from chucky.server.store.session_rows import KeptSessions

T = TypeVar("T")

WAIT_SECONDS = 20
NUMBERS = st.integers(0, 100)
# What most needs a session in use or a running turn comes often enough to find one.
ACTIONS = (
    *("begin", "resume", "say", "use_tool", "use_tool", "use_tool", "send_again", "answer"),
    *("interrupt", "leave", "leave", "fork", "rewind", "fail", "stop", "kill"),
    *("disconnect", "disconnect", "reconnect", "reconnect", "evict"),
)
CALL_NANOS = 7
RATE = Rate(1)
PRICE = Price("small", "operator", RATE, RATE, RATE, RATE, RATE)
QUOTE = Quote(PRICE, input_nanos=100, output_rate=1, max_tokens=1, usage=Usage())
MODEL = Model("small", "small", date(2026, 1, 1), 10_000, 1_000)
GRANT = Grant(MODEL, None, (), (), None, False, (), ())
LOOK_UP = ToolSpec("look_up", "look_up", "", {})
CAPABILITIES = frozenset({wire.RESULT_DETAILS, wire.REPLAY})
LIMITS = Limits(
    turn_timeout_seconds=60,
    tool_timeout_seconds=60,
    queued_inputs=16,
    frame_bytes=1_000,
    stall_timeout_seconds=60,
    tail_seconds=60,
    evict_after_seconds=60,
)


class ScriptedEngine:
    """Notes what it is asked, calls the model once, and a tool if it is asked for one.

    Attributes:
        called: Set while a tool is called.
    """

    def __init__(self) -> None:
        self.called = asyncio.Event()

    def open(self, spec: SessionSpec, memory: Memory) -> ScriptedConversation:
        return ScriptedConversation(memory, self.called)


class ScriptedConversation:
    def __init__(self, memory: Memory, called: asyncio.Event) -> None:
        self.memory = memory
        self.called = called

    async def answer(self, content: Content, turn: Turn) -> Answer:
        self.memory.note({"asked": content})
        payment = await turn.payer.reserve(QUOTE, is_final=True)
        assert payment is not None
        turn.meter.add(Meter(calls=1))
        payment.settle(Charge(Usage(), CALL_NANOS))
        if content == "tool":
            self.memory.note({"calls": "look_up"})
            await turn.emit({"type": "assistant", "message": {"content": "call"}})
            self.called.set()
            try:
                outcome = await turn.call_tool(LOOK_UP, {}, "t1")
            finally:
                self.called.clear()
            self.memory.note({"found": outcome.content})
        await turn.emit_event('{"type":"message_stop"}')
        self.memory.note({"said": content})
        await turn.emit({"type": "assistant", "message": {"content": content}})
        return Answer(str(content), "small")


class Client:
    """A client of a session, over all its connections.

    Attributes:
        began: The number of the last event before the first connection.
        messages: The numbers of the complete messages that came.
        last: The last message that came, complete or partial.
        results: The results that came.
        message_count: How many messages the server said the session has.
    """

    def __init__(self) -> None:
        self.messages: list[int] = []
        self.began: int | None = None
        self.last = Position(0)
        self.results: list[dict[str, Any]] = []
        self.message_count = 0

    def begin(self, seq: int) -> None:
        """Take note of the server's last number, when the session begins for this client."""
        if self.began is None:
            self.began, self.last = seq, Position(seq)

    def take(self, frame: dict[str, Any]) -> None:
        """Take a message; each comes once, and in order."""
        position = Position(frame["seq"], frame.get("delta", 0))
        assert position > self.last
        self.last = position
        if not position.delta:
            self.messages.append(position.seq)
        if frame["type"] == "result":
            self.results.append(frame)


class Outbox:
    """One connection of a client: what came, and the calls that are open."""

    is_full = False

    def __init__(self, client: Client) -> None:
        self.client = client
        self.calls: list[str] = []

    def fall_behind(self, catch_up: Any) -> None:
        raise AssertionError("it reads everything at once")

    async def send(self, text: str) -> None:
        frame = json.loads(text)
        if frame["type"] == "tool_call":
            self.calls.append(frame["payload"]["callId"])
        elif frame["type"] == "control":
            data = frame["payload"]["data"]
            self.client.message_count = data["messageCount"]
            self.client.begin(data["seq"])
        else:
            self.client.take(frame)


class FlakyRows:
    """A database that fails when it is told to, before or after it commits, and can die."""

    def __init__(self, rows: LedgerRows) -> None:
        self.rows = rows
        self.faults: list[str] = []
        self.is_dead = False

    def close(self) -> None:
        self.rows.close()

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        fault = "before" if self.is_dead else self.faults.pop() if self.faults else ""
        if fault == "before":
            raise store_error("The database is locked by a test.")
        with self.rows.transaction() as transaction:
            yield transaction
        if fault == "after":
            raise store_error("The answer of the database was lost by a test.")


@dataclass
class Known:
    """What must be known of a session, connected or not.

    Attributes:
        steps: What its engine knows.
        inputs: The uuids of the inputs whose turns have begun.
        ends: How its turns ended: the reason of the error, or ``""``.
        calls: How often the model answered.
        places: Where each result came after which the session can go on.
        turns_before: How many turns it had when it was copied.
        is_cost_known: Whether no process has died before it had written what a call cost.
    """

    steps: list[Any] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    calls: int = 0
    places: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    turns_before: int = 0
    is_cost_known: bool = True

    @property
    def place(self) -> tuple[int, int, int]:
        """How many steps, inputs and ends there are."""
        return len(self.steps), len(self.inputs), len(self.ends)

    def copy(self, steps: int, inputs: int, ends: int) -> Known:
        """A copy of what there was at a place; its own turns and calls are counted anew."""
        return Known(self.steps[:steps], self.inputs[:inputs], self.ends[:ends], 0, {}, ends)


@dataclass
class Connected:
    """A session in use.

    Attributes:
        outbox: The connection of its client; None while that is lost.
        waiting: Inputs whose turns have not begun: content and uuid.
        runs: Whether its turn waits for a tool.
    """

    session: Session
    engine: ScriptedEngine
    outbox: Outbox | None
    running: asyncio.Task[None]
    waiting: list[tuple[str, str]] = field(default_factory=list)
    runs: bool = False


class SessionMachine(RuleBasedStateMachine):
    """Does what clients, users, databases and crashes do, and looks at everything after it."""

    def __init__(self, db: Path | PostgresUrl) -> None:
        super().__init__()
        self.db = db
        self.loop = asyncio.new_event_loop()
        self.user = uuid.uuid4().hex
        self.known: dict[str, Known] = {}
        self.connected: dict[str, Connected] = {}
        self.clients: dict[str, Client] = {}
        self.open()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def limited() -> T:
            async with asyncio.timeout(WAIT_SECONDS):
                return await work

        return self.loop.run_until_complete(limited())

    def open(self) -> None:
        """Start a process on what the last one left."""
        self.rows = FlakyRows(open_ledger(self.db, now_ms))
        self.kept = KeptSessions(open_database(self.db))

        async def start() -> None:
            self.ledger = Ledger(self.rows)
            await self.ledger.recover()
            self.archive = Archive(self.kept, self.ledger)
            await self.archive.recover()
            self.writing = asyncio.create_task(self.ledger.run())

        self.run(start())

    @property
    def identity(self) -> Identity:
        return Identity("p", self.user, "k", 0, 0, None)

    def payer(self, session: Session, turn_id: str, end_turn: Any) -> TurnPayer:
        holder = Holder("p", self.user, session.session_id, turn_id)
        return TurnPayer(self.ledger, holder, TurnLimits(), min_output_tokens=1, end_turn=end_turn)

    async def connect(self, asked: Resumption | None, client: Client | None = None) -> Connected:
        """Begin a session, or go on with one; a client that comes back has its messages."""
        outbox, engine = Outbox(client or Client()), ScriptedEngine()
        session = Session(
            identity=self.identity,
            outbox=outbox,
            engine=engine,
            limits=LIMITS,
            recheck=lambda identity: None,
            open_payer=self.payer,
            turn_slots=TurnSlots(100),
            keeper=self.archive,
        )

        async def take_over(session_id: str) -> None:
            if session_id in self.connected:
                await self.end(session_id)

        past = None if asked is None else await self.archive.recall(self.identity, asked, take_over)
        if past is not None and client is not None:
            past = past.numbered_after(client.last.seq)
        await session.begin(GRANT, CAPABILITIES, past)
        running = asyncio.create_task(session.run())
        opened = Connected(session, engine, outbox, running)
        self.connected[session.session_id] = opened
        self.clients[session.session_id] = outbox.client
        self.known.setdefault(session.session_id, Known())
        return opened

    async def end(self, session_id: str) -> None:
        """Let a client leave."""
        gone = self.connected.pop(session_id)
        gone.running.cancel()
        await asyncio.wait([gone.running])
        if gone.runs:
            self.known[session_id].ends.append("client_left")

    # --- what is expected of a turn -----------------------------------------------------------

    async def settle(self, session_id: str) -> None:
        """Wait until nothing happens any more, and expect what must have happened."""
        opened, known = self.connected[session_id], self.known[session_id]
        while opened.waiting and not opened.runs:
            content, name = opened.waiting.pop(0)
            known.inputs.append(name)
            known.calls += 1
            known.steps.append({"asked": content})
            if content == "tool":
                known.steps.append({"calls": "look_up"})
                opened.runs = True
            else:
                known.steps.append({"said": content})
                known.ends.append("")
        await self.quiet(opened)

    async def quiet(self, opened: Connected) -> None:
        idle = asyncio.create_task(opened.session.wait_idle())
        called = asyncio.create_task(opened.engine.called.wait())
        await asyncio.wait([idle, called], return_when=asyncio.FIRST_COMPLETED)
        assert opened.runs is not idle.done()
        for task in (idle, called):
            task.cancel()
        client = self.clients[opened.session.session_id]
        if client.results and not opened.runs and opened.outbox is not None:
            last = client.results[-1]
            known = self.known[opened.session.session_id]
            known.places[last["uuid"]] = known.place

    def pick(self, number: int, ids: Iterable[str]) -> str | None:
        """Choose without drawing, so that what is drawn does not depend on random ids."""
        found = list(ids)
        return found[number % len(found)] if found else None

    @rule(actions=st.lists(st.tuples(st.sampled_from(ACTIONS), NUMBERS), min_size=15, max_size=30))
    def happen(self, actions: list[tuple[str, int]]) -> None:
        """Let much happen: rules of their own would mostly be drawn where they do nothing."""
        for name, number in actions:
            getattr(self, name)(number)
            self.check()

    # --- what may happen ----------------------------------------------------------------------

    def begin(self, _number: int) -> None:
        """A client begins a session."""
        if len(self.connected) < 3:
            self.run(self.connect(None))

    def say(self, number: int) -> None:
        """A user says something."""
        self.send(number, "text")

    def use_tool(self, number: int) -> None:
        """A user says something for which a tool is needed."""
        self.send(number, "tool")

    def send(self, number: int, content: str) -> None:
        """Send a message, in a session that is open if there is one."""
        if not self.attended():
            self.begin(number)
        if (session_id := self.pick(number, self.attended())) is None:
            return
        opened, name = self.connected[session_id], uuid.uuid4().hex

        async def send() -> None:
            opened.session.submit(wire.UserInput(content, wire.Form.FLAT, name))
            opened.waiting.append((content, name))
            await self.settle(session_id)

        self.run(send())

    def send_again(self, number: int) -> None:
        """A client does not know whether its message has arrived."""
        session_id = self.pick(
            number, [each for each in self.attended() if self.known[each].inputs]
        )
        if session_id is None:
            return
        name = self.pick(number, self.known[session_id].inputs)

        async def send() -> None:
            again = wire.UserInput("text", wire.Form.FLAT, name)
            self.connected[session_id].session.submit(again)
            await self.settle(session_id)

        self.run(send())

    def answer(self, number: int) -> None:
        """A tool answers."""
        session_id = self.pick(number, self.running(self.attended()))
        if session_id is None:
            return
        opened, known = self.connected[session_id], self.known[session_id]
        outbox = opened.outbox
        assert outbox is not None

        async def answer() -> None:
            opened.engine.called.clear()
            result = {"content": [{"type": "text", "text": "oak"}]}
            opened.session.deliver(wire.ToolReply(outbox.calls[-1], result))
            known.steps += [{"found": result["content"]}, {"said": "tool"}]
            known.ends.append("")
            opened.runs = False
            await self.settle(session_id)

        self.run(answer())

    def interrupt(self, number: int) -> None:
        """A user stops a turn."""
        session_id = self.pick(number, self.running(self.attended()))
        if session_id is None:
            return
        opened = self.connected[session_id]

        async def interrupt() -> None:
            opened.engine.called.clear()
            opened.session.interrupt()
            self.known[session_id].ends.append("interrupted")
            opened.runs = False
            await self.settle(session_id)

        self.run(interrupt())

    def leave(self, number: int) -> None:
        """A client leaves, maybe in the middle of a turn."""
        if (session_id := self.pick(number, [*self.connected])) is not None:
            self.run(self.end(session_id))

    def resume(self, number: int) -> None:
        """A client goes on with a session, which another one may have."""
        if (session_id := self.pick(number, self.resumable())) is None:
            return

        async def resume() -> None:
            opened = await self.connect(Resumption(session_id))
            assert opened.session.session_id == session_id
            assert self.clients[opened.session.session_id].message_count == len(
                self.known[session_id].inputs
            )

        self.run(resume())

    def fork(self, number: int) -> None:
        """A client goes on with a copy."""
        self.copy(number, cuts=False)

    def rewind(self, number: int) -> None:
        """A client goes on with a copy of what there was up to a message."""
        self.copy(number, cuts=True)

    def copy(self, number: int, *, cuts: bool) -> None:
        """Copy a session."""
        if (session_id := self.pick(number, self.resumable())) is None:
            return
        known, at = self.known[session_id], None
        expected = known.copy(*known.place)
        if cuts:
            if (at := self.pick(number, [*known.places])) is None:
                return
            expected = known.copy(*known.places[at])

        async def copy() -> None:
            await self.ledger.written(session_id)
            opened = await self.connect(Resumption(session_id, forks=True, at=at))
            assert self.clients[opened.session.session_id].message_count == len(expected.inputs)
            self.known[opened.session.session_id] = expected

        self.run(copy())

    def disconnect(self, number: int) -> None:
        """A connection is lost; the session goes on."""
        if (session_id := self.pick(number, self.attended())) is not None:
            opened = self.connected[session_id]
            assert opened.outbox is not None
            opened.session.detach(opened.outbox)
            opened.outbox = None

    def reconnect(self, number: int) -> None:
        """A client comes back whose connection was lost, or whose server died."""
        away = [each for each in self.clients if each not in self.attended()]
        session_id = self.pick(number, [each for each in away if self.known[each].inputs])
        if session_id is None:
            return
        client = self.clients[session_id]

        async def take_up(opened: Connected) -> None:
            opened.outbox = Outbox(client)
            await opened.session.take_up(self.identity, CAPABILITIES, opened.outbox, client.last)

        async def come_back() -> None:
            if session_id in self.connected:
                await take_up(self.connected[session_id])
            else:
                opened = await self.connect(Resumption(session_id), client)
                assert opened.outbox is not None
                await opened.session.replay(opened.outbox, client.last)
            opened = self.connected[session_id]
            assert opened.outbox is not None
            assert len(opened.outbox.calls) == opened.runs
            await self.settle(session_id)

        self.run(come_back())

    def evict(self, number: int) -> None:
        """A session leaves memory in which nothing happens."""
        idle = [name for name, each in self.connected.items() if not each.runs]
        if (session_id := self.pick(number, idle)) is not None:
            self.connected[session_id].session.leave_memory()

    def attended(self) -> list[str]:
        return [name for name, each in self.connected.items() if each.outbox is not None]

    def running(self, ids: Iterable[str]) -> list[str]:
        return [each for each in ids if self.connected[each].runs]

    def resumable(self) -> list[str]:
        return [name for name, each in self.known.items() if each.inputs]

    def fail(self, number: int) -> None:
        """The database fails for a moment, while turns end that nobody waits for."""
        self.rows.faults = [("before", "after")[number >> bit & 1] for bit in range(3)]

        async def write() -> None:
            for session_id, each in self.connected.items():
                if each.runs and not each.waiting:
                    each.engine.called.clear()
                    each.session.interrupt()
                    self.known[session_id].ends.append("interrupted")
                    each.runs = False
                    await self.settle(session_id)

        self.run(write())
        self.rows.faults = []

    def stop(self, _number: int) -> None:
        """The process dies after a moment, and another one takes its place."""
        self.crash(writes=True)

    def kill(self, _number: int) -> None:
        """The process dies at once, and another one takes its place."""
        self.crash(writes=False)

    def crash(self, *, writes: bool) -> None:
        """Let a process die, and start another."""
        self.run(self.die(writes))
        self.open()
        for session_id, gone in self.connected.items():
            if gone.runs:
                self.known[session_id].is_cost_known &= writes
                self.forget_unwritten(session_id)
        self.connected.clear()

    async def die(self, writes: bool) -> None:
        """End the process, after it has written everything or not."""
        for session_id in self.connected if writes else ():
            await self.ledger.written(session_id)
        self.rows.is_dead = True
        tasks = [each.running for each in self.connected.values()]
        for task in (*tasks, self.writing):
            task.cancel()
        await asyncio.wait([*tasks, self.writing])
        for opened in (self.rows, self.kept):
            await asyncio.to_thread(opened.close)

    def forget_unwritten(self, session_id: str) -> None:
        """Expect that a turn was ended, or, if nothing of it had been written, never began."""
        known = self.known[session_id]
        inputs = [json.loads(each.body)["uuid"] for each in self.events(session_id, "input")]
        if inputs and inputs[-1] == known.inputs[-1]:
            known.ends.append("server_died")
            kept = len(self.events(session_id, "context"))
            assert len(known.steps) - kept in (0, 1, 2)
            del known.steps[kept:]
        else:
            del known.steps[-2:], known.inputs[-1]
            known.calls -= 1

    def events(self, session_id: str, kind: str) -> list[Any]:
        return [each for each in self.kept.events(session_id) if each.kind == kind]

    # --- what must be so ----------------------------------------------------------------------

    def check(self) -> None:
        """Every session is in the file as it is known."""
        for session_id, known in self.known.items():
            self.run(self.ledger.written(session_id))
            record = self.kept.session(session_id)
            if not known.inputs:
                assert record is None
                continue
            assert record is not None
            is_running = session_id in self.connected and self.connected[session_id].runs
            assert bool(record.turn_id) is is_running
            results = [json.loads(each.body) for each in self.events(session_id, "message")]
            results = [each for each in results if each["type"] == "result"]
            inputs = [json.loads(each.body)["uuid"] for each in self.events(session_id, "input")]
            steps = [json.loads(each.body) for each in self.events(session_id, "context")]
            assert inputs == known.inputs
            assert steps == known.steps
            if session_id in self.attended():
                self.check_seen(session_id)
            assert [(each.get("error") or {}).get("reason", "") for each in results] == known.ends
            assert record.turns == len(known.ends) - known.turns_before
            if known.is_cost_known and not is_running:
                assert record.calls == known.calls
                assert record.spent_nanos == CALL_NANOS * record.calls

    def check_seen(self, session_id: str) -> None:
        """A client has every message since it began, as far as any server remembers it."""
        client = self.clients[session_id]
        assert client.began is not None
        logged = {each.seq for each in self.events(session_id, "message")}
        assert {each for each in logged if each > client.began} <= set(client.messages)

    def teardown(self) -> None:
        """Leave nothing open."""
        self.run(self.die(writes=True))
        self.loop.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("share", [1, 5], ids=["sqlite", "postgres"])
def test_sessions_do_what_their_model_does(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    monkeypatch.setattr(ledger_module, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(ledger_module, "_LONGEST_PAUSE_SECONDS", 0.01)
    url = None if share == 1 else PostgresUrl(request.getfixturevalue("postgres_url"))

    # A failure is told as it was found: to make it shorter would take minutes.
    class Machine(SessionMachine):
        def __init__(self) -> None:
            super().__init__(url or tmp_path / f"{uuid.uuid4().hex}.db")

    few = settings(
        settings(),
        max_examples=settings().max_examples // share,
        stateful_step_count=2,
        phases=[Phase.generate],
    )
    run_state_machine_as_test(Machine, settings=few)
