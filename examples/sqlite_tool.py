"""A tool that lets Claude query a SQLite database, and do nothing else to it.

Set CHUCKY_URL and CHUCKY_TOKEN, then: python examples/sqlite_tool.py ["your question"]
"""

import asyncio
import json
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from chucky import Chucky, ChuckyError, Tool, tool

SCHEMA = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL REFERENCES customers,
    ordered_on TEXT NOT NULL,
    total_cents INTEGER NOT NULL
);
"""
ROWS = """
INSERT INTO customers VALUES (1, 'Ada'), (2, 'Grace'), (3, 'Alan');
INSERT INTO orders VALUES
    (1, 1, '2026-01-05', 4990), (2, 2, '2026-01-07', 12900), (3, 1, '2026-02-11', 2500),
    (4, 3, '2026-02-12', 800), (5, 2, '2026-03-01', 3100);
"""

MAX_ROWS = 100
MAX_SECONDS = 2.0
MAX_VALUE_BYTES = 10_000
INSTRUCTIONS_PER_CHECK = 10_000

READING = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}

# The offline model writes no SQL, so this question brings its own; ask Claude only the first half.
QUESTION = (
    'Who spent the most? Query the database: "SELECT name, SUM(total_cents) / 100.0 AS spent '
    'FROM orders JOIN customers ON customers.id = customer_id GROUP BY name ORDER BY spent DESC"'
)


def query_tool(database: Path) -> Tool:
    """Make a tool for one database; the model learns its tables from the description."""

    @tool("query_database", f"Query a SQLite database with one SELECT. Its tables:\n{SCHEMA}")
    def query_database(sql: str) -> str:
        # A plain function runs in a thread; what it raises, the model is told as an error.
        with closing(open_for_reading(database)) as connection:
            cursor = connection.execute(sql)
            columns = [column[0] for column in cursor.description or ()]
            rows = cursor.fetchmany(MAX_ROWS + 1)
        answer = {"columns": columns, "rows": rows[:MAX_ROWS], "more": len(rows) > MAX_ROWS}
        return json.dumps(answer, default=repr)

    return query_database


def open_for_reading(database: Path) -> sqlite3.Connection:
    """Open a database so that no statement can write, reach another file, or run for long."""
    connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
    connection.set_authorizer(allow_reading)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    deadline = time.monotonic() + MAX_SECONDS
    connection.set_progress_handler(lambda: time.monotonic() > deadline, INSTRUCTIONS_PER_CHECK)
    return connection


def allow_reading(action: int, *_details: str | None) -> int:
    """Decide on each thing a statement does; ATTACH, PRAGMA and writes are refused."""
    return sqlite3.SQLITE_OK if action in READING else sqlite3.SQLITE_DENY


async def ask(question: str, database: Path) -> None:
    async with Chucky() as client:
        async for event in client.stream(question, tools=[query_tool(database)]):
            if event.type == "tool_use":
                print(f"SQL: {event.data['input']['sql']}")
            elif event.type == "result":
                print(event.data.result)  # or the sentence that says why there is none


def main() -> None:
    question = " ".join(sys.argv[1:]) or QUESTION
    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory) / "shop.db"
        with closing(sqlite3.connect(database)) as connection:
            connection.executescript(SCHEMA + ROWS)
        try:
            asyncio.run(ask(question, database))
        except ChuckyError as error:
            sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
