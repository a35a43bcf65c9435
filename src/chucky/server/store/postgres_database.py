"""A PostgreSQL database: connecting, migrating, transactions, faults.

The only module that imports ``psycopg``. ``schema/postgres.sql`` tells what is in the database;
how one of an earlier version gets there, by the scripts in ``migrations/postgres/``. What is read
from and written to it is the business of the modules beside this one.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from chucky.errors import ChuckyError, ValidationError
from chucky.server.postgres_url import PostgresUrl
from chucky.server.store.database import Rows, T, store_error
from chucky.server.store.migration import Migration, apply, migrations, missing_after

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

MAX_CONNECTIONS: Final = 10
WAIT_SECONDS: Final = 5.0  # for a free connection, or for the pool to make one
_OLDEST_SERVER: Final = 150000
_LONG_SECONDS: Final = 600

# What an address leaves open. A peer that is gone is noticed within half a minute.
_DEFAULT_PARAMETERS: Final = {
    "application_name": "chucky",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
# No statement waits for ever, and what is committed is on the disk, whatever the server's defaults.
_SET_UP: Final = """
SELECT set_config(name, value, false) FROM (VALUES
    ('search_path', 'chucky'),
    ('statement_timeout', '30s'),
    ('lock_timeout', '5s'),
    ('idle_in_transaction_session_timeout', '30s'),
    ('default_transaction_isolation', 'read committed'),
    ('synchronous_commit',
        coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'))
) AS settings (name, value)
"""
# For a connection whose transactions hold what others wait for: it must not leave them waiting. Its
# statements are planned once, when tables may be small or unknown, and must stay good.
_SET_UP_KEPT: Final = """
SELECT set_config(name, value, false) FROM (VALUES
    ('idle_in_transaction_session_timeout', '5s'),
    ('plan_cache_mode', 'force_generic_plan'),
    ('enable_seqscan', 'off'),
    ('enable_hashjoin', 'off'),
    ('enable_mergejoin', 'off'),
    ('jit', 'off')
) AS settings (name, value)
"""
# Whoever changes projects or the schema holds this lock until the end of the transaction, so that
# there is one writer at a time, as in a file.
_BE_THE_WRITER: Final = f"SELECT pg_advisory_xact_lock({int.from_bytes(b'Chck', 'big')})"
_TAKE_TIME: Final = (
    f"SELECT set_config('statement_timeout', '{_LONG_SECONDS}s', true), "
    f"set_config('lock_timeout', '{_LONG_SECONDS}s', true)"
)
_STAND_STILL: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_NOW_MS: Final = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"
_HAS_SCHEMA: Final = "SELECT to_regnamespace('chucky') IS NOT NULL"
_CREATE_SCHEMA: Final = "CREATE SCHEMA chucky"
_HAS_MIGRATIONS: Final = "SELECT to_regclass('chucky.schema_migrations') IS NOT NULL"
_APPLIED_VERSION: Final = "SELECT coalesce(max(version), 0) FROM chucky.schema_migrations"


class PostgresDatabase:
    """A :class:`~chucky.server.store.database.Database` on a server. Made by :meth:`open`.

    Attributes:
        applied: The names of the migrations that opening it applied.
    """

    def __init__(
        self, url: PostgresUrl, pool: ConnectionPool[Connection], applied: tuple[str, ...]
    ) -> None:
        self.applied = applied
        self._url = url
        self._pool = pool

    @classmethod
    def open(cls, url: PostgresUrl, *, create: bool = True) -> PostgresDatabase:
        """Connect to a database, bringing one of an earlier version up to date first.

        Args:
            url: Where it is.
            create: Whether to create the tables if there are none.

        Raises:
            ValidationError: The server cannot be reached, or the database not be used.
        """
        with _connected(url) as connection:
            if not create and not _has_migrations(connection):
                raise ValidationError(
                    f"There is nothing of chucky in the database {str(url)!r}; start `chucky "
                    f"serve` first, create a project with `chucky projects create`, or name the "
                    f"database with --db."
                )
            applied = _migrate(connection, url)
        # From now on a server that is away is waited for, and comes back by itself.
        pool: ConnectionPool[Connection] = ConnectionPool(
            kwargs={**_parameters(url), "autocommit": True},
            configure=_set_up,
            min_size=1,
            max_size=MAX_CONNECTIONS,
            timeout=WAIT_SECONDS,
            # Then the next one who asks makes it try again at once.
            reconnect_timeout=WAIT_SECONDS,
            open=True,
        )
        return cls(url, pool, applied)

    def close(self) -> None:
        """Close it; see :class:`~chucky.server.store.database.Database`."""
        self._pool.close()

    def read(self, work: Callable[[Statements], T]) -> T:
        """Let ``work`` read; see :class:`~chucky.server.store.database.Database`."""
        with faults(self._url, store_error):
            with self._connection() as connection:
                try:
                    return work(Statements(connection))
                except psycopg.OperationalError:
                    if not connection.broken:
                        raise
            with self._connection() as connection:
                return work(Statements(connection))

    @contextmanager
    def writing(self) -> Iterator[Statements]:
        """Write; see :class:`~chucky.server.store.database.Database`."""
        with (
            faults(self._url, store_error),
            self._connection() as connection,
            connection.transaction(),
        ):
            connection.execute(_BE_THE_WRITER)
            yield Statements(connection)

    @contextmanager
    def snapshot(self) -> Iterator[Statements]:
        """Read at one moment; see :class:`~chucky.server.store.database.Database`."""
        with (
            faults(self._url, store_error),
            self._connection() as connection,
            connection.transaction(),
        ):
            connection.execute(_STAND_STILL)
            connection.execute(_TAKE_TIME)
            yield Statements(connection)

    def now_ms(self) -> int:
        """Tell the server's time; see :class:`~chucky.server.store.database.Database`."""
        return self.read(lambda connection: int(connection.execute(_NOW_MS).fetchone()[0]))

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        connection = self._pool.getconn()
        try:
            yield connection
        finally:
            is_lost = connection.broken
            self._pool.putconn(connection)
            if is_lost:
                # Those that wait for their turn are probably lost as well.
                self._pool.check()


class KeptConnection:
    """One connection for one writer, made again when it was lost. Made by :meth:`open`.

    Statements are sent without waiting for the answers to those before them, until rows are asked
    for.
    """

    def __init__(self, url: PostgresUrl) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._is_closed = False

    @classmethod
    def open(cls, url: PostgresUrl) -> KeptConnection:
        """Connect to a database, bringing one of an earlier version up to date first.

        Raises:
            ValidationError: The server cannot be reached, or the database not be used.
        """
        with _connected(url) as connection:
            _migrate(connection, url)
        return cls(url)

    def close(self) -> None:
        """Close it. Safe to call again."""
        with self._lock:
            self._is_closed = True
            if self._connection is not None:
                self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Begin a transaction, which the first statement after a commit or rollback does as well.

        Raises:
            ChuckyError: The database failed.
        """
        with self._lock, faults(self._url, store_error):
            connection = self._connection_that_lives()
            try:
                with connection.pipeline():
                    yield connection
                    connection.commit()
            except BaseException:
                _roll_back(connection)
                raise

    def _connection_that_lives(self) -> Connection:
        if self._is_closed:
            raise PoolClosed("closed")
        if self._connection is None or _is_lost(self._connection):
            if self._connection is not None:
                self._connection.close()
            self._connection = psycopg.connect(**_parameters(self._url), prepare_threshold=0)
            self._connection.execute(_SET_UP)
            self._connection.execute(_SET_UP_KEPT)
            self._connection.commit()
        return self._connection


def _is_lost(connection: Connection) -> bool:
    """Whether a connection that nobody uses is gone; only then it has something to say."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _roll_back(connection: Connection) -> None:
    try:
        connection.rollback()
    except psycopg.Error:
        connection.close()  # the server rolls back what has no connection any more


class Statements:
    """A connection that takes statements in the form all databases share."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, parameters: Sequence[str | int | None] = (), /) -> Rows:
        """Run a statement; each ``?`` in it stands for a parameter."""
        return self._connection.execute(statement.replace("?", "%s").encode(), parameters)


def missing_migrations(url: PostgresUrl) -> list[Migration]:
    """Return the migrations that a database lacks, and leave it as it is.

    Raises:
        ValidationError: The server cannot be reached, or the database not be used.
    """
    with _connected(url) as connection:
        return _missing(connection, url)


@contextmanager
def _connected(url: PostgresUrl) -> Iterator[Connection]:
    """Connect to see whether the database can be used, with a sentence if not."""
    try:
        connection = psycopg.connect(**_parameters(url), autocommit=True)
    except psycopg.OperationalError as error:
        raise ValidationError(
            f"The database {str(url)!r} cannot be reached ({_in_one_line(error)}); check the "
            f"address, and the user's password (PGPASSWORD or ~/.pgpass)."
        ) from error
    with connection, faults(url, ValidationError):
        _set_up(connection)
        _require_suitable(connection, url)
        yield connection


def _parameters(url: PostgresUrl) -> dict[str, Any]:
    try:
        given = conninfo_to_dict(url.secret_url)
    except psycopg.ProgrammingError:
        # What libpq says may repeat a part of the address, so it is left out.
        raise ValidationError(
            f"The address {str(url)!r} has a parameter that PostgreSQL does not know or that has "
            f"no value; correct what follows its question mark."
        ) from None
    return {**_DEFAULT_PARAMETERS, **given, "client_encoding": "utf8"}


def _set_up(connection: Connection) -> None:
    connection.execute(_SET_UP)


def _require_suitable(connection: Connection, url: PostgresUrl) -> None:
    if connection.info.server_version < _OLDEST_SERVER:
        raise ValidationError(
            f"The database {str(url)!r} is on a server older than PostgreSQL "
            f"{_OLDEST_SERVER // 10_000}; upgrade it, or name another one with --db."
        )
    if connection.info.parameter_status("server_encoding") != "UTF8":
        raise ValidationError(
            f"The database {str(url)!r} cannot hold every text; create one with the encoding UTF8."
        )


def _migrate(connection: Connection, url: PostgresUrl) -> tuple[str, ...]:
    if not _missing(connection, url):
        return ()

    def run_script(script: str) -> None:
        connection.execute(script.encode())

    with connection.transaction():
        connection.execute(_TAKE_TIME)
        connection.execute(_BE_THE_WRITER)
        # Not asked for before it is needed: who prepares it for us need not let us create one.
        if not _is_true(connection, _HAS_SCHEMA):
            connection.execute(_CREATE_SCHEMA)
        # Asked again: another process may have migrated while this one waited for the lock.
        return apply(_missing(connection, url), Statements(connection), run_script)


def _missing(connection: Connection, url: PostgresUrl) -> list[Migration]:
    applied = 0
    if _has_migrations(connection):
        row = connection.execute(_APPLIED_VERSION).fetchone()
        applied = row[0] if row else 0
    return missing_after(applied, migrations("postgres"), str(url))


def _has_migrations(connection: Connection) -> bool:
    return _is_true(connection, _HAS_MIGRATIONS)


def _is_true(connection: Connection, question: str) -> bool:
    row = connection.execute(question.encode()).fetchone()
    return row is not None and bool(row[0])


_WHAT_TO_DO: Final = {
    "25006": "is read-only; name the server that accepts writes",
    "40P01": "was locked by others in a knot; try again",
    "42501": "does not let this user do that; grant it the right, or make it the owner",
    "42P01": "lacks a table that was there; restore it from a backup",
    "53100": "cannot be written because the disk of its server is full; free some space",
    "53300": "has no connection left; raise max_connections of its server, or stop a client",
    "55P03": "is locked by another process; try again, or stop that process",
    "57014": "took too long to answer; try again, or look at what its server is doing",
}


def _advice(error: psycopg.Error) -> str:
    if isinstance(error, PoolTimeout):
        return "cannot be reached; check its server, the log says more"
    if isinstance(error, PoolClosed):
        return "is closed"
    if error.sqlstate in _WHAT_TO_DO:
        return _WHAT_TO_DO[error.sqlstate]
    # Without a state, or with one of the server's own end, the connection is gone.
    if isinstance(error, psycopg.OperationalError) and (error.sqlstate or "57P")[:3] == "57P":
        return (
            "did not answer to the end; check its server, and whether the last change was made, "
            "and try again"
        )
    # Not the details: they name values.
    return f"cannot be used ({error.diag.message_primary or _in_one_line(error)})"


def _in_one_line(error: psycopg.Error) -> str:
    return " ".join(str(error).split())


@contextmanager
def faults(url: PostgresUrl, error_class: Callable[[str], ChuckyError]) -> Iterator[None]:
    """Turn what PostgreSQL raises into one sentence that names the database and what to do."""
    try:
        yield
    except (psycopg.DataError, psycopg.IntegrityError):
        raise  # a fault of ours and not of the database's: nobody is told to check its server
    except psycopg.Error as error:
        raise error_class(f"The database {str(url)!r} {_advice(error)}.") from error
