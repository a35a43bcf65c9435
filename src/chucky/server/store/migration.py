"""The history of the schema: numbered scripts, applied in their order, each once.

Each kind of database has a directory of them below ``migrations/``; what they add up to is shown in
``schema/``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

from chucky.errors import ValidationError
from chucky.server.store.database import Connection, now_ms

_NAME_PATTERN: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_RECORD: Final = "INSERT INTO schema_migrations (version, name, applied_ms) VALUES (?, ?, ?)"


@dataclass(frozen=True)
class Migration:
    """One step of the schema.

    Attributes:
        version: Its number, which is the version of the schema after it.
        name: The name of its file.
        script: Its statements.
    """

    version: int
    name: str
    script: str


def migrations(kind: str) -> list[Migration]:
    """Return every migration of a kind of database (``sqlite`` or ``postgres``), in order."""
    found = []
    for file in (resources.files(__package__) / "migrations" / kind).iterdir():
        if match := _NAME_PATTERN.fullmatch(file.name):
            found.append(Migration(int(match[1]), file.name, file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda each: each.version)


def missing_after(applied: int, known: Sequence[Migration], database: str) -> list[Migration]:
    """Return the migrations that a database lacks.

    Args:
        applied: The version of its schema; 0 before the first migration.
        known: All migrations for it.
        database: What to call it.

    Raises:
        ValidationError: It has more than are known.
    """
    newest = known[-1].version
    if applied > newest:
        raise ValidationError(
            f"The database {database!r} was written by a newer version of chucky (its schema is "
            f"{applied}, this version knows {newest}); upgrade chucky, or name another one with "
            f"--db."
        )
    return [each for each in known if each.version > applied]


def apply(
    missing: Sequence[Migration], connection: Connection, run_script: Callable[[str], None]
) -> tuple[str, ...]:
    """Apply migrations, within the transaction of ``connection``, and return their names."""
    for each in missing:
        run_script(each.script)
        connection.execute(_RECORD, (each.version, each.name, now_ms()))
    return tuple(each.name for each in missing)
