"""The ``chucky-sdk`` 0.2.0 published on the package index, in an environment of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

VERSION = "0.2.0"
_INSTALL_SECONDS = 300


def published_python() -> Path:
    """Return the interpreter of the environment; it is made on first use and kept.

    The tests of the published versions use the same one.

    Raises:
        LookupError: It could not be made; the text says why.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    home = (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "chucky-tests"
    own = ".".join(map(str, sys.version_info[:3]))
    environment = home / f"chucky-sdk-{VERSION}-{sys.implementation.name}-{own}"
    python = environment / "bin" / "python"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:  # the tests take the same one
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not python.exists():  # nor does it when the interpreter it links to is gone
            shutil.rmtree(environment, ignore_errors=True)
            _make(environment)
    return python


def _make(environment: Path) -> None:
    """Build beside the place and rename: whatever interrupts, what is there is complete."""
    with tempfile.TemporaryDirectory(prefix="building-", dir=environment.parent) as temporary:
        building = Path(temporary) / "environment"
        venv.create(building, symlinks=True)
        _install(building / "bin" / "python")
        building.rename(environment)


def _install(python: Path) -> None:
    requirement = f"chucky-sdk=={VERSION}"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    try:
        done = subprocess.run(
            [*command, "--no-input", requirement],
            check=False,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise LookupError(f"pip did not end within {_INSTALL_SECONDS} s.") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise LookupError(f"pip could not install {requirement}: {said[-1]}")
