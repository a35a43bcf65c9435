"""``examples/sqlite_tool.py``: it answers, and its tool can do nothing but read."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from chucky import Tool

if TYPE_CHECKING:
    from tests.examples.conftest import RunExample


@pytest.fixture(scope="module")
def example(examples: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("sqlite_tool", examples / "sqlite_tool.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def database(example: ModuleType, tmp_path: Path) -> Path:
    path = tmp_path / "50% of a shop?.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(example.SCHEMA + example.ROWS)
    return path


@pytest.fixture
def query(example: ModuleType, database: Path) -> Tool:
    tool = example.query_tool(database)
    assert isinstance(tool, Tool)
    return tool


def answer(query: Tool, sql: str) -> str:
    result = query(sql=sql)
    assert isinstance(result, str)
    return result


def test_the_question_is_answered_from_the_database(run_example: RunExample) -> None:
    done = run_example("sqlite_tool.py")
    assert (done.returncode, done.stderr) == (0, "")
    sql, said = done.stdout.splitlines()
    assert sql.startswith("SQL: SELECT name, ")
    assert '[["Grace", 160.0], ["Ada", 74.9], ["Alan", 8.0]]' in said


def test_another_question_may_be_given_and_a_refused_statement_is_told_to_the_model(
    run_example: RunExample,
) -> None:
    done = run_example("sqlite_tool.py", 'Query the database: "DELETE FROM orders"')
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].endswith("not authorized")


def test_rows_beyond_the_limit_are_left_out_and_this_is_said(
    query: Tool, example: ModuleType
) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {})"
    some = json.loads(answer(query, f"{numbers.format(3)} SELECT i, x'00ff' FROM n"))
    assert some == {
        "columns": ["i", "x'00ff'"],
        "rows": [[1, "b'\\x00\\xff'"], [2, "b'\\x00\\xff'"], [3, "b'\\x00\\xff'"]],
        "more": False,
    }
    many = json.loads(answer(query, f"{numbers.format(1000)} SELECT i FROM n"))
    assert (len(many["rows"]), many["more"]) == (example.MAX_ROWS, True)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM orders",
        "UPDATE orders SET total_cents = 0 RETURNING *",
        "INSERT INTO customers VALUES (9, 'Eve')",
        "CREATE TABLE more (x)",
        "CREATE TEMP TABLE more (x)",
        "DROP TABLE orders",
        "ATTACH 'other.db' AS other",
        "VACUUM INTO 'copy.db'",
        "PRAGMA query_only = 0",
        "SELECT * FROM pragma_database_list",
        "SELECT load_extension('other.so')",
        "BEGIN IMMEDIATE",
        "SELECT 1; DELETE FROM orders",
        "SELECT hex(zeroblob(20000))",
        "no SQL at all",
    ],
)
def test_a_statement_that_does_more_than_read_fails_and_changes_nothing(
    query: Tool, database: Path, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = database.read_bytes()
    with pytest.raises((sqlite3.Error, sqlite3.Warning)):
        answer(query, sql)
    assert database.read_bytes() == before
    assert list(tmp_path.iterdir()) == [database]


def test_the_file_is_opened_for_reading_whatever_the_authorizer_may_overlook(
    example: ModuleType, database: Path
) -> None:
    with closing(example.open_for_reading(database)) as connection:
        connection.set_authorizer(None)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM orders")


def test_a_statement_that_takes_too_long_is_ended(
    query: Tool, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "MAX_SECONDS", 0.01)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        answer(query, f"{endless} SELECT COUNT(*) FROM n")
