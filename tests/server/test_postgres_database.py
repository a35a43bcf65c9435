"""What is special about a PostgreSQL database: connections, limits, history, and who may use it."""

from __future__ import annotations

import logging
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from chucky.errors import ChuckyError, ValidationError
from chucky.server.postgres_url import PostgresUrl
from chucky.server.settings import Settings
from chucky.server.store import Store, missing_migrations, open_store, postgres_database
from chucky.server.store.migration import Migration, migrations
from chucky.server.store.postgres_database import PostgresDatabase

if TYPE_CHECKING:
    from tests.conftest import PostgresServer
    from tests.server.conftest import PostgresPlace

SQL = resources.files("chucky.server.store")


@pytest.fixture
def place(postgres_place: PostgresPlace) -> PostgresPlace:
    return postgres_place


@pytest.fixture
def store(place: PostgresPlace) -> Iterator[Store]:
    with closing(Store.open(place.db)) as opened:
        yield opened


# --- the schema and its history -----------------------------------------------------------------


def shape(server: PostgresServer, url: str) -> list[str]:
    """All that a database contains except its rows, as PostgreSQL itself writes it down."""
    dumped = subprocess.run(
        [server.programs / "pg_dump", "--schema-only", "--no-owner", "--dbname", url],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    # Each dump has a word of its own against commands smuggled into it.
    return [line for line in dumped.stdout.splitlines() if not re.match(r"\\(un)?restrict ", line)]


def test_the_migrations_together_make_exactly_the_schema(
    place: PostgresPlace, postgres: PostgresServer
) -> None:
    Store.open(place.db).close()
    written = postgres.create_database()
    try:
        with psycopg.connect(written) as connection:
            connection.execute(SQL.joinpath("schema", "postgres.sql").read_bytes())
        assert shape(postgres, place.db.secret_url) == shape(postgres, written)
    finally:
        postgres.drop_database(written)


def test_migrations_are_numbered_without_gaps_and_recorded(place: PostgresPlace) -> None:
    names = sorted(file.name for file in SQL.joinpath("migrations", "postgres").iterdir())
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    assert [each.name for each in missing_migrations(place.db)] == names
    with closing(Store.open(place.db)) as store:
        assert store.database.applied == tuple(names)
    with closing(Store.open(place.db)) as store:
        assert store.database.applied == ()
    assert missing_migrations(place.db) == []
    recorded = place.execute("SELECT version, name FROM schema_migrations ORDER BY version")
    assert recorded == list(enumerate(names, start=1))


def test_a_damaged_migration_leaves_nothing_behind(
    place: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = migrations("postgres")
    broken = Migration(len(whole) + 1, "broken.sql", "CREATE TABLE half (a INT); SELECT nonsense;")
    with monkeypatch.context() as patched:
        patched.setattr(postgres_database, "migrations", lambda _: [*whole, broken])
        with pytest.raises(ValidationError, match=r"cannot be used \(column .* does not exist\)"):
            Store.open(place.db)
    assert place.execute("SELECT to_regnamespace('chucky')::text") == [(None,)]
    with closing(Store.open(place.db)) as store:
        assert store.load_all() == ()


def test_tables_of_other_programs_are_left_alone(place: PostgresPlace) -> None:
    for table in ("projects", "schema_migrations"):
        place.execute(f"CREATE TABLE public.{table} (version TEXT)")
    with closing(Store.open(place.db)) as store:
        store.create_project("acme")
    assert place.execute("SELECT * FROM public.projects") == []
    assert place.execute("SELECT * FROM public.schema_migrations") == []


def test_a_user_who_may_not_create_schemas_can_use_one_that_was_prepared(
    place: PostgresPlace, postgres: PostgresServer
) -> None:
    role, password = f"role_{secrets.token_hex(4)}", secrets.token_hex(16)
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
    host = f"127.0.0.1:{postgres.port}"
    url = PostgresUrl(f"postgresql://{role}:{password}@{host}/{place.name}")
    try:
        with pytest.raises(ValidationError, match="does not let this user do that; grant it"):
            Store.open(url)
        place.execute(f"CREATE SCHEMA chucky AUTHORIZATION {role}")
        with closing(Store.open(url)) as store:
            store.create_project("acme")
    finally:
        place.execute(f"DROP OWNED BY {role} CASCADE")
        postgres.execute(f"DROP ROLE {role}")


# --- databases that cannot be used --------------------------------------------------------------


def test_a_database_with_nothing_of_chucky_in_it_is_not_filled_by_a_command(
    place: PostgresPlace,
) -> None:
    with pytest.raises(ValidationError, match=r"nothing of chucky in .*; start `chucky serve`"):
        open_store(Settings(db=place.db), create=False)
    assert place.execute("SELECT to_regnamespace('chucky')::text") == [(None,)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda url: re.sub(r":\d+/", ":1/", url), "Connection refused"),
        (lambda url: f"{url}x", r'database "test_\w+" does not exist'),
        (lambda url: re.sub(r":\w+@", ":wrong@", url), "password authentication failed for user"),
        (lambda url: f"{url}?host=no-such-host.invalid", "no-such-host.invalid"),
    ],
)
def test_a_database_that_cannot_be_reached_is_told_with_the_reason_and_without_the_password(
    place: PostgresPlace, change: object, reason: str
) -> None:
    assert callable(change)
    url = PostgresUrl(change(place.db.secret_url))
    with pytest.raises(ValidationError, match=rf"cannot be reached \(.*{reason}.*\); ") as caught:
        Store.open(url)
    assert str(url) in str(caught.value)
    assert ":wrong@" not in str(caught.value)
    assert_no_password(place, caught.value)


