"""``chucky migrate`` on a database of each kind, and the whole service on PostgreSQL."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from chucky.server.postgres_url import PostgresUrl
from chucky.server.store.migration import migrations

if TYPE_CHECKING:
    from tests.conftest import PostgresServer, RunServer

WAIT_SECONDS = 30


@pytest.fixture(params=["sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def db(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, as ``--db`` names it; its password is in the environment."""
    return str(request.getfixturevalue("postgres_db" if kind == "postgres" else "sqlite_db"))


@pytest.fixture
def sqlite_db(tmp_path: Path) -> str:
    path = tmp_path / "chucky.db"
    path.touch()
    return str(path)


@pytest.fixture
def postgres_db(
    postgres: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    return str(PostgresUrl(postgres_url))


def run(command: str, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [command, *arguments], check=False, capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    return done.returncode, done.stdout, done.stderr


def test_migrate_tells_what_is_missing_applies_it_and_has_nothing_to_do_then(
    chucky_command: str, kind: str, db: str
) -> None:
    names = [each.name for each in migrations(kind)]
    up_to_date = f"The database '{db}' is up to date.\n"
    missing = "".join(f"Missing: {name}\n" for name in names)
    applied = missing.replace("Missing", "Applied")
    for _ in range(2):  # looking changes nothing
        assert run(chucky_command, "migrate", "--check", "--db", db) == (1, missing, "")
    assert run(chucky_command, "migrate", "--db", db) == (0, applied, "")
    assert run(chucky_command, "migrate", "--db", db) == (0, up_to_date, "")
    assert run(chucky_command, "migrate", "--check", "--db", db) == (0, up_to_date, "")


def test_migrate_refuses_a_database_of_a_newer_version(
    chucky_command: str, kind: str, db: str
) -> None:
    run(chucky_command, "migrate", "--db", db)
    later = "INSERT INTO {}schema_migrations VALUES (9999, 'later', 0)"
    if kind == "sqlite":
        with closing(sqlite3.connect(db, isolation_level=None)) as connection:
            connection.execute(later.format(""))
    else:
        with psycopg.connect(db, autocommit=True) as server:
            server.execute(later.format("chucky.").encode())
    for arguments in (["--check"], []):
        code, said, complaint = run(chucky_command, "migrate", *arguments, "--db", db)
        assert (code, said) == (1, "")
        assert re.fullmatch("Error: .* was written by a newer version .*\n", complaint)


def test_looking_for_migrations_does_not_create_a_file(chucky_command: str, tmp_path: Path) -> None:
    path = tmp_path / "nowhere.db"
    code, _, complaint = run(chucky_command, "migrate", "--check", "--db", str(path))
    assert code == 1
    assert "There is no database" in complaint
    assert not path.exists()


def test_a_server_that_could_not_keep_budgets_does_not_start(
    chucky_command: str, postgres_db: str
) -> None:
    code, said, complaint = run(chucky_command, "serve", "--port", "0", "--db", postgres_db)
    assert (code, said) == (1, "")
    assert "ledger cannot be kept in PostgreSQL yet" in complaint


def test_the_whole_service_works_on_postgresql_with_several_servers(
    chucky_command: str,
    postgres_db: str,
    run_server: RunServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHUCKY_LEDGER", "false")
    monkeypatch.setenv("CHUCKY_SESSION_LOG", "false")
    serve = [chucky_command, "serve", "--port", "0", "--db", postgres_db]
    with run_server(serve, tmp_path) as one, run_server(serve, tmp_path) as two:
        code, said, _ = run(
            chucky_command, "projects", "create", "acme", "--json", "--db", postgres_db
        )
        assert code == 0
        project_id = json.loads(said)["projectId"]
        budget = ("--ai-dollars", "1", "--compute-hours", "1", "--window", "day")
        user = ("token", "--user", "alice", "--project", "acme", *budget)
        code, said, _ = run(chucky_command, *user, "--db", postgres_db)
        assert code == 0
        token = said.splitlines()[-1]
        for address in (one, two):
            prompt = ("prompt", "What is 6 * 7?", "--url", f"ws://{address}/ws")
            code, said, complaint = run(chucky_command, *prompt, "--token", token)
            assert (code, complaint) == (0, "")
            assert "42" in said
        code, said, _ = run(chucky_command, "projects", "list", "--json", "--db", postgres_db)
        assert project_id in [each["projectId"] for each in json.loads(said)]


def test_a_server_shows_its_database_without_the_password(
    chucky_command: str,
    postgres: PostgresServer,
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHUCKY_DB", postgres_url)
    monkeypatch.setenv("CHUCKY_LEDGER", "false")
    monkeypatch.setenv("CHUCKY_SESSION_LOG", "false")
    process = subprocess.Popen(
        [chucky_command, "serve", "--port", "0", "--log-level", "debug"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    said = ""
    while "offline model answers" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    arguments = Path(f"/proc/{process.pid}/cmdline").read_text()
    process.terminate()
    said += process.communicate(timeout=WAIT_SECONDS)[0]
    assert f"--db {PostgresUrl(postgres_url)}\n" in said
    assert postgres.password not in said + arguments
