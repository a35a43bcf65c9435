"""The peer of the ledger: the same rows in the same tables, by a loop that decides nothing."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg

from chucky.server.ledger.operations import new_reservation_id
from chucky.server.postgres_url import PostgresUrl
from chucky.server.store import sqlite_file
from chucky.server.store.ledger_columns import ENTRY, RESERVATION

PROJECT = "bare"
RESERVED, SPENT = 61_000_000, 3_300_000

_CREATE = f"""
INSERT INTO ledger_accounts (project_id, user_id, session_id, meter, settled, reserved)
VALUES ('{PROJECT}', ?, '', 'ai', 0, 0)
"""
_ADD_WINDOWS = f"""
INSERT INTO ledger_windows (account_id, window_kind, start_ms, end_ms, spent)
SELECT account_id, 'day', 0, {10**15}, 0 FROM ledger_accounts WHERE project_id = '{PROJECT}'
"""
_ACCOUNTS = f"""
SELECT account_id, user_id, settled, reserved FROM ledger_accounts
WHERE project_id = '{PROJECT}' AND session_id = '' AND meter = 'ai' AND user_id IN ({{}})
ORDER BY account_id
"""
_SET_ACCOUNT = "UPDATE ledger_accounts SET settled = ?, reserved = ? WHERE account_id = ?"
_SET_WINDOW = "UPDATE ledger_windows SET spent = spent + ? WHERE account_id = ?"
_OPEN = "SELECT reservation_id, amount FROM ledger_reservations WHERE reservation_id IN ({})"
_ADD = "INSERT INTO {} ({}) VALUES ({})"
_END = "DELETE FROM ledger_reservations WHERE reservation_id = ?"

Row = Sequence[Any]


class _Connection(Protocol):
    """What the two drivers have in common."""

    def execute(self, statement: str, values: Row = (), /) -> Any:
        """Run a statement."""

    def executemany(self, statement: str, rows: Iterable[Row], /) -> Any:
        """Run a statement for each row."""


class BareLedger:
    """Reserves and settles for a fixed set of users, so many at a time in one transaction."""

    def __init__(
        self, connection: _Connection, users: int, mark: str, begin: str, lock: str
    ) -> None:
        """Create the accounts.

        Args:
            connection: To a database that has the ledger's tables; nothing else uses it.
            users: How many users there are, and operations in a transaction.
            mark: What stands for a parameter.
            begin: What begins a transaction.
            lock: What locks the rows of a SELECT.
        """
        marks = ", ".join([mark] * users)
        self._connection = connection
        self._users = [f"user-{uuid.uuid4().hex}" for _ in range(users)]
        self._begin = begin
        self._accounts = _ACCOUNTS.format(marks) + lock
        self._open = _OPEN.format(marks)
        self._reserve, self._append = (
            _ADD.format(table, ", ".join(columns), ", ".join([mark] * len(columns)))
            for table, columns in (("ledger_reservations", RESERVATION), ("ledger_entries", ENTRY))
        )
        self._end, self._set_account, self._set_window = (
            each.replace("?", mark) for each in (_END, _SET_ACCOUNT, _SET_WINDOW)
        )
        connection.executemany(_CREATE.replace("?", mark), [(user,) for user in self._users])
        connection.execute(f"{_ADD_WINDOWS} AND user_id IN ({marks})", self._users)

    def spend(self) -> None:
        """Reserve and settle once for every user: two transactions."""
        ids = {user: new_reservation_id() for user in self._users}
        self._in_a_transaction(lambda: self._reserve_all(ids))
        self._in_a_transaction(lambda: self._settle_all(ids))

    def _in_a_transaction(self, write: Callable[[], None]) -> None:
        self._connection.execute(self._begin)
        write()
        self._connection.execute("COMMIT")

    def _reserve_all(self, ids: dict[str, str]) -> None:
        accounts = self._connection.execute(self._accounts, self._users).fetchall()
        who = "session", "turn", "ai"
        tokens = (100, 200, 0, 0, 0)
        self._connection.executemany(
            self._reserve,
            [
                (ids[user], PROJECT, user, *who, RESERVED, 4096, 0, *tokens, None, "m", 5, 5, "o")
                for _, user, _, _ in accounts
            ],
        )
        self._connection.executemany(
            self._set_account,
            [(settled, held + RESERVED, number) for number, _, settled, held in accounts],
        )

    def _settle_all(self, ids: dict[str, str]) -> None:
        accounts = self._connection.execute(self._accounts, self._users).fetchall()
        held = dict(self._connection.execute(self._open, list(ids.values())).fetchall())
        self._connection.executemany(self._end, [(each,) for each in ids.values()])
        self._connection.executemany(
            self._append, [_entry(user, ids[user], held[ids[user]]) for _, user, _, _ in accounts]
        )
        self._connection.executemany(
            self._set_account,
            [
                (settled + SPENT, reserved - held[ids[user]], number)
                for number, user, settled, reserved in accounts
            ],
        )
        self._connection.executemany(
            self._set_window, [(SPENT, number) for number, _, _, _ in accounts]
        )


def _entry(user: str, reservation_id: str, reserved: int) -> Row:
    who = PROJECT, user, "session", "turn", "ai"
    tokens = (100, 200, 0, 0, 0)
    return (
        *(reservation_id, "settle", *who, SPENT, reserved, 0, False, 5, 5, "m", None),
        *(*tokens, "", "", ""),
    )


class _Psycopg:
    """A connection of psycopg with the methods of one of sqlite3."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, values: Row = (), /) -> Any:
        return self._connection.execute(statement.encode(), values, prepare=True)

    def executemany(self, statement: str, rows: Iterable[Row], /) -> Any:
        self._connection.cursor().executemany(statement.encode(), rows)


@contextmanager
def bare_ledger(db: Path | PostgresUrl, users: int) -> Iterator[BareLedger]:
    """Open a bare ledger in a database that has the ledger's tables."""
    if isinstance(db, Path):
        with closing(sqlite_file.connect(db)) as file:
            yield BareLedger(file, users, mark="?", begin="BEGIN IMMEDIATE", lock="")
        return
    options = "-c search_path=chucky"
    with psycopg.connect(db.secret_url, autocommit=True, options=options) as server:
        yield BareLedger(_Psycopg(server), users, mark="%s", begin="BEGIN", lock="FOR UPDATE")
