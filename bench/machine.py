"""What the figures were measured on: the machine, the versions, the state of the checkout."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import ROOT

_GIT_SECONDS = 10
_PACKAGES = (
    "chucky-sdk",
    "websockets",
    "uvicorn",
    "starlette",
    "h11",
    "anthropic",
    "httpx2",
    "pydantic",
)


def describe_run(command: str) -> dict[str, Any]:
    """Describe when, where and with what a benchmark is about to run.

    Args:
        command: What to type to run it again.
    """
    changed = _git("status", "--porcelain", "--", "src")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "revision": _git("rev-parse", "HEAD") or "unknown",
        "uncommitted_changes_in_src": bool(changed),
        "load_average_before": round(os.getloadavg()[0], 2),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        "versions": {
            "python": platform.python_version(),
            "implementation": sys.implementation.name,
            **{name: version(name) for name in _PACKAGES},
        },
    }


class Bystanders:
    """How much of the processors others use while a benchmark runs: its figures suffer from it."""

    def __init__(self) -> None:
        self._started_at = time.monotonic()
        self._others = _all_cpu_seconds() - _own_cpu_seconds()

    def cpu_share(self) -> float:
        """The share (0 to 1) since this was made; all processes started since must have ended."""
        others = _all_cpu_seconds() - _own_cpu_seconds() - self._others
        capacity = (time.monotonic() - self._started_at) * (os.cpu_count() or 1)
        return round(max(0.0, others / capacity), 3)


def _all_cpu_seconds() -> float:
    """What all processes of the machine have used so far."""
    first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    user, nice, system = (int(ticks) for ticks in first.split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _own_cpu_seconds() -> float:
    """What this process and those it has started have used."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"


def _git(*arguments: str) -> str:
    """What git says, or nothing where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
