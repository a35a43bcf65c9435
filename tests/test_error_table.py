"""The table of errors in docs/protocol.md has every code and reason of the source, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from chucky.errors import CODE_BY_REASON, CODE_BY_SUBTYPE

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "chucky"
PAGE = ROOT / "docs" / "protocol.md"
HEADING = "## The error table"

KINDS = ("code", "reason")


# --- the words of the source ------------------------------------------------------------------


@dataclass
class Words:
    """The words that errors travel by, with a place where each is used."""

    code: dict[str, str] = field(default_factory=dict)
    reason: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, values: Iterable[ast.expr], file: str) -> None:
        found: dict[str, str] = getattr(self, kind)
        for value in values:
            for word in strings_of(value):
                found.setdefault(word.value, f"{file}:{word.lineno}")


class Word(NamedTuple):
    value: str
    lineno: int


def strings_of(expression: ast.expr) -> Iterator[Word]:
    """Yield the literals an expression may be: itself, or the branches of a choice."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield Word(expression.value, expression.lineno)
    elif isinstance(expression, ast.IfExp):
        yield from strings_of(expression.body)
        yield from strings_of(expression.orelse)
    elif isinstance(expression, ast.BoolOp):
        for value in expression.values:
            yield from strings_of(value)


def words_in(files: Mapping[str, str]) -> Words:
    """Collect the codes and reasons of some source texts, by the names of their files."""
    words = Words()
    for file, source in files.items():
        tree = ast.parse(source)
        positions = _positions(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                _add_call(words, node, positions, file)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    _add_assignment(words, target, node.value, tree, file)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                _add_assignment(words, node.target, node.value, tree, file)
    return words


def _positions(tree: ast.Module) -> dict[tuple[str, str], int]:
    """Say where the functions of a module take a code or reason that they pass on by name."""
    return {
        (function.name, argument.arg): index
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for index, argument in enumerate([*function.args.posonlyargs, *function.args.args])
        if argument.arg in KINDS and _passes_on(function, argument.arg)
    }


def _passes_on(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> bool:
    # Elsewhere a parameter called `reason` may well be a sentence.
    return any(
        isinstance(node, ast.keyword)
        and node.arg == name
        and isinstance(node.value, ast.Name)
        and node.value.id == name
        for node in ast.walk(function)
    )


def _add_call(
    words: Words, call: ast.Call, positions: Mapping[tuple[str, str], int], file: str
) -> None:
    for keyword in call.keywords:
        if keyword.arg in KINDS:
            words.add(keyword.arg, [keyword.value], file)
    for kind in KINDS:
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        index = positions.get((name, kind))
        if index is not None:
            words.add(kind, call.args[index : index + 1], file)


def _add_assignment(
    words: Words, target: ast.expr, value: ast.expr, tree: ast.Module, file: str
) -> None:
    if isinstance(target, ast.Tuple):
        for index, element in enumerate(target.elts):
            if isinstance(value, ast.Tuple):
                _add_assignment(words, element, value.elts[index], tree, file)
            elif isinstance(element, ast.Name) and element.id in KINDS:
                words.add(element.id, _elements(index, value, tree), file)
    elif isinstance(target, ast.Attribute) and target.attr in KINDS:
        words.add(target.attr, [value], file)
    elif isinstance(target, ast.Name):
        _add_named(words, target.id, value, file)


def _add_named(words: Words, name: str, value: ast.expr, file: str) -> None:
    if name == "default_code":
        words.add("code", [value], file)
    elif name.startswith("CODE_BY_") and isinstance(value, ast.Dict):
        words.add("code", value.values, file)
        if name == "CODE_BY_REASON":
            words.add("reason", [key for key in value.keys if key is not None], file)


def _elements(index: int, value: ast.expr, tree: ast.Module) -> Iterator[ast.expr]:
    """Yield what an element of a tuple may be that is looked up in a table of the module."""
    names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        if names.isdisjoint(each.id for each in node.targets if isinstance(each, ast.Name)):
            continue
        for row in ast.walk(node.value):
            if isinstance(row, ast.Tuple) and index < len(row.elts):
                yield row.elts[index]


def source_words() -> Words:
    return words_in(
        {
            path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted(SOURCE.rglob("*.py"))
        }
    )


# --- the words of the table -------------------------------------------------------------------


class Row(NamedTuple):
    """One line of the table; ``reason`` is empty where there is none."""

    code: str
    reason: str
    subtypes: frozenset[str]


def rows_of(page: str) -> list[Row]:
    section = page.partition(f"\n{HEADING}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [_row(line) for line in lines]


def _row(line: str) -> Row:
    code, reason, reaches = (re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:4])
    assert len(code) == 1, line
    assert len(reason) <= 1, line
    subtypes = (word for word in reaches if word.startswith("error_"))
    return Row(code[0], "".join(reason), frozenset(subtypes))


def table() -> list[Row]:
    return rows_of(PAGE.read_text(encoding="utf-8"))


# --- the tests --------------------------------------------------------------------------------


def test_every_code_of_the_source_is_in_the_table() -> None:
    documented = {row.code for row in table()}

    missing = {word: at for word, at in source_words().code.items() if word not in documented}

    assert not missing


def test_every_reason_of_the_source_is_in_the_table() -> None:
    documented = {row.reason for row in table()}

    missing = {word: at for word, at in source_words().reason.items() if word not in documented}

    assert not missing


def test_the_table_has_no_code_or_reason_that_the_source_does_not_have() -> None:
    words = source_words()

    assert {row.code for row in table()} <= set(words.code)
    assert {row.reason for row in table() if row.reason} <= set(words.reason)


def test_the_table_has_no_pair_twice() -> None:
    pairs = [(row.code, row.reason) for row in table()]

    assert len(pairs) == len(set(pairs))


def test_the_table_gives_a_reason_the_code_the_sdk_reads_it_as() -> None:
    code_of = {row.reason: row.code for row in table()}

    assert {reason: code_of.get(reason) for reason in CODE_BY_REASON} == CODE_BY_REASON


def test_the_table_gives_a_subtype_the_code_the_sdk_reads_it_as() -> None:
    codes_of = {
        subtype: {row.code for row in table() if subtype in row.subtypes}
        for subtype in CODE_BY_SUBTYPE
    }

    assert codes_of == {subtype: {code} for subtype, code in CODE_BY_SUBTYPE.items()}


def test_the_collector_finds_a_word_in_whatever_way_it_is_given() -> None:
    source = """
class Lost(Error):
    default_code = "A_CODE"

CODE_BY_REASON: dict[str, str] = {"a_reason": "B_CODE"}
CODE_BY_SUBTYPE = {"error_of_some_kind": "C_CODE"}
_MEANINGS = {1: ("b_reason", "A sentence"), 2: ("c_reason", "Another")}

def refusal(reason, sentence):
    return Error(sentence, reason=reason)

def explained(reason):
    return f"because {reason}"

def work(status, error):
    fallback = ("d_reason", "x") if status else ("e_reason", "y")
    reason, meaning = _MEANINGS.get(status, fallback)
    error.code, error.reason = "D_CODE", "f_reason"
    error.code = "E_CODE"
    refusal("g_reason", explained("it rained"))
    raise Error("A sentence", code="F_CODE", reason="h_reason" if status else "i_reason")
"""

    words = words_in({"work.py": source})

    assert set(words.code) == {f"{letter}_CODE" for letter in "ABCDEF"}
    assert set(words.reason) == {f"{letter}_reason" for letter in "abcdefghi"}
    assert words.reason["g_reason"] == "work.py:20"


def test_the_reader_of_the_table_reads_codes_reasons_and_subtypes() -> None:
    page = f"""
## Another
| `NOT_THIS` | `nor_this` | frame |
{HEADING}

| code | reason | reaches you as | when |
|---|---|---|---|
| `A_CODE` | `a_reason` | frame, result `error_of_some_kind` | `some_word` |
| `B_CODE` | — | raised | always |

## After
| `NOT_THIS` | `either` | frame |
"""

    assert rows_of(page) == [
        Row("A_CODE", "a_reason", frozenset({"error_of_some_kind"})),
        Row("B_CODE", "", frozenset()),
    ]
