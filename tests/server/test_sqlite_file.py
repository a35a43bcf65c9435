"""The file of the SQLite store: its place, rights, schema and history, and the serve lock."""

from __future__ import annotations

import os
import re
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib import resources
from pathlib import Path

import pytest

from chucky.errors import ChuckyError, ValidationError
from chucky.server.projects import ProjectKey
from chucky.server.settings import Settings
from chucky.server.store import ServeLock, Store, missing_migrations, open_store, sqlite_file
from chucky.server.store.migration import Migration, migrations
from chucky.server.store.sqlite_file import SqliteFile

SQL = resources.files("chucky.server.store")
WAIT_SECONDS = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chucky.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store.open(path)) as opened:
        yield opened


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    """Ask the file itself, past the store."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


# --- the file -------------------------------------------------------------------------------


def test_a_new_database_is_readable_by_its_owner_only(path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(Store.open(path)) as store:
            store.create_project("acme")
            modes = {
                file.name: file.stat().st_mode & 0o777 for file in path.parent.glob("chucky.db*")
            }
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("chucky.db", "chucky.db-wal", "chucky.db-shm"), 0o600)


def test_every_commit_is_on_the_disk_before_it_is_confirmed(path: Path) -> None:
    with closing(SqliteFile.open(path)) as file, file.writing() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)


def _without_layout(sql: str) -> str:
    """A statement without comments and superfluous blanks: an added column has others."""
    return re.sub(r" (?=[,)])", "", " ".join(re.sub("--.*", "", sql).split()))


def test_the_migrations_together_make_exactly_the_schema(path: Path, tmp_path: Path) -> None:
    Store.open(path).close()
    written = tmp_path / "schema.db"
    with closing(sqlite3.connect(written)) as connection:
        connection.executescript(SQL.joinpath("schema", "sqlite.sql").read_text())

    def shape(file: Path) -> list[tuple[object, ...]]:
        found = rows(
            file,
            # A table of SQLite's own stays when no other needs it any more.
            "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name <> 'sqlite_sequence' "
            "ORDER BY 1, 2",
        )
        bare = [(*row[:3], _without_layout(str(row[3]))) for row in found]
        return [*bare, *rows(file, "PRAGMA application_id")]

    assert shape(path) == shape(written)


def test_migrations_are_numbered_without_gaps_and_recorded(path: Path) -> None:
    names = sorted(file.name for file in SQL.joinpath("migrations", "sqlite").iterdir())
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    Store.open(path).close()
    Store.open(path).close()
    recorded = rows(path, "SELECT version, name FROM schema_migrations ORDER BY version")
    assert recorded == list(enumerate(names, start=1))


def test_a_damaged_migration_leaves_nothing_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = migrations("sqlite")
    script = "CREATE TABLE half (a);\nCREATE TABLE half (a);\n"
    broken = Migration(len(whole) + 1, "broken.sql", script)
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_file, "migrations", lambda _: [*whole, broken])
        with pytest.raises(ValidationError, match="cannot be used"):
            Store.open(path)
    assert rows(path, "SELECT count(*) FROM sqlite_schema") == [(0,)]
    with closing(Store.open(path)) as store:
        assert store.load_all() == ()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"there is no directory '.*/nowhere'; create it"):
        Store.open(tmp_path / "nowhere" / "chucky.db")


@pytest.mark.parametrize("first", ["lock", "store"])
def test_the_directory_of_the_default_database_is_created_private_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share" / "data"))
    path = Settings().db
    assert isinstance(path, Path)
    if first == "lock":
        ServeLock.acquire(path).release()
    open_store(Settings()).close()
    assert path.is_file()
    for directory in (path.parent, path.parent.parent, path.parent.parent.parent):
        assert directory.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ValidationError, match="there is no directory"):
        open_store(Settings(db=tmp_path / "typo" / "chucky.db"))


def test_a_default_directory_that_cannot_be_created_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(ValidationError, match=r"directory .* cannot be created \(Not a directory"):
        open_store(Settings())


def test_a_database_that_must_exist_is_not_created(path: Path) -> None:
    with pytest.raises(ValidationError, match=r"There is no database .*; start `chucky serve`"):
        open_store(Settings(db=path), create=False)
    assert not path.exists()


def test_a_directory_is_not_a_database(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="is a directory; name a file in it"):
        Store.open(tmp_path)


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("shopping list\n" * 100)
    with pytest.raises(ValidationError, match=r"chucky\.db' is not a chucky database; name"):
        Store.open(path)
    assert path.read_text() == "shopping list\n" * 100


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    execute(path, "CREATE TABLE cookies (value)")
    before = path.read_bytes()
    with pytest.raises(ValidationError, match="is a database of another program"):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_damaged_database_is_told_as_such(path: Path) -> None:
    with closing(Store.open(path)) as store:
        store.create_project("acme")
    content = bytearray(path.read_bytes())
    content[100:] = os.urandom(len(content) - 100)  # all but the header
    path.write_bytes(content)
    with pytest.raises(ValidationError, match="is damaged; restore it from a backup"):
        Store.open(path)


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that another user may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory
        directory.chmod(0o755)


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """File modes mean nothing to root, so be somebody else for as long as the test runs."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_file_without_the_rights_to_it_is_refused(
    public_directory: Path, mode: int, request: pytest.FixtureRequest
) -> None:
    path = public_directory / "chucky.db"
    Store.open(path).close()
    path.chmod(mode)
    request.getfixturevalue("ordinary_user")
    with pytest.raises(ValidationError, match="cannot be read and written by this user"):
        Store.open(path)


