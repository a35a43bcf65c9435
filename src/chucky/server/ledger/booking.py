"""The ledger's rules: what each operation reads, decides and writes.

A batch of operations is one transaction. What they need is read first, together; then they are
decided on one after the other, each seeing what those before it did; then what they changed is
written, together. So a batch costs a database a few statements and one commit, and both databases
follow the same rules because there is one piece of code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from operator import attrgetter

from chucky.server.ledger.accounts import (
    Account,
    AccountKey,
    Holder,
    Limit,
    Meter,
    Scope,
    Standing,
    TurnRate,
    account_keys,
)
from chucky.server.ledger.endings import expiry, late_settlement, settlement, voidance
from chucky.server.ledger.needs import Needs, anchor_key
from chucky.server.ledger.operations import (
    Adjust,
    Also,
    Beat,
    Booked,
    Busy,
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
    TooFast,
    Void,
)
from chucky.server.ledger.rows import (
    AnchorKey,
    Changes,
    Ending,
    Entry,
    LedgerTransaction,
    Reservation,
)
from chucky.server.ledger.windows import FOREVER, LIFETIME, Window, window_at
from chucky.server.model.pricing import price_text

LEASE_MS = 15_000

_free = attrgetter("free")
_NOT_GRANTED = (Busy, Exceeded, TooFast, Refused)
_Decided = Reserve | Extend | Settle | Void | Look | Adjust | Reanchor | Beat | Sweep
Group = Sequence[Operation]
"""Operations in order; once a reservation among them is not granted, the rest is left undone."""


def book(
    transaction: LedgerTransaction, groups: Sequence[Group], owner: str
) -> list[list[Outcome]]:
    """Do groups of operations in one transaction.

    Args:
        transaction: Where.
        groups: What; a group's outcomes are fewer than its operations if it stopped early.
        owner: The process that asks, for its reservations.
    """
    books = _Books(transaction, owner)
    books.prepare(operation for group in groups for operation in group)
    outcomes = [books.do(group) for group in groups]
    books.write()
    return outcomes


class _Books:
    """What a batch has read, and what it is going to write."""

    def __init__(self, transaction: LedgerTransaction, owner: str) -> None:
        self._transaction = transaction
        self._owner = owner
        self._now_ms = 0
        self._accounts: dict[AccountKey, Account] = {}
        self._by_payer: dict[tuple[Holder, Meter], dict[Scope, Account]] = {}
        self._anchors: dict[AnchorKey, int] = {}
        self._open: dict[str, Reservation] = {}
        self._endings: dict[str, Ending] = {}
        self._expired: list[Reservation] = []
        self._begun: list[Reservation] = []
        self._changes = Changes()

    # --- reading ------------------------------------------------------------------------------

    def prepare(self, operations: Iterable[Operation]) -> None:
        """Read everything the operations need."""
        needs = Needs(operations)
        for sweep in needs.sweeps:
            self._expired = self._transaction.expired(None if sweep.everything else self._owner)
        for each in self._expired:
            needs.touch(each.holder, each.meter)
            needs.reservations.add(each.reservation_id)
        if needs.accounts:
            self._accounts = self._transaction.lock_accounts(needs.accounts, needs.created)
        self._now_ms = self._transaction.now_ms
        self._read_anchors(needs.anchors)
        self._read_reservations(needs.reservations, needs.entries)

    def _read_anchors(self, wanted: Mapping[AnchorKey, Limit | None]) -> None:
        if not wanted:
            return
        self._anchors = self._transaction.anchors(wanted.keys())
        for key, limit in wanted.items():
            if limit is not None and key not in self._anchors:
                self._anchors[key] = self._changes.anchors[key] = self._first_anchor(limit)

    def _first_anchor(self, limit: Limit) -> int:
        return self._now_ms if limit.start_ms is None else limit.start_ms

    def _read_reservations(self, ids: Set[str], entries: Set[str]) -> None:
        if ids:
            self._open = self._transaction.reservations(ids)
        if ended := (ids - self._open.keys()) | entries:
            self._endings = self._transaction.endings(ended)

    # --- deciding -----------------------------------------------------------------------------

    def do(self, group: Group) -> list[Outcome]:
        """Do the operations of a group until one of them is not granted."""
        outcomes: list[Outcome] = []
        for operation in group:
            if isinstance(operation, Also):
                operation.write(self._transaction, outcomes)
                outcomes.append(Done())
                continue
            outcome = self._do(operation)
            outcomes.append(outcome)
            if isinstance(outcome, _NOT_GRANTED):
                break
        return outcomes

    def _do(self, operation: _Decided) -> Outcome:
        match operation:
            case Reserve():
                return self._reserve(operation)
            case Extend():
                return self._extend(operation)
            case Settle():
                return self._settle(operation)
            case Void():
                return self._void(operation)
            case Look():
                return self._look(operation)
            case Adjust():
                return self._adjust(operation)
            case Reanchor():
                return self._reanchor(operation)
            case Beat():
                return self._beat(operation)
            case Sweep():
                return self._sweep()

    def _reserve(self, wanted: Reserve) -> Outcome:
        if (known := self._open.get(wanted.reservation_id)) is not None:
            return Granted(known.units, known.amount)
        if wanted.reservation_id in self._endings:
            return Refused("The reservation has ended already.")
        for rate in wanted.rates:
            if (resets_ms := self._next_start_ms(wanted.holder, rate)) is not None:
                return TooFast(rate, resets_ms)
        standings = self._standings(wanted.holder, wanted.meter, wanted.limits)
        units = self._granted_units(wanted, standings)
        if not isinstance(units, int):
            return units
        amount = wanted.wish.cost(units)
        reservation = Reservation(
            reservation_id=wanted.reservation_id,
            holder=wanted.holder,
            meter=wanted.meter,
            amount=amount,
            units=units,
            checkpoint=0 if wanted.price is None else wanted.price.cost_nanos(wanted.usage),
            usage=wanted.usage,
            price="" if wanted.price is None else price_text(wanted.price),
            model="" if wanted.price is None else wanted.price.model,
            granted_ms=self._now_ms,
            expires_ms=self._now_ms + LEASE_MS,
            owner=self._owner,
        )
        self._begun.append(reservation)
        self._open[wanted.reservation_id] = reservation
        self._changes.reservations[wanted.reservation_id] = reservation
        self._hold(reservation, amount)
        return Granted(units, amount, standings)

    def _extend(self, wanted: Extend) -> Outcome:
        reservation = self._open.get(wanted.reservation_id)
        if reservation is None:
            return Refused("The reservation has ended already.")
        held = reservation.amount
        # Who needs more has spent what it holds: others do not hold it, and it does not come back.
        standings = tuple(
            each._replace(spent=each.spent + held, reserved=each.reserved - held)
            for each in self._standings(wanted.holder, wanted.meter, wanted.limits)
        )
        units = self._granted_units(wanted, standings)
        if not isinstance(units, int):
            return units
        more = wanted.wish.cost(units)
        reservation.amount += more
        reservation.units += units
        self._changes.reservations[wanted.reservation_id] = reservation
        self._hold(reservation, more)
        return Granted(units, reservation.amount, standings)

    def _granted_units(
        self, wanted: Reserve | Extend, standings: Sequence[Standing]
    ) -> int | Busy | Exceeded:
        verdict = wanted.wish.verdict(standings)
        if verdict == "exceeded":
            return Exceeded(min(standings, key=lambda standing: standing.left))
        if verdict == "busy":
            return Busy(min(standings, key=lambda standing: standing.free))
        self._note_limits(wanted.holder, wanted.meter, standings)
        return verdict

    def _note_limits(self, holder: Holder, meter: Meter, standings: Sequence[Standing]) -> None:
        """Keep under which limit each account is granted something: the closest, or none."""
        accounts = self._accounts_of(holder, meter)
        for account in accounts.values():
            account.granted = (None, FOREVER)
        for standing in sorted(standings, key=_free, reverse=True):
            accounts[standing.limit.scope].granted = (standing.limit.amount, standing.window)

    def _settle(self, spent: Settle) -> Outcome:
        reservation = self._open.get(spent.reservation_id)
        if reservation is None:
            return self._ended_before(spent, spent.limits)
        entry = settlement(reservation, spent, self._now_ms)
        self._end(reservation, entry)
        standings = self._standings(spent.holder, spent.meter, spent.limits)
        return Booked(entry.meter, "settle", entry.amount, entry.excess, standings)

    def _void(self, unspent: Void) -> Outcome:
        reservation = self._open.get(unspent.reservation_id)
        if reservation is None:
            return self._ended_before(unspent)
        self._end(reservation, voidance(reservation, self._now_ms))
        return Booked(reservation.meter, "void", 0)

    def _ended_before(self, real: Settle | Void, limits: tuple[Limit, ...] = ()) -> Outcome:
        ending = self._endings.get(real.reservation_id)
        if ending is None:
            return Refused(f"There is no reservation {real.reservation_id!r}.")
        if ending.expired is not None:
            self._correct(ending, late_settlement(ending.expired, real, self._now_ms))
        standings = self._standings(real.holder, real.meter, limits)
        return Booked(ending.meter, ending.kind, ending.amount, ending.excess, standings)

    def _correct(self, ending: Ending, late: Entry) -> None:
        ending.kind, ending.expired = late.kind, None
        ending.amount += late.amount
        ending.excess += late.excess
        self._append(late)

    def _sweep(self) -> Outcome:
        count = 0
        for stale in self._expired:
            reservation = self._open.get(stale.reservation_id)
            # It may have been renewed between the first look and the lock.
            if reservation is None or reservation.expires_ms != stale.expires_ms:
                continue
            entry = expiry(reservation, self._now_ms)
            self._end(reservation, entry)
            self._endings[entry.entry_key].expired = entry
            count += 1
        return Done(count)

    def _end(self, reservation: Reservation, entry: Entry) -> None:
        del self._open[reservation.reservation_id]
        self._endings[entry.entry_key] = Ending(
            entry.kind, entry.holder, entry.meter, entry.amount, entry.excess
        )
        self._changes.reservations.pop(reservation.reservation_id, None)
        self._changes.ended.add(reservation.reservation_id)
        self._hold(reservation, -reservation.amount)
        self._append(entry)

    def _adjust(self, correction: Adjust) -> Outcome:
        if correction.entry_key in self._endings:
            return Done(0)
        if correction.refers_to:
            if refusal := self._refusal_of_refund(correction):
                return Refused(refusal)
            charge = self._endings[correction.refers_to]
            refunded = charge.refunded + correction.amount
            self._endings[correction.refers_to] = replace(charge, refunded=refunded)
        self._append(
            Entry(
                entry_key=correction.entry_key,
                kind=correction.kind,
                holder=correction.holder,
                meter=correction.meter,
                amount=-correction.amount,
                at_ms=self._now_ms,
                started_ms=self._now_ms,
                refers_to=correction.refers_to,
                note=correction.note,
            )
        )
        return Done()

    def _refusal_of_refund(self, correction: Adjust) -> str | None:
        charge = self._endings.get(correction.refers_to)
        if charge is None or charge.holder[:2] != correction.holder[:2]:
            return f"This user has no charge {correction.refers_to!r}."
        if charge.meter != correction.meter:
            return f"The charge {correction.refers_to!r} is one of {charge.meter}."
        if correction.amount > charge.amount - charge.refunded:
            return (
                f"The charge {correction.refers_to!r} was {charge.amount} and {charge.refunded} "
                "of it is refunded already; no more than the rest can be refunded."
            )
        return None

    def _reanchor(self, move: Reanchor) -> Outcome:
        key = AnchorKey(move.holder.project_id, move.holder.user_id, move.window)
        self._anchors[key] = self._changes.anchors[key] = move.anchor_ms
        self._transaction.forget_windows(*key)
        for account in self._accounts.values():
            if account.key[:2] == key[:2] and not account.key.session_id:
                for window in [each for each in account.spent if each.kind == move.window]:
                    del account.spent[window]
        return Done()

    def _look(self, look: Look) -> Outcome:
        return Seen(
            tuple(
                standing
                for meter, limits in look.limits.items()
                for standing in self._standings(look.holder, meter, limits)
            )
        )

    def _beat(self, beat: Beat) -> Outcome:
        checkpoints = {each.reservation_id: (each.amount, each.usage) for each in beat.checkpoints}
        return Done(self._transaction.renew(beat.owner, self._now_ms + LEASE_MS, checkpoints))

    # --- counting -----------------------------------------------------------------------------

    def _standings(
        self, holder: Holder, meter: Meter, limits: Iterable[Limit]
    ) -> tuple[Standing, ...]:
        accounts = self._accounts_of(holder, meter)
        standings: list[Standing] = []
        for limit in limits:
            window = self._window(holder, limit)
            account = accounts.get(limit.scope)
            spent = 0 if account is None else self._spent(account, holder, limit, window)
            reserved = 0 if account is None else account.reserved
            standings.append(Standing(meter, limit, spent, reserved, window))
        return tuple(standings)

    def _spent(self, account: Account, holder: Holder, limit: Limit, window: Window) -> int:
        """What an account has spent in a window, counted from its entries the first time."""
        if window.start_ms is None or window.end_ms is None:
            return account.settled
        known = account.spent.get(window)
        if known is not None:
            return known
        spent = self._transaction.spent_between(account.key, window.start_ms, window.end_ms) + sum(
            entry.amount
            for entry in self._changes.entries
            if account in self._accounts_of(entry.holder, entry.meter).values()
        )
        # A look does not fix where windows begin: the next one sees another window.
        if anchor_key(holder, limit) in self._anchors:
            account.spent[window] = spent
            account.has_spent = True
        return spent

    def _window(self, holder: Holder, limit: Limit) -> Window:
        if limit.window == LIFETIME:
            return FOREVER
        anchor_ms = self._anchors.get(anchor_key(holder, limit))
        if anchor_ms is None:
            anchor_ms = self._first_anchor(limit)
        return window_at(limit.window, anchor_ms, self._now_ms)

    def _next_start_ms(self, holder: Holder, rate: TurnRate) -> int | None:
        """When another turn may begin; None for now."""
        key = holder.key(rate.scope, "compute")
        since_ms = self._now_ms - rate.span_ms
        starts = [
            *self._transaction.turn_starts(key, since_ms),
            *(
                each.granted_ms
                for each in self._begun
                if each.holder.key(rate.scope, each.meter) == key
            ),
        ]
        # A clock that was set back must not count what has not happened yet.
        starts = [start_ms for start_ms in starts if start_ms <= self._now_ms]
        if len(starts) < rate.turns:
            return None
        return starts[-rate.turns] + rate.span_ms

    def _accounts_of(self, holder: Holder, meter: Meter) -> dict[Scope, Account]:
        found = self._by_payer.get((holder, meter))
        if found is None:
            found = {
                scope: account
                for scope, key in account_keys(holder, meter).items()
                if (account := self._accounts.get(key)) is not None
            }
            self._by_payer[holder, meter] = found
        return found

    def _hold(self, reservation: Reservation, amount: int) -> None:
        for account in self._accounts_of(reservation.holder, reservation.meter).values():
            account.reserved += amount
            self._changes.accounts[account.key] = account

    def _append(self, entry: Entry) -> None:
        self._changes.entries.append(entry)
        for account in self._accounts_of(entry.holder, entry.meter).values():
            account.settled += entry.amount
            account.has_spent = True
            for window in account.spent:
                if window.contains(entry.at_ms):
                    account.spent[window] += entry.amount
            self._changes.accounts[account.key] = account

    def write(self) -> None:
        """Write what has changed."""
        self._transaction.write(self._changes)
