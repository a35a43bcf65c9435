"""The file of a database, as a file: its place, its creation for its owner only, its identity."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from chucky.errors import ValidationError
from chucky.server.settings import default_db_path

_EFFECTIVE_IDS: Final = os.access in os.supports_effective_ids
_creating = threading.Lock()


def prepare_place(path: Path) -> None:
    """Make sure that there could be a database of this name.

    The directory of the default database is created if it is missing (mode 0700); that of any
    other is not, because a name that was mistyped should not pass unnoticed.

    Raises:
        ValidationError: There is no such directory, or the path is one itself.
    """
    if _is_by_default(path.parent):
        _make_private_directory(path.parent)
    elif not _may_exist(path.parent):
        raise ValidationError(
            f"The database {str(path)!r} cannot be created because there is no directory "
            f"{str(path.parent)!r}; create it, or name another file with --db."
        )
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises where this says no)
        raise ValidationError(
            f"The database {str(path)!r} is a directory; name a file in it with --db."
        )


def require_database(path: Path) -> None:
    """Refuse a database that does not exist.

    Raises:
        ValidationError: It does not.
    """
    if not _may_exist(path):
        raise ValidationError(
            f"There is no database {str(path)!r}; start `chucky serve` first, create a project "
            f"with `chucky projects create`, or name the database with --db."
        )


def create_private_file(path: Path) -> None:
    """Create the file if it is missing, with mode 0600 because of the secrets in it.

    A file that exists is never opened here: closing it would take away the locks that SQLite
    holds on it elsewhere in this process. The same holds for two threads that both find no
    file, hence the lock.

    Raises:
        ValidationError: It cannot be created, or not be read and written.
    """
    try:
        with _creating:
            if not path.exists():
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        pass  # another process was faster; what counts is that it exists
    except OSError as error:
        raise ValidationError(
            f"The database {str(path)!r} cannot be opened or created ({error.strerror}); make its "
            f"directory accessible, or name another file with --db."
        ) from error
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=_EFFECTIVE_IDS):
        raise ValidationError(
            f"The database {str(path)!r} cannot be read and written by this user; change its "
            f"owner or mode, or name another file with --db."
        )


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from any other of the same name; ``None`` if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_by_default(directory: Path) -> bool:
    try:
        return directory == default_db_path().parent
    except ValidationError:
        return False  # no home directory, so this one was named


def _may_exist(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # in a directory that may not be entered, for example: opening it tells
    return True


def _make_private_directory(directory: Path) -> None:
    try:
        missing = [part for part in (directory, *directory.parents) if not part.exists()]
        # One by one: the mode of Path.mkdir(parents=True) applies to the last one only.
        for part in reversed(missing):
            part.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ValidationError(
            f"The directory {str(directory)!r} for the database cannot be created "
            f"({error.strerror}); name another file with --db."
        ) from error