def assert_no_password(place: PostgresPlace, error: BaseException | None) -> None:
    """Look through an error and its causes."""
    while error is not None:
        assert place.server.password not in f"{error} {error!r} {error.args}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("query", ["nonsense=1", "connect_timeout"])
def test_an_address_with_a_parameter_that_means_nothing_is_refused(
    place: PostgresPlace, query: str
) -> None:
    with pytest.raises(ValidationError, match="has a parameter that PostgreSQL does not know"):
        Store.open(PostgresUrl(f"{place.db.secret_url}?{query}"))


def test_a_database_that_cannot_hold_every_text_is_refused(postgres: PostgresServer) -> None:
    name = f"test_{secrets.token_hex(8)}"
    postgres.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0")
    try:
        with pytest.raises(ValidationError, match="create one with the encoding UTF8"):
            Store.open(PostgresUrl(postgres.url(name)))
    finally:
        postgres.drop_database(postgres.url(name))


def test_an_old_server_is_refused(place: PostgresPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_database, "_OLDEST_SERVER", 990000)
    with pytest.raises(ValidationError, match="on a server older than PostgreSQL 99; upgrade"):
        Store.open(place.db)


def test_without_the_driver_one_sentence_says_how_to_install_it() -> None:
    program = "import sys; sys.modules['psycopg'] = None\nfrom chucky.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "projects", "list", "--db", "postgresql://127.0.0.1/x"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert re.fullmatch(
        r"Error: A PostgreSQL database needs the package psycopg, .* run `pip install "
        r"'\.\[server,postgres\]'` in a checkout of chucky\.\n",
        done.stderr,
    )


def test_a_file_needs_no_driver() -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from chucky.server.store import Store; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout == b"fine\n"


# --- while it is used ---------------------------------------------------------------------------


def test_nothing_waits_for_ever_and_what_is_committed_is_on_the_disk(
    place: PostgresPlace, postgres: PostgresServer
) -> None:
    postgres.execute(f"ALTER DATABASE {place.name} SET synchronous_commit = off")
    postgres.execute(
        f"ALTER DATABASE {place.name} SET default_transaction_isolation = 'serializable'"
    )
    expected = {
        "statement_timeout": "30s",
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "30s",
        "transaction_isolation": "read committed",
        "synchronous_commit": "on",
        "tcp_user_timeout": "0",  # that of the server; ours is the client's
        "application_name": "chucky",
    }
    with closing(PostgresDatabase.open(place.db)) as database, database.writing() as connection:
        for name, value in expected.items():
            assert connection.execute(f"SHOW {name}").fetchone() == (value,), name


