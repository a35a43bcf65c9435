"""A PostgreSQL server of a benchmark's own, set up as in production: what it commits it syncs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_SECONDS = 60


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a server and yield the address of an empty database in it.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    programs = postgres_programs()
    with TemporaryDirectory(prefix="chucky-bench-") as name:
        if os.geteuid() == 0:
            shutil.chown(name, "postgres", "postgres")  # it refuses to run as root
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        data = f"{name}/data"
        _run(programs / "initdb", "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C", data)
        options = f"-p {port} -k {name} -c listen_addresses=127.0.0.1"
        _run(programs / "pg_ctl", "start", "-w", "-D", data, "-l", f"{name}/log", "-o", options)
        try:
            yield f"postgresql://bench@127.0.0.1:{port}/postgres"
        finally:
            _run(programs / "pg_ctl", "stop", "-w", "-D", data, "-m", "immediate")


def postgres_programs() -> Path:
    """Find where ``initdb`` and ``pg_ctl`` are; Debian leaves them out of the path.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    found = [Path(name).parent for name in filter(None, [shutil.which("initdb")])]
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found += [path.parent for path in sorted(debian, key=lambda path: int(path.parts[-3]))]
    if not found:
        raise FileNotFoundError("PostgreSQL is not installed: scripts/parts installs it.")
    return found[-1]


def _run(program: Path, *arguments: str) -> None:
    user = "postgres" if os.geteuid() == 0 else None
    subprocess.run(
        [program, *arguments],
        user=user,
        group=user,
        cwd="/",
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_SECONDS,
    )
