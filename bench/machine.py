"""What the figures were measured on: the machine, the versions, the state of the checkout."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
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
