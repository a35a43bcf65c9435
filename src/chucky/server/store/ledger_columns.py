"""The ledger's things as rows: what both databases keep of each, in which order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from chucky.server.ledger.accounts import Account, AccountKey, Holder
from chucky.server.ledger.rows import Ending, Entry, Reservation, TokenChange
from chucky.server.ledger.windows import Window
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

ACCOUNT: Final = ("account_id", "settled", "reserved")
GRANTED: Final = (*ACCOUNT, "granted_limit", "granted_start_ms", "granted_end_ms")
WINDOW: Final = ("account_id", "window_kind", "start_ms", "end_ms", "spent")

# Each of these is followed by what the databases say differently: which rows are wanted.
SELECT_ACCOUNTS: Final = """
SELECT accounts.account_id, project_id, user_id, session_id, meter,
    accounts.settled, accounts.reserved, window_kind, start_ms, end_ms, spent
"""
SELECT_RESERVATIONS: Final = f"""
SELECT {", ".join(RESERVATION).replace("price_id", "coalesce(price, '')")}
FROM ledger_reservations LEFT JOIN ledger_prices USING (price_id)
"""
_OF_ENDINGS: Final = ", ".join(f"endings.{each}" for each in ENTRY)
SELECT_ENDINGS: Final = f"""
SELECT {_OF_ENDINGS.replace("endings.price_id", "coalesce(price, '')")},
    late.amount, late.excess,
    (SELECT coalesce(-sum(amount), 0) FROM ledger_entries AS refunds
     WHERE refunds.refers_to <> '' AND refunds.refers_to = endings.entry_key
         AND refunds.kind = 'refund')
FROM ledger_entries AS endings
LEFT JOIN ledger_prices AS prices ON prices.price_id = endings.price_id
LEFT JOIN ledger_entries AS late ON late.refers_to <> '' AND late.refers_to = endings.entry_key
    AND late.kind = 'late'
WHERE endings.kind <> 'late' AND endings.entry_key
"""


def accounts(rows: Iterable[Row], now_ms: int) -> dict[AccountKey, Account]:
    """Accounts, and those of their windows that are not over, as :data:`SELECT_ACCOUNTS` finds
    them.
    """
    found: dict[AccountKey, Account] = {}
    for account_id, *whose, settled, reserved, kind, start_ms, end_ms, spent in rows:
        key = AccountKey(*whose)
        account = found.get(key)
        if account is None:
            account = found[key] = Account(account_id, key, settled, reserved)
        if kind is not None and now_ms < end_ms:
            account.spent[Window(kind, start_ms, end_ms)] = spent
    return found


def account_rows(accounts: Iterable[Account]) -> list[Row]:
    """Those of some accounts that were granted nothing, as the values of :data:`ACCOUNT`."""
    return [
        (each.account_id, each.settled, each.reserved) for each in accounts if each.granted is None
    ]


def granted_rows(accounts: Iterable[Account]) -> list[Row]:
    """Those of some accounts that were granted something, as the values of :data:`GRANTED`."""
    return [
        (each.account_id, each.settled, each.reserved, limit, window.start_ms, window.end_ms)
        for each in accounts
        if each.granted is not None
        for limit, window in (each.granted,)
    ]


def window_rows(accounts: Iterable[Account]) -> list[Row]:
    """The windows of accounts that have changed, each as the values of :data:`WINDOW`."""
    return [
        (account.account_id, window.kind, window.start_ms, window.end_ms, spent)
        for account in accounts
        if account.has_spent
        for window, spent in account.spent.items()
    ]


def reservation_row(each: Reservation, price_id: int | None) -> Row:
    """A reservation as the values of :data:`RESERVATION`."""
    return (
        each.reservation_id,
        *each.holder,
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
        *entry.holder,
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


def endings(rows: Iterable[Row]) -> dict[str, Ending]:
    """Endings, as :data:`SELECT_ENDINGS` finds them."""
    return {row[0]: _ending(row) for row in rows}


def _ending(row: Row) -> Ending:
    *_, late_amount, late_excess, refunded = row
    kind, holder, meter, amount, excess = row[1], Holder(*row[2:6]), row[6], row[7], row[9]
    if late_amount is not None:
        return Ending(
            "late", holder, meter, amount + late_amount, excess + late_excess, int(refunded)
        )
    expired = _entry(row) if kind == "expire" else None
    return Ending(kind, holder, meter, amount, excess, int(refunded), expired)


def _entry(row: Row) -> Entry:
    return Entry(
        entry_key=row[0],
        kind=row[1],
        holder=Holder(*row[2:6]),
        meter=row[6],
        amount=row[7],
        reserved=row[8],
        excess=row[9],
        is_estimated=bool(row[10]),
        started_ms=row[11],
        at_ms=row[12],
        model=row[13],
        price=row[14],
        usage=Usage(*row[15:20]),
        unpriced=row[20],
        refers_to=row[21],
        note=row[22],
    )


def tokens(usage: Usage | TokenChange) -> tuple[int, int, int, int, int]:
    """The tokens of a call as the values of :data:`TOKENS`."""
    return (
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_write_5m_tokens,
        usage.cache_write_1h_tokens,
        usage.cache_read_tokens,
    )
