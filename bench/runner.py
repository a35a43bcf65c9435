"""Runs benchmarks, keeps their figures and writes the page: what ``scripts/bench`` calls."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench import NAMES, ROOT
from bench.machine import Bystanders, describe_run
from bench.page import default_page, page_from


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks named in the arguments, or all.

    Returns:
        The exit code: 0, or 1 when a benchmark could not be run. A missed target is no failure.
    """
    given = _parser().parse_args(arguments)
    # Whoever stops this run stops the servers it has started too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    elsewhere = ROOT / "build" / "bench" if given.quick else None
    results: Path = given.results or elsewhere or ROOT / "bench" / "results"
    page: Path = given.page or (elsewhere / "benchmarks.md" if elsewhere else default_page())
    results.mkdir(parents=True, exist_ok=True)

    failed = [name for name in given.names or NAMES if not _run(name, results, quick=given.quick)]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(page_from(results), encoding="utf-8")
    if failed:
        print(f"Could not be run: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measures speed and memory, each against a peer."
    )
    parser.add_argument("names", nargs="*", type=_known, metavar="name")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny numbers, to see that everything works; the figures go to build/bench",
    )
    parser.add_argument("--results", type=Path, help="where the raw figures go")
    parser.add_argument("--page", type=Path, help="the page to write")
    parser.epilog = f"The names: {', '.join(NAMES)}. Without one, all are run."
    return parser


def _known(name: str) -> str:
    if name not in NAMES:
        raise argparse.ArgumentTypeError(
            f"there is no benchmark {name!r}; there are {', '.join(NAMES)}"
        )
    return name


def _run(name: str, results: Path, *, quick: bool) -> bool:
    """Run one benchmark and write its result file; tell whether that went well."""
    print(f"{name} …", flush=True)
    run = describe_run(f"scripts/bench {name}{' --quick' if quick else ''}")
    started_at, bystanders = time.monotonic(), Bystanders()
    try:
        figures = import_module(f"bench.{name}").measure(quick=quick).as_dict()
    except Exception:  # the figures of the other benchmarks must not be lost with this one's
        traceback.print_exc()
        return False
    run["cpu_share_of_others"] = bystanders.cpu_share()
    run["seconds"] = round(time.monotonic() - started_at, 1)
    result = {"name": name, **figures, "run": run}
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    (results / f"{name}.json").write_text(_compact(text) + "\n", encoding="utf-8")
    for row in figures["rows"]:
        print(f"  {_line(row)}", flush=True)
    return True


def _compact(text: str) -> str:
    """Put lists of numbers on one line each, so that a changed run is a changed line."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if inside:
            lines[-1] += line.strip() + (" " if line.endswith(",") else "")
            inside = not line.strip().startswith("]")
        else:
            lines.append(line)
            inside = line.endswith("[") and '"rows"' not in line
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    verdict = {True: "reached", False: "MISSED", None: "no target"}[row["reached"]]
    target = f", target {row['target']}" if row["target"] else ""
    peer = f", peer {row['peer']['median']:g}" if row["peer"] else ""
    return (
        f"{row['what']}: {row['ours']['median']:g} {row['unit']}{peer}; {row['compared']} = "
        f"{row['figure']:.3g}{target}: {verdict}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
