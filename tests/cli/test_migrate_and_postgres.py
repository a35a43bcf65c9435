"""``chucky migrate`` on a database of each kind, and the whole service on PostgreSQL."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from chucky import Chucky, Message, Session
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


async def ask(session: Session, text: str) -> Message:
    """The result of one turn."""
    await session.send(text)
    return [each async for each in session.stream()][-1]


def usage(address: str, token: str) -> dict[str, Any]:
    """What a server says of a user's budget."""
    request = urllib.request.Request(
        f"http://{address}/usage", headers={"authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
        report: dict[str, Any] = json.load(answer)
    return report


async def test_several_servers_on_postgresql_share_projects_budgets_and_sessions(
    chucky_command: str,
    postgres_db: str,
    run_server: RunServer,
    tmp_path: Path,
) -> None:
    serve = [chucky_command, "serve", "--port", "0", "--db", postgres_db]
    with run_server(serve, tmp_path) as one, run_server(serve, tmp_path) as two:
        created = run(chucky_command, "projects", "create", "acme", "--json", "--db", postgres_db)
        budget = ("--ai-dollars", "1", "--compute-hours", "1", "--window", "day")
        user = ("token", "--user", "alice", "--project", "acme", *budget)
        token = run(chucky_command, *user, "--db", postgres_db)[1].splitlines()[-1]

        async with Chucky(token, url=f"ws://{one}/ws").create_session() as session:
            first = await ask(session, "My name is Alice")
        async with Chucky(token, url=f"ws://{two}/ws").create_session(
            resume=session.session_id
        ) as resumed:
            second = await ask(resumed, "What is my name?")

        assert second.result == "Your name is Alice."
        assert second.total_cost_usd > first.total_cost_usd
        assert usage(one, token) == usage(two, token)
        assert usage(one, token)["ai"]["used"] == round(second.total_cost_usd * 1_000_000)
        listed = run(chucky_command, "projects", "list", "--json", "--db", postgres_db)[1]
    project_id = json.loads(created[1])["projectId"]
    assert project_id in [each["projectId"] for each in json.loads(listed)]


def test_a_server_shows_its_database_without_the_password(
    chucky_command: str,
    postgres: PostgresServer,
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHUCKY_DB", postgres_url)
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
