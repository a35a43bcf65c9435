"""The lock that keeps two servers off one database file."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from chucky.errors import ValidationError
from chucky.server.store.files import prepare_place


class ServeLock:
    """Held by a running server for as long as it lives; taken with :meth:`acquire`.

    It is a lock of the operating system on ``<database>.lock``, so it also ends with a
    server that was killed. Commands that only read or change projects do not take it. The
    file itself is left behind on purpose: removing it would let two servers lock two files
    of the same name.

    Can be used as a context manager.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, database: Path) -> ServeLock:
        """Take the lock of a database, or refuse at once.

        Args:
            database: The database file; a symbolic link counts as what it points to.

        Returns:
            The lock, to be released (or left to the end of the process).

        Raises:
            ValidationError: Another server holds it, there could be no database of this name,
                or the lock file cannot be written.
        """
        real = database.expanduser().resolve()
        prepare_place(real)
        path = real.with_name(real.name + ".lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ValidationError(
                f"The lock file {str(path)!r} cannot be written ({error.strerror}); the server "
                f"needs to write to the directory of its database."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _process_named_in(descriptor)
            os.close(descriptor)
            raise ValidationError(
                f"Another `chucky serve`{holder} already uses the database {str(database)!r}; "
                f"stop it, or name another file with --db."
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise ValidationError(
                f"The file {str(path)!r} cannot be locked ({error.strerror}); keep the database "
                f"on a local disk."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(path, descriptor)

    def release(self) -> None:
        """Give the lock up. Safe to call again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> ServeLock:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def _process_named_in(descriptor: int) -> str:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return f" (process {text})" if text.isdigit() else ""
