"""The store of a server on one machine: one SQLite file.

The only module that imports ``sqlite3``. What is stored, and why, is told by ``schema.sql``;
how a file of an earlier version gets there, by the numbered files in ``migrations/``.

Every method blocks for a few milliseconds (up to the busy time-out when another process is
writing) and may be called from any thread.
"""

from __future__ import annotations

import difflib
import re
import secrets
import sqlite3
import string
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Final

from chucky.errors import ChuckyError, ValidationError
from chucky.server.projects import Project, ProjectKey
from chucky.server.store.files import create_private_file, file_identity, prepare_place

DEFAULT_PROJECT_NAME: Final = "default"
MAX_LIVE_KEYS: Final = 10  # every one of them is tried for every token
BUSY_TIMEOUT_SECONDS: Final = 5.0

_OLDEST_SQLITE: Final = (3, 37, 0)  # the first with STRICT tables
_APPLICATION_ID: Final = int.from_bytes(b"Chck", "big")
_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PROJECT_ID_PATTERN: Final = re.compile(r"[a-z0-9]{32}")
_MIGRATION_PATTERN: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

_COUNT_TABLES: Final = "SELECT count(*) FROM sqlite_schema"
_HAS_MIGRATIONS: Final = "SELECT count(*) FROM sqlite_schema WHERE name = 'schema_migrations'"
_APPLIED_VERSION: Final = "SELECT coalesce(max(version), 0) FROM schema_migrations"
_RECORD_MIGRATION: Final = (
    "INSERT INTO schema_migrations (version, name, applied_ms) VALUES (?, ?, ?)"
)

_SELECT_PROJECTS: Final = """
SELECT p.project_id, p.name, p.disabled_ms IS NOT NULL, k.key_id, k.secret
FROM projects AS p
LEFT JOIN project_keys AS k ON k.project_id = p.project_id AND k.revoked_ms IS NULL
"""
_IN_ORDER: Final = "ORDER BY p.created_ms, p.project_id, k.key_number DESC"
_ALL_PROJECTS: Final = f"{_SELECT_PROJECTS} {_IN_ORDER}"
_PROJECT_BY_ID: Final = f"{_SELECT_PROJECTS} WHERE p.project_id = ? {_IN_ORDER}"
_PROJECT_BY_NAME: Final = f"{_SELECT_PROJECTS} WHERE p.name = ? {_IN_ORDER}"
_PROJECT_NAMES: Final = "SELECT name FROM projects ORDER BY name"
_INSERT_PROJECT: Final = "INSERT INTO projects (project_id, name, created_ms) VALUES (?, ?, ?)"
_INSERT_KEY: Final = (
    "INSERT INTO project_keys (key_id, project_id, secret, created_ms) VALUES (?, ?, ?, ?)"
)
_REVOKE_KEYS: Final = """
UPDATE project_keys SET revoked_ms = ?, secret = NULL
WHERE project_id = ? AND revoked_ms IS NULL
"""
_DISABLE_PROJECT: Final = """
UPDATE projects SET disabled_ms = ? WHERE project_id = ? AND disabled_ms IS NULL
"""
_ENABLE_PROJECT: Final = "UPDATE projects SET disabled_ms = NULL WHERE project_id = ?"


