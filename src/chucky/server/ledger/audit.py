"""Everything counted again: do balances, reservations and entries say the same?

Balances are kept beside the entries, so that a reservation costs a few rows and not a sum over all
of a user's past. Here they are recounted, and what ``docs/ledger.md`` promises is checked row by
row. The database does the sums and names the rows that differ; nothing of the size of the ledger
is held in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from chucky.server.ledger.accounts import AccountKey
from chucky.server.ledger.endings import late_key
from chucky.server.ledger.windows import iso_time, window_at
from chucky.server.model.pricing import Usage, read_price

_ENDINGS = ("settle", "void", "expire")
_UNITS = {"ai": "nano-dollars", "compute": "ms"}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not add up.

    Attributes:
        row: The row of the database it is about.
        sentence: What is wrong with it.
    """

    row: str
    sentence: str


class AuditedEntry(NamedTuple):
    """What an entry says; see :class:`~chucky.server.ledger.rows.Entry`."""

    entry_id: int
    entry_key: str
    kind: str
    meter: str
    amount: int
    reserved: int
    excess: int
    is_estimated: bool
    model: str
    refers_to: str
    price: str
    input_tokens: int
    output_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    cache_read_tokens: int

    @property
    def usage(self) -> Usage:
        """Its tokens."""
        return Usage(
            self.input_tokens,
            self.output_tokens,
            self.cache_write_5m_tokens,
            self.cache_write_1h_tokens,
            self.cache_read_tokens,
        )


class LateSettlement(NamedTuple):
    """A late settlement.

    Attributes:
        entry_id: The number of its entry.
        entry_key: The key of its entry.
        together: It and the end that it corrects, as one; None if there is no such end of the same
            call, at the same price.
    """

    entry_id: int
    entry_key: str
    together: AuditedEntry | None


class Balance(NamedTuple):
    """An account that differs from its entries and open reservations, or is missing.

    Attributes:
        key: Whose it is.
        is_there: Whether there is such an account.
        settled: What it says is settled.
        reserved: What it says is reserved.
        counted_settled: The sum of its entries.
        counted_reserved: The sum of its open reservations.
    """

    key: AccountKey
    is_there: bool
    settled: int
    reserved: int
    counted_settled: int
    counted_reserved: int


class ProjectTotal(NamedTuple):
    """The account of a project that differs from those of its users and its own credits."""

    key: AccountKey
    settled: int
    reserved: int
    settled_by_users: int
    reserved_by_users: int


class WindowSum(NamedTuple):
    """The sum kept for a window of an account, and the anchor of its kind (None if missing)."""

    account_id: int
    kind: str
    start_ms: int
    end_ms: int
    spent: int
    counted: int
    anchor_ms: int | None


class Overspending(NamedTuple):
    """An account above the limit that its last reservation was granted under.

    Attributes:
        key: Whose it is.
        limit: That limit.
        spent: What is settled in the window of that grant.
        reserved: What open reservations hold.
        excess: How much providers charged in that window beyond what was reserved.
    """

    key: AccountKey
    limit: int
    spent: int
    reserved: int
    excess: int


class RefundTotal(NamedTuple):
    """What was refunded of one charge.

    Attributes:
        refers_to: The key of the charge.
        refunded: The sum of its refunds.
        charged: What it was; None if there is no such charge of this user and meter.
    """

    refers_to: str
    refunded: int
    charged: int | None


class Lease(NamedTuple):
    """An open reservation whose lease is over."""

    reservation_id: str
    expires_ms: int


class Counts(NamedTuple):
    """How many rows there are."""

    entries: int
    reservations: int
    accounts: int
    windows: int


class AuditRows(Protocol):
    """A ledger at one moment, read and summed by its database."""

    @property
    def now_ms(self) -> int:
        """That moment, by the clock that leases are judged by."""
        ...

    def counts(self) -> Counts:
        """How many rows there are."""
        ...

    def entries(self) -> Iterable[AuditedEntry]:
        """All entries, a few at a time."""
        ...

    def late_settlements(self) -> Iterable[LateSettlement]:
        """All late settlements, each with what it corrects."""
        ...

    def repeated_keys(self) -> Iterable[str]:
        """Keys that more than one entry has."""
        ...

    def open_and_ended(self) -> Iterable[str]:
        """Ids of open reservations for which there is an entry."""
        ...

    def false_balances(self) -> Iterable[Balance]:
        """Accounts that differ from their entries and reservations, or are missing."""
        ...

    def false_project_totals(self) -> Iterable[ProjectTotal]:
        """Accounts of projects that differ from those of their users and their own credits."""
        ...

    def windows(self) -> Iterable[WindowSum]:
        """All sums that are kept for windows, a few at a time."""
        ...

    def overspent(self) -> Iterable[Overspending]:
        """Accounts above the limit of their last grant."""
        ...

    def false_refunds(self) -> Iterable[RefundTotal]:
        """Refunds of nothing, or of more than was charged."""
        ...

    def stale_leases(self) -> Iterable[Lease]:
        """Open reservations whose lease is over."""
        ...


def audit(rows: AuditRows) -> Iterator[Problem]:
    """Check a ledger and say what is wrong, as it is found."""
    for entry in rows.entries():
        if fault := _fault_of(entry):
            yield Problem(f"entry {entry.entry_id} ({entry.entry_key})", fault)
    for late in rows.late_settlements():
        if fault := _fault_of_sum(late.together):
            yield Problem(f"entry {late.entry_id} ({late.entry_key})", fault)
    for key in rows.repeated_keys():
        yield Problem(f"entry {key}", "There are several entries with this key.")
    for reservation_id in rows.open_and_ended():
        yield Problem(
            f"reservation {reservation_id}", "It is open, and there is an entry that ends it."
        )
    yield from _balances(rows)
    for window in rows.windows():
        row = f"window {window.kind} of account {window.account_id}"
        yield from (Problem(row, fault) for fault in _faults_of_window(window))
    yield from _overspendings(rows)
    yield from map(_refunded, rows.false_refunds())
    yield from map(_stale, rows.stale_leases())


