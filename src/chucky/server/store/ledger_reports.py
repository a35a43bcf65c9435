"""The ledger read for reports and audits: the statements, which all databases understand.

What is asked for is told by :mod:`chucky.server.ledger.reports` and
:mod:`chucky.server.ledger.audit`. Sums are made by the database; what may be as long as the ledger
is read in pages, because a driver may fetch all that a statement finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from chucky.server.ledger.accounts import AccountKey, Meter
from chucky.server.ledger.audit import (
    AuditedEntry,
    Balance,
    Counts,
    LateSettlement,
    Lease,
    Overspending,
    ProjectTotal,
    RefundTotal,
    WindowSum,
)
from chucky.server.ledger.reports import (
    AccountLine,
    ChargeLine,
    Doubt,
    Grouping,
    Selection,
    UsageLine,
)
from chucky.server.ledger.windows import iso_time
from chucky.server.store.database import Connection, Database

_PAGE: Final = 5_000
_DAY_MS: Final = 86_400_000
_DATE_LENGTH: Final = len("2026-01-31")

# --- reports ------------------------------------------------------------------------------------

_GROUPS: Final[dict[Grouping, str]] = {
    "day": f"at_ms / {_DAY_MS} * {_DAY_MS}",
    "model": "model",
    "session": "session_id",
    "user": "user_id",
}
# A late settlement is of a charge that was counted when its lease ended.
_IS_CHARGE: Final = "kind IN ('settle', 'expire')"
_CHARGED: Final = "kind IN ('settle', 'expire', 'late')"


def _sum_where(condition: str, value: str) -> str:
    return f"sum(CASE WHEN {condition} THEN {value} ELSE 0 END)"


# A truth value is a number in one database and not in the other. What the end of a lease estimated
# is known once it is settled, unless that is an estimate too.
_ESTIMATED: Final = """(CAST(is_estimated AS INTEGER) = 1 AND NOT EXISTS (
    SELECT 1 FROM ledger_entries AS late
    WHERE late.refers_to <> '' AND late.refers_to = charges.entry_key AND late.kind = 'late'
        AND CAST(late.is_estimated AS INTEGER) = 0))"""
_USAGE: Final = f"""
SELECT project_id, {{group}} AS grouped,
    {_sum_where(f"meter = 'ai' AND {_IS_CHARGE}", "1")},
    sum(input_tokens), sum(output_tokens), sum(cache_write_5m_tokens),
    sum(cache_write_1h_tokens), sum(cache_read_tokens),
    {_sum_where(f"meter = 'ai' AND {_CHARGED}", "amount")},
    {_sum_where(f"meter = 'compute' AND {_CHARGED}", "amount")},
    {_sum_where(f"{_IS_CHARGE} AND {_ESTIMATED}", "1")},
    {_sum_where(f"meter = 'ai' AND {_ESTIMATED}", "amount")},
    {_sum_where("excess > 0", "1")},
    sum(excess),
    {_sum_where("unpriced <> ''", "1")},
    {_sum_where(f"meter = 'ai' AND NOT {_CHARGED}", "-amount")},
    {_sum_where(f"meter = 'compute' AND NOT {_CHARGED}", "-amount")}
FROM ledger_entries AS charges WHERE kind <> 'void' {{selected}}
GROUP BY project_id, grouped ORDER BY project_id, grouped
"""
_DOUBTS: Final[dict[Doubt, str]] = {
    "estimated": _ESTIMATED,
    "excess": "excess > 0",
    "unpriced": "unpriced <> ''",
}
_CALL_ID: Final = (
    "CASE WHEN charges.kind = 'late' THEN charges.refers_to ELSE charges.entry_key END"
)
_CHARGES: Final = f"""
SELECT entry_id, {_CALL_ID}, at_ms, project_id, user_id, session_id, meter, model, amount, reserved,
    excess, CAST(is_estimated AS INTEGER), unpriced,
    (SELECT coalesce(-sum(amount), 0) FROM ledger_entries AS refunds
     WHERE refunds.refers_to <> '' AND refunds.refers_to = {_CALL_ID} AND refunds.kind = 'refund')
