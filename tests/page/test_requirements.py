"""The requirements list of the client page and the tests beside this file hold each other."""

from __future__ import annotations

import ast
import hashlib
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DATA: dict[str, Any] = tomllib.loads((HERE / "requirements.toml").read_text(encoding="utf-8"))
REQUIREMENTS: list[dict[str, Any]] = DATA["requirement"]
EXAMPLES: list[dict[str, Any]] = DATA["example"]

HEADER = "# fmt: off\n# mypy: ignore-errors\n# ruff: noqa\n\n"
RUNNERS = {"run_example", "compile_example"}


def lines_of(entry: dict[str, Any]) -> range:
    first, last = entry["lines"]
    assert first <= last
    return range(first, last + 1)


def modules() -> dict[Path, ast.Module]:
    """The test modules of this directory, without this one."""
    paths = sorted(set(HERE.glob("test_*.py")) - {Path(__file__)})
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def defined_tests() -> Counter[str]:
    """The tests of this directory by their address; twice the same name hides the first."""
    return Counter(
        f"{path.relative_to(ROOT).as_posix()}::{node.name}"
        for path, tree in modules().items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    )


def test_each_requirement_has_an_id_of_its_own_and_a_statement() -> None:
    ids = Counter(requirement["id"] for requirement in REQUIREMENTS)
    assert max(ids.values()) == 1
    assert all(requirement["says"].endswith(".") for requirement in REQUIREMENTS)


def test_every_requirement_is_held_by_tests_that_exist() -> None:
    tests = defined_tests()
    for requirement in REQUIREMENTS:
        assert requirement["tests"], requirement["id"]
        assert set(requirement["tests"]) <= set(tests), requirement["id"]


def test_every_test_holds_a_requirement() -> None:
    named = {test for requirement in REQUIREMENTS for test in requirement["tests"]}
    tests = defined_tests()
    assert set(tests) - named == set()
    assert max(tests.values()) == 1


def test_every_line_of_the_page_is_a_requirement_or_says_nothing() -> None:
    silent = Counter(line for lines in DATA["page"]["silent"].values() for line in lines)
    required = {line for requirement in REQUIREMENTS for line in lines_of(requirement)}
    assert max(silent.values()) == 1
    assert required & set(silent) == set()
    assert required | set(silent) == set(range(1, DATA["page"]["lines"] + 1))


def test_the_examples_are_the_pages_word_for_word() -> None:
    assert {each["file"] for each in EXAMPLES} == {p.name for p in (HERE / "examples").glob("*.py")}
    for example in EXAMPLES:
        text = (HERE / "examples" / example["file"]).read_text(encoding="utf-8")
        assert text.startswith(HEADER)
        said = text.removeprefix(HEADER)
        assert hashlib.sha256(said.encode()).hexdigest() == example["sha256"], example["file"]
        assert said.count("\n") == len(lines_of(example))


def test_every_example_is_a_requirement_and_is_run() -> None:
    required = [requirement["lines"] for requirement in REQUIREMENTS]
    run = {
        str(node.args[0].value) + ".py"
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in RUNNERS
        and isinstance(node.args[0], ast.Constant)
    }
    for example in EXAMPLES:
        assert example["lines"] in required
        assert example["file"] in run
