"""The ledger's rows in the SQLite file: the statements, and what is made of them.

There is one writer, so an account is locked by the transaction itself. What the rules are is told
by :mod:`chucky.server.ledger.booking`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chucky.server.ledger.accounts import Account, AccountKey
from chucky.server.ledger.rows import AnchorKey, Changes, Ending, Reservation
from chucky.server.model.pricing import Usage
from chucky.server.store import ledger_columns as columns
from chucky.server.store import server_rows
from chucky.server.store.database import now_ms, store_error
from chucky.server.store.session_transaction import SessionTransaction
from chucky.server.store.sqlite_file import Connection, faults, open_file, transaction

# What is known of more accounts than this is read again.
_MOST_KNOWN_ACCOUNTS: Final = 10_000

# Keys and ids are given as one JSON text. CROSS JOIN: they come first, whatever the planner thinks.
_ACCOUNTS: Final = f"""
{columns.SELECT_ACCOUNTS}
FROM json_each(?) AS wanted
CROSS JOIN ledger_accounts AS accounts ON project_id = json_extract(value, '$[0]')
    AND user_id = json_extract(value, '$[1]') AND session_id = json_extract(value, '$[2]')
    AND meter = json_extract(value, '$[3]')
LEFT JOIN ledger_windows AS windows ON windows.account_id = accounts.account_id
"""


# Those of users and sessions are made before anything is booked on them. A project has one since it
# has a limit, and what its users had spent before counts too.
_CREATE_ACCOUNT: Final = """
INSERT INTO ledger_accounts (project_id, user_id, session_id, meter, settled, reserved)
VALUES (:project_id, :user_id, :session_id, :meter, 0, 0)
"""
_CREATE_OF_PROJECT: Final = """
INSERT INTO ledger_accounts (project_id, user_id, session_id, meter, settled, reserved)
SELECT :project_id, '', '', :meter,
    (SELECT coalesce(sum(amount), 0) FROM ledger_entries
     WHERE project_id = :project_id AND meter = :meter),
    (SELECT coalesce(sum(amount), 0) FROM ledger_reservations
     WHERE project_id = :project_id AND meter = :meter)
"""
_SPENT_BY_USER: Final = """
SELECT coalesce(sum(amount), 0) FROM ledger_entries
WHERE project_id = ? AND user_id = ? AND meter = ? AND at_ms >= ? AND at_ms < ?
"""
_SPENT_BY_PROJECT: Final = """
SELECT coalesce(sum(amount), 0) FROM ledger_entries
WHERE project_id = ? AND meter = ? AND at_ms >= ? AND at_ms < ?
"""
_ANCHORS: Final = """
SELECT project_id, user_id, window_kind, anchor_ms
FROM json_each(?) AS wanted
CROSS JOIN ledger_anchors ON project_id = json_extract(value, '$[0]')
    AND user_id = json_extract(value, '$[1]') AND window_kind = json_extract(value, '$[2]')
"""
_SET_ANCHOR: Final = """
INSERT INTO ledger_anchors (project_id, user_id, window_kind, anchor_ms) VALUES (?, ?, ?, ?)
ON CONFLICT (project_id, user_id, window_kind) DO UPDATE SET anchor_ms = excluded.anchor_ms
"""
_RESERVATIONS: Final = f"""
{columns.SELECT_RESERVATIONS} WHERE reservation_id IN (SELECT value FROM json_each(?))
"""
_ALL_RESERVATIONS: Final = f"{columns.SELECT_RESERVATIONS} LIMIT 1000"
_EXPIRED_RESERVATIONS: Final = (
    f"{columns.SELECT_RESERVATIONS} WHERE expires_ms <= ? AND owner <> ? LIMIT 1000"
)
_ENDINGS: Final = f"{columns.SELECT_ENDINGS} IN (SELECT value FROM json_each(?))"
_STARTS_BY_USER: Final = """
SELECT started_ms FROM ledger_entries
WHERE project_id = :project_id AND user_id = :user_id AND meter = 'compute'
    AND at_ms >= :since_ms AND started_ms > :since_ms AND kind IN ('settle', 'expire')
UNION ALL
SELECT granted_ms FROM ledger_reservations
WHERE project_id = :project_id AND user_id = :user_id AND meter = 'compute'
    AND granted_ms > :since_ms
ORDER BY 1
"""
_STARTS_BY_PROJECT: Final = _STARTS_BY_USER.replace("AND user_id = :user_id ", "")
_RENEW: Final = "UPDATE ledger_reservations SET expires_ms = ? WHERE owner = ?"
_CHECKPOINT: Final = f"""
UPDATE ledger_reservations SET checkpoint = ?, {" = ?, ".join(columns.TOKENS)} = ?
WHERE reservation_id = ?
"""
_FORGET_WINDOWS: Final = """
DELETE FROM ledger_windows WHERE window_kind = ? AND account_id IN (
    SELECT account_id FROM ledger_accounts
    WHERE project_id = ? AND user_id = ? AND session_id = ''
)
"""
_SET_ACCOUNT: Final = """
UPDATE ledger_accounts SET settled = ?2, reserved = ?3 WHERE account_id = ?1
"""
_SET_GRANTED: Final = """
UPDATE ledger_accounts SET settled = ?2, reserved = ?3, granted_limit = ?4,
    granted_start_ms = ?5, granted_end_ms = ?6
