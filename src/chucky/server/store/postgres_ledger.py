"""The ledger's rows in a PostgreSQL database that several servers share.

Each server writes over one connection, in a transaction for each batch. What the rules are is told
by :mod:`chucky.server.ledger.booking`; here is what keeps servers out of each other's way. A
transaction takes its locks in this order, so that none waits for one that waits for it:

1. the rows of all accounts concerned, by their numbers. Whoever holds them is alone with their
   windows, reservations and entries. Missing accounts are created before, in a transaction of
   their own that holds nothing else.
2. anchors that are not fixed yet, by an advisory lock, in order. One is shared by the two meters
   of a user, whose accounts others may hold.
3. the rows of the reservations that are read, by their ids. Their owner may want to renew them
   just when another server ends them.
4. the leases it renews, without waiting: what another holds, it is about to end.

A statement that waits for a lock sees everything else as it was before the wait. So accounts are
locked by a statement that does nothing else, and read by a later one, as is what they protect.
Statements are sent as soon as they are known and answers awaited only when they are needed, so a
batch takes a few round trips, whatever its size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from chucky.server.ledger.accounts import Account, AccountKey
from chucky.server.ledger.rows import AnchorKey, Changes, Ending, Reservation
from chucky.server.model.pricing import Usage
from chucky.server.postgres_url import PostgresUrl
from chucky.server.store import ledger_columns as columns
from chucky.server.store import server_rows
from chucky.server.store.database import Rows
from chucky.server.store.postgres_database import Connection, KeptConnection, Statements
from chucky.server.store.session_transaction import SessionTransaction

# Rows are given as one JSON text, and take their types from the columns of a table.
_NOW: Final = "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_WANTED_ACCOUNTS: Final = """
FROM json_populate_recordset(NULL::ledger_accounts, %s) AS wanted
JOIN ledger_accounts AS accounts USING (project_id, user_id, session_id, meter)
"""
_LOCK_ACCOUNTS: Final = f"""
SELECT accounts.account_id {_WANTED_ACCOUNTS}
ORDER BY accounts.account_id FOR UPDATE OF accounts
"""
_ACCOUNTS: Final = f"""
{columns.SELECT_ACCOUNTS}
{_WANTED_ACCOUNTS}
LEFT JOIN ledger_windows AS windows ON windows.account_id = accounts.account_id
"""
# Not worth a wait for the disk: whatever is booked on these accounts is on the disk after them.
_UNTIL_THE_NEXT_COMMIT: Final = "SET LOCAL synchronous_commit TO off"
_KEEP_ALL_OUT: Final = "LOCK TABLE ledger_accounts IN EXCLUSIVE MODE"


# Those of users and sessions are made before anything is booked on them. A project has one since it
# has a limit, and what its users had spent before counts too.
_CREATE_ACCOUNTS: Final = """
INSERT INTO ledger_accounts (project_id, user_id, session_id, meter, settled, reserved)
SELECT project_id, user_id, session_id, meter, 0, 0
FROM json_populate_recordset(NULL::ledger_accounts, %s) AS wanted
ORDER BY project_id, user_id, session_id, meter
ON CONFLICT DO NOTHING
"""
_CREATE_OF_PROJECTS: Final = """
INSERT INTO ledger_accounts (project_id, user_id, session_id, meter, settled, reserved)
SELECT project_id, '', '', meter,
    (SELECT coalesce(sum(amount), 0) FROM ledger_entries
     WHERE project_id = wanted.project_id AND meter = wanted.meter),
    (SELECT coalesce(sum(amount), 0) FROM ledger_reservations
     WHERE project_id = wanted.project_id AND meter = wanted.meter)
