"""The ledger for its tests: its rows in every database there is, and a clock that stands still."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from chucky import create_budget, create_token
from chucky.server.ledger.accounts import (
    Account,
    AccountKey,
    Holder,
    Limit,
    Meter,
    Standing,
)
from chucky.server.ledger.booking import book
from chucky.server.ledger.operations import Look, Operation, Outcome, Reserve, Seen, Settle, Void
from chucky.server.ledger.rows import LedgerRows
from chucky.server.ledger.wishes import Wish
from chucky.server.store.postgres_ledger import PostgresLedgerRows
from chucky.server.store.sqlite_ledger import SqliteLedgerRows

if TYPE_CHECKING:
    from tests.conftest import PostgresServer
    from tests.server.conftest import Place, PostgresPlace

# Only entries are protected from this, by a trigger that a replica does not have.
_EMPTIED = """
    SET session_replication_role = replica;
    DO $$
    DECLARE name TEXT;
    BEGIN
        FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'chucky'
            AND (tablename LIKE 'ledger%' OR tablename LIKE 'session%')
        LOOP EXECUTE 'DELETE FROM chucky.' || name; END LOOP;
    END $$
"""
# A Monday in the middle of a month.
START_MS = 1_789_387_200_000


@dataclass
class Clock:
    """The time of a database, as the test says."""

    now_ms: int = START_MS

    def __call__(self) -> int:
        """Tell the time."""
        return self.now_ms


@dataclass
class LedgerDatabase:
    """A database with a ledger in it, which a test drives without a server.

    Attributes:
        open_rows: Opens it; a second time for a second process.
        rows: It, opened.
        clock: Its time.
        start_ms: The time in the beginning.
        project_id: A project that no other test has.
        owner: The process that books.
    """

    open_rows: Callable[[], LedgerRows]
    rows: LedgerRows
    clock: Clock
    start_ms: int = START_MS
    project_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file."""
        return isinstance(self.rows, SqliteLedgerRows)

    def holder(self, user: str = "ann", session: str = "s1", turn: str = "t1") -> Holder:
        """Someone who pays."""
        return Holder(self.project_id, user, session, turn)

    def book(self, *operations: Operation, owner: str | None = None) -> list[Outcome]:
        """Do a group of operations in a transaction of its own."""
        with self.rows.transaction() as transaction:
            [outcomes] = book(transaction, [operations], owner or self.owner)
        return outcomes

    def reserve(
        self,
        amount: int,
        *limits: Limit,
        holder: Holder | None = None,
        meter: Meter = "ai",
        **more: Any,
    ) -> tuple[str, Outcome]:
        """Try to hold an amount; return the id of the reservation, and what came of it."""
        reservation_id = uuid.uuid4().hex
        who = holder or self.holder()
        wanted = Reserve(reservation_id, who, meter, flat(amount), limits, **more)
        return reservation_id, self.book(wanted)[0]

    def lock(self, *keys: AccountKey) -> list[Account]:
        """Accounts as a transaction sees them."""
        with self.rows.transaction() as transaction:
            return list(transaction.lock_accounts(keys).values())

    def give_back(self, reservation_id: str) -> None:
        """End a reservation of which nothing was spent."""
        self.book(Void(reservation_id, self.holder(), "ai"))

    def spend(
        self, amount: int, *limits: Limit, holder: Holder | None = None, meter: Meter = "ai"
    ) -> str:
        """Hold an amount, whatever the limits are, and spend it; return the id of the call."""
        who = holder or self.holder()
        wide = [replace(limit, amount=10**15) for limit in limits]
        reservation_id, _ = self.reserve(amount, *wide, holder=who, meter=meter)
        self.book(Settle(reservation_id, who, meter, amount, limits=limits))
        return reservation_id


def flat(amount: int) -> Wish:
    """A wish for an amount that is wanted whole or not at all."""
    return Wish(amount, 0, 0, 0, 0, 0)


@pytest.fixture(scope="session")
def _postgres_urls() -> dict[str, str]:
    """The address of the database that the tests here use one after the other."""
    return {}


@pytest.fixture
def postgres_url(postgres: PostgresServer, _postgres_urls: dict[str, str]) -> str:
    """The address of a database with empty books: to make one anew takes longer than most tests."""
    if not _postgres_urls:
        _postgres_urls["books"] = postgres.create_database()
    return _postgres_urls["books"]


@pytest.fixture
def postgres_place(postgres_place: PostgresPlace) -> PostgresPlace:
    """A PostgreSQL database with empty books."""
    postgres_place.execute(_EMPTIED)
    return postgres_place


@pytest.fixture
def ledger_db(place: Place) -> Iterator[LedgerDatabase]:
    """The ledger in a database, once for each kind of database there is."""
    clock = Clock()
    opened: list[LedgerRows] = []

    def open_rows() -> LedgerRows:
        db = place.db
        rows: LedgerRows
        if isinstance(db, Path):
            rows = SqliteLedgerRows.open(db, clock)
        else:
            rows = PostgresLedgerRows.open(db, clock)
        opened.append(rows)
        return rows

    yield LedgerDatabase(open_rows, open_rows(), clock)
    for rows in opened:
        rows.close()


