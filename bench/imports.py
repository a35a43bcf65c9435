"""How long an application waits for `from chucky import …`.

Measured in new interpreters, ours and the published 0.2.0 in turns, each with the libraries it
brings along in an environment of its own, byte code compiled. `asyncio` is imported before the
clock starts, in both: every application of the SDK has it loaded anyway, and so neither side is
charged for it. The time is the one inside the interpreter, so starting Python does not count.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.figures import Figures, Row, Series, Target
from bench.published import VERSION, published_python

_SECONDS = 30
_CODE = """
import json, sys, time
started_at = time.perf_counter_ns()
import asyncio
between = time.perf_counter_ns()
from chucky import {name}
ended_at = time.perf_counter_ns()
print(json.dumps({{
    "asyncio_ms": (between - started_at) / 1e6,
    "import_ms": (ended_at - between) / 1e6,
    "pydantic": sum(name.partition(".")[0].startswith("pydantic") for name in sys.modules),
}}))
"""


@dataclass(frozen=True, slots=True)
class _Size:
    interpreters: int


def measure(*, quick: bool) -> Figures:
    """Measure the imports; see the module's docstring."""
    size = _Size(interpreters=2 if quick else 25)
    pythons = {"chucky": Path(sys.executable), f"chucky-sdk {VERSION}": published_python()}
    found = {(label, name): [] for name in ("create_token", "Chucky") for label in pythons}  # type: dict[tuple[str, str], list[dict[str, float]]]
    for label, name in found:
        _import(pythons[label], name)  # compiles byte code and fills the cache of files
    for _ in range(size.interpreters):
        for (label, name), runs in found.items():
            runs.append(_import(pythons[label], name))

    ours, peer = pythons

    def row(name: str, at_most: float) -> Row:
        return Row(
            what=f"`from chucky import {name}`",
            unit="ms",
            ours=_series(ours, found[ours, name], "import_ms"),
            peer=_series(peer, found[peer, name], "import_ms"),
            compared="ours / peer",
            target=Target(at_most=at_most),
        )

    return Figures(
        rows=[
            row("create_token", 1 / 3),
            row("Chucky", 0.6),
            Row(
                what="modules of pydantic loaded by `from chucky import Chucky`",
                unit="modules",
                ours=_series(ours, found[ours, "Chucky"], "pydantic"),
                peer=_series(peer, found[peer, "Chucky"], "pydantic"),
                compared="ours",
                target=Target(at_most=0),
            ),
        ],
        size=asdict(size),
        details={
            "asyncio_ms": statistics.median(
                run["asyncio_ms"] for runs in found.values() for run in runs
            )
        },
    )


def _series(label: str, runs: list[dict[str, float]], key: str) -> Series:
    return Series(label, tuple(run[key] for run in runs))


def _import(python: Path, name: str) -> dict[str, float]:
    done = subprocess.run(
        [str(python), "-I", "-c", _CODE.format(name=name)],
        check=True,
        capture_output=True,
        timeout=_SECONDS,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found
