"""Projects and keys in a database of each kind, and the directory that follows them."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest

from chucky.errors import ChuckyError, ValidationError
from chucky.server.postgres_url import PostgresUrl
from chucky.server.projects import Project, ProjectDirectory
from chucky.server.store import Store, postgres_database, projects, sqlite_file

if TYPE_CHECKING:
    from tests.server.conftest import Place

WAIT_SECONDS = 10.0
INSERT_PROJECT = "INSERT INTO projects (project_id, name, created_ms) VALUES (?, ?, ?)"


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with closing(Store.open(place.db)) as opened:
        yield opened


# --- opening and closing ----------------------------------------------------------------------


def test_what_was_stored_is_there_after_opening_again(place: Place) -> None:
    with closing(Store.open(place.db)) as store:
        project, _ = store.create_project("acme")
    with closing(Store.open(place.db)) as again:
        assert again.load_all() == (project,)


def test_closing_twice_is_harmless(store: Store) -> None:
    store.close()
    store.close()


def test_a_closed_store_says_so_in_our_own_error(place: Place, store: Store) -> None:
    store.close()
    for use in (store.load_all, store.ensure_default_project):
        with pytest.raises(ChuckyError, match=re.escape(str(place.db))) as caught:
            use()
        assert caught.value.code == "STORE_ERROR"


def test_a_database_of_a_newer_version_is_refused(place: Place) -> None:
    Store.open(place.db).close()
    place.execute("INSERT INTO schema_migrations VALUES (9999, 'later', 0)")
    with pytest.raises(ValidationError, match=r"newer version of chucky .* upgrade chucky"):
        Store.open(place.db)


def test_a_write_that_fails_leaves_nothing_behind(store: Store) -> None:
    def fail() -> None:
        with store.database.writing() as connection:
            connection.execute(INSERT_PROJECT, ("x", "x", 1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.load_all() == ()


def test_a_database_locked_for_too_long_is_told_as_such(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_SECONDS", 0.01)
    short = postgres_database._SET_UP.replace("'5s'", "'10ms'")
    monkeypatch.setattr(postgres_database, "_SET_UP", short)
    with closing(Store.open(place.db)) as store, closing(Store.open(place.db)) as other:
        with (
            other.database.writing(),
            pytest.raises(ChuckyError, match="is locked by another process; try again"),
        ):
            store.create_project("acme")
        store.create_project("acme")


def test_whoever_reads_does_not_wait_for_a_writer(store: Store) -> None:
    store.create_project("acme")
    with store.database.writing() as connection:
        connection.execute("UPDATE projects SET name = 'changed'")
        assert [project.name for project in store.load_all()] == ["acme"]


# --- projects and keys ----------------------------------------------------------------------


def test_a_project_has_an_id_and_one_key_of_the_documented_form(store: Store) -> None:
    project, key = store.create_project("acme")
    assert re.fullmatch("[a-z0-9]{32}", project.project_id)
    assert re.fullmatch("hk_live_[0-9a-f]{64}", key.secret)
    assert (project.name, project.disabled, project.keys) == ("acme", False, (key,))
    assert store.get_project(project.project_id) == project


def test_ids_and_secrets_never_repeat(store: Store) -> None:
    made = [store.create_project(f"project-{number}") for number in range(20)]
    assert len({project.project_id for project, _ in made}) == 20
    assert len({key.secret for _, key in made}) == 20


def test_no_secret_shows_in_a_repr(store: Store) -> None:
    project, key = store.create_project("acme")
    assert key.secret not in repr(key) + repr(project) + str(project)


@pytest.mark.parametrize(
    "name", ["", " ", "-x", ".x", "a b", "a/b", "a\n", "ä", "x" * 65, "a" * 32, "0" * 32]
)
def test_an_impossible_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(ValidationError, match="The project name"):
        store.create_project(name)
    assert store.load_all() == ()


@pytest.mark.parametrize("name", ["a", "x" * 64, "Acme-2.prod_eu", "0", "A" * 32])
def test_a_sane_name_is_accepted(store: Store, name: str) -> None:
    store.create_project(name)
    assert store.find_project(name).name == name


def test_a_taken_name_is_refused(store: Store) -> None:
    store.create_project("acme")
    with pytest.raises(ValidationError, match="already a project named 'acme'"):
        store.create_project("acme")
    assert len(store.load_all()) == 1


def test_projects_are_listed_in_the_order_of_creation(place: Place, store: Store) -> None:
    store.ensure_default_project()
    place.execute("UPDATE projects SET created_ms = created_ms - 1000")
    store.create_project("acme")
    assert [project.name for project in store.list_projects()] == ["default", "acme"]


def test_a_project_is_found_by_name_and_by_id(store: Store) -> None:
    project, _ = store.create_project("acme")
    assert store.find_project("acme") == project
    assert store.find_project(project.project_id) == project


def test_a_project_that_does_not_exist_is_told_with_a_close_name(store: Store) -> None:
    store.create_project("production")
    with pytest.raises(ValidationError, match="no project 'prodution'; did you mean 'production'"):
        store.find_project("prodution")
    with pytest.raises(ValidationError, match="no project 'zzz'; `chucky projects list` shows"):
        store.disable_project("zzz")
    assert store.get_project("zzz") is None


def test_rotating_revokes_the_old_keys_and_forgets_their_secrets(
    place: Place, store: Store
) -> None:
    project, old = store.create_project("acme")
    new = store.rotate_key("acme")
    assert store.find_project("acme").keys == (new,)
    kept = place.execute("SELECT key_id, secret, revoked_ms IS NULL FROM project_keys ORDER BY 3")
    assert kept == [(old.key_id, None, False), (new.key_id, new.secret, True)]
    assert store.rotate_key(project).secret != new.secret


def test_rotating_with_keep_old_leaves_all_keys_alive_newest_first(store: Store) -> None:
    project, old = store.create_project("acme")
    new = store.rotate_key(project, keep_old=True)
    newest = store.rotate_key(project, keep_old=True)
    assert store.find_project("acme").keys == (newest, new, old)


def test_rotating_touches_no_other_project(store: Store) -> None:
    other, _ = store.create_project("other")
    store.create_project("acme")
    store.rotate_key("acme")
    assert store.find_project("other") == other


def test_the_number_of_live_keys_has_a_limit(store: Store) -> None:
    store.create_project("acme")
    for _ in range(projects.MAX_LIVE_KEYS - 1):
        store.rotate_key("acme", keep_old=True)
    with pytest.raises(ValidationError, match="already has 10 live keys"):
        store.rotate_key("acme", keep_old=True)
    assert len(store.find_project("acme").keys) == projects.MAX_LIVE_KEYS
    store.rotate_key("acme")
    assert len(store.find_project("acme").keys) == 1


def test_a_disabled_project_stays_so_until_it_is_enabled(store: Store) -> None:
    project, _ = store.create_project("acme")
    assert store.disable_project("acme").disabled
    assert store.disable_project(project).disabled
    assert store.find_project("acme").disabled
    assert store.enable_project(project.project_id) == project
    assert store.find_project("acme") == project


def test_the_default_project_is_created_once(store: Store) -> None:
    project = store.ensure_default_project()
    assert project.name == "default"
    assert len(project.keys) == 1
    assert store.ensure_default_project() == project
    store.rotate_key("default")
    assert store.ensure_default_project().keys != project.keys


def test_processes_that_start_at_once_agree_on_one_default_project(place: Place) -> None:
    program = (
        "import sys\n"
        "from chucky.server.settings import Settings; from chucky.server.store import open_store\n"
        "settings = Settings.load(); sys.stdin.read()\n"
        "print(open_store(settings).ensure_default_project().project_id)"
    )
    url = place.db.secret_url if isinstance(place.db, PostgresUrl) else str(place.db)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "CHUCKY_DB": url},
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
    with closing(Store.open(place.db)) as store:
        assert [project.project_id for project in store.load_all()] == [answers[0][0].strip()]


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


def test_stores_that_open_a_new_database_at_once_all_succeed(place: Place) -> None:
    for store in at_once(*[lambda: Store.open(place.db)] * 4):
        assert isinstance(store, Store), store
        store.close()
    versions = place.execute("SELECT version FROM schema_migrations ORDER BY 1")
    assert versions == [(number,) for number in range(1, len(versions) + 1)]


def test_stores_that_want_one_name_at_once_make_one_project_and_say_why_not_another(
    place: Place, store: Store
) -> None:
    with closing(Store.open(place.db)) as other:
        for number in range(50):
            name = f"project-{number}"
            calls = [
                lambda each=each, name=name: each.create_project(name) for each in (store, other)
            ]
            losers = [result for result in at_once(*calls) if isinstance(result, ChuckyError)]
            assert len(losers) == 1
            assert f"already a project named {name!r}" in str(losers[0])


def test_threads_may_share_a_store(store: Store) -> None:
    async def create_all() -> None:
        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(asyncio.to_thread(store.create_project, f"project-{number}"))

    asyncio.run(create_all())
    assert len(store.load_all()) == 20


# --- the change counter ---------------------------------------------------------------------


def test_the_counter_moves_with_every_write_and_with_nothing_else(
    place: Place, store: Store
) -> None:
    start = store.change_counter()
    store.load_all()
    store.find_project(store.ensure_default_project().name)
    own = store.change_counter()
    assert own != start
    store.ensure_default_project()
    store.load_all()
    place.execute("UPDATE schema_migrations SET applied_ms = 1")  # no project
    assert store.change_counter() == own
    with closing(Store.open(place.db)) as other:
        other.rotate_key("default")
    assert store.change_counter() != own


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.create_project("other"),
        lambda store: store.rotate_key("acme"),
        lambda store: store.rotate_key("acme", keep_old=True),
        lambda store: store.disable_project("acme"),
        lambda store: store.enable_project("acme"),
        lambda store: store.set_policy("acme", '{"locked": ["systemPrompt"]}'),
        lambda store: store.set_provider_key("acme", "anthropic", secrets.token_hex()),
        lambda store: store.set_provider_key("acme", "bedrock", None),
    ],
)
def test_the_counter_moves_with_every_kind_of_change(
    store: Store, change: Callable[[Store], object]
) -> None:
    store.create_project("acme")
    store.set_provider_key("acme", "bedrock", secrets.token_hex())
    before = store.change_counter()
    change(store)
    assert store.change_counter() != before


def test_the_counter_moves_when_a_row_is_changed_by_hand(place: Place, store: Store) -> None:
    store.create_project("acme")
    for statement in (
        "UPDATE projects SET disabled_ms = 1",
        "UPDATE project_keys SET secret = NULL, revoked_ms = 1",
        "DELETE FROM project_keys",
        "DELETE FROM projects",
    ):
        before = store.change_counter()
        place.execute(statement)
        assert store.change_counter() != before


# --- the directory --------------------------------------------------------------------------


class Watched:
    """A real store that also tells the test of every poll."""

    def __init__(self, store: Store) -> None:
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
    store: Store, fail_closed_after_seconds: float = 60.0
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


async def elsewhere(place: Place, change: Callable[[Store], object]) -> None:
    """Change the database the way another process would."""

    def run() -> None:
        with closing(Store.open(place.db)) as store:
            change(store)

    await asyncio.to_thread(run)


def test_a_directory_knows_what_was_there_when_it_was_made(store: Store) -> None:
    project = store.ensure_default_project()
    directory = ProjectDirectory(store)
    assert directory.lookup(project.project_id) == project
    assert directory.lookup("0" * 32) is None
    assert directory.failure is None


def test_a_directory_reloads_at_once_when_told_to(store: Store) -> None:
    directory = ProjectDirectory(store)
    calls: list[None] = []
    directory.on_change(lambda: calls.append(None))
    project, _ = store.create_project("acme")
    directory.reload()
    assert directory.lookup(project.project_id) == project
    directory.reload()
    assert len(calls) == 1


async def test_a_directory_learns_of_a_rotated_key_and_a_disabled_project(
    place: Place, store: Store
) -> None:
    project = await asyncio.to_thread(store.ensure_default_project)
    async with running(store) as (directory, _, changed):
        await elsewhere(place, lambda other: other.rotate_key("default"))
        await changed.wait()
        rotated = directory.lookup(project.project_id)
        assert rotated is not None
        assert rotated.keys
        assert not set(rotated.keys) & set(project.keys)
        changed.clear()
        await elsewhere(place, lambda other: other.disable_project("default"))
        await changed.wait()
        disabled = directory.lookup(project.project_id)
        assert disabled is not None
        assert disabled.disabled


async def test_a_directory_learns_of_what_its_own_process_writes(store: Store) -> None:
    async with running(store) as (directory, _, changed):
        project, _ = await asyncio.to_thread(store.create_project, "acme")
        await changed.wait()
        assert directory.lookup(project.project_id) == project


async def test_a_write_that_changes_no_project_wakes_nobody(place: Place, store: Store) -> None:
    async with running(store) as (_, watched, changed):
        await asyncio.to_thread(place.execute, "UPDATE projects SET name = name")
        await watched.next_polls(3)
        assert not changed.is_set()


async def test_the_last_known_projects_stay_valid_while_the_store_cannot_be_read(
    place: Place, store: Store
) -> None:
    project = await asyncio.to_thread(store.ensure_default_project)
    async with running(store) as (directory, watched, changed):
        with place.outage():
            await watched.next_polls(3)
            assert directory.failure is not None
            assert str(place.db) in directory.failure
            assert directory.lookup(project.project_id) == project
            assert not changed.is_set()
        while directory.failure is not None:
            await watched.next_polls(2)


async def test_no_project_is_found_after_the_store_could_not_be_read_for_long(
    place: Place, store: Store
) -> None:
    project = await asyncio.to_thread(store.ensure_default_project)
    async with running(store, fail_closed_after_seconds=0.02) as (directory, _, changed):
        with place.outage():
            await changed.wait()
            assert directory.lookup(project.project_id) is None
            changed.clear()
        await changed.wait()
        assert directory.lookup(project.project_id) == project
        assert directory.failure is None
