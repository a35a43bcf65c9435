"""Child processes: servers that say where they listen, workers that answer line by line."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bench import PROGRAMS, ROOT

START_SECONDS = 30.0
STOP_SECONDS = 15.0

_ADDRESS = re.compile(r"(?:http|ws)://(127\.0\.0\.1:\d+)")
# What the caller's shell could change a measurement with, or make it spend money.
_OUTSIDE = re.compile(r"(CHUCKY|ANTHROPIC|CLAUDE)_.*|.*_proxy|PYTHON.*", re.IGNORECASE)


class ChildError(RuntimeError):
    """A process did not do what it was started for; the text has what it said last."""


class Child:
    """A process whose lines are read while it runs. As a context manager it is stopped.

    Args:
        command: The program and its arguments.
        directory: Where it runs.
        variables: Added to an environment without settings, keys and proxies.
    """

    def __init__(
        self, command: Sequence[str], directory: Path, variables: dict[str, str] | None = None
    ) -> None:
        self._command = list(command)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            self._command,
            cwd=directory,
            env={**_clean_environment(), **(variables or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input: IO[str] = self._process.stdin
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), daemon=True
        )
        self._reader.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _read(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self._lines.put(line)
        self._lines.put(None)

    def line(self, timeout_seconds: float) -> str:
        """Wait for the next line it prints.

        Raises:
            ChildError: It ended, or printed nothing for so long.
        """
        try:
            line = self._lines.get(timeout=timeout_seconds)
        except queue.Empty:
            raise self._failure(f"said nothing for {timeout_seconds:g} s") from None
        if line is None:
            raise self._failure("ended")
        return line

    def address(self) -> str:
        """Wait until it says where it listens, and return that as ``host:port``.

        Raises:
            ChildError: It ended, or did not say it in time.
        """
        while True:
            if match := _ADDRESS.search(self.line(START_SECONDS)):
                return match[1]

    def ask(self, timeout_seconds: float, **arguments: Any) -> dict[str, Any]:
        """Give a worker something to do and wait for what it found.

        Raises:
            ChildError: It ended, or took longer than that.
        """
        try:
            self._input.write(json.dumps(arguments) + "\n")
            self._input.flush()
        except BrokenPipeError:
            raise self._failure("ended") from None
        answer = json.loads(self.line(timeout_seconds))
        assert isinstance(answer, dict)
        return answer

    def stop(self) -> None:
        """End it: a worker ends with its input, a server when it is told to."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(STOP_SECONDS)
        self._errors.close()

    def _failure(self, what: str) -> ChildError:
        self._errors.seek(0)
        said = self._errors.read()[-3000:].decode(errors="replace")
        name = " ".join(Path(part).name for part in self._command[:4])
        return ChildError(f"The process {name!r} {what}. Its standard error:\n{said}")


def program(name: str, *arguments: str) -> Child:
    """Start one of ``bench/programs`` with this interpreter.

    Args:
        name: The name of its module.
        arguments: Its arguments.
    """
    return Child([sys.executable, "-m", f"bench.programs.{name}", *arguments], ROOT)


def program_of(python: Path, name: str) -> Child:
    """Start one of ``bench/programs`` with whatever ``chucky`` another interpreter has."""
    return Child([str(python), "-I", str(PROGRAMS / f"{name}.py")], ROOT)


@contextlib.contextmanager
def serving(child: Child) -> Iterator[tuple[Child, str]]:
    """Wait until a server listens; yield it and its ``host:port``, and stop it in the end."""
    with child:
        yield child, child.address()


def chucky_command() -> str:
    """The ``chucky`` command of this environment."""
    return str(Path(sys.executable).parent / "chucky")


def proportional_kib(pid: int) -> int:
    """The memory of a process in KiB; what it shares with others counts in proportion (PSS)."""
    return _memory_kib(pid, "Pss")


def resident_kib(pid: int) -> int:
    """The memory of a process in KiB, as most tools show it (RSS)."""
    return _memory_kib(pid, "Rss")


def _memory_kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise ChildError(f"The system does not tell the memory ({field}) of process {pid}.")


def open_files(pid: int) -> int:
    """How many files and sockets a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def cpu_seconds(pid: int) -> float:
    """The processor time a process has used so far."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    fields = stat.rpartition(")")[2].split()  # the name before it may contain anything
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not _OUTSIDE.fullmatch(name)}