class SqliteStore:
    """Projects and their keys in one SQLite file. Made by :meth:`open`.

    Attributes:
        path: The absolute path of the file.
    """

    def __init__(self, path: Path, main: sqlite3.Connection, watch: sqlite3.Connection) -> None:
        self.path = path
        self._main = main
        self._main_lock = threading.Lock()
        # PRAGMA data_version tells only of commits of *other* connections, so the one that
        # watches never writes and learns of this process's writes as well.
        self._watch = watch
        self._watch_lock = threading.Lock()
        self._identity = file_identity(path)

    @classmethod
    def open(cls, path: Path | str) -> SqliteStore:
        """Open a database file, creating it (readable by its owner only) if there is none.

        A file of an earlier version is brought up to date first.

        Args:
            path: The file. ``~`` is expanded. Its directory must exist, except that of the
                default database.

        Raises:
            ValidationError: The file cannot be used: its directory is missing, it is not
                readable and writable, not a database, of another program, or of a newer
                version of this one.
        """
        _require_sqlite()
        path = Path(path).expanduser().absolute()
        prepare_place(path)
        create_private_file(path)
        with _faults(path, ValidationError):
            main = _connect(path)
            try:
                _refuse_foreign(main, path)
                _use_wal(main, path)
                _migrate(main, path)
                watch = _connect(path)
            except BaseException:
                main.close()
                raise
        return cls(path, main, watch)

    def close(self) -> None:
        """Close the file. Safe to call again; nothing else may be called afterwards."""
        with self._main_lock, self._watch_lock:
            self._watch.close()
            self._main.close()

    def create_project(self, name: str) -> tuple[Project, ProjectKey]:
        """Create a project with one fresh key.

        Args:
            name: 1 to 64 letters, digits, dots, underscores and hyphens, beginning with a
                letter or digit; unique; not of the form of a project id.

        Returns:
            The project, and its only key.

        Raises:
            ValidationError: The name is malformed or taken.
        """
        _require_project_name(name)
        with self._writing() as connection:
            if _read_projects(connection, _PROJECT_BY_NAME, name):
                raise ValidationError(
                    f"There is already a project named {name!r}; choose another name, or get a "
                    f"new key for it with `chucky projects rotate-key {name}`."
                )
            return _insert_project(connection, name)

    def ensure_default_project(self) -> Project:
        """Return the project ``default``, created with a fresh key if there is none.

        However many processes do this at once, one project comes of it.
        """
        with self._writing() as connection:
            found = _read_projects(connection, _PROJECT_BY_NAME, DEFAULT_PROJECT_NAME)
            return found[0] if found else _insert_project(connection, DEFAULT_PROJECT_NAME)[0]

    def load_all(self) -> tuple[Project, ...]:
        """Return every project in the order of creation, each with its live keys."""
        with self._reading() as connection:
            return _read_projects(connection, _ALL_PROJECTS)

    def list_projects(self) -> tuple[Project, ...]:
        """Return every project in the order of creation; the same as :meth:`load_all`."""
        return self.load_all()

    def get_project(self, project_id: str) -> Project | None:
        """Return the project with this id, or ``None``."""
        with self._reading() as connection:
            found = _read_projects(connection, _PROJECT_BY_ID, project_id)
        return found[0] if found else None

    def find_project(self, name_or_id: str) -> Project:
        """Return the project with this name or id.

        Raises:
            ValidationError: There is none.
        """
        with self._reading() as connection:
            return _find_project(connection, name_or_id)

    def rotate_key(self, project: Project | str, keep_old: bool = False) -> ProjectKey:
        """Give a project a fresh key and revoke its others.

        Args:
            project: The project, or its name or id.
            keep_old: Leave the other keys alive, so that tokens signed with them stay good.

        Returns:
            The new key.

        Raises:
            ValidationError: There is no such project, or it has as many live keys as it may.
        """
        with self._writing() as connection:
            found = _find_project(connection, _name_or_id(project))
            if not keep_old:
                connection.execute(_REVOKE_KEYS, (_now_ms(), found.project_id))
            elif len(found.keys) >= MAX_LIVE_KEYS:
                raise ValidationError(
                    f"The project {found.name!r} already has {len(found.keys)} live keys, which "
                    f"is the limit; rotate without --keep-old to revoke them."
                )
            return _insert_key(connection, found.project_id)

    def disable_project(self, project: Project | str) -> Project:
        """Have all tokens of a project refused until it is enabled again.

        Args:
            project: The project, or its name or id.

        Returns:
            The project as it is now.

        Raises:
            ValidationError: There is no such project.
        """
        with self._writing() as connection:
            found = _find_project(connection, _name_or_id(project))
            connection.execute(_DISABLE_PROJECT, (_now_ms(), found.project_id))
            return _find_project(connection, found.project_id)

    def enable_project(self, project: Project | str) -> Project:
        """Accept the tokens of a disabled project again.

        Args:
            project: The project, or its name or id.

        Returns:
            The project as it is now.

        Raises:
            ValidationError: There is no such project.
        """
        with self._writing() as connection:
            found = _find_project(connection, _name_or_id(project))
            connection.execute(_ENABLE_PROJECT, (found.project_id,))
            return _find_project(connection, found.project_id)

    def change_counter(self) -> int:
        """Return a number that differs from the last one when anyone has written to the file.

        Costs microseconds. Commits of this process count like those of others.

        Raises:
            ChuckyError: The file is gone or was replaced, so nobody's writes can be seen.
        """
        if file_identity(self.path) != self._identity:
            raise ChuckyError(
                f"The database {str(self.path)!r} was removed or replaced while in use; put it "
                f"back, or restart the server.",
                code="STORE_ERROR",
            )
        with self._watch_lock, _faults(self.path, _store_error):
            return int(self._watch.execute("PRAGMA data_version").fetchone()[0])

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._main_lock, _faults(self.path, _store_error):
            yield self._main

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._main_lock, _faults(self.path, _store_error), _transaction(self._main):
            yield self._main


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level=None: transactions begin and end where this module says so, nowhere else.
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk may have ended the transaction already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    # Both answers out of one read transaction: another process may be creating the file.
    connection.execute("BEGIN")
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    table_count = connection.execute(_COUNT_TABLES).fetchone()[0]
    connection.execute("COMMIT")
    if application_id == _APPLICATION_ID:
        return
    if application_id != 0 or table_count:
        raise ValidationError(
            f"The file {str(path)!r} is a database of another program; name another file with --db."
        )