FROM json_populate_recordset(NULL::ledger_accounts, %s) AS wanted
ORDER BY project_id, meter
ON CONFLICT DO NOTHING
"""
_SPENT_BY_PROJECT: Final = """
SELECT coalesce(sum(amount), 0)::bigint FROM ledger_entries
WHERE project_id = %s AND meter = %s AND at_ms >= %s AND at_ms < %s
"""
_SPENT_BY_USER: Final = f"{_SPENT_BY_PROJECT} AND user_id = %s"
_ANCHORS: Final = """
SELECT project_id, user_id, window_kind, anchors.anchor_ms
FROM json_populate_recordset(NULL::ledger_anchors, %s) AS wanted
JOIN ledger_anchors AS anchors USING (project_id, user_id, window_kind)
"""
_LOCK_ANCHORS: Final = """
SELECT pg_advisory_xact_lock(place) FROM (
    SELECT hashtextextended(concat_ws(' ', project_id, user_id, window_kind), 0) AS place
    FROM json_populate_recordset(NULL::ledger_anchors, %s)
    ORDER BY 1
) AS places
"""
_SET_ANCHORS: Final = """
INSERT INTO ledger_anchors (project_id, user_id, window_kind, anchor_ms)
SELECT project_id, user_id, window_kind, anchor_ms
FROM json_populate_recordset(NULL::ledger_anchors, %s)
ORDER BY project_id, user_id, window_kind
ON CONFLICT (project_id, user_id, window_kind) DO UPDATE SET anchor_ms = excluded.anchor_ms
"""
_RESERVATIONS: Final = f"""
{columns.SELECT_RESERVATIONS} WHERE reservation_id = ANY (%s)
ORDER BY reservation_id FOR UPDATE OF ledger_reservations
"""
_ALL_RESERVATIONS: Final = f"{columns.SELECT_RESERVATIONS} LIMIT 1000"
_EXPIRED_RESERVATIONS: Final = f"""
{columns.SELECT_RESERVATIONS} WHERE expires_ms <= %s AND owner <> %s LIMIT 1000
"""
_ENDINGS: Final = f"{columns.SELECT_ENDINGS} = ANY (%s)"
_STARTS_BY_PROJECT: Final = """
SELECT started_ms FROM ledger_entries
WHERE project_id = %(project_id)s AND meter = 'compute'
    AND at_ms >= %(since_ms)s AND started_ms > %(since_ms)s AND kind IN ('settle', 'expire')
UNION ALL
SELECT granted_ms FROM ledger_reservations
WHERE project_id = %(project_id)s AND meter = 'compute' AND granted_ms > %(since_ms)s
ORDER BY 1
"""
_STARTS_BY_USER: Final = _STARTS_BY_PROJECT.replace(
    "AND meter", "AND user_id = %(user_id)s AND meter"
)
_LATEST_TOKENS: Final = ", ".join(
    f"{each} = coalesce(latest.{each}, reservations.{each})" for each in columns.TOKENS
)
_RENEW: Final = f"""
WITH mine AS (
    SELECT reservation_id FROM ledger_reservations WHERE owner = %s FOR UPDATE SKIP LOCKED
), renewed AS (
    UPDATE ledger_reservations AS reservations
    SET expires_ms = %s, checkpoint = coalesce(latest.checkpoint, reservations.checkpoint),
        {_LATEST_TOKENS}
    FROM mine
    LEFT JOIN json_populate_recordset(NULL::ledger_reservations, %s) AS latest
        USING (reservation_id)
    WHERE reservations.reservation_id = mine.reservation_id
    RETURNING 1
)
SELECT count(*) FROM renewed
"""
_FORGET_WINDOWS: Final = """
DELETE FROM ledger_windows WHERE window_kind = %s AND account_id IN (
    SELECT account_id FROM ledger_accounts
    WHERE project_id = %s AND user_id = %s AND session_id = ''
)
"""
_END_RESERVATIONS: Final = "DELETE FROM ledger_reservations WHERE reservation_id = ANY (%s)"
_SET_RESERVATIONS: Final = f"""
INSERT INTO ledger_reservations ({", ".join(columns.RESERVATION)})
SELECT {", ".join(columns.RESERVATION)}
FROM json_populate_recordset(NULL::ledger_reservations, %s)
ON CONFLICT (reservation_id) DO UPDATE SET amount = excluded.amount, units = excluded.units
"""
_ADD_ENTRIES: Final = f"""
INSERT INTO ledger_entries ({", ".join(columns.ENTRY)})
SELECT {", ".join(columns.ENTRY)} FROM json_populate_recordset(NULL::ledger_entries, %s)
"""
_SET_ACCOUNTS: Final = """
UPDATE ledger_accounts AS accounts SET settled = changed.settled, reserved = changed.reserved
FROM json_populate_recordset(NULL::ledger_accounts, %s) AS changed
WHERE accounts.account_id = changed.account_id
"""
_SET_GRANTED: Final = """
UPDATE ledger_accounts AS accounts SET settled = changed.settled, reserved = changed.reserved,
    granted_limit = changed.granted_limit, granted_start_ms = changed.granted_start_ms,
    granted_end_ms = changed.granted_end_ms
FROM json_populate_recordset(NULL::ledger_accounts, %s) AS changed
WHERE accounts.account_id = changed.account_id
"""
_SET_WINDOWS: Final = """
INSERT INTO ledger_windows (account_id, window_kind, start_ms, end_ms, spent)
SELECT account_id, window_kind, start_ms, end_ms, spent
FROM json_populate_recordset(NULL::ledger_windows, %s)
ON CONFLICT (account_id, window_kind) DO UPDATE SET start_ms = excluded.start_ms,
    end_ms = excluded.end_ms, spent = excluded.spent
