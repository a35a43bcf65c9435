"""The SQLite store of projects and keys, the serve lock, and the directory that follows it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from importlib import resources
from pathlib import Path

import pytest

from chucky.errors import ChuckyError, ValidationError
from chucky.server.projects import Project, ProjectDirectory
from chucky.server.settings import Settings
from chucky.server.store import ServeLock, SqliteStore, open_store, sqlite, sqlite_file

SQL = resources.files("chucky.server.store")
WAIT_SECONDS = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chucky.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore.open(path)) as opened:
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
        with closing(SqliteStore.open(path)) as store:
            store.create_project("acme")
            modes = {
                file.name: file.stat().st_mode & 0o777 for file in path.parent.glob("chucky.db*")
            }
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("chucky.db", "chucky.db-wal", "chucky.db-shm"), 0o600)


def test_every_commit_is_on_the_disk_before_it_is_confirmed(path: Path, store: SqliteStore) -> None:
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    assert store._main.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._main.execute("PRAGMA foreign_keys").fetchone() == (1,)


def _without_layout(sql: str) -> str:
    """A statement without comments and superfluous blanks: an added column has others."""
    return re.sub(r" (?=[,)])", "", " ".join(re.sub("--.*", "", sql).split()))


def test_the_migrations_together_make_exactly_the_schema(path: Path, tmp_path: Path) -> None:
    SqliteStore.open(path).close()
    written = tmp_path / "schema.db"
    with closing(sqlite3.connect(written)) as connection:
        connection.executescript(SQL.joinpath("schema.sql").read_text())

    def shape(file: Path) -> list[tuple[object, ...]]:
        found = rows(file, "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2")
        bare = [(*row[:3], _without_layout(str(row[3]))) for row in found]
        return [*bare, *rows(file, "PRAGMA application_id")]

    assert shape(path) == shape(written)


def test_migrations_are_numbered_without_gaps_and_recorded(path: Path) -> None:
    names = sorted(file.name for file in SQL.joinpath("migrations").iterdir())
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    SqliteStore.open(path).close()
    SqliteStore.open(path).close()
    recorded = rows(path, "SELECT version, name FROM schema_migrations ORDER BY version")
    assert recorded == list(enumerate(names, start=1))


def test_a_damaged_migration_leaves_nothing_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sqlite_file._migrations()
    broken = (len(whole) + 1, "broken.sql", "CREATE TABLE half (a);\nCREATE TABLE half (a);\n")
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_file, "_migrations", lambda: [*whole, broken])
        with pytest.raises(ValidationError, match="cannot be used"):
            SqliteStore.open(path)
    assert rows(path, "SELECT count(*) FROM sqlite_schema") == [(0,)]
    with closing(SqliteStore.open(path)) as store:
        assert store.load_all() == ()


def test_what_was_stored_is_there_after_opening_again(path: Path) -> None:
    with closing(SqliteStore.open(path)) as store:
        project, _ = store.create_project("acme")
    with closing(SqliteStore.open(path)) as again:
        assert again.load_all() == (project,)


def test_closing_twice_is_harmless(store: SqliteStore) -> None:
    store.close()
    store.close()


def test_a_closed_store_says_so_in_our_own_error(store: SqliteStore) -> None:
    store.close()
    with pytest.raises(ChuckyError, match=r"chucky\.db"):
        store.load_all()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"there is no directory '.*/nowhere'; create it"):
        SqliteStore.open(tmp_path / "nowhere" / "chucky.db")


@pytest.mark.parametrize("first", ["lock", "store"])
def test_the_directory_of_the_default_database_is_created_private_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share" / "data"))
    path = Settings().db
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
        SqliteStore.open(tmp_path)


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("shopping list\n" * 100)
    with pytest.raises(ValidationError, match=r"chucky\.db' is not a chucky database; name"):
        SqliteStore.open(path)
    assert path.read_text() == "shopping list\n" * 100


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    execute(path, "CREATE TABLE cookies (value)")
    before = path.read_bytes()
    with pytest.raises(ValidationError, match="is a database of another program"):
        SqliteStore.open(path)
    assert path.read_bytes() == before


def test_a_database_of_a_newer_version_is_refused(path: Path) -> None:
    SqliteStore.open(path).close()
    execute(path, "INSERT INTO schema_migrations VALUES (9999, 'later', 0)")
    with pytest.raises(ValidationError, match=r"newer version of chucky .* upgrade chucky"):
        SqliteStore.open(path)


def test_a_damaged_database_is_told_as_such(path: Path) -> None:
    with closing(SqliteStore.open(path)) as store:
        store.create_project("acme")
    content = bytearray(path.read_bytes())
    content[100:] = os.urandom(len(content) - 100)  # all but the header
    path.write_bytes(content)
    with pytest.raises(ValidationError, match="is damaged; restore it from a backup"):
        SqliteStore.open(path)


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
    SqliteStore.open(path).close()
    path.chmod(mode)
    request.getfixturevalue("ordinary_user")
    with pytest.raises(ValidationError, match="cannot be read and written by this user"):
        SqliteStore.open(path)


def test_a_directory_without_the_right_to_write_is_refused(
    public_directory: Path, request: pytest.FixtureRequest
) -> None:
    public_directory.chmod(0o555)
    request.getfixturevalue("ordinary_user")
    with pytest.raises(ValidationError, match=r"cannot be opened or created \(Permission denied\)"):
        SqliteStore.open(public_directory / "chucky.db")


def test_a_database_locked_for_too_long_is_told_as_such(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_SECONDS", 0.01)
    with (
        closing(SqliteStore.open(path)) as store,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ChuckyError, match="is locked by another process; try again"):
            store.create_project("acme")
        other.execute("COMMIT")
        store.create_project("acme")


# --- projects and keys ----------------------------------------------------------------------


def test_a_project_has_an_id_and_one_key_of_the_documented_form(store: SqliteStore) -> None:
    project, key = store.create_project("acme")
    assert re.fullmatch("[a-z0-9]{32}", project.project_id)
    assert re.fullmatch("hk_live_[0-9a-f]{64}", key.secret)
    assert (project.name, project.disabled, project.keys) == ("acme", False, (key,))
    assert store.get_project(project.project_id) == project


def test_ids_and_secrets_never_repeat(store: SqliteStore) -> None:
    made = [store.create_project(f"project-{number}") for number in range(20)]
    assert len({project.project_id for project, _ in made}) == 20
    assert len({key.secret for _, key in made}) == 20


def test_no_secret_shows_in_a_repr(store: SqliteStore) -> None:
    project, key = store.create_project("acme")
    assert key.secret not in repr(key) + repr(project) + str(project)


@pytest.mark.parametrize(
    "name", ["", " ", "-x", ".x", "a b", "a/b", "a\n", "ä", "x" * 65, "a" * 32, "0" * 32]
)
def test_an_impossible_name_is_refused(store: SqliteStore, name: str) -> None:
    with pytest.raises(ValidationError, match="The project name"):
        store.create_project(name)
    assert store.load_all() == ()


@pytest.mark.parametrize("name", ["a", "x" * 64, "Acme-2.prod_eu", "0", "A" * 32])
def test_a_sane_name_is_accepted(store: SqliteStore, name: str) -> None:
    store.create_project(name)
    assert store.find_project(name).name == name


def test_a_taken_name_is_refused(store: SqliteStore) -> None:
    store.create_project("acme")
    with pytest.raises(ValidationError, match="already a project named 'acme'"):
        store.create_project("acme")
    assert len(store.load_all()) == 1


def test_projects_are_listed_in_the_order_of_creation(store: SqliteStore) -> None:
    store.ensure_default_project()
    execute(store.path, "UPDATE projects SET created_ms = created_ms - 1000")
    store.create_project("acme")
    assert [project.name for project in store.list_projects()] == ["default", "acme"]


def test_a_project_is_found_by_name_and_by_id(store: SqliteStore) -> None:
    project, _ = store.create_project("acme")
    assert store.find_project("acme") == project
    assert store.find_project(project.project_id) == project


def test_a_project_that_does_not_exist_is_told_with_a_close_name(store: SqliteStore) -> None:
    store.create_project("production")
    with pytest.raises(ValidationError, match="no project 'prodution'; did you mean 'production'"):
        store.find_project("prodution")
    with pytest.raises(ValidationError, match="no project 'zzz'; `chucky projects list` shows"):
        store.disable_project("zzz")
    assert store.get_project("zzz") is None


def test_rotating_revokes_the_old_keys_and_forgets_their_secrets(
    store: SqliteStore, path: Path
) -> None:
    project, old = store.create_project("acme")
    new = store.rotate_key("acme")
    assert store.find_project("acme").keys == (new,)
    kept = rows(path, "SELECT key_id, secret, revoked_ms IS NULL FROM project_keys ORDER BY 3")
    assert kept == [(old.key_id, None, 0), (new.key_id, new.secret, 1)]
    assert store.rotate_key(project).secret != new.secret


def test_rotating_with_keep_old_leaves_all_keys_alive_newest_first(store: SqliteStore) -> None:
    project, old = store.create_project("acme")
    new = store.rotate_key(project, keep_old=True)
    newest = store.rotate_key(project, keep_old=True)
    assert store.find_project("acme").keys == (newest, new, old)


def test_rotating_touches_no_other_project(store: SqliteStore) -> None:
    other, _ = store.create_project("other")
    store.create_project("acme")
    store.rotate_key("acme")
    assert store.find_project("other") == other


def test_the_number_of_live_keys_has_a_limit(store: SqliteStore) -> None:
    store.create_project("acme")
    for _ in range(sqlite.MAX_LIVE_KEYS - 1):
        store.rotate_key("acme", keep_old=True)
    with pytest.raises(ValidationError, match="already has 10 live keys"):
        store.rotate_key("acme", keep_old=True)
    assert len(store.find_project("acme").keys) == sqlite.MAX_LIVE_KEYS
    store.rotate_key("acme")
    assert len(store.find_project("acme").keys) == 1


def test_a_disabled_project_stays_so_until_it_is_enabled(store: SqliteStore) -> None:
    project, _ = store.create_project("acme")
    assert store.disable_project("acme").disabled
    assert store.disable_project(project).disabled
    assert store.find_project("acme").disabled
    assert store.enable_project(project.project_id) == project
    assert store.find_project("acme") == project


def test_the_default_project_is_created_once(store: SqliteStore) -> None:
    project = store.ensure_default_project()
    assert project.name == "default"
    assert len(project.keys) == 1
    assert store.ensure_default_project() == project
    store.rotate_key("default")
    assert store.ensure_default_project().keys != project.keys


def test_processes_that_start_at_once_agree_on_one_default_project(path: Path) -> None:
    program = (
        "import sys; from chucky.server.store import SqliteStore; sys.stdin.read()\n"
        "print(SqliteStore.open(sys.argv[1]).ensure_default_project().project_id)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()  # the starting gun
        process.stdin = None
    answers = [process.communicate(timeout=WAIT_SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, answers
    assert len({answer for answer, _ in answers}) == 1
    with closing(SqliteStore.open(path)) as store:
        assert [project.project_id for project in store.load_all()] == [answers[0][0].strip()]


def test_a_new_file_that_another_process_is_just_preparing_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        # The other process finishes while the store waits before it tries again.
        monkeypatch.setattr("time.sleep", lambda _seconds: other.execute("COMMIT"))
        SqliteStore.open(path).close()
        assert not other.in_transaction


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Call each in a thread of its own, all at the same moment; errors are results."""
    barrier = threading.Barrier(len(calls))

    def call(function: Callable[[], object]) -> object:
        barrier.wait(WAIT_SECONDS)
        try:
            return function()
        except ChuckyError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls, timeout=WAIT_SECONDS))