def _use_wal(connection: sqlite3.Connection, path: Path) -> None:
    # Two processes that switch a new file at the same time get SQLITE_BUSY at once, without
    # the busy time-out; the loser tries again and finds it done.
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise ValidationError(
            f"The database {str(path)!r} cannot use a write-ahead log where it is; move it to a "
            f"local disk."
        )


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    migrations = _migrations()
    newest = migrations[-1][0]
    if _applied_version(connection) == newest:
        return
    with _transaction(connection):
        # Asked again: another process may have migrated while this one waited to begin.
        applied = _applied_version(connection)
        if applied > newest:
            raise ValidationError(
                f"The database {str(path)!r} was written by a newer version of chucky (its schema "
                f"is {applied}, this version knows {newest}); upgrade chucky, or name another "
                f"file with --db."
            )
        for version, name, script in migrations:
            if version > applied:
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute(_RECORD_MIGRATION, (version, name, _now_ms()))


def _applied_version(connection: sqlite3.Connection) -> int:
    if not connection.execute(_HAS_MIGRATIONS).fetchone()[0]:
        return 0
    return int(connection.execute(_APPLIED_VERSION).fetchone()[0])


def _migrations() -> list[tuple[int, str, str]]:
    """Return (version, file name, SQL) of every migration, in order."""
    found = []
    for file in (resources.files(__package__) / "migrations").iterdir():
        match = _MIGRATION_PATTERN.fullmatch(file.name)
        if match:
            found.append((int(match[1]), file.name, file.read_text(encoding="utf-8")))
    return sorted(found)


