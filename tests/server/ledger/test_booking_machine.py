"""The ledger against a model of it that is too simple to be wrong, in any order of events."""

from __future__ import annotations

import calendar
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from itertools import count
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from chucky.server.ledger.accounts import METERS, AccountKey, Holder, Limit, Meter
from chucky.server.ledger.booking import LEASE_MS, book
from chucky.server.ledger.operations import (
    Adjust,
    Beat,
    Booked,
    Busy,
    Checkpoint,
    Done,
    Exceeded,
    Extend,
    Granted,
    Look,
    Operation,
    Outcome,
    Reanchor,
    Refused,
    Reserve,
    Seen,
    Settle,
    Sweep,
    Void,
)
from chucky.server.ledger.wishes import Wish
from chucky.server.model.pricing import Usage

HOUR_MS = 3_600_000
LENGTHS_MS = {"hour": HOUR_MS, "day": 24 * HOUR_MS, "week": 168 * HOUR_MS}
USERS = ("ann", "bob")
SESSIONS = ("s1", "s2")
FOREVER = (-(10**18), 10**18)


# --- the model --------------------------------------------------------------------------------


def month_starts(anchor: datetime, years: Iterable[int]) -> list[datetime]:
    """The anchor's day, or the last one, in every month of some years."""
    starts = []
    for year in years:
        for month in range(1, 13):
            last = calendar.monthrange(year, month)[1]
            starts.append(anchor.replace(year=year, month=month, day=min(anchor.day, last)))
    return starts


