"""Environments with the SDKs published on the package index, and how programs run in them.

The programs in ``programs/`` are written as a user of that version would write them. Each reads a
JSON object from standard input, its arguments, and prints one, what it saw.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent / "programs"
INSTALL_SECONDS = 300
PROGRAM_SECONDS = 45
# A build as old as that was cut off; nobody waits for it any more.
ABANDONED_SECONDS = 3600

RunProgram = Callable[..., dict[str, Any]]


class Environments:
    """Makes an environment for each version once per machine and keeps it for later runs."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._failures: dict[str, str] = {}

    def python(self, version: str) -> Path:
        """The interpreter of the environment with a version of ``chucky-sdk``.

        Raises:
            LookupError: It could not be made; the text says why. It is tried once in a run.
        """
        if version in self._failures:
            raise LookupError(self._failures[version])
        own = ".".join(map(str, sys.version_info[:3]))
        environment = self._home / f"chucky-sdk-{version}-{sys.implementation.name}-{own}"
        python = environment / "bin" / "python"
        with self._locked():
            if not python.exists():  # nor does it when the interpreter it links to is gone
                shutil.rmtree(environment, ignore_errors=True)
                try:
                    self._make(environment, version)
                except LookupError as error:
                    self._failures[version] = str(error)
                    raise
        return python

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time make environments; the benchmarks take the same lock."""
        self._home.mkdir(parents=True, exist_ok=True)
        with (self._home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make(self, environment: Path, version: str) -> None:
        """Build beside the place and rename: whatever interrupts, what is there is complete."""
        for left in self._home.glob("building-*"):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="building-", dir=self._home) as temporary:
            building = Path(temporary) / "environment"
            venv.create(building, symlinks=True)
            _install(f"chucky-sdk=={version}", building / "bin" / "python")
            building.rename(environment)


def _install(requirement: str, python: Path) -> None:
    """Install with the pip of the tests, told where from by its own settings only."""
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    try:
        done = subprocess.run(
            [*pip, "install", "--quiet", "--no-input", requirement],
            check=False,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise LookupError(f"pip did not end within {INSTALL_SECONDS} s") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise LookupError(f"pip could not install {requirement}: {said[-1]}")


@pytest.fixture(scope="session")
def environments() -> Environments:
    cache = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    return Environments(home / "chucky-tests")


@pytest.fixture
def run_program(
    environments: Environments, require_part: Callable[[str, bool, str], None]
) -> RunProgram:
    """Run ``programs/<version>/<name>.py`` with that version, and return what it printed."""

    def run(version: str, name: str, **arguments: Any) -> dict[str, Any]:
        try:
            python = environments.python(version)
        except LookupError as error:
            require_part(f"chucky-sdk {version} of the package index", False, str(error))
            raise
        program = PROGRAMS / f"v{version.replace('.', '_')}" / f"{name}.py"
        done = subprocess.run(
            [str(python), "-I", str(program)],
            input=json.dumps(arguments),
            check=False,
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        printed = json.loads(done.stdout)
        assert isinstance(printed, dict)
        return printed

    return run


@pytest.fixture
def script() -> Callable[..., str]:
    """A message that tells the offline model what to do, one step per model call."""

    def write(*steps: dict[str, Any]) -> str:
        return f"Go.\n```offline\n{json.dumps(list(steps))}\n```"

    return write