def test_a_directory_without_the_right_to_write_is_refused(
    public_directory: Path, request: pytest.FixtureRequest
) -> None:
    public_directory.chmod(0o555)
    request.getfixturevalue("ordinary_user")
    with pytest.raises(ValidationError, match=r"cannot be opened or created \(Permission denied\)"):
        Store.open(public_directory / "chucky.db")


def test_a_new_file_that_another_process_is_just_preparing_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        # The other process finishes while the store waits before it tries again.
        monkeypatch.setattr("time.sleep", lambda _seconds: other.execute("COMMIT"))
        Store.open(path).close()
        assert not other.in_transaction


def test_stores_that_open_a_new_file_at_once_all_succeed(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / f"{number}.db"
        with ThreadPoolExecutor(4) as pool:
            for store in pool.map(Store.open, [path] * 4, timeout=WAIT_SECONDS):
                store.close()


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_file_of_an_earlier_version_is_brought_up_to_date(path: Path, version: int) -> None:
    early, later = migrations("sqlite")[:version], migrations("sqlite")[version:]
    key = f"hk_live_{secrets.token_hex(32)}"
    with closing(sqlite3.connect(path)) as connection:
        for each in early:
            connection.executescript(each.script)
            connection.execute(
                "INSERT INTO schema_migrations VALUES (?, ?, 1)", (each.version, each.name)
            )
        connection.execute(
            "INSERT INTO projects (project_id, name, created_ms) VALUES ('p', 'acme', 1)"
        )
        connection.execute(
            "INSERT INTO project_keys (key_id, project_id, secret, created_ms)"
            " VALUES ('k', 'p', ?, 1)",
            (key,),
        )
        connection.commit()
    assert missing_migrations(path) == later
    with closing(Store.open(path)) as store:
        assert store.database.applied == tuple(each.name for each in later)
        assert store.find_project("acme").keys == (ProjectKey("k", key),)
        before = store.change_counter()
        store.rotate_key("acme")
        assert store.change_counter() != before
    assert missing_migrations(path) == []


def test_the_entries_of_an_earlier_version_stay_as_they_are(path: Path) -> None:
    early = [each for each in migrations("sqlite") if each.version < 10]
    rest = "0, 0, 1, 2, 'm', 1, 1, 2, 3, 4, 5, 'searches', '', 'why'"
    with closing(sqlite3.connect(path)) as connection:
        for each in early:
            connection.executescript(each.script)
            connection.execute(
                "INSERT INTO schema_migrations VALUES (?, ?, 1)", (each.version, each.name)
            )
        connection.execute("INSERT INTO ledger_prices VALUES (1, '{}')")
        for number in (1, 2, 7):
            connection.execute(
                f"INSERT INTO ledger_entries VALUES ({number}, 'k{number}', 'settle', 'p', 'u', "
                f"'s', 't', 'ai', {number}, 9, {rest})"
            )
        connection.commit()
    before = rows(path, "SELECT * FROM ledger_entries ORDER BY entry_id")
    Store.open(path).close()
    assert rows(path, "SELECT * FROM ledger_entries ORDER BY entry_id") == before
    with closing(sqlite3.connect(path)) as connection:
        for change in ("UPDATE ledger_entries SET amount = 0", "DELETE FROM ledger_entries"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                connection.execute(change)
        connection.execute(
            f"INSERT INTO ledger_entries SELECT NULL, 'late', 'late', 'p', 'u', 's', 't', 'ai', 1, "
            f"0, {rest}"
        )
        assert connection.execute("SELECT max(entry_id) FROM ledger_entries").fetchone() == (8,)


@pytest.mark.parametrize("successor", [None, "copy"])
def test_a_database_that_was_removed_or_replaced_is_noticed(
    path: Path, store: Store, successor: str | None
) -> None:
    store.ensure_default_project()
    kept = path.rename(path.with_name("kept"))
    if successor:
        path.write_bytes(kept.read_bytes())
    for use in (store.change_counter, store.load_all, store.ensure_default_project):
        with pytest.raises(ChuckyError, match="was removed or replaced while in use"):
            use()
    kept.rename(path)
    store.change_counter()


# --- the serve lock -------------------------------------------------------------------------


def test_a_second_server_on_the_same_file_is_refused_by_the_number_of_the_first(
    path: Path,
) -> None:
    with (
        ServeLock.acquire(path),
        pytest.raises(ValidationError, match=rf"`chucky serve` \(process {os.getpid()}\) already"),
    ):
        ServeLock.acquire(path)
    ServeLock.acquire(path).release()


def test_releasing_a_lock_twice_does_not_release_that_of_the_next(path: Path) -> None:
    first = ServeLock.acquire(path)
    first.release()
    with ServeLock.acquire(path):
        first.release()
        with pytest.raises(ValidationError, match="already uses the database"):
            ServeLock.acquire(path)


def test_another_name_of_the_same_file_does_not_get_around_the_lock(path: Path) -> None:
    Store.open(path).close()
    link = path.with_name("link.db")
    link.symlink_to(path)
    with ServeLock.acquire(path), pytest.raises(ValidationError, match="already uses"):
        ServeLock.acquire(link)


def test_commands_work_while_a_server_holds_the_lock(path: Path) -> None:
    with ServeLock.acquire(path), closing(Store.open(path)) as store:
        store.create_project("acme")


def test_the_lock_of_a_killed_server_is_free(path: Path) -> None:
    program = (
        "import pathlib, sys; from chucky.server.store import ServeLock\n"
        "lock = ServeLock.acquire(pathlib.Path(sys.argv[1])); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValidationError, match=rf"process {process.pid}"):
            ServeLock.acquire(path)
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_SECONDS)
    ServeLock.acquire(path).release()


def test_a_lock_file_that_cannot_be_written_is_told(
    public_directory: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("ordinary_user")
    with pytest.raises(ValidationError, match=r"lock file .* cannot be written \(Permission"):
        ServeLock.acquire(public_directory / "chucky.db")


def test_what_can_be_no_database_gets_no_lock_file(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    with pytest.raises(ValidationError, match="is a directory; name a file in it"):
        ServeLock.acquire(directory)
    with pytest.raises(ValidationError, match="there is no directory"):
        ServeLock.acquire(tmp_path / "nowhere" / "chucky.db")
    assert list(tmp_path.iterdir()) == [directory]