def test_a_stricter_commit_of_the_database_is_left_as_it_is(
    place: PostgresPlace, postgres: PostgresServer
) -> None:
    postgres.execute(f"ALTER DATABASE {place.name} SET synchronous_commit = remote_apply")
    with closing(PostgresDatabase.open(place.db)) as database, database.writing() as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("remote_apply",)


def test_a_lost_connection_is_no_reason_to_fail_a_read(place: PostgresPlace, store: Store) -> None:
    project, _ = store.create_project("acme")
    place.cut()
    assert store.load_all() == (project,)
    place.cut()
    assert store.change_counter() > 0


def test_all_lost_connections_are_noticed_at_once(place: PostgresPlace, store: Store) -> None:
    project, _ = store.create_project("acme")

    def hold(depth: int) -> None:
        if depth:
            store.database.read(lambda _: hold(depth - 1))

    hold(5)  # so many connections are open then
    place.cut()
    assert store.load_all() == (project,)


def test_a_write_whose_connection_is_lost_is_told_and_not_made_twice(
    place: PostgresPlace, store: Store
) -> None:
    def write() -> None:
        with store.database.writing() as connection:
            connection.execute("UPDATE projects SET name = 'changed'")
            place.cut()

    store.create_project("acme")
    with pytest.raises(ChuckyError, match="did not answer to the end; check its server") as caught:
        write()
    assert caught.value.code == "STORE_ERROR"
    assert_no_password(place, caught.value)
    assert [project.name for project in store.load_all()] == ["acme"]
    store.disable_project("acme")


def test_a_server_that_is_away_is_told_and_may_come_back(
    place: PostgresPlace, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store.create_project("acme")
    with place.outage():
        for use in (store.load_all, store.ensure_default_project):
            with pytest.raises(ChuckyError, match="cannot be reached; check its serv") as caught:
                use()
            assert caught.value.code == "STORE_ERROR"
            assert_no_password(place, caught.value)
    assert [project.name for project in store.load_all()] == ["acme"]
    assert "not currently accepting connections" in caplog.text
    assert place.server.password not in caplog.text


def test_a_statement_that_takes_too_long_is_ended(
    place: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = postgres_database._SET_UP.replace(
        "('statement_timeout', '30s')", "('statement_timeout', '10ms')"
    )
    monkeypatch.setattr(postgres_database, "_SET_UP", quick)
    with (
        closing(PostgresDatabase.open(place.db)) as database,
        pytest.raises(ChuckyError, match="took too long to answer; try again"),
    ):
        database.read(lambda connection: connection.execute("SELECT pg_sleep(60)"))


def test_a_read_only_server_is_told_as_such(place: PostgresPlace, postgres: PostgresServer) -> None:
    Store.open(place.db).close()
    postgres.execute(f"ALTER DATABASE {place.name} SET default_transaction_read_only = on")
    with (
        closing(Store.open(place.db)) as store,
        pytest.raises(ChuckyError, match="is read-only; name the server that accepts writes"),
    ):
        store.create_project("acme")


def test_a_password_may_come_from_the_environment_or_a_file(
    place: PostgresPlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = PostgresUrl(str(place.db))
    assert not bare.has_password
    with pytest.raises(ValidationError, match="no password supplied"):
        Store.open(bare)
    monkeypatch.setenv("PGPASSWORD", place.server.password)
    Store.open(bare).close()
    monkeypatch.delenv("PGPASSWORD")
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:{place.server.port}:*:tests:{place.server.password}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    Store.open(bare).close()


def test_texts_are_kept_whatever_the_shell_says_of_its_encoding(
    place: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    policy = '{"models": ["→"]}'
    with closing(Store.open(place.db)) as store:
        store.create_project("acme")
        store.set_policy("acme", policy)
        assert store.policy_text("acme") == policy


def test_a_server_may_be_named_by_its_socket(place: PostgresPlace) -> None:
    server = place.server
    user = f"tests:{server.password}"
    url = f"postgresql://{user}@/{place.name}?host={server.directory}&port={server.port}"
    with closing(Store.open(PostgresUrl(url))) as store:
        store.create_project("acme")