"""
_PRICE_IDS: Final = "SELECT price, price_id FROM ledger_prices WHERE price = ANY (%s)"
_ADD_PRICES: Final = """
INSERT INTO ledger_prices (price) SELECT * FROM unnest(%s::text[]) ORDER BY 1 ON CONFLICT DO NOTHING
"""


class PostgresLedgerRows:
    """The ledger on a server; see :class:`~chucky.server.ledger.rows.LedgerRows`."""

    def __init__(self, connection: KeptConnection, clock_ms: Callable[[], int] | None) -> None:
        """Take over a connection to a database that has the current schema."""
        self._connection = connection
        self._clock_ms = clock_ms
        self._price_ids: dict[str, int] = {}

    @classmethod
    def open(
        cls, url: PostgresUrl, clock_ms: Callable[[], int] | None = None
    ) -> PostgresLedgerRows:
        """Open a database, bringing it up to date first.

        Args:
            url: Where it is.
            clock_ms: The time, in milliseconds since 1970; None for the clock of the database,
                which is the same for all servers.

        Raises:
            ValidationError: The server cannot be reached, or the database not be used.
        """
        return cls(KeptConnection.open(url), clock_ms)

    def close(self) -> None:
        """Close the connection. Safe to call again."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[PostgresLedgerTransaction]:
        """Begin a transaction; see :class:`~chucky.server.ledger.rows.LedgerRows`."""
        try:
            with self._connection.transaction() as connection:
                yield PostgresLedgerTransaction(connection, self._clock_ms, self._price_ids)
        except BaseException:
            self._price_ids.clear()  # some may have been rolled back
            raise