WHERE account_id = ?1
"""
_SET_WINDOW: Final = """
INSERT INTO ledger_windows (account_id, window_kind, start_ms, end_ms, spent)
VALUES (?, ?, ?, ?, ?)
ON CONFLICT (account_id, window_kind) DO UPDATE SET start_ms = excluded.start_ms,
    end_ms = excluded.end_ms, spent = excluded.spent
"""
_ADD_PRICE: Final = "INSERT INTO ledger_prices (price) VALUES (?) ON CONFLICT DO NOTHING"
_PRICE_ID: Final = "SELECT price_id FROM ledger_prices WHERE price = ?"
_SET_RESERVATION: Final = f"""
INSERT INTO ledger_reservations ({", ".join(columns.RESERVATION)})
VALUES ({", ".join("?" * len(columns.RESERVATION))})
ON CONFLICT (reservation_id) DO UPDATE SET amount = excluded.amount, units = excluded.units
"""
_END_RESERVATION: Final = "DELETE FROM ledger_reservations WHERE reservation_id = ?"
_ADD_ENTRY: Final = f"""
INSERT INTO ledger_entries ({", ".join(columns.ENTRY)})
VALUES ({", ".join("?" * len(columns.ENTRY))})
"""


class SqliteLedgerRows:
    """The ledger in one SQLite file; see :class:`~chucky.server.ledger.rows.LedgerRows`."""

    def __init__(
        self, path: Path, connection: Connection, clock_ms: Callable[[], int] = now_ms
    ) -> None:
        """Take over a connection to a file that has the current schema."""
        self._path = path
        self._connection = connection
        self._clock_ms = clock_ms
        self._known = _Known()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, clock_ms: Callable[[], int] = now_ms) -> SqliteLedgerRows:
        """Open a database file, bringing it up to date first.

        Raises:
            ValidationError: The file cannot be used; the sentence says why.
        """
        path = path.expanduser().absolute()
        return cls(path, open_file(path), clock_ms)

    def close(self) -> None:
        """Close the file. Safe to call again."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[SqliteLedgerTransaction]:
        """Begin a transaction; see :class:`~chucky.server.ledger.rows.LedgerRows`."""
        with self._lock, faults(self._path, store_error):
            try:
                with transaction(self._connection):
                    now_ms = self._clock_ms()
                    self._known.check(self._connection, now_ms)
                    yield SqliteLedgerTransaction(self._connection, now_ms, self._known)
            except BaseException:
                self._known.forget()  # some of it may have been rolled back
                raise


class _Known:
    """Rows that this connection has read or written: nobody else has, so they need no reading.

    Attributes:
        accounts: Accounts by key; None where there is none.
        anchors: Anchors by key; None where there is none.
        reservations: Open reservations, not all of them.
        price_ids: The numbers of prices.
    """

    def __init__(self) -> None:
        self.accounts: dict[AccountKey, Account | None] = {}
        self.anchors: dict[AnchorKey, int | None] = {}
        self.reservations: dict[str, Reservation] = {}
        self.price_ids: dict[str, int] = {}
        self._seen = (0, 0)

    def check(self, connection: Connection, now_ms: int) -> None:
        """Forget everything if somebody else has written; within a transaction nobody can.

        SQLite changes a number when another connection has (https://sqlite.org/pragma.html). Also
        when the clock was set back: windows that are over are not kept, and one may be now again.
        """
        [data_version] = connection.execute("PRAGMA data_version").fetchone()
        last_version, last_ms = self._seen
        is_current = data_version == last_version and now_ms >= last_ms
        if not is_current or len(self.accounts) > _MOST_KNOWN_ACCOUNTS:
            self.forget()
        self._seen = (data_version, now_ms)

    def forget(self) -> None:
        """Forget everything."""
        self.accounts.clear()
        self.anchors.clear()
        self.reservations.clear()
        self.price_ids.clear()


