"""Every benchmark runs, says what it found in JSON, and is on the page."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    "imports",
    "turn",
    "streaming",
    "delay",
    "memory",
    "startup",
    "churn",
    "tools",
    "ledger",
    "parallel_calls",
    "resume",
    "reconnect",
    "evicted",
)
NEED_PUBLISHED = {"imports", "churn", "tools"}
NEED_POSTGRES = {"ledger"}
# The first benchmark of a machine installs the published SDK.
SECONDS = 330

# Each starts servers, so most take some seconds; these are the quickest of each kind.
QUICKEST = {"imports", "turn"}


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.runner", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@pytest.fixture
def needs_parts(require_part: Callable[[str, bool, str], None]) -> Callable[[str], None]:
    """Leave a test out when its benchmark needs something that cannot be had here."""

    def check(name: str) -> None:
        if name in NEED_PUBLISHED:
            said = failure_of("from bench.published import published_python; published_python()")
            require_part("chucky-sdk 0.2.0 of the package index", not said, said)
        if name in NEED_POSTGRES:
            said = failure_of("from bench.postgres import postgres_programs; postgres_programs()")
            require_part("PostgreSQL", not said, said)

    return check


def failure_of(code: str) -> str:
    """The last line of what a piece of Python complains about; nothing if it does not."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def problems_with_row(row: dict[str, Any], repeated: int) -> list[str]:
    series = [row["ours"], *([row["peer"]] if row["peer"] else [])]
    return [
        f"{row['what']}: {problem}"
        for problem, is_one in {
            "there is no unit": not row["unit"],
            "a median is outside of its runs": not all(
                each["min"] <= each["median"] <= each["max"] for each in series
            ),
            "ours and the peer were not run equally often": any(
                len(each["runs"]) != repeated for each in series
            ),
            "the figure is outside of those of the runs": row["compared"] != "ours - peer"
            and not row["figure_min"] * 0.99 <= row["figure"] <= row["figure_max"] * 1.01,
            "a target without verdict": (row["target"] is None) != (row["reached"] is None),
        }.items()
        if is_one
    ]


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICKEST else pytest.mark.slow, id=name)
        for name in NAMES
    ],
)
def test_a_benchmark_runs_and_writes_its_figures(
    name: str, needs_parts: Callable[[str], None], tmp_path: Path
) -> None:
    needs_parts(name)
    page = tmp_path / "benchmarks.md"

    done = run_bench("--quick", "--results", str(tmp_path), "--page", str(page), name)

    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert result["name"] == name
    assert result["rows"]
    for row in result["rows"]:
        assert not problems_with_row(row, len(result["rows"][0]["ours"]["runs"]))
        assert row["what"] in page.read_text(encoding="utf-8")
    assert any(row["target"] for row in result["rows"])
    run = result["run"]
    assert run["command"] == f"scripts/bench {name} --quick"
    assert run["machine"]["cores"] >= 1
    assert run["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert run["revision"]


def test_an_unknown_benchmark_is_refused_with_the_names_there_are() -> None:
    done = run_bench("--quick", "turns")

    assert done.returncode == 2
    assert "there is no benchmark 'turns'; there are imports, turn, streaming" in done.stderr


def test_the_page_names_every_benchmark_and_what_its_module_says() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")

    assert {path.stem for path in (ROOT / "bench" / "results").glob("*.json")} <= set(NAMES)
    for name in NAMES:
        source = (ROOT / "bench" / f"{name}.py").read_text(encoding="utf-8")
        first_line = source.removeprefix('"""').splitlines()[0]
        assert f"## {name}\n\n{first_line}" in page


def test_a_verdict_follows_from_figure_and_target() -> None:
    code = (
        "from bench.figures import Row, Series, Target\n"
        "def row(ours, peer, compared, **target):\n"
        "    of = Row('w', 'u', Series('o', ours), Series('p', peer), compared, Target(**target))\n"
        "    print(of.as_dict()['figure'], of.as_dict()['reached'])\n"
        "row((2.0, 4.0, 6.0), (2.0, 2.0, 9.0), 'ours / peer', at_most=1.9)\n"
        "row((2.0, 4.0, 6.0), (2.0, 2.0, 9.0), 'ours / peer', at_most=2.0)\n"
        "row((2.0,), (10.0,), 'peer / ours', at_least=5.0)\n"
        "row((2.0,), (10.0,), 'ours - peer', at_most=-9.0)\n"
        "row((2.0,), (10.0,), 'ours', at_most=2.0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )

    assert done.stdout.split("\n")[:-1] == [
        "2.0 False",
        "2.0 True",
        "5.0 True",
        "-8.0 False",
        "2.0 True",
    ]
