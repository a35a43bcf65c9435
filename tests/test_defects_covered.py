"""Every known defect of the published 0.2.0 has a test here that would find it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DECISIONS = TESTS.parent / "docs" / "decisions"
ALL = set(range(1, 37))
# What was left as it is, and the words by which a decision explains it.
EXPLAINED = {31: "execute_in", 35: "AssistantMessage"}


def mentioned(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"defect[ _]0?(\d+)", text)}


def named_by_tests(source: str) -> set[int]:
    """The defects that names and docstrings of the tests in a module name."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("test_"):
            found |= mentioned(node.name) | mentioned(ast.get_docstring(node) or "")
    return found


def test_every_defect_is_named_by_a_test() -> None:
    found: set[int] = set()
    for path in TESTS.rglob("test_*.py"):
        found |= named_by_tests(path.read_text(encoding="utf-8"))
    assert sorted(ALL - EXPLAINED.keys() - found) == []
    assert sorted(found - ALL) == []


@pytest.mark.parametrize("words", EXPLAINED.values(), ids=map(str, EXPLAINED))
def test_a_defect_that_was_left_is_explained(words: str) -> None:
    [page] = DECISIONS.glob("0003-*.md")
    assert words in page.read_text(encoding="utf-8")


def test_only_names_and_docstrings_of_tests_count() -> None:
    source = '''
def test_defect_07_is_found(): ...

def test_another():
    """defect 12, and defect 3 too."""

def helper():
    """defect 20"""

# defect 21
'''
    assert named_by_tests(source) == {7, 12, 3}
