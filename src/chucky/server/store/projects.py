"""Projects and their keys, in whatever database they are.

What is stored, and why, is told by the files in ``schema/``.

Every method blocks for a few milliseconds (for seconds when the database is busy or away) and may
be called from any thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chucky.errors import ValidationError
from chucky.server.policy import read_policy
from chucky.server.postgres_url import PostgresUrl
from chucky.server.projects import Project, ProjectKey
from chucky.server.store.cipher import Cipher
from chucky.server.store.database import Database, T
from chucky.server.store.opening import open_database
from chucky.server.store.project_rows import ProjectRows

DEFAULT_PROJECT_NAME: Final = "default"
MAX_LIVE_KEYS: Final = 10  # every one of them is tried for every token

_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PROJECT_ID_PATTERN: Final = re.compile(r"[a-z0-9]{32}")


class Store:
    """Projects and their keys in a database. Made by :meth:`open`.

    Attributes:
        database: The database they are in.
    """

    def __init__(self, database: Database, cipher: Cipher) -> None:
        self.database = database
        self._cipher = cipher

    @classmethod
    def open(
        cls, db: Path | PostgresUrl, master_key: str | None = None, *, create: bool = True
    ) -> Store:
        """Open a database, bringing one of an earlier version up to date first.

        Args:
            db: A file, or the address of a PostgreSQL database.
            master_key: What secrets are encrypted with, 64 hexadecimal digits; without it they
                are stored as they are.
            create: Whether to create a file that is not there, or tables in an empty database.

        Raises:
            ValidationError: It cannot be used; the sentence says why.
        """
        return cls(open_database(db, create=create), Cipher(master_key))

    def close(self) -> None:
        """Close the database. Safe to call again; nothing else may be called afterwards."""
        self.database.close()

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
        return self._read(lambda rows: rows.all())

    def list_projects(self) -> tuple[Project, ...]:
        """Return every project in the order of creation; the same as :meth:`load_all`."""
        return self.load_all()

    def get_project(self, project_id: str) -> Project | None:
        """Return the project with this id, or ``None``."""
        return self._read(lambda rows: rows.by_id(project_id))

    def find_project(self, name_or_id: str) -> Project:
        """Return the project with this name or id.

        Raises:
            ValidationError: There is none.
        """
        return self._read(lambda rows: rows.find(name_or_id))

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
        name = _name_or_id(project)
        return self._read(lambda rows: rows.policy(rows.find(name).project_id))

    def change_counter(self) -> int:
        """Return a number that differs from the last one when anyone has changed a project.

        Costs a look at one row.

        Raises:
            ChuckyError: The database cannot be read, so nobody's changes can be seen.
        """
        return self._read(lambda rows: rows.change_counter())

    def _read(self, work: Callable[[ProjectRows], T]) -> T:
        return self.database.read(lambda connection: work(ProjectRows(connection, self._cipher)))

    @contextmanager
    def _writing(self) -> Iterator[ProjectRows]:
        with self.database.writing() as connection:
            yield ProjectRows(connection, self._cipher)


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
