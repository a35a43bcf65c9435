"""The store of a server on one machine: one SQLite file.

What is stored, and why, is told by ``schema.sql``.

Every method blocks for a few milliseconds (up to the busy time-out when another process is
writing) and may be called from any thread.
"""

from __future__ import annotations

import difflib
import logging
import re
import secrets
import string
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from chucky.errors import ChuckyError, ValidationError
from chucky.server.policy import ProjectPolicy, read_policy
from chucky.server.projects import Project, ProjectKey
from chucky.server.store.files import file_identity
from chucky.server.store.sqlite_file import (
    Connection,
    connect,
    faults,
    now_ms,
    open_file,
    store_error,
    transaction,
)

logger = logging.getLogger("chucky.server")

DEFAULT_PROJECT_NAME: Final = "default"
MAX_LIVE_KEYS: Final = 10  # every one of them is tried for every token

_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PROJECT_ID_PATTERN: Final = re.compile(r"[a-z0-9]{32}")


_SELECT_PROJECTS: Final = """
SELECT p.project_id, p.name, p.disabled_ms IS NOT NULL, p.policy, k.key_id, k.secret
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
_POLICY_OF: Final = "SELECT policy FROM projects WHERE project_id = ?"
_SET_POLICY: Final = "UPDATE projects SET policy = ? WHERE project_id = ?"
_ENABLE_PROJECT: Final = "UPDATE projects SET disabled_ms = NULL WHERE project_id = ?"


class SqliteStore:
    """Projects and their keys in one SQLite file. Made by :meth:`open`.

    Attributes:
        path: The absolute path of the file.
    """

    def __init__(self, path: Path, main: Connection, watch: Connection) -> None:
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
        path = Path(path).expanduser().absolute()
        main = open_file(path)
        try:
            with faults(path, ValidationError):
                watch = connect(path)
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
                connection.execute(_REVOKE_KEYS, (now_ms(), found.project_id))
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
            connection.execute(_DISABLE_PROJECT, (now_ms(), found.project_id))
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

    def set_policy(self, project: Project | str, policy: str | None) -> Project:
        """Set what the operator decides for all sessions of a project.

        Args:
            project: The project, or its name or id.
            policy: The policy as :func:`~chucky.server.policy.read_policy` reads it; None
                allows everything again.

        Returns:
            The project as it is now.

        Raises:
            ValidationError: The policy is wrong, or there is no such project.
        """
        if policy is not None:
            read_policy(policy)
        with self._writing() as connection:
            found = _find_project(connection, _name_or_id(project))
            connection.execute(_SET_POLICY, (policy, found.project_id))
            return _find_project(connection, found.project_id)

    def policy_text(self, project: Project | str) -> str | None:
        """Return the policy of a project as it was set; None if none was.

        Raises:
            ValidationError: There is no such project.
        """
        with self._reading() as connection:
            found = _find_project(connection, _name_or_id(project))
            text: str | None = connection.execute(_POLICY_OF, (found.project_id,)).fetchone()[0]
        return text

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
        with self._watch_lock, faults(self.path, store_error):
            return int(self._watch.execute("PRAGMA data_version").fetchone()[0])

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._main_lock, faults(self.path, store_error):
            yield self._main

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._main_lock, faults(self.path, store_error), transaction(self._main):
            yield self._main


def _read_projects(connection: Connection, query: str, *parameters: str) -> tuple[Project, ...]:
    projects: dict[str, Project] = {}
    for project_id, name, disabled, policy, key_id, secret in connection.execute(query, parameters):
        found = projects.get(project_id)
        if found is None:
            found = Project(project_id, name, bool(disabled), (), _stored_policy(name, policy))
        keys = () if key_id is None else (ProjectKey(key_id, secret),)
        projects[project_id] = replace(found, keys=(*found.keys, *keys))
    return tuple(projects.values())


def _stored_policy(name: str, text: str | None) -> ProjectPolicy:
    if text is None:
        return ProjectPolicy()
    try:
        return read_policy(text)
    except ValidationError as error:
        # Of a newer version, perhaps. What it would have forbidden is not known, so all is.
        logger.error("the policy of the project %s cannot be used: %s", name, error)
        return ProjectPolicy(is_damaged=True)


def _find_project(connection: Connection, name_or_id: str) -> Project:
    for query in (_PROJECT_BY_ID, _PROJECT_BY_NAME):
        found = _read_projects(connection, query, name_or_id)
        if found:
            return found[0]
    names = [row[0] for row in connection.execute(_PROJECT_NAMES)]
    close = difflib.get_close_matches(name_or_id, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "`chucky projects list` shows what there is."
    raise ValidationError(f"There is no project {name_or_id!r}; {hint}")


def _insert_project(connection: Connection, name: str) -> tuple[Project, ProjectKey]:
    alphabet = string.ascii_lowercase + string.digits
    project_id = "".join(secrets.choice(alphabet) for _ in range(32))
    connection.execute(_INSERT_PROJECT, (project_id, name, now_ms()))
    key = _insert_key(connection, project_id)
    return Project(project_id, name, False, (key,)), key


def _insert_key(connection: Connection, project_id: str) -> ProjectKey:
    key = ProjectKey(f"key_{secrets.token_hex(8)}", f"hk_live_{secrets.token_hex(32)}")
    connection.execute(_INSERT_KEY, (key.key_id, project_id, key.secret, now_ms()))
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