FROM ledger_entries AS charges
WHERE {_CHARGED} AND {{doubt}} {{selected}} AND entry_id < ? ORDER BY entry_id DESC LIMIT {_PAGE}
"""
_ACCOUNTS: Final = """
SELECT meter, settled, reserved, granted_limit, granted_start_ms, granted_end_ms
FROM ledger_accounts WHERE project_id = ? AND user_id = ? AND session_id = ?
"""
_ANCHORS: Final = """
SELECT window_kind, anchor_ms FROM ledger_anchors WHERE project_id = ? AND user_id = ?
"""
_SPENT: Final = """
SELECT coalesce(sum(amount), 0) FROM ledger_entries
WHERE project_id = ? {of_user} AND meter = ? AND at_ms >= ? AND at_ms < ?
"""

# --- audits -------------------------------------------------------------------------------------

_COUNTS: Final = """
SELECT (SELECT count(*) FROM ledger_entries), (SELECT count(*) FROM ledger_reservations),
    (SELECT count(*) FROM ledger_accounts), (SELECT count(*) FROM ledger_windows)
"""
_ENTRIES: Final = f"""
SELECT entry_id, entry_key, kind, meter, amount, reserved, excess,
    CAST(is_estimated AS INTEGER), model, refers_to, coalesce(price, ''), input_tokens,
    output_tokens, cache_write_5m_tokens, cache_write_1h_tokens, cache_read_tokens
FROM ledger_entries LEFT JOIN ledger_prices USING (price_id)
WHERE entry_id > ? ORDER BY entry_id LIMIT {_PAGE}
"""
# Each with the end that it corrects added to it, if it is one of the same call.
_LATE_SETTLEMENTS: Final = """
SELECT late.entry_id, late.entry_key, late.kind, late.meter, ended.amount + late.amount,
    ended.reserved, late.excess, CAST(late.is_estimated AS INTEGER), late.model, late.refers_to,
    coalesce(price, ''), ended.input_tokens + late.input_tokens,
    ended.output_tokens + late.output_tokens,
    ended.cache_write_5m_tokens + late.cache_write_5m_tokens,
    ended.cache_write_1h_tokens + late.cache_write_1h_tokens,
    ended.cache_read_tokens + late.cache_read_tokens
FROM ledger_entries AS late
LEFT JOIN ledger_prices AS prices ON prices.price_id = late.price_id
LEFT JOIN ledger_entries AS ended ON ended.entry_key = late.refers_to AND ended.kind = 'expire'
    AND ended.project_id = late.project_id AND ended.user_id = late.user_id
    AND ended.session_id = late.session_id AND ended.turn_id = late.turn_id
    AND ended.meter = late.meter AND ended.model = late.model
    AND coalesce(ended.price_id, 0) = coalesce(late.price_id, 0)
WHERE late.refers_to <> '' AND late.kind = 'late'
"""
_REPEATED_KEYS: Final = """
SELECT entry_key FROM ledger_entries GROUP BY entry_key HAVING count(*) > 1
"""
_OPEN_AND_ENDED: Final = """
SELECT reservation_id FROM ledger_reservations
WHERE EXISTS (SELECT 1 FROM ledger_entries WHERE entry_key = reservation_id)
"""
# What is counted for each session, user and project, beside what their accounts say.
_FALSE_BALANCES: Final = """
WITH moved AS (
    SELECT project_id, user_id, session_id, meter, sum(amount) AS settled, 0 AS reserved
    FROM ledger_entries GROUP BY project_id, user_id, session_id, meter
    UNION ALL
    SELECT project_id, user_id, session_id, meter, 0, sum(amount)
    FROM ledger_reservations GROUP BY project_id, user_id, session_id, meter
), compared AS (
    SELECT project_id, user_id, session_id, meter, settled AS counted_settled,
        reserved AS counted_reserved, 0 AS kept_settled, 0 AS kept_reserved, 0 AS kept
    FROM moved WHERE session_id <> ''
    UNION ALL
    SELECT project_id, user_id, '', meter, settled, reserved, 0, 0, 0 FROM moved
    WHERE user_id <> ''
    UNION ALL
    SELECT project_id, '', '', meter, settled, reserved, 0, 0, 0 FROM moved
    UNION ALL
    SELECT project_id, user_id, session_id, meter, 0, 0, settled, reserved, 1
    FROM ledger_accounts
)
SELECT project_id, user_id, session_id, meter, sum(kept), sum(kept_settled), sum(kept_reserved),
    sum(counted_settled), sum(counted_reserved)