def test_stores_that_open_a_new_file_at_once_all_succeed(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / f"{number}.db"
        for store in at_once(*[lambda path=path: SqliteStore.open(path)] * 4):
            assert isinstance(store, SqliteStore), store
            store.close()


def test_stores_that_want_one_name_at_once_make_one_project_and_say_why_not_another(
    path: Path, store: SqliteStore
) -> None:
    with closing(SqliteStore.open(path)) as other:
        for number in range(50):
            name = f"project-{number}"
            calls = [
                lambda each=each, name=name: each.create_project(name) for each in (store, other)
            ]
            losers = [result for result in at_once(*calls) if isinstance(result, ChuckyError)]
            assert len(losers) == 1
            assert f"already a project named {name!r}" in str(losers[0])


def test_threads_may_share_a_store(store: SqliteStore) -> None:
    async def create_all() -> None:
        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(asyncio.to_thread(store.create_project, f"project-{number}"))

    asyncio.run(create_all())
    assert len(store.load_all()) == 20


# --- the change counter ---------------------------------------------------------------------


def test_the_counter_moves_with_every_write_and_with_nothing_else(
    path: Path, store: SqliteStore
) -> None:
    start = store.change_counter()
    store.load_all()
    store.find_project(store.ensure_default_project().name)
    own = store.change_counter()
    assert own != start
    store.ensure_default_project()
    store.load_all()
    assert store.change_counter() == own
    with closing(SqliteStore.open(path)) as other:
        other.rotate_key("default")
    assert store.change_counter() != own


@pytest.mark.parametrize("successor", [None, "copy"])
def test_a_database_that_was_removed_or_replaced_is_noticed(
    path: Path, store: SqliteStore, successor: str | None
) -> None:
    store.ensure_default_project()
    kept = path.rename(path.with_name("kept"))
    if successor:
        path.write_bytes(kept.read_bytes())
    with pytest.raises(ChuckyError, match="was removed or replaced while in use"):
        store.change_counter()
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
    SqliteStore.open(path).close()
    link = path.with_name("link.db")
    link.symlink_to(path)
    with ServeLock.acquire(path), pytest.raises(ValidationError, match="already uses"):
        ServeLock.acquire(link)


def test_commands_work_while_a_server_holds_the_lock(path: Path) -> None:
    with ServeLock.acquire(path), closing(SqliteStore.open(path)) as store:
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


# --- the directory --------------------------------------------------------------------------


class Watched:
    """A real store that also tells the test of every poll."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self.polls: asyncio.Queue[None] = asyncio.Queue()

    def load_all(self) -> Iterable[Project]:
        return self._store.load_all()

    def change_counter(self) -> int:
        self._loop.call_soon_threadsafe(self.polls.put_nowait, None)
        return self._store.change_counter()

    async def next_polls(self, count: int) -> None:
        """Wait for polls that begin from now on; all but the last are complete then."""
        while not self.polls.empty():
            self.polls.get_nowait()
        for _ in range(count):
            await self.polls.get()


@asynccontextmanager
async def running(
    store: SqliteStore, fail_closed_after_seconds: float = 60.0
) -> AsyncIterator[tuple[ProjectDirectory, Watched, asyncio.Event]]:
    """Run a directory; the event is set at each change."""
    watched = Watched(store)
    directory = await asyncio.to_thread(ProjectDirectory, watched, 0.005, fail_closed_after_seconds)
    changed = asyncio.Event()
    directory.on_change(changed.set)
    task = asyncio.create_task(directory.run())
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            yield directory, watched, changed
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def elsewhere(path: Path, change: Callable[[SqliteStore], object]) -> None:
    """Change the database the way another process would."""

    def run() -> None:
        with closing(SqliteStore.open(path)) as store:
            change(store)

    await asyncio.to_thread(run)


def test_a_directory_knows_what_was_there_when_it_was_made(store: SqliteStore) -> None:
    project = store.ensure_default_project()
    directory = ProjectDirectory(store)
    assert directory.lookup(project.project_id) == project
    assert directory.lookup("0" * 32) is None
    assert directory.failure is None


def test_a_directory_reloads_at_once_when_told_to(store: SqliteStore) -> None:
    directory = ProjectDirectory(store)
    calls: list[None] = []
    directory.on_change(lambda: calls.append(None))
    project, _ = store.create_project("acme")
    directory.reload()
    assert directory.lookup(project.project_id) == project
    directory.reload()
    assert len(calls) == 1


async def test_a_directory_learns_of_a_rotated_key_and_a_disabled_project(
    path: Path, store: SqliteStore
) -> None:
    project = await asyncio.to_thread(store.ensure_default_project)
    async with running(store) as (directory, _, changed):
        await elsewhere(path, lambda other: other.rotate_key("default"))
        await changed.wait()
        rotated = directory.lookup(project.project_id)
        assert rotated is not None
        assert rotated.keys
        assert not set(rotated.keys) & set(project.keys)
        changed.clear()
        await elsewhere(path, lambda other: other.disable_project("default"))
        await changed.wait()
        disabled = directory.lookup(project.project_id)
        assert disabled is not None
        assert disabled.disabled


async def test_a_directory_learns_of_what_its_own_process_writes(store: SqliteStore) -> None:
    async with running(store) as (directory, _, changed):
        project, _ = await asyncio.to_thread(store.create_project, "acme")
        await changed.wait()
        assert directory.lookup(project.project_id) == project


async def test_a_write_that_changes_no_project_wakes_nobody(path: Path, store: SqliteStore) -> None:
    async with running(store) as (_, watched, changed):
        await asyncio.to_thread(execute, path, "UPDATE schema_migrations SET applied_ms = 1")
        await watched.next_polls(3)
        assert not changed.is_set()


async def test_the_last_known_projects_stay_valid_while_the_store_cannot_be_read(
    path: Path, store: SqliteStore
) -> None:
    project = await asyncio.to_thread(store.ensure_default_project)
    async with running(store) as (directory, watched, changed):
        kept = await asyncio.to_thread(path.rename, path.with_name("kept"))
        await watched.next_polls(3)
        assert directory.failure is not None
        assert str(path) in directory.failure
        assert directory.lookup(project.project_id) == project
        assert not changed.is_set()
        await asyncio.to_thread(kept.rename, path)
        await watched.next_polls(3)
        assert directory.failure is None


async def test_no_project_is_found_after_the_store_could_not_be_read_for_long(
    path: Path, store: SqliteStore
) -> None:
    project = await asyncio.to_thread(store.ensure_default_project)
    async with running(store, fail_closed_after_seconds=0.02) as (directory, _, changed):
        kept = await asyncio.to_thread(path.rename, path.with_name("kept"))
        await changed.wait()
        assert directory.lookup(project.project_id) is None
        changed.clear()
        await asyncio.to_thread(kept.rename, path)
        await changed.wait()
        assert directory.lookup(project.project_id) == project
        assert directory.failure is None