class SqliteLedgerTransaction(SessionTransaction):
    """One transaction; see :class:`~chucky.server.ledger.rows.LedgerTransaction`."""

    def __init__(self, connection: Connection, now_ms: int, known: _Known) -> None:
        super().__init__(connection)
        self._now_ms = now_ms
        self._execute = connection.execute
        self._execute_many = connection.executemany
        self._known = known

    @property
    def now_ms(self) -> int:
        """The time at which it began."""
        return self._now_ms

    def lock_accounts(
        self, keys: Collection[AccountKey], needed: Collection[AccountKey] = ()
    ) -> dict[AccountKey, Account]:
        """Read accounts, and create those that are needed and missing."""
        known = self._known.accounts
        self._read_accounts([key for key in keys if key not in known])
        if missing := [key for key in needed if known[key] is None]:
            for key in missing:
                self._create_account(key)
            self._read_accounts(missing)
        found = {key: account for key in keys if (account := known[key]) is not None}
        for account in found.values():
            account.begin(self.now_ms)
        return found

    def _read_accounts(self, keys: Collection[AccountKey]) -> None:
        if keys:
            rows = self._execute(_ACCOUNTS, (json.dumps(list(keys)),))
            self._known.accounts.update(dict.fromkeys(keys))
            self._known.accounts.update(columns.accounts(rows, self.now_ms))

    def _create_account(self, key: AccountKey) -> None:
        statement = _CREATE_ACCOUNT if key.user_id else _CREATE_OF_PROJECT
        self._execute(statement, key._asdict())

    def anchors(self, keys: Collection[AnchorKey]) -> dict[AnchorKey, int]:
        """Read anchors."""
        known = self._known.anchors
        if unknown := [key for key in keys if key not in known]:
            rows = self._execute(_ANCHORS, (json.dumps(unknown),))
            known.update(dict.fromkeys(unknown))
            known.update((AnchorKey(*row[:3]), row[3]) for row in rows)
        return {key: anchor_ms for key in keys if (anchor_ms := known[key]) is not None}

    def spent_between(self, key: AccountKey, start_ms: int, end_ms: int) -> int:
        """Sum entries."""
        assert not key.session_id, "a session's budget has no windows"
        if key.user_id:
            values = (key.project_id, key.user_id, key.meter, start_ms, end_ms)
            return int(self._execute(_SPENT_BY_USER, values).fetchone()[0])
        of_project = (key.project_id, key.meter, start_ms, end_ms)
        return int(self._execute(_SPENT_BY_PROJECT, of_project).fetchone()[0])

    def reservations(self, ids: Collection[str]) -> dict[str, Reservation]:
        """Read open reservations."""
        known = self._known.reservations
        found = {each: known[each] for each in ids if each in known}
        if len(found) < len(ids):
            unknown = [each for each in ids if each not in found]
            rows = self._execute(_RESERVATIONS, (json.dumps(unknown),))
            found |= {row[0]: columns.reservation(row) for row in rows}
        return found

    def expired(self, owner: str | None) -> list[Reservation]:
        """Read reservations that nobody renewed."""
        if owner is None:
            rows = self._execute(_ALL_RESERVATIONS)
        else:
            rows = self._execute(_EXPIRED_RESERVATIONS, (self.now_ms, owner))
        return [columns.reservation(row) for row in rows.fetchall()]

    def endings(self, keys: Collection[str]) -> dict[str, Ending]:
        """Read how reservations ended."""
        return columns.endings(self._execute(_ENDINGS, (json.dumps(list(keys)),)))

    def turn_starts(self, key: AccountKey, since_ms: int) -> list[int]:
        """Read when turns began."""
        values = {"project_id": key.project_id, "user_id": key.user_id, "since_ms": since_ms}
        query = _STARTS_BY_USER if key.user_id else _STARTS_BY_PROJECT
        return [row[0] for row in self._execute(query, values)]

    def renew(
        self, owner: str, expires_ms: int, checkpoints: Mapping[str, tuple[int, Usage]]
    ) -> int:
        """Renew leases and write checkpoints."""
        self._known.reservations.clear()
        self._execute_many(
            _CHECKPOINT,
            [
                (amount, *columns.tokens(usage), each)
                for each, (amount, usage) in checkpoints.items()
            ],
        )
        server_rows.renew_lease(self._statements, owner, expires_ms)
        return self._execute(_RENEW, (expires_ms, owner)).rowcount

    def forget_windows(self, project_id: str, user_id: str, kind: str) -> None:
        """Drop the sums of a window kind."""
        self._known.accounts.clear()
        self._execute(_FORGET_WINDOWS, (kind, project_id, user_id))

    def write(self, changes: Changes) -> None:
        """Write what a batch of operations changed."""
        if changes.anchors:
            self._execute_many(_SET_ANCHOR, [(*key, at) for key, at in changes.anchors.items()])
        if changes.ended:
            self._execute_many(_END_RESERVATION, [(each,) for each in changes.ended])
        if changes.reservations:
            rows = [
                columns.reservation_row(each, self._price_id(each.price))
                for each in changes.reservations.values()
            ]
            self._execute_many(_SET_RESERVATION, rows)
        if changes.entries:
            rows = [columns.entry_row(each, self._price_id(each.price)) for each in changes.entries]
            self._execute_many(_ADD_ENTRY, rows)
        accounts = changes.accounts.values()
        self._execute_many(_SET_ACCOUNT, columns.account_rows(accounts))
        self._execute_many(_SET_GRANTED, columns.granted_rows(accounts))
        self._execute_many(_SET_WINDOW, columns.window_rows(accounts))
        self._remember(changes)

    def _remember(self, changes: Changes) -> None:
        known = self._known
        known.anchors.update(changes.anchors)
        known.reservations.update(changes.reservations)
        for reservation_id in changes.ended:
            known.reservations.pop(reservation_id, None)

    def _price_id(self, price: str) -> int | None:
        if not price:
            return None
        ids = self._known.price_ids
        if price not in ids:
            self._execute(_ADD_PRICE, (price,))
            ids[price] = self._execute(_PRICE_ID, (price,)).fetchone()[0]
        return ids[price]
