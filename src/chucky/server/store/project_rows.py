"""Projects and their keys as rows: the statements, and what is made of them.

The statements are the same for every database. Which of them form one transaction is decided by
:mod:`chucky.server.store.projects`.
"""

from __future__ import annotations

import difflib
import logging
import secrets
import string
from dataclasses import replace
from typing import Final

from chucky.errors import ChuckyError, ValidationError
from chucky.server.policy import ProjectPolicy, read_policy
from chucky.server.projects import Project, ProjectKey, ProviderKey
from chucky.server.store.cipher import Cipher
from chucky.server.store.database import Connection, now_ms

logger = logging.getLogger("chucky.server")

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
_PROVIDER_KEYS: Final = "SELECT project_id, provider, secret FROM provider_keys ORDER BY 1, 2"
_SET_PROVIDER_KEY: Final = """
INSERT INTO provider_keys (project_id, provider, secret, created_ms) VALUES (?, ?, ?, ?)
ON CONFLICT (project_id, provider)
DO UPDATE SET secret = excluded.secret, created_ms = excluded.created_ms
"""
_DELETE_PROVIDER_KEY: Final = "DELETE FROM provider_keys WHERE project_id = ? AND provider = ?"
_POLICY_OF: Final = "SELECT policy FROM projects WHERE project_id = ?"
_SET_POLICY: Final = "UPDATE projects SET policy = ? WHERE project_id = ?"
_CHANGE_COUNTER: Final = "SELECT counter FROM project_changes"
_ENABLE_PROJECT: Final = "UPDATE projects SET disabled_ms = NULL WHERE project_id = ?"


class ProjectRows:
    """Reads and writes rows over a connection, within whatever transaction it is in."""

    def __init__(self, connection: Connection, cipher: Cipher) -> None:
        self._connection = connection
        self._cipher = cipher

    def all(self) -> tuple[Project, ...]:
        """Every project in the order of creation, each with its live keys."""
        return self._read(_ALL_PROJECTS)

    def by_id(self, project_id: str) -> Project | None:
        """The project with this id."""
        return next(iter(self._read(_PROJECT_BY_ID, project_id)), None)

    def by_name(self, name: str) -> Project | None:
        """The project with this name."""
        return next(iter(self._read(_PROJECT_BY_NAME, name)), None)

    def find(self, name_or_id: str) -> Project:
        """The project with this name or id.

        Raises:
            ValidationError: There is none.
        """
        found = self.by_id(name_or_id) or self.by_name(name_or_id)
        if found is not None:
            return found
        names = [row[0] for row in self._connection.execute(_PROJECT_NAMES)]
        close = difflib.get_close_matches(name_or_id, names, n=1)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else "`chucky projects list` shows what there is."
        )
        raise ValidationError(f"There is no project {name_or_id!r}; {hint}")

    def insert(self, name: str) -> tuple[Project, ProjectKey]:
        """Write a new project with one fresh key."""
        alphabet = string.ascii_lowercase + string.digits
        project_id = "".join(secrets.choice(alphabet) for _ in range(32))
        self._connection.execute(_INSERT_PROJECT, (project_id, name, now_ms()))
        key = self.insert_key(project_id)
        return Project(project_id, name, False, (key,)), key

    def insert_key(self, project_id: str) -> ProjectKey:
        """Write a fresh key."""
        key = ProjectKey(f"key_{secrets.token_hex(8)}", f"hk_live_{secrets.token_hex(32)}")
        sealed = self._cipher.seal(key.secret, f"the project key {key.key_id}")
        self._connection.execute(_INSERT_KEY, (key.key_id, project_id, sealed, now_ms()))
        return key

    def revoke_keys(self, project_id: str) -> None:
        """Revoke every live key and forget its secret."""
        self._connection.execute(_REVOKE_KEYS, (now_ms(), project_id))

    def disable(self, project_id: str) -> None:
        """Mark a project as disabled, unless it is."""
        self._connection.execute(_DISABLE_PROJECT, (now_ms(), project_id))

    def enable(self, project_id: str) -> None:
        """Mark a project as enabled."""
        self._connection.execute(_ENABLE_PROJECT, (project_id,))

    def policy(self, project_id: str) -> str | None:
        """The policy as it was set."""
        text: str | None = self._connection.execute(_POLICY_OF, (project_id,)).fetchone()[0]
        return text

    def set_policy(self, project_id: str, policy: str | None) -> None:
        """Write the policy."""
        self._connection.execute(_SET_POLICY, (policy, project_id))

    def set_provider_key(self, project_id: str, provider: str, key: str | None) -> None:
        """Write the key for a provider; None deletes it."""
        if key is None:
            self._connection.execute(_DELETE_PROVIDER_KEY, (project_id, provider))
            return
        sealed = self._cipher.seal(key, _place(project_id, provider))
        row = (project_id, provider, sealed, now_ms())
        self._connection.execute(_SET_PROVIDER_KEY, row)

    def change_counter(self) -> int:
        """The number that moves with every change of projects and keys."""
        return int(self._connection.execute(_CHANGE_COUNTER).fetchone()[0])

    def _read(self, query: str, *parameters: str) -> tuple[Project, ...]:
        projects: dict[str, Project] = {}
        for row in self._connection.execute(query, parameters):
            project_id, name, disabled, policy, key_id, secret = row
            found = projects.get(project_id)
            if found is None:
                found = Project(project_id, name, bool(disabled), (), _stored_policy(name, policy))
            opened = key_id and self._open(secret, f"the project key {key_id}")
            keys = (ProjectKey(key_id, opened),) if opened else ()
            projects[project_id] = replace(found, keys=(*found.keys, *keys))
        for project_id, provider, secret in self._connection.execute(_PROVIDER_KEYS):
            if (found := projects.get(project_id)) is not None:
                key = ProviderKey(provider, self._open(secret, _place(project_id, provider)))
                projects[project_id] = replace(found, provider_keys=(*found.provider_keys, key))
        return tuple(projects.values())

    def _open(self, stored: str, place: str) -> str | None:
        """The secret, or None after saying in the log that it cannot be opened."""
        try:
            return self._cipher.open(stored, place)
        except ChuckyError as error:
            logger.error("%s", error)
            return None


def _place(project_id: str, provider: str) -> str:
    return f"the key of the project {project_id} for the provider {provider}"


def _stored_policy(name: str, text: str | None) -> ProjectPolicy:
    if text is None:
        return ProjectPolicy()
    try:
        return read_policy(text)
    except ValidationError as error:
        # Of a newer version, perhaps. What it would have forbidden is not known, so all is.
        logger.error("the policy of the project %s cannot be used: %s", name, error)
        return ProjectPolicy(is_damaged=True)
