"""``chucky sessions``: what an operator sees of conversations, and what is left of deleted ones."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from chucky import Chucky, tool
from chucky.cli.app import app


@tool("add", "Add two numbers")
def add(a: int, b: int) -> int:
    """Be a tool of these tests."""
    return a + b


def chucky(server: Any, *arguments: object) -> Result:
    arguments = ("sessions", *arguments, "--db", server.db)
    return CliRunner().invoke(app, [str(each) for each in arguments])


def said(result: Result) -> str:
    """Return the output of a command that succeeded."""
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


async def converse(server: Any, user: str, *inputs: str) -> str:
    async with (
        Chucky(server.token(user), url=server.url) as client,
        client.create_session(tools=[add]) as session,
    ):
        for text in inputs:
            await session.send(text)
            assert [each async for each in session.stream()][-1].subtype == "success"
        return session.session_id


@pytest.fixture
def session_id(server: Any, request: pytest.FixtureRequest) -> str:
    """A session of a user of this test's own."""
    inputs = ("What is 7 + 15? Use the tool add.", "Good bye")
    return asyncio.run(converse(server, request.node.name, *inputs))


def booked(server: Any, user: str) -> tuple[int, int]:
    """How many model calls of a user the ledger has, and what they cost."""
    query = (
        "SELECT count(*), sum(amount) FROM ledger_entries WHERE user_id = ? AND meter = 'ai' "
        "AND kind = 'settle'"
    )
    with closing(sqlite3.connect(server.db)) as connection:
        count, amount = connection.execute(query, (user,)).fetchone()
    return int(count), int(amount)


def test_sessions_are_listed_by_project_and_user(
    server: Any, session_id: str, request: pytest.FixtureRequest
) -> None:
    user = request.node.name
    [line] = said(chucky(server, "list", "--project", "tests", "--user", user)).splitlines()
    [entry] = json.loads(
        said(chucky(server, "list", "--project", "tests", "--user", user, "--json"))
    )
    everybodys = said(chucky(server, "list", "--project", "tests", "--limit", 1000))

    calls, nanos = booked(server, user)
    assert (calls, nanos > 0) == (3, True)
    assert line.startswith(session_id)
    assert line.endswith(f"2 turns  ${nanos / 1e9:.6f}")
    assert line in everybodys.splitlines()
    assert said(chucky(server, "list", "--user", user)) == ""  # in the default project
    assert entry["sessionId"] == session_id
    assert (entry["userId"], entry["turns"], entry["numTurns"]) == (user, 2, calls)
    assert entry["totalCostUsd"] == nanos / 1e9
    assert entry["isRunning"] is False


def test_a_session_is_shown_as_people_read_it(server: Any, session_id: str) -> None:
    head, *lines = said(chucky(server, "show", session_id)).splitlines()

    assert head.startswith(session_id)
    assert lines[0] == "user: What is 7 + 15? Use the tool add."
    assert 'assistant calls mcp__inline-tools__add: {"a": 7, "b": 15}' in lines
    assert "tool: 22" in lines
    assert "user: Good bye" in lines
    assert lines[-1].startswith("assistant: ")
    entry = json.loads(said(chucky(server, "show", session_id, "--json")))
    assert entry["sessionId"] == session_id


def test_what_was_said_cannot_steer_the_terminal(
    server: Any, request: pytest.FixtureRequest
) -> None:
    session_id = asyncio.run(converse(server, request.node.name, "Hello \x1b[2J\x07"))

    assert "\x1b" not in said(chucky(server, "show", session_id))


def test_an_export_has_every_event_as_a_line_of_json(server: Any, session_id: str) -> None:
    events = [json.loads(line) for line in said(chucky(server, "export", session_id)).splitlines()]

    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert {event["kind"] for event in events} == {"input", "message", "context"}
    assert len({event["turnId"] for event in events}) == 2
    assert events[0]["body"]["content"] == "What is 7 + 15? Use the tool add."
    assert events[-1]["body"]["type"] == "result"


def test_deleting_takes_what_was_said_and_leaves_what_it_cost(
    server: Any, session_id: str, request: pytest.FixtureRequest
) -> None:
    before = booked(server, request.node.name)

    assert said(chucky(server, "delete", session_id)) == f"The session {session_id} is deleted.\n"

    assert booked(server, request.node.name) == before
    with closing(sqlite3.connect(server.db)) as connection:
        for table in ("sessions", "session_events"):
            query = f"SELECT count(*) FROM {table} WHERE session_id = ?"
            assert connection.execute(query, (session_id,)).fetchone() == (0,)
    assert "There is no session" in chucky(server, "delete", session_id).stderr


@pytest.mark.parametrize("command", ["show", "export", "delete"])
def test_a_session_that_does_not_exist_is_named(server: Any, command: str) -> None:
    result = chucky(server, command, "no-such-session")

    assert result.exit_code == 1
    assert result.stderr == (
        "Error: There is no session 'no-such-session'; `chucky sessions list` shows those there "
        "are.\n"
    )


async def test_a_session_that_is_deleted_while_it_runs_ends_well_and_does_not_come_back(
    server: Any, request: pytest.FixtureRequest
) -> None:
    user = request.node.name
    deleting = asyncio.Event()

    @tool("wait", "Wait")
    async def wait() -> str:
        deleting.set()
        await is_deleted.wait()
        return "done"

    is_deleted = asyncio.Event()
    async with (
        Chucky(server.token(user), url=server.url) as client,
        client.create_session(tools=[wait]) as session,
    ):
        await session.send('Go.\n```offline\n[{"tools": [{"name": "wait"}]}, {"text": "Ok."}]\n```')
        await deleting.wait()
        await asyncio.to_thread(lambda: said(chucky(server, "delete", session.session_id)))
        is_deleted.set()
        result = [each async for each in session.stream()][-1]
        await session.send("And now?")
        again = [each async for each in session.stream()][-1]
        assert await session.history() == []
        assert await client.list_sessions() == []
        resumed = client.resume_session(session.session_id)
        await resumed.send("Are you there?")
        lost = [each async for each in resumed.stream()][-1]

    assert (result.subtype, again.subtype) == ("success", "success")
    assert lost.error.reason == "session_not_found"
    calls, nanos = booked(server, user)
    assert calls == again.num_turns == 3
    assert nanos == round(again.total_cost_usd * 1e9)