def span(kind: str, anchor_ms: int, now_ms: int) -> tuple[int, int]:
    """The window of a kind that is now, found by looking at all of them."""
    if kind == "lifetime":
        return FOREVER
    if kind == "month":
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        anchor = datetime.fromtimestamp(anchor_ms / 1000, UTC)
        years = range(now.year - 1, now.year + 2)
        starts = [round(each.timestamp() * 1000) for each in month_starts(anchor, years)]
        start = max(each for each in starts if each <= now_ms)
        return start, min(each for each in starts if each > now_ms)
    start = anchor_ms + LENGTHS_MS[kind] * ((now_ms - anchor_ms) // LENGTHS_MS[kind])
    return start, start + LENGTHS_MS[kind]


@dataclass
class Held:
    """A reservation of the model."""

    holder: Holder
    meter: Meter
    amount: int
    units: int
    checkpoint: int
    owner: str
    expires_ms: int


@dataclass
class Spent:
    """An entry of the model."""

    key: str
    kind: str
    holder: Holder
    meter: Meter
    amount: int
    at_ms: int
    excess: int = 0
    refers_to: str = ""


@dataclass
class Model:
    """What the ledger must come to."""

    clock: Any
    owner: str
    anchors: dict[tuple[str, str], int] = field(default_factory=dict)
    open: dict[str, Held] = field(default_factory=dict)
    entries: list[Spent] = field(default_factory=list)

    def concerns(self, holder: Holder, limit: Limit, meter: Meter) -> Callable[[Any], bool]:
        """Tells what counts against a limit."""

        def counts(each: Any) -> bool:
            same_user = limit.scope == "project" or each.holder.user_id == holder.user_id
            in_session = limit.scope != "session" or each.holder.session_id == holder.session_id
            return bool(each.meter == meter and same_user and in_session)

        return counts

    def anchor_key(self, holder: Holder, limit: Limit) -> tuple[str, str]:
        return ("" if limit.scope == "project" else holder.user_id, limit.window)

    def fix_anchors(self, operations: Sequence[Operation]) -> None:
        for each in operations:
            if isinstance(each, Reserve | Extend):
                for limit in each.limits:
                    self.fix_anchor(each.holder, limit)

    def fix_anchor(self, holder: Holder, limit: Limit) -> None:
        if limit.window != "lifetime":
            start_ms = self.clock.now_ms if limit.start_ms is None else limit.start_ms
            self.anchors.setdefault(self.anchor_key(holder, limit), start_ms)

    def window(self, holder: Holder, limit: Limit) -> tuple[int, int]:
        start_ms = self.clock.now_ms if limit.start_ms is None else limit.start_ms
        anchor_ms = self.anchors.get(self.anchor_key(holder, limit), start_ms)
        return span(limit.window, anchor_ms, self.clock.now_ms)

    def stand(self, holder: Holder, meter: Meter, limit: Limit) -> tuple[int, int]:
        """What is spent, and what is held."""
        counts = self.concerns(holder, limit, meter)
        start_ms, end_ms = self.window(holder, limit)
        spent = [
            each.amount for each in self.entries if counts(each) and start_ms <= each.at_ms < end_ms
        ]
        return sum(spent), sum(each.amount for each in self.open.values() if counts(each))

    def standings(self, settle: Settle) -> list[tuple[int, int]]:
        """How the limits stand that a settlement asks for."""
        return [self.stand(settle.holder, settle.meter, limit) for limit in settle.limits]

    def ending(self, key: str) -> Spent | None:
        return next((each for each in self.entries if each.key == key), None)

    def late(self, key: str) -> Spent | None:
        """What a late settlement has added to an end."""
        late = (each for each in self.entries if each.kind == "late" and each.refers_to == key)
        return next(late, None)

    def charge(self, key: str) -> tuple[str, int, int]:
        """How something ended, with what was settled late: the kind, the amount, the excess."""
        first = self.ending(key)
        assert first is not None
        late = self.late(key)
        if late is None:
            return first.kind, first.amount, first.excess
        return "late", first.amount + late.amount, late.excess

    def granted_units(self, wanted: Reserve | Extend, own: int = 0) -> int | str:
        wish = wanted.wish
        price = Fraction(wish.rate, 1_000_000)
        if not wanted.limits:
            return wish.units
        stands = [
            (limit.amount, *self.stand(wanted.holder, wanted.meter, limit))
            for limit in wanted.limits
        ]
        left = min(limit - spent for limit, spent, _ in stands) - own
        free = min(limit - spent - held for limit, spent, held in stands)

        def fits(units: int, money: int) -> bool:
            return wish.fixed + units * price <= money

        if not fits(min(wish.least_units, wish.units), left):
            return "exceeded"
        if wish.fixed > Fraction(left, wish.fixed_share):
            return "busy"
        share = wish.units if not price else int((left // 8) / price)
        bought = wish.units if not price else int((left - wish.fixed) / price)
        most = min(wish.units, bought, max(wish.fair_units, share))
        if fits(most, free):
            return most
        fewer = min(most, wish.fallback_units)
        return fewer if fits(fewer, free) else "busy"

    # --- operations ---------------------------------------------------------------------------

    def apply(self, operation: Operation) -> Any:
        """Do an operation; return what must come of it."""
        match operation:
            case Reserve():
                return self.reserve(operation)
            case Extend():
                return self.extend(operation)
            case Settle():
                return self.end(operation.reservation_id, "settle", operation.amount)
            case Void():
                return self.end(operation.reservation_id, "void", 0)
            case Adjust():
                return self.adjust(operation)
            case Reanchor():
                self.anchors[operation.holder.user_id, operation.window] = operation.anchor_ms
                return Done()
            case Beat():
                return self.beat(operation)
        raise AssertionError(operation)

    def reserve(self, wanted: Reserve) -> Any:
        if wanted.is_repeated and (known := self.open.get(wanted.reservation_id)):
            return Granted(known.units, known.amount)
        if wanted.is_repeated and self.ending(wanted.reservation_id):
            return Refused
        units = self.granted_units(wanted)
        if not isinstance(units, int):
            return Busy if units == "busy" else Exceeded
        amount = wanted.wish.fixed + -(-units * wanted.wish.rate // 1_000_000)
        self.open[wanted.reservation_id] = Held(
            wanted.holder, wanted.meter, amount, units, 0, self.owner, self.clock.now_ms + LEASE_MS
        )
        self.check_limits(wanted)
        return Granted(units, amount)

    def extend(self, wanted: Extend) -> Any:
        held = self.open.get(wanted.reservation_id)
        if held is None:
            return Refused
        units = self.granted_units(wanted, held.amount)
        if not isinstance(units, int):
            return Busy if units == "busy" else Exceeded
        held.amount += wanted.wish.fixed + -(-units * wanted.wish.rate // 1_000_000)
        held.units += units
        self.check_limits(wanted)
        return Granted(units, held.amount)

    def check_limits(self, wanted: Reserve | Extend) -> None:
        """The first invariant: what is granted is within every limit in force."""
        for limit in wanted.limits:
            assert sum(self.stand(wanted.holder, wanted.meter, limit)) <= limit.amount

    def end(self, key: str, kind: str, amount: int) -> Any:
        held = self.open.pop(key, None)
        if held is None:
            return self.end_again(key, amount)
        excess = max(amount - held.amount, 0) if kind == "settle" else 0
        self.entries.append(
            Spent(key, kind, held.holder, held.meter, amount, self.clock.now_ms, excess)
        )
        return Booked(held.meter, kind, amount, excess)

    def end_again(self, key: str, amount: int) -> Any:
        known = self.ending(key)
        if known is None:
            return Refused
        if known.kind == "expire" and self.late(key) is None:
            more = amount - known.amount
            late = replace(known, key=f"{key}-late", kind="late", amount=more, refers_to=key)
            self.entries.append(replace(late, at_ms=self.clock.now_ms, excess=max(more, 0)))
        return Booked(known.meter, *self.charge(key))

    def adjust(self, given: Adjust) -> Any:
        if self.ending(given.entry_key):
            return Done(0)
        if given.refers_to:
            charge = self.ending(given.refers_to)
            if charge is None or charge.meter != given.meter:
                return Refused
            if charge.holder.user_id != given.holder.user_id:
                return Refused
            refunds = [
                each.amount
                for each in self.entries
                if each.kind == "refund" and each.refers_to == given.refers_to
            ]
            if given.amount > self.charge(given.refers_to)[1] + sum(refunds):
                return Refused
        self.entries.append(
            Spent(
                given.entry_key,
                given.kind,
                given.holder,
                given.meter,
                -given.amount,
                self.clock.now_ms,
                refers_to=given.refers_to,
            )
        )
        return Done()

    def beat(self, beat: Beat) -> Any:
        mine = [each for each in self.open.values() if each.owner == beat.owner]
        for each in mine:
            each.expires_ms = self.clock.now_ms + LEASE_MS
        for checkpoint in beat.checkpoints:
            self.open[checkpoint.reservation_id].checkpoint = checkpoint.amount
        return Done(len(mine))

    def sweep(self, *, everything: bool) -> Any:
        stale = [
            key
            for key, each in self.open.items()
            if everything or (each.owner != self.owner and each.expires_ms <= self.clock.now_ms)
        ]
        for key in stale:
            self.end(key, "expire", min(self.open[key].checkpoint, self.open[key].amount))
        return Done(len(stale))


# --- what happens -----------------------------------------------------------------------------

amounts = st.sampled_from([0, 1, 64, 999, 1_000, 5_000]) | st.integers(0, 3_000)
wishes = st.builds(
    Wish,
    fixed=st.integers(0, 500),
    rate=st.sampled_from([0, 1, 333_333, 1_000_000, 2_500_000]),
    units=st.integers(1, 2_000),
    least_units=st.sampled_from([1, 64]),
    fair_units=st.sampled_from([100, 800]),
    fallback_units=st.sampled_from([25, 400]),
    fixed_share=st.sampled_from([1, 1, 16]),
)


@dataclass
class Draws:
    """Draws operations that fit what there is."""

    data: st.DataObject
    model: Model
    project_id: str
    ids: Any

    def one(self, values: Sequence[Any]) -> Any:
        return self.data.draw(st.sampled_from(values))

    def holder(self) -> Holder:
        return Holder(self.project_id, self.one(USERS), self.one(SESSIONS), "turn")

    def limits(self, meter: Meter) -> tuple[Limit, ...]:
        start_ms = self.one([None, 0, 1_767_225_599_999, self.model.clock.now_ms - 5_000])
        kinds = ["hour", "day", "week", "month", "lifetime"]
        possible = [
            Limit("user", self.one(kinds), self.data.draw(amounts), start_ms),
            Limit("project", self.one(kinds), 2 * self.data.draw(amounts), start_ms),
            Limit("session", "lifetime", self.data.draw(amounts)),
        ]
        if meter == "compute":
            possible.pop()  # no budget of a session is one of compute
        return tuple(each for each in possible if self.data.draw(st.booleans()))

    def some_id(self) -> str:
        """Mostly one that is open, sometimes one that has ended or never was."""
        ended = [each.key for each in self.model.entries if each.kind != "late"]
        expired = [each.key for each in self.model.entries if each.kind == "expire"]
        known = [*self.model.open, *ended[-3:], *expired[-3:], "never"]
        return str(self.one(known))

    def whose(self, key: str) -> tuple[Holder, Meter]:
        known = self.model.open.get(key) or self.model.ending(key)
        # An operator's correction has no session, and nothing else is asked for without one.
        if known is None or not known.holder.session_id:
            return self.holder(), "ai"
        return known.holder, known.meter

    def operation(self) -> Operation:
        makers = (
            *(self.reserve, self.reserve, self.again, self.extend),
            *(self.settle, self.settle, self.void, self.adjust, self.reanchor),
        )
        made: Operation = self.one(makers)()
        return made

    def reserve(self) -> Operation:
        meter: Meter = self.one(METERS)
        wish = self.data.draw(wishes)
        return Reserve(next(self.ids), self.holder(), meter, wish, self.limits(meter))

    def again(self) -> Operation:
        key = self.some_id()
        holder, meter = self.whose(key)
        is_correction = (known := self.model.ending(key)) and known.kind in ("credit", "refund")
        if key == "never" or is_correction:
            key = next(self.ids)
        wish = self.data.draw(wishes)
        return Reserve(key, holder, meter, wish, self.limits(meter), is_repeated=True)

    def extend(self) -> Operation:
        key = self.some_id()
        holder, meter = self.whose(key)
        return Extend(key, holder, meter, self.data.draw(wishes), self.limits(meter))

    def settle(self) -> Operation:
        key = self.some_id()
        holder, meter = self.whose(key)
        held = self.model.open.get(key)
        most = 10 if held is None else held.amount
        amount = self.data.draw(st.sampled_from([0, most, most + 7]) | st.integers(0, most))
        return Settle(key, holder, meter, amount, limits=self.limits(meter))

    def void(self) -> Operation:
        key = self.some_id()
        return Void(key, *self.whose(key))

    def adjust(self) -> Operation:
        user, meter = self.one(USERS), self.one(METERS)
        holder = Holder(self.project_id, user, self.one(["", "s1"]))
        amount = self.data.draw(st.integers(1, 2_000))
        key = next(self.ids)
        if self.data.draw(st.booleans()):
            return Adjust(key, "credit", holder, meter, amount)
        charges = [each for each in self.model.entries if each.kind in ("settle", "expire")]
        refers_to = self.one(charges).key if charges else "never"
        return Adjust(key, "refund", holder, meter, amount, refers_to=refers_to)

    def reanchor(self) -> Operation:
        back_ms = self.one([0, 1, HOUR_MS // 2, 40 * 24 * HOUR_MS])
        holder = Holder(self.project_id, self.one([*USERS, ""]))
        window = self.one(["hour", "day", "week", "month"])
        return Reanchor(holder, window, self.model.clock.now_ms - back_ms)


class LedgerMachine(RuleBasedStateMachine):
    """Does what processes, operators and clocks do, and looks at everything after each step."""

    def __init__(self, database: Any) -> None:
        super().__init__()
        self.rows, self.others_rows = database.rows, database.open_rows()
        self.clock = database.clock
        self.clock.now_ms = database.start_ms
        self.project_id = uuid.uuid4().hex
        self.model = Model(self.clock, uuid.uuid4().hex)
        names = (f"{self.project_id}-{number}" for number in count())
        self.ids = names

    def book(self, *operations: Operation, rows: Any = None) -> list[Outcome]:
        """Each operation is a group of its own, all in one transaction."""
        with (rows or self.rows).transaction() as transaction:
            groups = [[operation] for operation in operations]
            return [outcome for [outcome] in book(transaction, groups, self.model.owner)]

    @rule(data=st.data(), size=st.integers(1, 4))
    def operate(self, data: st.DataObject, size: int) -> None:
        """Callers come together."""
        draws = Draws(data, self.model, self.project_id, self.ids)
        operations = [draws.operation() for _ in range(size)]
        self.model.fix_anchors(operations)
        expected = []
        for operation in operations:
            told = self.model.apply(operation)
            after = self.model.standings(operation) if isinstance(operation, Settle) else []
            expected.append((told, after))
        for outcome, (told, after) in zip(self.book(*operations), expected, strict=True):
            self.compare(outcome, told, after)

    def compare(self, outcome: Outcome, told: Any, after: list[tuple[int, int]]) -> None:
        if isinstance(told, type):
            assert isinstance(outcome, told)
        elif isinstance(outcome, Granted | Booked):
            if isinstance(outcome, Booked):
                assert [(each.spent, each.reserved) for each in outcome.standings] == after
            assert outcome._replace(standings=()) == told
        else:
            assert outcome == told

    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        """A process lives, and says how far its calls are."""
        mine = [key for key, each in self.model.open.items() if each.owner == self.model.owner]
        chosen = [key for key in mine if data.draw(st.booleans())]
        checkpoints = [Checkpoint(key, data.draw(amounts), Usage(1)) for key in chosen]
        beat = Beat(self.model.owner, tuple(checkpoints))
        assert self.book(beat) == [self.model.apply(beat)]

    @rule(everything=st.booleans())
    def crash(self, everything: bool) -> None:
        """The process dies, and another one ends what it left, or what its lease has ended of."""
        self.model.owner = uuid.uuid4().hex
        ended = self.book(Sweep(everything=everything), rows=self.others_rows)
        assert ended == [self.model.sweep(everything=everything)]

    @rule()
    def sweep(self) -> None:
        """Another process looks for what nobody renews."""
        ended = self.book(Sweep(), rows=self.others_rows)
        assert ended == [self.model.sweep(everything=False)]

    @rule(data=st.data(), meter=st.sampled_from(METERS))
    def look(self, data: st.DataObject, meter: Meter) -> None:
        """Somebody wants to know how limits stand, which changes nothing."""
        draws = Draws(data, self.model, self.project_id, self.ids)
        holder = draws.holder()
        # A project is not counted before it has a budget, and nobody looks at one.
        limits = tuple(each for each in draws.limits(meter) if each.scope != "project")
        [seen] = self.book(Look(holder, {meter: limits}))
        assert isinstance(seen, Seen)
        assert [(each.spent, each.reserved) for each in seen.standings] == [
            self.model.stand(holder, meter, limit) for limit in limits
        ]

    @rule(
        step_ms=st.sampled_from(
            [1, LEASE_MS, HOUR_MS - 1, HOUR_MS, 25 * HOUR_MS, 31 * 24 * HOUR_MS, -1, -2 * HOUR_MS]
        )
    )
    def step_clock(self, step_ms: int) -> None:
        """Time passes, or is set back."""
        self.clock.now_ms += step_ms

    @rule(data=st.data())
    def turn_window(self, data: st.DataObject) -> None:
        """A window ends, and the next one begins."""
        if self.model.anchors:
            (_, kind), anchor_ms = data.draw(st.sampled_from(sorted(self.model.anchors.items())))
            self.clock.now_ms = span(kind, anchor_ms, self.clock.now_ms)[1] - data.draw(
                st.integers(0, 1)
            )

    @invariant()
    def everything_is_as_the_model_has_it(self) -> None:
        with self.rows.transaction() as transaction:
            self.check_endings(transaction)
            self.check_accounts(transaction)

    def check_endings(self, transaction: Any) -> None:
        """Every reservation is open or has ended once, as the second invariant says."""
        ended = [each.key for each in self.model.entries if each.kind != "late"]
        ids = [*self.model.open, *ended]
        found = transaction.reservations(ids)
        assert {key: each.amount for key, each in found.items()} == {
            key: each.amount for key, each in self.model.open.items()
        }
        assert {
            key: (each.kind, each.amount, each.excess)
            for key, each in transaction.endings(ids).items()
        } == {key: self.model.charge(key) for key in ended}

    def check_accounts(self, transaction: Any) -> None:
        """Sums are those of the entries; a project's, those of its users."""
        for meter in METERS:
            together = transaction.spent_between(
                AccountKey(self.project_id, "", "", meter), *FOREVER
            )
            each_one = [
                transaction.spent_between(AccountKey(self.project_id, user, "", meter), *FOREVER)
                for user in USERS
            ]
            assert together == sum(each_one)
            scopes = [("", ""), *((user, session) for user in USERS for session in ("", *SESSIONS))]
            keys = [AccountKey(self.project_id, *scope, meter) for scope in scopes]
            for key, account in transaction.lock_accounts(keys).items():
                self.check_account(key, account)

    def check_account(self, key: AccountKey, account: Any) -> None:
        def counts(each: Any) -> bool:
            of_user = key.user_id in ("", each.holder.user_id)
            of_session = key.session_id in ("", each.holder.session_id)
            return bool(each.meter == key.meter and of_user and of_session)

        entries = [each for each in self.model.entries if counts(each)]
        assert account.settled == sum(each.amount for each in entries)
        assert account.reserved == sum(
            each.amount for each in self.model.open.values() if counts(each)
        )
        for window, spent in account.spent.items():
            within = [each.amount for each in entries if window.contains(each.at_ms)]
            assert spent == sum(within)

    def teardown(self) -> None:
        """Leave nothing open that the next machine would find."""
        self.book(*(Void(key, each.holder, each.meter) for key, each in self.model.open.items()))
        self.others_rows.close()


@pytest.mark.timeout(300)
def test_the_ledger_does_what_its_model_does(ledger_db: Any) -> None:
    # A failure is told as it was found: to make it shorter would take minutes.
    class Machine(LedgerMachine):
        def __init__(self) -> None:
            super().__init__(ledger_db)

    # A commit of PostgreSQL takes longer, and the rules are the same.
    examples = settings().max_examples // (1 if ledger_db.is_sqlite else 5)
    chosen = settings(
        settings(), max_examples=examples, stateful_step_count=30, phases=[Phase.generate]
    )
    run_state_machine_as_test(Machine, settings=chosen)