def _statements(script: str) -> Iterator[str]:
    """Split a script, because ``executescript`` would commit the transaction it is run in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement


def _read_projects(
    connection: sqlite3.Connection, query: str, *parameters: str
) -> tuple[Project, ...]:
    projects: dict[str, Project] = {}
    keys: dict[str, list[ProjectKey]] = {}
    for project_id, name, disabled, key_id, secret in connection.execute(query, parameters):
        projects.setdefault(project_id, Project(project_id, name, bool(disabled)))
        if key_id is not None:
            keys.setdefault(project_id, []).append(ProjectKey(key_id, secret))
    return tuple(
        Project(project.project_id, project.name, project.disabled, tuple(keys.get(project_id, ())))
        for project_id, project in projects.items()
    )


def _find_project(connection: sqlite3.Connection, name_or_id: str) -> Project:
    for query in (_PROJECT_BY_ID, _PROJECT_BY_NAME):
        found = _read_projects(connection, query, name_or_id)
        if found:
            return found[0]
    names = [row[0] for row in connection.execute(_PROJECT_NAMES)]
    close = difflib.get_close_matches(name_or_id, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "`chucky projects list` shows what there is."
    raise ValidationError(f"There is no project {name_or_id!r}; {hint}")


def _insert_project(connection: sqlite3.Connection, name: str) -> tuple[Project, ProjectKey]:
    alphabet = string.ascii_lowercase + string.digits
    project_id = "".join(secrets.choice(alphabet) for _ in range(32))
    connection.execute(_INSERT_PROJECT, (project_id, name, _now_ms()))
    key = _insert_key(connection, project_id)
    return Project(project_id, name, False, (key,)), key


def _insert_key(connection: sqlite3.Connection, project_id: str) -> ProjectKey:
    key = ProjectKey(f"key_{secrets.token_hex(8)}", f"hk_live_{secrets.token_hex(32)}")
    connection.execute(_INSERT_KEY, (key.key_id, project_id, key.secret, _now_ms()))
    return key


def _name_or_id(project: Project | str) -> str:
    return project if isinstance(project, str) else project.project_id


def _require_project_name(name: str) -> None:
    if not _NAME_PATTERN.fullmatch(name):
        raise ValidationError(
            f"The project name {name!r} is not possible; use 1 to 64 letters, digits, dots, "
            f"underscores and hyphens, beginning with a letter or digit."
        )
    if _PROJECT_ID_PATTERN.fullmatch(name):
        raise ValidationError(
            f"The project name {name!r} looks like a project id; choose a shorter name."
        )


def _require_sqlite() -> None:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        oldest = ".".join(map(str, _OLDEST_SQLITE))
        raise ValidationError(
            f"This Python has SQLite {sqlite3.sqlite_version}, and the store needs {oldest} or "
            f"newer; use a Python built with a newer SQLite."
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_WHAT_TO_DO: Final = {
    "SQLITE_NOTADB": "is not a chucky database; name another file with --db",
    "SQLITE_CORRUPT": "is damaged; restore it from a backup",
    "SQLITE_BUSY": "is locked by another process; try again, or stop that process",
    "SQLITE_LOCKED": "is locked by another process; try again, or stop that process",
    "SQLITE_READONLY": "is read-only; make the file and its directory writable",
    "SQLITE_CANTOPEN": "cannot be opened; make the file and its directory readable and writable",
    "SQLITE_PERM": "cannot be accessed; make the file and its directory readable and writable",
    "SQLITE_FULL": "cannot be written because the disk is full; free some space",
    "SQLITE_IOERR": "cannot be read or written; check the disk it is on",
}


def _result_word(error: sqlite3.Error) -> str:
    """Return the primary result code, e.g. SQLITE_IOERR for SQLITE_IOERR_WRITE."""
    name = getattr(error, "sqlite_errorname", "")
    return "_".join(str(name).split("_")[:2])


def _is_busy(error: sqlite3.Error) -> bool:
    return _result_word(error) in ("SQLITE_BUSY", "SQLITE_LOCKED")


def _store_error(message: str) -> ChuckyError:
    return ChuckyError(message, code="STORE_ERROR")


@contextmanager
def _faults(path: Path, error_class: Callable[[str], ChuckyError]) -> Iterator[None]:
    """Turn what SQLite raises into one sentence that names the file and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        advice = _WHAT_TO_DO.get(_result_word(error), f"cannot be used ({error})")
        raise error_class(f"The database {str(path)!r} {advice}.") from error