def _fault_of(entry: AuditedEntry) -> str | None:
    if entry.kind in _ENDINGS:
        if entry.refers_to:
            return "It ends a reservation, and refers to another entry."
        return _fault_of_ending(entry)
    if entry.kind == "late":
        return _fault_of_late(entry)
    if entry.amount >= 0:
        return f"It is a {entry.kind} of {-entry.amount}; what a user gets is below 0."
    if (entry.kind == "refund") != bool(entry.refers_to):
        return "A refund, and nothing else that an operator books, names the charge it gives back."
    return None


def _fault_of_ending(entry: AuditedEntry) -> str | None:
    if entry.amount < 0 or (entry.kind == "void" and entry.amount):
        return f"It is a {entry.kind} of {entry.amount}."
    if entry.kind == "expire" and not entry.is_estimated:
        return "Its process died, so that it is an estimate, and is not marked as one."
    return _fault_of_excess(entry) or _fault_of_price(entry)


def _fault_of_excess(entry: AuditedEntry) -> str | None:
    if entry.excess != max(entry.amount - entry.reserved, 0):
        return (
            f"Of {entry.amount} charged and {entry.reserved} reserved the excess is not "
            f"{entry.excess}."
        )
    return None


def _fault_of_late(entry: AuditedEntry) -> str | None:
    if not entry.refers_to or entry.entry_key != late_key(entry.refers_to):
        return "It is a late settlement, and its key is not that of the reservation it refers to."
    if entry.reserved:
        return "It is a late settlement, and says that something was reserved for it still."
    return _fault_of_excess(entry)


def _fault_of_sum(together: AuditedEntry | None) -> str | None:
    if together is None:
        return "It settles nothing that had expired before, of this payer and at this price."
    if together.amount < 0:
        return f"Together with what it corrects it is a charge of {together.amount}."
    fault = _fault_of_price(together)
    return fault and f"Together with what it corrects: {fault}"


def _fault_of_price(entry: AuditedEntry) -> str | None:
    if entry.meter != "ai":
        return None
    if not entry.price:
        return "It has no price."
    try:
        price = read_price(entry.price)
    except ValueError as error:
        return f"Its price cannot be read: {error}"
    if price.model != entry.model:
        return f"It is a call of {entry.model!r} with the price of {price.model!r}."
    try:
        cost = price.cost_nanos(entry.usage)
    except ValueError as error:
        return f"Its tokens cannot be counted: {error}"
    # What was not reported to the end is never charged with more than was held for it.
    expected = min(cost, entry.reserved) if entry.is_estimated else cost
    if entry.amount != expected:
        return f"Its tokens cost {expected} nano-dollars at its price; {entry.amount} is booked."
    return None


def _balances(rows: AuditRows) -> Iterator[Problem]:
    for each in rows.false_balances():
        counted = f"settled {each.counted_settled}, reserved {each.counted_reserved}"
        if each.is_there:
            said = f"It says settled {each.settled}, reserved {each.reserved}"
            sentence = f"{said}; its entries and open reservations say {counted}."
        else:
            sentence = f"It is missing, and its entries and open reservations say {counted}."
        yield Problem(_account(each.key), sentence)
    for total in rows.false_project_totals():
        yield Problem(
            _account(total.key),
            f"It says settled {total.settled}, reserved {total.reserved}; the accounts of its "
            f"users and its own credits together say settled {total.settled_by_users}, reserved "
            f"{total.reserved_by_users}.",
        )


def _faults_of_window(window: WindowSum) -> Iterator[str]:
    if window.spent != window.counted:
        yield f"It says {window.spent} was spent in it; its entries say {window.counted}."
    if window.anchor_ms is None:
        yield "Nothing says where windows of this kind begin."
        return
    real = window_at(window.kind, window.anchor_ms, window.start_ms)
    if (real.start_ms, real.end_ms) != (window.start_ms, window.end_ms):
        start, end = iso_time(window.start_ms), iso_time(window.end_ms)
        yield f"From {start} to {end} there is no such window by its anchor."


def _overspendings(rows: AuditRows) -> Iterator[Problem]:
    for over in rows.overspent():
        # What providers charge beyond the bound is booked all the same.
        if over.spent + over.reserved > over.limit + over.excess:
            yield Problem(
                _account(over.key),
                f"{over.spent} is spent and {over.reserved} reserved; its last reservation was "
                f"granted under a limit of {over.limit}, and {over.excess} was charged in excess.",
            )


def _refunded(total: RefundTotal) -> Problem:
    row = f"entry {total.refers_to}"
    if total.charged is None:
        return Problem(row, "It is refunded, and is no charge of this user and meter.")
    return Problem(row, f"{total.refunded} of it is refunded, and {total.charged} was charged.")


def _stale(lease: Lease) -> Problem:
    return Problem(
        f"reservation {lease.reservation_id}",
        f"It was to be renewed by {iso_time(lease.expires_ms)} and is still open: the server that "
        "made it has died. A server that is started on this database ends it.",
    )


def _account(key: AccountKey) -> str:
    whose = f"project {key.project_id}"
    if key.user_id:
        whose = f"user {key.user_id!r} of {whose}"
    if key.session_id:
        whose = f"session {key.session_id} of {whose}"
    return f"account of {whose}, {key.meter} in {_UNITS[key.meter]}"