class PostgresLedgerTransaction(SessionTransaction):
    """One transaction; see :class:`~chucky.server.ledger.rows.LedgerTransaction`."""

    def __init__(
        self,
        connection: Connection,
        clock_ms: Callable[[], int] | None,
        price_ids: dict[str, int],
    ) -> None:
        super().__init__(Statements(connection))
        self._connection = connection
        self._execute = connection.execute
        self._clock_ms = clock_ms
        self._price_ids = price_ids
        self._now_ms: int | None = None

    @property
    def now_ms(self) -> int:
        """The time: once accounts are locked, that of the lock."""
        if self._now_ms is None:
            self._now_ms = self._read_clock()
        return self._now_ms

    def _read_clock(self) -> int:
        if self._clock_ms is not None:
            return self._clock_ms()
        return _number(self._execute(_NOW))

    def lock_accounts(
        self, keys: Collection[AccountKey], needed: Collection[AccountKey] = ()
    ) -> dict[AccountKey, Account]:
        """Lock accounts, and create those that are needed and missing."""
        found = self._lock_accounts(keys)
        if missing := [key for key in needed if key not in found]:
            self._create_accounts(missing)
            found = self._lock_accounts(keys)
        return found

    def _lock_accounts(self, keys: Collection[AccountKey]) -> dict[AccountKey, Account]:
        wanted = _records(AccountKey._fields, keys)
        while True:
            locked = self._execute(_LOCK_ACCOUNTS, (wanted,))
            rows = self._execute(_ACCOUNTS, (wanted,))
            # Asked for when the locks are held, so that no account sees the time go backwards.
            self._now_ms = self._read_clock()
            found = columns.accounts(rows, self._now_ms)
            if len(found) == locked.rowcount:
                return found
            # Others were made while these were waited for. All are locked in order, or none.
            self._connection.rollback()

    def _create_accounts(self, keys: Collection[AccountKey]) -> None:
        """Create accounts and let go of everything, so that all can be locked in order.

        Projects' are counted while no other account changes.
        """
        projects = [key for key in keys if not key.user_id]
        others = [key for key in keys if key.user_id]
        self._connection.rollback()
        self._execute(_UNTIL_THE_NEXT_COMMIT)
        if projects:
            self._execute(_KEEP_ALL_OUT)
        self._execute_for(_CREATE_ACCOUNTS, AccountKey._fields, others)
        self._execute_for(_CREATE_OF_PROJECTS, AccountKey._fields, projects)
        self._connection.commit()

    def anchors(self, keys: Collection[AnchorKey]) -> dict[AnchorKey, int]:
        """Read anchors, and keep others from fixing those that are missing."""
        found = self._anchors(keys)
        if missing := [key for key in keys if key not in found]:
            self._execute(_LOCK_ANCHORS, (_records(AnchorKey._fields, missing),))
            found |= self._anchors(missing)
        return found

    def _anchors(self, keys: Collection[AnchorKey]) -> dict[AnchorKey, int]:
        rows = self._execute(_ANCHORS, (_records(AnchorKey._fields, keys),))
        return {AnchorKey(*row[:3]): row[3] for row in rows}

    def spent_between(self, key: AccountKey, start_ms: int, end_ms: int) -> int:
        """Sum entries."""
        assert not key.session_id, "a session's budget has no windows"
        of_project = (key.project_id, key.meter, start_ms, end_ms)
        if key.user_id:
            return _number(self._execute(_SPENT_BY_USER, (*of_project, key.user_id)))
        return _number(self._execute(_SPENT_BY_PROJECT, of_project))

    def reservations(self, ids: Collection[str]) -> dict[str, Reservation]:
        """Read open reservations."""
        rows = self._execute(_RESERVATIONS, (list(ids),))
        return {row[0]: columns.reservation(row) for row in rows}

    def expired(self, owner: str | None) -> list[Reservation]:
        """Read reservations that nobody renewed."""
        if owner is None:
            rows = self._execute(_ALL_RESERVATIONS)
        else:
            rows = self._execute(_EXPIRED_RESERVATIONS, (self._read_clock(), owner))
        return [columns.reservation(row) for row in rows]

    def endings(self, keys: Collection[str]) -> dict[str, Ending]:
        """Read how reservations ended."""
        rows = self._execute(_ENDINGS, (list(keys),))
        return columns.endings(rows)

    def turn_starts(self, key: AccountKey, since_ms: int) -> list[int]:
        """Read when turns began."""
        values = {"project_id": key.project_id, "user_id": key.user_id, "since_ms": since_ms}
        query = _STARTS_BY_USER if key.user_id else _STARTS_BY_PROJECT
        return [row[0] for row in self._execute(query, values)]

    def renew(
        self, owner: str, expires_ms: int, checkpoints: Mapping[str, tuple[int, Usage]]
    ) -> int:
        """Renew leases and write checkpoints."""
        rows = [(each, at, *columns.tokens(usage)) for each, (at, usage) in checkpoints.items()]
        latest = _records(("reservation_id", "checkpoint", *columns.TOKENS), rows)
        server_rows.renew_lease(self._statements, owner, expires_ms)
        return _number(self._execute(_RENEW, (owner, expires_ms, latest)))

    def forget_windows(self, project_id: str, user_id: str, kind: str) -> None:
        """Drop the sums of a window kind."""
        self._execute(_FORGET_WINDOWS, (kind, project_id, user_id))

    def write(self, changes: Changes) -> None:
        """Write what a batch of operations changed."""
        prices = {each.price for each in changes.reservations.values()}
        self._learn_prices(prices.union(each.price for each in changes.entries) - {""})
        accounts = changes.accounts.values()
        anchors = [(*key, at) for key, at in changes.anchors.items()]
        self._execute_for(_SET_ANCHORS, (*AnchorKey._fields, "anchor_ms"), anchors)
        if changes.ended:
            self._execute(_END_RESERVATIONS, (list(changes.ended),))
        self._execute_for(
            _SET_RESERVATIONS,
            columns.RESERVATION,
            (
                columns.reservation_row(each, self._price_ids.get(each.price))
                for each in changes.reservations.values()
            ),
        )
        self._execute_for(
            _ADD_ENTRIES,
            columns.ENTRY,
            (columns.entry_row(each, self._price_ids.get(each.price)) for each in changes.entries),
        )
        self._execute_for(_SET_ACCOUNTS, columns.ACCOUNT, columns.account_rows(accounts))
        self._execute_for(_SET_GRANTED, columns.GRANTED, columns.granted_rows(accounts))
        # One of a kind for each account, the one that was counted last: a statement cannot write a
        # row twice.
        windows = {row[:2]: row for row in columns.window_rows(accounts)}
        self._execute_for(_SET_WINDOWS, columns.WINDOW, windows.values())

    def _execute_for(
        self, statement: str, names: Sequence[str], rows: Iterable[Sequence[Any]]
    ) -> None:
        """Run a statement for rows, unless there are none."""
        if given := list(rows):
            self._execute(statement, (_records(names, given),))

    def _learn_prices(self, prices: set[str]) -> None:
        if unknown := sorted(prices - self._price_ids.keys()):
            self._execute(_ADD_PRICES, (unknown,))
            self._price_ids.update(self._execute(_PRICE_IDS, (unknown,)).fetchall())


def _records(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as the JSON text that statements take."""
    return json.dumps([dict(zip(names, row, strict=True)) for row in rows])


def _number(rows: Rows) -> int:
    return int(rows.fetchone()[0])
