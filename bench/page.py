"""Writes ``docs/benchmarks.md`` from the result files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from bench import NAMES, ROOT

PROFILES = Path(__file__).resolve().parent / "profiles"

_INTRODUCTION = """\
# Benchmarks

How fast Chucky is, and what it weighs. Every figure is measured beside a peer in the same run, the
two in turns, because a number alone says more about the machine than about the program. Ours and
the peer's are medians of the runs, with the least and the greatest in parentheses; the ratio is
that of the medians. What a profiler says about a missed target stands below its table, where
there is such a profile yet.

This page is written by `scripts/bench` from the files in `bench/results`, which have all runs. To
measure again, on a machine that does nothing else meanwhile:

```console
$ scripts/bench
$ scripts/bench turn streaming
$ scripts/bench --quick
```

The first takes some minutes and runs everything, the second the named ones. The third tries out in
a few seconds that everything works; its figures mean nothing and go to `build/bench`. Everything
runs on loopback addresses of one machine. The published 0.2.0 of the SDK, the peer of three
benchmarks, is installed once into an environment of its own.
"""

_NEXT_TO_NOTHING = 0.1  # a ratio of two such values says nothing
_HEADER = ("what", "ours", "peer", "ratio", "target", "")


def page_from(results: Path) -> str:
    """Write the page for the result files in a directory."""
    found = {name: _read(results / f"{name}.json") for name in NAMES}
    parts = [_INTRODUCTION, "## Summary\n", _summary(found)]
    for name, result in found.items():
        parts += [f"## {name}\n", _description(name)]
        parts += ["Not measured yet.\n"] if result is None else [*_section(name, result)]
    return "\n".join(parts)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def _description(name: str) -> str:
    """What the benchmark's module says about itself."""
    return f"{(import_module(f'bench.{name}').__doc__ or '').strip()}\n"


def _summary(found: Mapping[str, dict[str, Any] | None]) -> str:
    lines = [
        (f"[{name}](#{name})", *_cells(row))
        for name, result in found.items()
        for row in (result["rows"] if result else ())
        if row["target"]
    ]
    return _table(("", *_HEADER), lines)


def _section(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    yield _table(_HEADER, [_cells(row) for row in result["rows"]])
    yield _circumstances(result)
    profile = PROFILES / f"{name}.md"
    if any(row["reached"] is False for row in result["rows"]) and profile.exists():
        yield f"### Why {name} misses its target\n"
        yield profile.read_text(encoding="utf-8")


def _circumstances(result: Mapping[str, Any]) -> str:
    run = result["run"]
    machine, versions = run["machine"], dict(run["versions"])
    state = " with uncommitted changes" if run["uncommitted_changes_in_src"] else ""
    python = f"{versions.pop('implementation')} {versions.pop('python')}"
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    size = ", ".join(f"{key.replace('_', ' ')}: {value:,}" for key, value in result["size"].items())
    return (
        f"`{run['command']}` on {run['date'][:10]}, revision {run['revision'][:12]}{state}; "
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_mib']:,} MiB, "
        f"{machine['system']}; other programs used {run['cpu_share_of_others']:.0%} of the cores "
        f"meanwhile; {python}, {packages}. "
        f"Size: {size}.\n"
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    verdict = {True: "reached", False: "**MISSED**", None: ""}[row["reached"]]
    return (
        row["what"],
        _series(row["ours"], row["unit"]),
        _series(row["peer"], row["unit"]) if row["peer"] else "–",
        _ratio(row),
        _target(row),
        verdict,
    )


def _series(series: Mapping[str, Any], unit: str) -> str:
    least, most = _number(series["min"]), _number(series["max"])
    return f"{_number(series['median'])} {unit} ({least}–{most}), {series['label']}"


def _ratio(row: Mapping[str, Any]) -> str:
    if row["compared"] == "ours - peer":
        return f"{row['figure']:+.2f} {row['unit']}"
    if row["compared"] != "ours":
        return f"{row['figure']:.2f} ×, {row['compared']}"
    if row["peer"] and min(row["peer"]["median"], row["ours"]["median"]) > _NEXT_TO_NOTHING:
        return f"{row['ours']['median'] / row['peer']['median']:.2f} ×, ours / peer"
    return "–"


def _target(row: Mapping[str, Any]) -> str:
    if not row["target"]:
        return ""
    return f"{row['target']} {row['unit'] if row['compared'] in ('ours', 'ours - peer') else '×'}"


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _table(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rows = [header, ("---",) * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def default_page() -> Path:
    """Where the page is for everybody to read."""
    return ROOT / "docs" / "benchmarks.md"
