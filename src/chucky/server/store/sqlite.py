"""The store of a server on one machine: one SQLite file.

What is stored, and why, is told by ``schema.sql``.

Every method blocks for a few milliseconds (up to the busy time-out when another process is
writing) and may be called from any thread.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chucky.errors import ChuckyError, ValidationError
from chucky.server.policy import read_policy
from chucky.server.projects import Project, ProjectKey
from chucky.server.store.cipher import Cipher
from chucky.server.store.files import file_identity
from chucky.server.store.project_rows import ProjectRows
from chucky.server.store.sqlite_file import (
    Connection,
    connect,
    faults,
    open_file,
    store_error,
    transaction,
)

DEFAULT_PROJECT_NAME: Final = "default"
MAX_LIVE_KEYS: Final = 10  # every one of them is tried for every token

_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PROJECT_ID_PATTERN: Final = re.compile(r"[a-z0-9]{32}")


class SqliteStore:
    """Projects and their keys in one SQLite file. Made by :meth:`open`.

    Attributes:
        path: The absolute path of the file.
    """

    def __init__(self, path: Path, main: Connection, watch: Connection, cipher: Cipher) -> None:
        self.path = path
        self._main = main
        self._rows = ProjectRows(main, cipher)
        self._main_lock = threading.Lock()
        # PRAGMA data_version tells only of commits of *other* connections, so the one that
        # watches never writes and learns of this process's writes as well.
        self._watch = watch
        self._watch_lock = threading.Lock()
        self._identity = file_identity(path)

    @classmethod
    def open(cls, path: Path | str, master_key: str | None = None) -> SqliteStore:
        """Open a database file, creating it (readable by its owner only) if there is none.

        A file of an earlier version is brought up to date first.

        Args:
            path: The file. ``~`` is expanded. Its directory must exist, except that of the
                default database.
            master_key: What secrets are encrypted with, 64 hexadecimal digits; without it they
                are stored as they are.

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
        return cls(path, main, watch, Cipher(master_key))

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
        with self._writing() as rows:
            if rows.by_name(name):
                raise ValidationError(
                    f"There is already a project named {name!r}; choose another name, or get a "
                    f"new key for it with `chucky projects rotate-key {name}`."
                )
            return rows.insert(name)

    def ensure_default_project(self) -> Project:
        """Return the project ``default``, created with a fresh key if there is none.

        However many processes do this at once, one project comes of it.
        """
        with self._writing() as rows:
            return rows.by_name(DEFAULT_PROJECT_NAME) or rows.insert(DEFAULT_PROJECT_NAME)[0]

    def load_all(self) -> tuple[Project, ...]:
        """Return every project in the order of creation, each with its live keys."""
        with self._reading() as rows:
            return rows.all()

    def list_projects(self) -> tuple[Project, ...]:
        """Return every project in the order of creation; the same as :meth:`load_all`."""
        return self.load_all()

    def get_project(self, project_id: str) -> Project | None:
        """Return the project with this id, or ``None``."""
        with self._reading() as rows:
            return rows.by_id(project_id)

    def find_project(self, name_or_id: str) -> Project:
        """Return the project with this name or id.

        Raises:
            ValidationError: There is none.
        """
        with self._reading() as rows:
            return rows.find(name_or_id)

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
        with self._writing() as rows:
            found = rows.find(_name_or_id(project))
            if not keep_old:
                rows.revoke_keys(found.project_id)
            elif len(found.keys) >= MAX_LIVE_KEYS:
                raise ValidationError(
                    f"The project {found.name!r} already has {len(found.keys)} live keys, which "
                    f"is the limit; rotate without --keep-old to revoke them."
                )
            return rows.insert_key(found.project_id)

    def disable_project(self, project: Project | str) -> Project:
        """Have all tokens of a project refused until it is enabled again.

        Args:
            project: The project, or its name or id.

        Returns:
            The project as it is now.

        Raises:
            ValidationError: There is no such project.
        """
        with self._writing() as rows:
            found = rows.find(_name_or_id(project))
            rows.disable(found.project_id)
            return rows.find(found.project_id)

    def enable_project(self, project: Project | str) -> Project:
        """Accept the tokens of a disabled project again.

        Args:
            project: The project, or its name or id.

        Returns:
            The project as it is now.

        Raises:
            ValidationError: There is no such project.
        """
        with self._writing() as rows:
            found = rows.find(_name_or_id(project))
            rows.enable(found.project_id)
            return rows.find(found.project_id)

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
        with self._writing() as rows:
            found = rows.find(_name_or_id(project))
            rows.set_policy(found.project_id, policy)
            return rows.find(found.project_id)

    def set_provider_key(self, project: Project | str, provider: str, key: str | None) -> Project:
        """Give a project a key of its own for a provider of models, or take it away.

        Args:
            project: The project, or its name or id.
            provider: The provider's name in the settings; whether there is one is not looked at.
            key: The key; None takes it away.

        Returns:
            The project as it is now.

        Raises:
            ValidationError: There is no such project.
        """
        with self._writing() as rows:
            found = rows.find(_name_or_id(project))
            rows.set_provider_key(found.project_id, provider, key)
            return rows.find(found.project_id)

    def policy_text(self, project: Project | str) -> str | None:
        """Return the policy of a project as it was set; None if none was.

        Raises:
            ValidationError: There is no such project.
        """
        with self._reading() as rows:
            return rows.policy(rows.find(_name_or_id(project)).project_id)

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
    def _reading(self) -> Iterator[ProjectRows]:
        with self._main_lock, faults(self.path, store_error):
            yield self._rows

    @contextmanager
    def _writing(self) -> Iterator[ProjectRows]:
        with self._main_lock, faults(self.path, store_error), transaction(self._main):
            yield self._rows


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
