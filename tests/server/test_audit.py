"""The audit finds nothing where the ledger wrote, and names the row that was tampered with."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chucky.server.ledger.accounts import Holder, Limit, Meter
from chucky.server.ledger.audit import Problem, audit
from chucky.server.ledger.booking import book
from chucky.server.ledger.corrections import give_credit, move_anchor, refund
from chucky.server.ledger.operations import (
    Beat,
    Booked,
    Checkpoint,
    Granted,
    Look,
    Operation,
    Outcome,
    Reserve,
    Seen,
    Settle,
    Sweep,
    Void,
)
from chucky.server.ledger.rows import LedgerRows
from chucky.server.ledger.wishes import Wish
from chucky.server.model.pricing import Price, Rate, Usage
from chucky.server.settings import Settings
from chucky.server.store import open_reader, postgres_database, sqlite_file
from chucky.server.store.database import now_ms
from chucky.server.store.migration import migrations
from chucky.server.store.opening import open_database
from chucky.server.store.postgres_ledger import PostgresLedgerRows
from chucky.server.store.sqlite_ledger import SqliteLedgerRows

if TYPE_CHECKING:
    from tests.server.conftest import Place

DAY_MS = 86_400_000
# A prompt above 100 tokens costs double.
TIERED = [Rate(rate, ((100, 2 * rate),)) for rate in (3_000_000, 15_000_000, 300_000, 3_750_000)]
PRICE = Price("m", "operator", TIERED[0], TIERED[1], TIERED[2], TIERED[3], Rate(6_000_000))
USAGE = Usage(40, 30, 20, 10, 50)
COST = 2 * (40 * 3 + 30 * 15) + 2 * 15 + 2 * 75 + 10 * 6  # nano-dollars, by hand
HELD = 10_000

DAILY = Limit("user", "day", 100_000)
OF_PROJECT = Limit("project", "month", 150_000)
OF_SESSION = Limit("session", "lifetime", 50_000)
LIMITS = (DAILY, OF_PROJECT, OF_SESSION)
COMPUTE = (Limit("user", "day", 60_000),)


@dataclass
class Books:
    """A ledger that a test writes, by its rules and past them."""

    place: Any
    project_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    offset_ms: int = 0
    rows: LedgerRows = field(init=False)

    def __post_init__(self) -> None:
        db = self.place.db
        opener: Any = SqliteLedgerRows if isinstance(db, Path) else PostgresLedgerRows
        self.rows = opener.open(db, lambda: now_ms() + self.offset_ms)

    @property
    def settings(self) -> Settings:
        return Settings(db=self.place.db)

    def holder(self, user: str = "ann", session: str = "s1") -> Holder:
        return Holder(self.project_id, user, session, "t1")

    def book(self, *operations: Operation, owner: str = "server") -> list[Outcome]:
        with self.rows.transaction() as transaction:
            [outcomes] = book(transaction, [operations], owner)
        return outcomes

    def reserve(
        self,
        *limits: Limit,
        meter: Meter = "ai",
        call_id: str | None = None,
        held: int = HELD,
        user: str = "ann",
        session: str = "s1",
    ) -> tuple[str, Holder]:
        call_id = call_id or uuid.uuid4().hex
        holder = self.holder(user, session)
        price, usual = (PRICE, LIMITS) if meter == "ai" else (None, COMPUTE)
        wanted = Reserve(
            call_id, holder, meter, Wish(held, 0, 0, 0, 0, 0), limits or usual, price=price
        )
        assert isinstance(self.book(wanted)[0], Granted)
        return call_id, holder

    def call(
        self,
        *limits: Limit,
        call_id: str | None = None,
        user: str = "ann",
        session: str = "s1",
    ) -> str:
        """A call that is reserved and settled."""
        call_id, holder = self.reserve(*limits, call_id=call_id, user=user, session=session)
        self.book(Settle(call_id, holder, "ai", COST, USAGE))
        return call_id

    def expire(self, call_id: str, *limits: Limit, meter: Meter = "ai") -> None:
        """A call whose lease ends: it is booked with what was known, a token for each kind."""
        self.reserve(*limits, call_id=call_id, meter=meter)
        usage = Usage(1, 1, 1, 1, 1) if meter == "ai" else Usage()
        amount = PRICE.cost_nanos(usage) if meter == "ai" else 5
        self.book(Beat("server", (Checkpoint(call_id, amount, usage),)))
        self.book(Sweep(everything=True))

    def tamper(self, *statements: str) -> None:
        """Change what is written, past all rules."""
        if isinstance(self.place.db, Path):
            for trigger in ("ledger_entries_stay", "ledger_entries_remain"):
                self.place.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        else:
            self.place.execute("DROP TRIGGER IF EXISTS ledger_entries_stay ON ledger_entries")
            bond = "ledger_windows_account_id_fkey"
            self.place.execute(f"ALTER TABLE ledger_windows DROP CONSTRAINT IF EXISTS {bond}")
        for statement in statements:
            self.place.execute(statement)

    def problems(self) -> list[Problem]:
        with closing(open_reader(self.settings)) as reader, reader.snapshot() as ledger:
            return list(audit(ledger))


@pytest.fixture
def books(place: Place) -> Iterator[Books]:
    made = Books(place)
    yield made
    made.rows.close()


@pytest.fixture
def history(books: Books) -> Books:
    """Something of everything that happens in a ledger."""
    books.call(call_id="settled")
    books.call(call_id="of-bob", user="bob", session="s2")
    call_id, holder = books.reserve(call_id="cut-short")
    books.book(Settle(call_id, holder, "ai", COST, USAGE, is_estimated=True))
    call_id, holder = books.reserve(call_id="voided")
    books.book(Void(call_id, holder, "ai"))
    call_id, holder = books.reserve(call_id="above", held=COST - 100)
    books.book(Settle(call_id, holder, "ai", COST, USAGE))
    call_id, holder = books.reserve(*COMPUTE, meter="compute", call_id="turn")
    books.book(Settle(call_id, holder, "compute", 7_000))
    books.reserve(call_id="died", held=COST - 1)
    books.book(Beat("server", (Checkpoint("died", COST, USAGE),)))
    books.book(Sweep(everything=True))
    give_credit(books.rows, books.holder(session=""), "ai", 500)
    refund(books.rows, books.holder(), "settled", amount=COST - 1)
    books.expire("woke-up")
    books.book(Settle("woke-up", books.holder(), "ai", COST, USAGE))
    books.reserve(call_id="open")
    return books


def test_a_ledger_that_was_only_written_by_its_rules_adds_up(history: Books) -> None:
    assert history.problems() == []
    with closing(open_reader(history.settings)) as reader, reader.snapshot() as ledger:
        counts = ledger.counts()
    assert (counts.entries, counts.reservations) == (11, 1)
    # Of both users, the project and both sessions; and compute of ann.
    assert counts.accounts == 6
    assert counts.windows == 4


CHANGES = {
    "an account says more was settled": (
        "UPDATE ledger_accounts SET settled = settled + 1"
        " WHERE user_id = 'bob' AND session_id = ''",
        "account of user 'bob'",
        f"settled {COST + 1}, reserved 0; its entries and open reservations say settled {COST}",
    ),
    "an account says more is reserved": (
        "UPDATE ledger_accounts SET reserved = reserved + 1 WHERE session_id = 's1'",
        "account of session s1 of user 'ann'",
        "reserved 10001; its entries and open reservations say",
    ),
    "an account is gone": (
        "DELETE FROM ledger_accounts WHERE user_id = 'bob' AND session_id = ''",
        "account of user 'bob'",
        "It is missing",
    ),
    "an account of a session is gone": (
        "DELETE FROM ledger_accounts WHERE session_id = 's1'",
        "account of session s1 of user 'ann'",
        "It is missing",
    ),
    "a project has other totals than its users": (
        "UPDATE ledger_accounts SET settled = settled - 1 WHERE user_id = ''",
        "account of project",
        "the accounts of its users and its own credits together say",
    ),
    "a window has another sum": (
        "UPDATE ledger_windows SET spent = spent + 1 WHERE window_kind = 'month'",
        "window month of account",
        "its entries say",
    ),
    "a window begins elsewhere": (
        "UPDATE ledger_windows SET start_ms = start_ms - 1 WHERE window_kind = 'month'",
        "window month of account",
        "there is no such window by its anchor",
    ),
    "an anchor is gone": (
        "DELETE FROM ledger_anchors WHERE user_id = 'bob'",
        "window day of account",
        "Nothing says where windows of this kind begin",
    ),
    "a charge is larger than its tokens cost": (
        "UPDATE ledger_entries SET amount = amount + 1 WHERE entry_key = 'settled'",
        "(settled)",
        f"Its tokens cost {COST} nano-dollars at its price; {COST + 1} is booked.",
    ),
    "a token is missing": (
        "UPDATE ledger_entries SET cache_read_tokens = 48 WHERE entry_key = 'settled'",
        "(settled)",
        f"Its tokens cost {COST - 1} nano-dollars",
    ),
    "an estimate is larger than its tokens cost": (
        "UPDATE ledger_entries SET amount = amount + 1 WHERE entry_key = 'cut-short'",
        "(cut-short)",
        f"Its tokens cost {COST} nano-dollars at its price; {COST + 1} is booked.",
    ),
    "an estimate is above what was held": (
        f"UPDATE ledger_entries SET amount = {COST}, excess = 1 WHERE entry_key = 'died'",
        "(died)",
        f"Its tokens cost {COST - 1} nano-dollars",
    ),
    "a price is another": (
        "UPDATE ledger_prices SET price = replace(price, '30000000', '40000000')",
        "(settled)",
        "nano-dollars at its price",
    ),
    "a price is unreadable": (
        "UPDATE ledger_prices SET price = '{}'",
        "(settled)",
        "Its price cannot be read",
    ),
    "a price is gone": (
        "UPDATE ledger_entries SET price_id = NULL WHERE entry_key = 'settled'",
        "(settled)",
        "It has no price",
    ),
    "a call was of another model": (
        "UPDATE ledger_entries SET model = 'cheap' WHERE entry_key = 'settled'",
        "(settled)",
        "a call of 'cheap' with the price of 'm'",
    ),
    "an excess is hidden": (
        "UPDATE ledger_entries SET excess = 0 WHERE entry_key = 'above'",
        "(above)",
        "the excess is not 0",
    ),
    "a charge is below nothing": (
        "UPDATE ledger_entries SET amount = -1 WHERE entry_key = 'turn'",
        "(turn)",
        "It is a settle of -1",
    ),
    "something was charged for nothing": (
        "UPDATE ledger_entries SET amount = 1 WHERE entry_key = 'voided'",
        "(voided)",
        "It is a void of 1",
    ),
    "an estimate is not marked": (
        "UPDATE ledger_entries SET is_estimated = FALSE WHERE entry_key = 'died'",
        "(died)",
        "is not marked as one",
    ),
    "a credit takes": (
        "UPDATE ledger_entries SET amount = 500 WHERE kind = 'credit'",
        "entry 8",
        "what a user gets is below 0",
    ),
    "a refund refers to nothing": (
        "UPDATE ledger_entries SET refers_to = '' WHERE kind = 'refund'",
        "entry 9",
        "names the charge it gives back",
    ),
    "a charge refers to another": (
        "UPDATE ledger_entries SET refers_to = 'above' WHERE entry_key = 'settled'",
        "(settled)",
        "refers to another entry",
    ),
    "a late settlement has another amount": (
        "UPDATE ledger_entries SET amount = amount + 1, excess = excess + 1 WHERE kind = 'late'",
        "(woke-up-late)",
        f"Its tokens cost {COST} nano-dollars at its price; {COST + 1} is booked.",
    ),
    "a late settlement has other tokens": (
        "UPDATE ledger_entries SET cache_read_tokens = 47 WHERE kind = 'late'",
        "(woke-up-late)",
        f"Together with what it corrects: Its tokens cost {COST - 1} nano-dollars",
    ),
    "a late settlement takes more tokens than there were": (
        "UPDATE ledger_entries SET output_tokens = -2 WHERE kind = 'late'",
        "(woke-up-late)",
        "Its tokens cannot be counted",
    ),
    "a late settlement gives more than was charged": (
        "UPDATE ledger_entries SET amount = -10000, excess = 0 WHERE kind = 'late'",
        "(woke-up-late)",
        "Together with what it corrects it is a charge of -",
    ),
    "the excess of a late settlement is hidden": (
        "UPDATE ledger_entries SET excess = 0 WHERE kind = 'late'",
        "(woke-up-late)",
        "the excess is not 0",
    ),
    "something is held for a late settlement": (
        "UPDATE ledger_entries SET reserved = 10000, excess = 0 WHERE kind = 'late'",
        "(woke-up-late)",
        "says that something was reserved for it still",
    ),
    "a late settlement has another key, so that it could be booked twice": (
        "UPDATE ledger_entries SET entry_key = 'another' WHERE kind = 'late'",
        "(another)",
        "its key is not that of the reservation it refers to",
    ),
    "what was settled late had not expired": (
        "UPDATE ledger_entries SET kind = 'settle' WHERE entry_key = 'woke-up'",
        "(woke-up-late)",
        "It settles nothing that had expired before",
    ),
    "what was settled late was another user's": (
        "UPDATE ledger_entries SET user_id = 'bob' WHERE kind = 'late'",
        "(woke-up-late)",
        "It settles nothing that had expired before, of this payer and at this price.",
    ),
    "a late settlement has no price": (
        "UPDATE ledger_entries SET price_id = NULL WHERE kind = 'late'",
        "(woke-up-late)",
        "of this payer and at this price",
    ),
    "more is refunded than was charged": (
        "UPDATE ledger_entries SET amount = amount - 2 WHERE kind = 'refund'",
        "entry settled",
        f"{COST + 1} of it is refunded, and {COST} was charged",
    ),
    "another user's charge is refunded": (
        "UPDATE ledger_entries SET refers_to = 'of-bob' WHERE kind = 'refund'",
        "entry of-bob",
        "is no charge of this user",
    ),
    "a reservation is open and has ended": (
        "UPDATE ledger_reservations SET reservation_id = 'settled'",
        "reservation settled",
        "It is open, and there is an entry that ends it.",
    ),
    "a user has spent more than the limit": (
        "UPDATE ledger_accounts SET granted_limit = 12000 WHERE user_id = 'ann' AND session_id = ''"
        " AND meter = 'ai'",
        "account of user 'ann'",
        "granted under a limit of 12000",
    ),
    "a session has spent more than the limit": (
        "UPDATE ledger_accounts SET granted_limit = 100 WHERE session_id = 's2'",
        "account of session s2",
        f"{COST} is spent and 0 reserved; its last reservation was granted under a limit of 100",
    ),
    "a project has spent more than the limit": (
        "UPDATE ledger_accounts SET granted_limit = 12000 WHERE user_id = ''",
        "account of project",
        "granted under a limit of 12000",
    ),
    "a lease is over": (
        "UPDATE ledger_reservations SET expires_ms = 1000",
        "reservation open",
        "It was to be renewed by 1970-01-01T00:00:01.000Z and is still open: the server that made",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_row_that_is_changed_is_named(history: Books, change: str) -> None:
    statement, row, sentence = CHANGES[change]
    history.tamper(statement)
    problems = history.problems()
    assert any(row in each.row and sentence in each.sentence for each in problems), problems


def test_an_entry_that_is_there_twice_is_named(history: Books) -> None:
    change = "UPDATE ledger_entries SET entry_key = 'settled' WHERE entry_key = 'above'"
    if isinstance(history.place.db, Path):
        [[schema]] = history.place.execute(
            "SELECT sql FROM sqlite_schema WHERE name = 'ledger_entries'"
        )
        history.tamper(
            "ALTER TABLE ledger_entries RENAME TO kept",
            schema.replace("entry_key TEXT NOT NULL UNIQUE", "entry_key TEXT NOT NULL"),
            "INSERT INTO ledger_entries SELECT * FROM kept",
            change,
        )
    else:
        unique = "ledger_entries_entry_key_key"
        history.tamper(f"ALTER TABLE ledger_entries DROP CONSTRAINT {unique}", change)
    assert Problem("entry settled", "There are several entries with this key.") in (
        history.problems()
    )


# --- what is no mistake -----------------------------------------------------------------------


def test_a_provider_that_charged_more_than_was_held_is_no_mistake(books: Books) -> None:
    limit = Limit("user", "day", COST)
    call_id, holder = books.reserve(limit, held=COST)
    many = replace(USAGE, output_tokens=1_000)
    books.book(Settle(call_id, holder, "ai", PRICE.cost_nanos(many), many))
    assert books.problems() == []


def test_what_was_settled_late_and_had_been_granted_to_others_is_no_mistake(books: Books) -> None:
    limit = Limit("user", "day", HELD)
    books.expire("woke-up", limit)
    books.reserve(limit, held=HELD - 100)
    books.book(Settle("woke-up", books.holder(), "ai", COST, USAGE))
    assert books.problems() == []


@pytest.mark.parametrize("meter", ["ai", "compute"])
def test_a_late_settlement_of_less_is_no_mistake(books: Books, meter: Meter) -> None:
    for call_id in ("free", "less"):
        books.expire(call_id, meter=meter)
    books.book(Void("free", books.holder(), meter))
    refund(books.rows, books.holder(), "less")
    usage = Usage(1) if meter == "ai" else Usage()
    books.book(Settle("less", books.holder(), meter, 3, usage))
    assert books.problems() == []


def test_an_estimate_that_is_settled_late_is_no_more_than_was_held(books: Books) -> None:
    books.expire("woke-up")
    many = replace(USAGE, output_tokens=10_000)
    settle = Settle("woke-up", books.holder(), "ai", HELD, many, is_estimated=True)
    [booked] = books.book(settle)
    assert isinstance(booked, Booked)
    assert booked.amount == HELD
    assert books.problems() == []


def test_a_limit_that_was_lowered_since_is_no_mistake(books: Books) -> None:
    for _ in range(3):
        books.call(DAILY)
    low = Limit("user", "day", COST)
    refused = Reserve("r", books.holder(), "ai", Wish(1, 0, 0, 0, 0, 0), (low,), price=PRICE)
    assert not isinstance(books.book(refused)[0], Granted)
    assert books.problems() == []


def test_what_was_spent_after_a_limit_was_taken_away_is_no_mistake(books: Books) -> None:
    low = Limit("project", "month", HELD)
    capped = Limit("session", "lifetime", HELD)
    books.call(DAILY, low, capped)
    for _ in range(20):
        books.call(DAILY)
    assert books.problems() == []


def test_of_several_budgets_of_a_project_the_closest_one_counts(books: Books) -> None:
    close, far = Limit("project", "hour", 2 * HELD), Limit("project", "month", 10 * HELD)
    for limits in ((far, close), (close, far)):
        books.call(DAILY, *limits)
    limits = books.place.execute("SELECT granted_limit FROM ledger_accounts WHERE user_id = ''")
    assert limits == [(2 * HELD,)]
    assert books.problems() == []


def test_settling_in_a_later_window_is_no_mistake(books: Books) -> None:
    books.offset_ms = -3 * DAY_MS
    limit = Limit("user", "day", HELD)
    early, holder = books.reserve(limit)
    books.offset_ms += DAY_MS
    books.book(Settle(early, holder, "ai", COST, USAGE))
    assert books.problems() == []
    books.offset_ms += DAY_MS
    books.call(limit)
    assert books.problems() == []


def test_credits_and_moved_anchors_are_no_mistake(books: Books) -> None:
    limit = Limit("user", "day", HELD)
    books.call(limit)
    give_credit(books.rows, books.holder(session=""), "ai", 5 * HELD)
    for _ in range(4):
        books.call(limit)
        move_anchor(books.rows, books.holder(session=""), "day", now_ms() - DAY_MS // 3)
        assert books.problems() == []
        books.call(limit)
        move_anchor(books.rows, books.holder(session=""), "day", now_ms() - DAY_MS // 7)
    assert books.problems() == []


def test_a_clock_that_is_set_back_and_forth_is_no_mistake(books: Books) -> None:
    for offset_ms in (-2 * DAY_MS, 0, -2 * DAY_MS, -40 * DAY_MS, 0):
        books.offset_ms = offset_ms
        books.call()
        assert books.problems() == []


def test_a_credit_of_a_project_is_no_users(books: Books) -> None:
    books.call()
    books.call(user="bob")
    project = Holder(books.project_id, "")
    give_credit(books.rows, project, "ai", 3)
    give_credit(books.rows, project, "compute", 5)
    move_anchor(books.rows, project, "month", now_ms() - DAY_MS)
    give_credit(books.rows, books.holder(session=""), "ai", 7)
    query = "SELECT settled FROM ledger_accounts WHERE meter = 'ai' AND user_id = '{}' {}"
    settled = books.place.execute(query.format("", ""))
    assert settled == [(2 * COST - 10,)]
    assert books.place.execute(query.format("ann", "AND session_id = ''")) == [(COST - 7,)]
    assert books.problems() == []


def test_a_refund_reaches_the_budget_of_its_session(books: Books) -> None:
    call_id = books.call()
    assert refund(books.rows, books.holder(session=""), call_id) == ("ai", COST)
    settled = books.place.execute("SELECT DISTINCT settled FROM ledger_accounts")
    assert settled == [(0,)]
    assert books.problems() == []


def _before_accounts_of_sessions(kind: str) -> Any:
    known = migrations(kind)
    [version] = [each.version for each in known if each.name.endswith("_accounts_of_sessions.sql")]
    return [each for each in known if each.version < version]


def test_the_sessions_of_an_earlier_version_get_their_accounts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        for module in (sqlite_file, postgres_database):
            earlier.setattr(module, "migrations", _before_accounts_of_sessions)
        books = Books(place)
    with closing(books.rows):
        books.call()
        books.call(user="bob", session="s2")
        books.reserve()
        # A session had an account from its first budget on.
        books.tamper("DELETE FROM ledger_accounts WHERE session_id = 's1'")
        open_database(place.db).close()
        assert books.problems() == []
        [seen] = books.book(Look(books.holder(), {"ai": (OF_SESSION,)}))
        assert isinstance(seen, Seen)
        assert [(each.spent, each.reserved) for each in seen.standings] == [(COST, HELD)]