FROM compared GROUP BY project_id, user_id, session_id, meter
HAVING (sum(kept) = 0 AND user_id <> '' AND (session_id = '' OR meter = 'ai'))
    OR (sum(kept) > 0 AND (sum(kept_settled) <> sum(counted_settled)
        OR sum(kept_reserved) <> sum(counted_reserved)))
"""
# Beside what its users spend a project has what an operator gave to it and to none of them.
_FALSE_PROJECT_TOTALS: Final = """
WITH parts AS (
    SELECT project_id, meter, settled, reserved FROM ledger_accounts
    WHERE user_id <> '' AND session_id = ''
    UNION ALL
    SELECT project_id, meter, amount, 0 FROM ledger_entries
    WHERE user_id = '' AND kind = 'credit'
)
SELECT project.project_id, project.meter, project.settled, project.reserved,
    coalesce(sum(parts.settled), 0), coalesce(sum(parts.reserved), 0)
FROM ledger_accounts AS project LEFT JOIN parts
    ON parts.project_id = project.project_id AND parts.meter = project.meter
WHERE project.user_id = ''
GROUP BY project.project_id, project.meter, project.settled, project.reserved
HAVING coalesce(sum(parts.settled), 0) <> project.settled
    OR coalesce(sum(parts.reserved), 0) <> project.reserved
"""
# Of users and of projects apart, so that each has an index for its sums.
_SPENT_IN_WINDOW: Final = """
(SELECT coalesce(sum(amount), 0) FROM ledger_entries AS entries
 WHERE entries.project_id = accounts.project_id {of_user} AND entries.meter = accounts.meter
     AND entries.at_ms >= {start} AND entries.at_ms < {end})
"""
_OF_USER: Final = "AND entries.user_id = accounts.user_id"


def _spent_in(start: str, end: str, value: str = "amount") -> str:
    """An account's entries between two columns, summed up."""
    of_user, of_project = (
        _SPENT_IN_WINDOW.format(of_user=each, start=start, end=end).replace("amount", value)
        for each in (_OF_USER, "")
    )
    return f"CASE WHEN accounts.user_id <> '' THEN {of_user} ELSE {of_project} END"