# --- a server whose provider and time the test decides about ----------------------------------


@dataclass
class LoopTime:
    """The event loop's time, which a test can move on: timers of the time between are due."""

    shift_seconds: float = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.shift_seconds += seconds


@pytest.fixture
async def loop_time(monkeypatch: pytest.MonkeyPatch) -> LoopTime:
    """Move the time of the running loop: ``loop_time.advance(seconds)``."""
    loop, moved = asyncio.get_running_loop(), LoopTime()
    real_time = loop.time
    monkeypatch.setattr(loop, "time", lambda: real_time() + moved.shift_seconds)
    return moved


@dataclass
class Till:
    """A provider that counts what it is asked, and charges what the test says.

    Attributes:
        input_tokens: What every input has.
        output_tokens: What an answer has, of its request.
        usage: What else its report says.
        tool_calls: How often it calls the tool it is offered before it answers.
        breaks: So many answers end with a lost connection.
        counts: How often it was asked to count.
        may_end: Answers break off before their end until it is set.
        meeting: Where calls wait for each other.
        in_flight: How many calls are being answered.
        requests: What was asked.
    """

    input_tokens: int = 500
    output_tokens: Callable[[dict[str, Any]], int] = lambda _: 100
    usage: dict[str, Any] = field(default_factory=dict)
    tool_calls: int = 0
    breaks: int = 0
    counts: int = 0
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    meeting: asyncio.Barrier | None = None
    in_flight: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)

    async def respond(self, request: Request) -> Response:
        """Answer a call."""
        body = json.loads(await request.body())
        if request.url.path.endswith("/count_tokens"):
            self.counts += 1
            return JSONResponse({"input_tokens": self.input_tokens})
        self.requests.append(body)
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self.in_flight += 1
        try:
            if self.meeting is not None:
                await self.meeting.wait()
            for event in self._begin(body):
                yield _sent(event)
            await self.may_end.wait()
            if self.breaks:
                self.breaks -= 1
                return
            for event in self._end(body):
                yield _sent(event)
        finally:
            self.in_flight -= 1

    def _begin(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        usage = {"input_tokens": self.input_tokens, "output_tokens": 1, **self.usage}
        message = {"id": "m", "type": "message", "role": "assistant", "content": []}
        yield {"type": "message_start", "message": {**message, "usage": usage}}
        block: dict[str, Any] = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": "So far."}
        if self.tool_calls:
            name = body["tools"][0]["name"]
            block = {"type": "tool_use", "id": f"t{self.tool_calls}", "name": name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": "{}"}
        yield {"type": "content_block_start", "index": 0, "content_block": block}
        yield {"type": "content_block_delta", "index": 0, "delta": delta}

    def _end(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"type": "content_block_stop", "index": 0}
        wanted = self.output_tokens(body)
        tokens = min(wanted, body["max_tokens"])
        reason = "max_tokens" if tokens < wanted else "end_turn"
        if self.tool_calls:
            self.tool_calls -= 1
            reason = "tool_use"
        usage = {"output_tokens": tokens}
        yield {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}
        yield {"type": "message_stop"}


def _sent(event: dict[str, Any]) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


@dataclass
class Service:
    """A server, its provider, and its books."""

    server: Any
    till: Till
    db: LedgerDatabase

    def token(self, ai_dollars: float = 1.0, compute_seconds: float = 3600.0, **more: Any) -> str:
        """Sign a token for a user with a budget."""
        user = more.pop("user", "ann")
        budget = create_budget(ai_dollars, compute_seconds / 3600, **more)
        day_seconds = 86_400
        return create_token(user, self.server.project_id, self.server.secret, budget, day_seconds)

    def holder(self, user: str = "ann") -> Holder:
        """A user, as one who pays outside of any session."""
        return Holder(self.server.project_id, user)

    async def book(self, *operations: Operation) -> list[Outcome]:
        """Do operations past the server, as another process would."""
        return await asyncio.to_thread(self.db.book, *operations)

    async def standing(self, meter: Meter = "ai", user: str = "ann") -> Standing:
        """What a user has spent in all, and what is held."""
        look = Look(self.holder(user), {meter: (Limit("user", "lifetime", 0),)})
        [seen] = await self.book(look)
        assert isinstance(seen, Seen)
        return seen.standings[0]


@pytest.fixture
def start_service(start_server: Any, start_provider: Any, tmp_path: Path) -> Any:
    """Start a server with a till: ``async with start_service(turn_timeout_seconds=5) as it``."""

    @asynccontextmanager
    async def start(**settings: Any) -> AsyncIterator[Service]:
        till = Till()
        till.may_end.set()
        async with start_provider() as provider:
            provider.respond_as = till.respond
            async with start_server(upstream_url=provider.url, **settings) as server:
                path = tmp_path / "chucky.db"
                rows = await asyncio.to_thread(SqliteLedgerRows.open, path)
                try:
                    yield Service(server, till, LedgerDatabase(lambda: rows, rows, Clock()))
                finally:
                    rows.close()

    return start
