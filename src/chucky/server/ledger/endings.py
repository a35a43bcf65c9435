"""The entries with which reservations end, and the one that corrects an end that came too early.

Whose lease has run out is taken for dead, and its reservations end with their checkpoints. If it
lives after all, what it settles is booked as well: the difference, as one more entry, because an
entry is never changed. The two together are what a settlement in time would have been.
"""

from __future__ import annotations

from chucky.server.ledger.operations import Settle, Void
from chucky.server.ledger.rows import Entry, Reservation, TokenChange


def settlement(reservation: Reservation, spent: Settle, now_ms: int) -> Entry:
    """The end of a reservation with what was really spent."""
    return Entry(
        entry_key=spent.reservation_id,
        kind="settle",
        holder=reservation.holder,
        meter=reservation.meter,
        amount=spent.amount,
        at_ms=now_ms,
        started_ms=reservation.granted_ms,
        reserved=reservation.amount,
        excess=max(spent.amount - reservation.amount, 0),
        is_estimated=spent.is_estimated,
        model=reservation.model,
        usage=spent.usage,
        price=reservation.price,
        unpriced=spent.unpriced,
    )


def voidance(reservation: Reservation, now_ms: int) -> Entry:
    """The end of a reservation of which nothing was spent."""
    return Entry(
        entry_key=reservation.reservation_id,
        kind="void",
        holder=reservation.holder,
        meter=reservation.meter,
        amount=0,
        at_ms=now_ms,
        started_ms=reservation.granted_ms,
        reserved=reservation.amount,
        model=reservation.model,
        price=reservation.price,
    )


def expiry(reservation: Reservation, now_ms: int) -> Entry:
    """The end of a reservation whose lease has run out: its checkpoint, if so much is held."""
    return Entry(
        entry_key=reservation.reservation_id,
        kind="expire",
        holder=reservation.holder,
        meter=reservation.meter,
        amount=min(reservation.checkpoint, reservation.amount),
        at_ms=now_ms,
        started_ms=reservation.granted_ms,
        reserved=reservation.amount,
        is_estimated=True,
        model=reservation.model,
        usage=reservation.usage,
        price=reservation.price,
    )


def late_settlement(expired: Entry, real: Settle | Void, now_ms: int) -> Entry:
    """What is still to be booked when a reservation is settled or voided that had expired."""
    spent = real if isinstance(real, Settle) else _of_nothing(real)
    difference = spent.amount - expired.amount
    return Entry(
        entry_key=late_key(expired.entry_key),
        kind="late",
        holder=expired.holder,
        meter=expired.meter,
        amount=difference,
        at_ms=now_ms,
        started_ms=expired.started_ms,
        # What was held has come back, and others may have been granted it since.
        excess=max(difference, 0),
        is_estimated=spent.is_estimated,
        model=expired.model,
        usage=TokenChange.between(expired.usage, spent.usage),
        price=expired.price,
        unpriced=spent.unpriced,
        refers_to=expired.entry_key,
    )


def _of_nothing(unspent: Void) -> Settle:
    return Settle(unspent.reservation_id, unspent.holder, unspent.meter, 0)


def late_key(reservation_id: str) -> str:
    """The key of the entry of a late settlement: always the same, so that it is booked once."""
    return f"{reservation_id}-late"