_WINDOWS: Final = f"""
SELECT windows.account_id, windows.window_kind, windows.start_ms, windows.end_ms, windows.spent,
    {_spent_in("windows.start_ms", "windows.end_ms")}, anchor_ms
FROM ledger_windows AS windows
JOIN ledger_accounts AS accounts ON accounts.account_id = windows.account_id
LEFT JOIN ledger_anchors AS anchors ON anchors.project_id = accounts.project_id
    AND anchors.user_id = accounts.user_id AND anchors.window_kind = windows.window_kind
WHERE (windows.account_id, windows.window_kind) > (?, ?)
ORDER BY windows.account_id, windows.window_kind LIMIT {_PAGE}
"""
# A session's budget has no windows, so a grant with one is not of a session.
_OVERSPENT: Final = f"""
SELECT project_id, user_id, session_id, meter, granted_limit, spent, reserved,
    CASE WHEN granted_start_ms IS NOT NULL
        THEN {_spent_in("accounts.granted_start_ms", "accounts.granted_end_ms", "excess")}
        ELSE (SELECT coalesce(sum(excess), 0) FROM ledger_entries AS entries
              WHERE entries.project_id = accounts.project_id AND entries.meter = accounts.meter
                  AND (accounts.user_id = '' OR entries.user_id = accounts.user_id)
                  AND (accounts.session_id = '' OR entries.session_id = accounts.session_id))
    END
FROM (
    SELECT accounts.*, CASE WHEN granted_start_ms IS NULL THEN settled
        ELSE {_spent_in("accounts.granted_start_ms", "accounts.granted_end_ms")} END AS spent
    FROM ledger_accounts AS accounts WHERE granted_limit IS NOT NULL
) AS accounts
WHERE spent + reserved > granted_limit
"""
# What was refunded before a late settlement made a charge smaller was no more than it was then.
_FALSE_REFUNDS: Final = """
SELECT refers_to, -sum(amount), min(charged)
FROM (
    SELECT refunds.refers_to, refunds.amount,
        charges.amount + CASE WHEN late.amount > 0 THEN late.amount ELSE 0 END AS charged
    FROM ledger_entries AS refunds LEFT JOIN ledger_entries AS charges
        ON charges.entry_key = refunds.refers_to AND charges.project_id = refunds.project_id
            AND charges.user_id = refunds.user_id AND charges.meter = refunds.meter
            AND charges.kind IN ('settle', 'expire')
    LEFT JOIN ledger_entries AS late ON late.refers_to <> ''
        AND late.refers_to = charges.entry_key AND late.kind = 'late'
    WHERE refunds.refers_to <> '' AND refunds.kind <> 'late'
) AS refunds
GROUP BY refers_to
HAVING min(charged) IS NULL OR -sum(amount) > min(charged) OR count(*) > count(charged)
"""
_STALE_LEASES: Final = """
SELECT reservation_id, expires_ms FROM ledger_reservations WHERE expires_ms < ?
ORDER BY expires_ms, reservation_id
"""


class LedgerReader:
    """Reads the ledger for reports and audits."""

    def __init__(self, database: Database) -> None:
        """Take over an open database."""
        self._database = database

    def close(self) -> None:
        """Close the database. Safe to call again."""
        self._database.close()

    @contextmanager
    def snapshot(self) -> Iterator[LedgerSnapshot]:
        """The ledger as it is at this moment; whoever writes is not held up.

        Raises:
            ChuckyError: The database cannot be read.
        """
        now_ms = self._database.now_ms()
        with self._database.snapshot() as connection:
            yield LedgerSnapshot(connection, now_ms)


