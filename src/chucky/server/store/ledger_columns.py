"""Reservations and entries as rows: what both databases keep of them, in which order."""

from __future__ import annotations

from typing import Any, Final

from chucky.server.ledger.accounts import Holder
from chucky.server.ledger.rows import Entry, Reservation
from chucky.server.model.pricing import Usage

Row = tuple[Any, ...]

_HOLDER: Final = ("project_id", "user_id", "session_id", "turn_id")
TOKENS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cache_read_tokens",
)
RESERVATION: Final = (
    "reservation_id",
    *_HOLDER,
    "meter",
    "amount",
    "units",
    "checkpoint",
    *TOKENS,
    "price_id",
    "model",
    "granted_ms",
    "expires_ms",
    "owner",
)
ENTRY: Final = (
    "entry_key",
    "kind",
    *_HOLDER,
    "meter",
    "amount",
    "reserved",
    "excess",
    "is_estimated",
    "started_ms",
    "at_ms",
    "model",
    "price_id",
    *TOKENS,
    "unpriced",
    "refers_to",
    "note",
)

SELECT_RESERVATIONS: Final = f"""
SELECT {", ".join(RESERVATION).replace("price_id", "coalesce(price, '')")}
FROM ledger_reservations LEFT JOIN ledger_prices USING (price_id)
"""


def reservation_row(each: Reservation, price_id: int | None) -> Row:
    """A reservation as the values of :data:`RESERVATION`."""
    return (
        each.reservation_id,
        *_holder(each.holder),
        each.meter,
        each.amount,
        each.units,
        each.checkpoint,
        *tokens(each.usage),
        price_id,
        each.model,
        each.granted_ms,
        each.expires_ms,
        each.owner,
    )


def reservation(row: Row) -> Reservation:
    """A reservation as :data:`SELECT_RESERVATIONS` finds it."""
    return Reservation(
        reservation_id=row[0],
        holder=Holder(*row[1:5]),
        meter=row[5],
        amount=row[6],
        units=row[7],
        checkpoint=row[8],
        usage=Usage(*row[9:14]),
        price=row[14],
        model=row[15],
        granted_ms=row[16],
        expires_ms=row[17],
        owner=row[18],
    )


def entry_row(entry: Entry, price_id: int | None) -> Row:
    """An entry as the values of :data:`ENTRY`."""
    return (
        entry.entry_key,
        entry.kind,
        *_holder(entry.holder),
        entry.meter,
        entry.amount,
        entry.reserved,
        entry.excess,
        entry.is_estimated,
        entry.started_ms,
        entry.at_ms,
        entry.model,
        price_id,
        *tokens(entry.usage),
        entry.unpriced,
        entry.refers_to,
        entry.note,
    )


def tokens(usage: Usage) -> tuple[int, int, int, int, int]:
    """The tokens of a call as the values of :data:`TOKENS`."""
    return (
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_write_5m_tokens,
        usage.cache_write_1h_tokens,
        usage.cache_read_tokens,
    )


def _holder(holder: Holder) -> tuple[str, str, str, str]:
    return holder.project_id, holder.user_id, holder.session_id, holder.turn_id