class LedgerSnapshot:
    """See :class:`~chucky.server.ledger.reports.ReportRows` and
    :class:`~chucky.server.ledger.audit.AuditRows`.

    Attributes:
        now_ms: The moment, in milliseconds since 1970.
    """

    def __init__(self, connection: Connection, now_ms: int) -> None:
        self.now_ms = now_ms
        self._connection = connection

    # --- reports ----------------------------------------------------------------------------

    def usage(self, selection: Selection, by: Grouping) -> Iterator[UsageLine]:
        """Sum entries up."""
        selected, values = _selected(selection)
        query = _USAGE.format(group=_GROUPS[by], selected=selected)
        for project_id, group, *sums in self._connection.execute(query, values):
            label = iso_time(group)[:_DATE_LENGTH] if by == "day" else group
            # Sums of a database may be numbers of another kind.
            yield UsageLine(project_id, label, *map(int, sums))

    def charges(self, selection: Selection, doubt: Doubt) -> Iterator[ChargeLine]:
        """Find charges that an operator may want to look at."""
        selected, values = _selected(selection)
        query = _CHARGES.format(doubt=_DOUBTS[doubt], selected=selected)
        before = 2**63 - 1
        while rows := self._connection.execute(query, (*values, before)).fetchall():
            for row in rows:
                yield ChargeLine._make([*row[1:11], bool(row[11]), row[12], int(row[13])])
            before = rows[-1][0]

    def accounts(self, project_id: str, user_id: str, session_id: str) -> list[AccountLine]:
        """Read accounts."""
        rows = self._connection.execute(_ACCOUNTS, (project_id, user_id, session_id))
        return [AccountLine(*row) for row in rows]

    def anchors(self, project_id: str, user_id: str) -> dict[str, int]:
        """Read anchors."""
        return dict(self._connection.execute(_ANCHORS, (project_id, user_id)).fetchall())

    def spent_between(
        self, project_id: str, user_id: str, meter: Meter, start_ms: int, end_ms: int
    ) -> int:
        """Sum entries."""
        query = _SPENT.format(of_user="AND user_id = ?" if user_id else "")
        whose = (project_id, user_id) if user_id else (project_id,)
        return int(self._connection.execute(query, (*whose, meter, start_ms, end_ms)).fetchone()[0])

    # --- audits -----------------------------------------------------------------------------

    def counts(self) -> Counts:
        """Count rows."""
        return Counts(*self._connection.execute(_COUNTS).fetchone())

    def entries(self) -> Iterator[AuditedEntry]:
        """Read all entries."""
        after = 0
        while rows := self._connection.execute(_ENTRIES, (after,)).fetchall():
            yield from map(AuditedEntry._make, rows)
            after = rows[-1][0]

    def late_settlements(self) -> Iterator[LateSettlement]:
        """Read late settlements."""
        for row in self._connection.execute(_LATE_SETTLEMENTS):
            together = None if row[4] is None else AuditedEntry._make(row)
            yield LateSettlement(row[0], row[1], together)

    def repeated_keys(self) -> Iterator[str]:
        """Find keys that are there more than once."""
        return (row[0] for row in self._connection.execute(_REPEATED_KEYS))

    def open_and_ended(self) -> Iterator[str]:
        """Find reservations that are open and have ended."""
        return (row[0] for row in self._connection.execute(_OPEN_AND_ENDED))

    def false_balances(self) -> Iterator[Balance]:
        """Find accounts that differ from what is counted."""
        for *key, kept, settled, reserved, counted_settled, counted_reserved in self._sums(
            _FALSE_BALANCES, 4
        ):
            yield Balance(
                AccountKey(*key), bool(kept), settled, reserved, counted_settled, counted_reserved
            )

    def false_project_totals(self) -> Iterator[ProjectTotal]:
        """Find projects that differ from their users."""
        for project_id, meter, *sums in self._sums(_FALSE_PROJECT_TOTALS, 2):
            yield ProjectTotal(AccountKey(project_id, "", "", meter), *sums)

    def windows(self) -> Iterator[WindowSum]:
        """Read all sums of windows, and count them."""
        after = (0, "")
        while rows := self._connection.execute(_WINDOWS, after).fetchall():
            for row in rows:
                yield WindowSum._make([*row[:5], int(row[5]), row[6]])
            after = rows[-1][:2]

    def overspent(self) -> Iterator[Overspending]:
        """Find accounts above the limit of their last grant."""
        for *key, limit, spent, reserved, excess in self._sums(_OVERSPENT, 4):
            yield Overspending(AccountKey(*key), limit, spent, reserved, excess)

    def false_refunds(self) -> Iterator[RefundTotal]:
        """Find refunds of nothing and of too much."""
        for charge, refunded, charged in self._connection.execute(_FALSE_REFUNDS):
            yield RefundTotal(charge, int(refunded), charged)

    def stale_leases(self) -> Iterator[Lease]:
        """Find reservations that nobody has renewed."""
        return (Lease(*row) for row in self._connection.execute(_STALE_LEASES, (self.now_ms,)))

    def _sums(self, query: str, names: int) -> Iterator[list[Any]]:
        for row in self._connection.execute(query):
            # Sums of a database may be numbers of another kind.
            yield [*row[:names], *map(int, row[names:])]


def _selected(selection: Selection) -> tuple[str, list[str | int]]:
    conditions = {
        "project_id = ?": selection.project_id,
        "user_id = ?": selection.user_id,
        "at_ms >= ?": selection.since_ms,
    }
    chosen = {text: value for text, value in conditions.items() if value is not None}
    return "".join(f"AND {text} " for text in chosen), list(chosen.values())
