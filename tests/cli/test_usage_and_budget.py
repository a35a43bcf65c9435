"""``chucky usage``, ``budget``, ``prices`` and ``verify``, beside a server on the database."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from chucky import create_budget, create_token
from chucky.cli.app import app
from chucky.server.store import Store
from chucky.sync import Chucky

if TYPE_CHECKING:
    from tests.conftest import Server

MODEL = "claude-sonnet-4-6"
TOKENS = {
    "input_tokens": 1_000,
    "output_tokens": 20,
    "cache_read_input_tokens": 400,
    "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 100},
}
NO_TOKENS = {"input_tokens": 0, "output_tokens": 0}
# By hand, at 3, 15, 0.30, 3.75 and 6 dollars per million tokens.
COST_NANOS = 1_000 * 3_000 + 20 * 15_000 + 400 * 300 + 200 * 3_750 + 100 * 6_000


def chucky(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def said(result: Result) -> str:
    """Return the output of a command that succeeded."""
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def refused(result: Result, exit_code: int = 1) -> str:
    """Return the sentence of a command that failed, which is all it may say."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert exit_code == 2 or re.fullmatch(r"Error: .*\n", result.stderr)
    return result.stderr


class User:
    """A user of the running server, and what an operator says about it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"user-{uuid.uuid4().hex}"

    def ask(self, *steps: dict[str, Any], ai_dollars: float = 1_000.0, **options: Any) -> Any:
        """Have a turn whose model answers by a script."""
        message = f"Go.\n```offline\n{json.dumps(list(steps))}\n```"
        token = self.server.token(self.name, ai_dollars=ai_dollars)
        with Chucky(token, self.server.url, model=MODEL, **options) as client:
            return client.prompt(message)

    def usage(self, *arguments: object) -> str:
        where = ("--user", self.name, "--db", self.server.database)
        return said(chucky("usage", *arguments, *where))

    def lines(self, *arguments: object) -> list[dict[str, Any]]:
        read = json.loads(self.usage("--json", *arguments))
        assert isinstance(read, list)
        return read

    def budget(self, command: str, *arguments: object) -> Result:
        where = ("--project", "tests", "--db", self.server.database)
        return chucky("budget", command, self.name, *arguments, *where)


@pytest.fixture(params=["sqlite", "postgres"])
def any_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server on each kind of database in turn."""
    name = "server"
    if request.param == "postgres":
        monkeypatch.setenv("PGPASSWORD", request.getfixturevalue("postgres").password)
        name = "postgres_server"
    server: Server = request.getfixturevalue(name)
    return server


only_sqlite = pytest.mark.parametrize("any_server", ["sqlite"], indirect=True)


@pytest.fixture
def user(any_server: Server) -> User:
    return User(any_server)


@pytest.fixture
def spender(user: User) -> User:
    """A user with one turn of one call."""
    result = user.ask({"text": "Done.", "usage": TOKENS})
    assert result.subtype == "success"
    return user


# --- usage ------------------------------------------------------------------------------------


def test_usage_says_what_every_kind_of_token_came_to(spender: User) -> None:
    [line] = spender.lines()
    compute_ms = line.pop("computeMs")
    assert 0 <= compute_ms < 60_000
    assert line == {
        "project": "tests",
        "projectId": spender.server.project_id,
        "user": spender.name,
        "calls": 1,
        "inputTokens": 1_000,
        "outputTokens": 20,
        "cacheWrite5mTokens": 200,
        "cacheWrite1hTokens": 100,
        "cacheReadTokens": 400,
        "aiNanos": COST_NANOS,
        "estimated": 0,
        "estimatedNanos": 0,
        "excess": 0,
        "excessNanos": 0,
        "unpriced": 0,
        "creditedNanos": 0,
        "creditedMs": 0,
    }


def test_usage_is_a_table_for_people_whole_in_a_pipe(spender: User) -> None:
    headings, _, row = spender.usage().strip().splitlines()
    assert headings.split()[0] == "User"
    assert [*row.split()[:9]] == [
        *(spender.name, "tests", "1", "1,000", "20", "200", "100", "400"),
        "$0.00477",
    ]


def test_usage_as_csv_has_the_same_numbers(spender: User) -> None:
    [row] = csv.DictReader(io.StringIO(spender.usage("--csv")))
    assert row == {name: str(value) for name, value in spender.lines()[0].items()}


@pytest.mark.parametrize("by", ["day", "model", "session"])
def test_usage_is_summed_up_by_what_is_asked_for(spender: User, by: str) -> None:
    result = spender.ask({"text": "Done.", "usage": TOKENS})
    lines = {line[by]: (line["calls"], line["aiNanos"]) for line in spender.lines("--by", by)}
    today = datetime.now(UTC).date().isoformat()
    expected = {
        "day": {today: (2, 2 * COST_NANOS)},
        "model": {"": (0, 0), MODEL: (2, 2 * COST_NANOS)},  # compute is of no model
        "session": {result.session_id: (1, COST_NANOS)},
    }
    assert expected[by].items() <= lines.items()
    assert sum(nanos for _, nanos in lines.values()) == 2 * COST_NANOS


def test_usage_can_begin_at_a_time_or_a_span_before_now(spender: User) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    for since, count in (("1h", 1), ("7d", 1), ("52w", 1), ("2026-01-31", 1), (tomorrow, 0)):
        assert len(spender.lines("--since", since)) == count
    assert "Nothing was spent" in spender.usage("--since", tomorrow)
    assert spender.lines("--project", "tests") == spender.lines()
    assert spender.lines("--project", "default") == []
    wrong = refused(chucky("usage", "--since", "yesterday"), exit_code=2)
    assert "'yesterday' is no date or time" in wrong


def test_what_broke_off_is_listed_as_estimated_with_the_id_that_refunds_it(user: User) -> None:
    result = user.ask({"text": ["one ", "two"], "cut_after_chunks": 1}, {"text": "whole"})
    assert result.result == "whole"
    [charge] = user.lines("--list", "estimated")
    assert charge["isEstimated"] is True
    assert 0 < charge["amount"] <= charge["reserved"]
    assert (charge["meter"], charge["model"], charge["refunded"]) == ("ai", MODEL, 0)
    [line] = user.lines()
    assert (line["calls"], line["estimated"]) == (2, 1)
    assert line["estimatedNanos"] == charge["amount"] < line["aiNanos"]
    for text in (user.usage("--list", "estimated"), user.usage("--list", "estimated", "--csv")):
        assert charge["callId"] in text
    assert "(1)" in user.usage()
    assert "Nothing was spent" in user.usage("--list", "excess")

    refund = said(user.budget("refund", "--call", charge["callId"], "--dollars", "0.000001"))
    assert refund == f"Gave $0.000001 back to the user '{user.name}' of the project tests.\n"
    said(user.budget("refund", "--call", charge["callId"]))
    assert user.lines("--list", "estimated")[0]["refunded"] == charge["amount"]
    assert user.lines()[0]["creditedNanos"] == charge["amount"]
    again = refused(user.budget("refund", "--call", charge["callId"]))
    assert "No more than $0.00 is left of the charge" in again


def test_what_a_provider_charged_beyond_the_bound_is_listed_as_excess(user: User) -> None:
    tokens = {"input_tokens": 5, "output_tokens": 190_000}
    user.ask({"text": "Dear.", "usage": tokens, "overrun": True})
    [charge] = user.lines("--list", "excess")
    assert charge["excess"] == charge["amount"] - charge["reserved"] > 0
    [line] = user.lines()
    assert (line["excess"], line["excessNanos"]) == (1, charge["excess"])


# --- budget -----------------------------------------------------------------------------------


def shown(user: User) -> dict[tuple[str, str], dict[str, Any]]:
    lines = json.loads(said(user.budget("show", "--json")))
    return {(line["meter"], line["window"]): line for line in lines}


def test_a_budget_is_shown_as_it_stands_in_each_kind_of_window(spender: User) -> None:
    lines = shown(spender)
    assert {*lines} == {
        (meter, window) for meter in ("ai", "compute") for window in ("day", "lifetime")
    }
    day = lines["ai", "day"]
    assert (day["spent"], day["reserved"], day["limit"]) == (COST_NANOS, 0, 10**12)
    assert datetime.fromisoformat(day["resetsAt"]) - datetime.fromisoformat(day["anchor"]) == (
        timedelta(days=1)
    )
    ever = lines["ai", "lifetime"]
    assert (ever["spent"], ever["limit"], ever["resetsAt"]) == (COST_NANOS, None, None)
    table = said(spender.budget("show"))
    assert re.search(r"day +ai +\$0\.00477 +\$0\.00 +\$1,000\.00 +20", table)
    assert "Windows of a day are anchored at" in table


def test_nothing_is_shown_of_a_user_without_a_past(user: User) -> None:
    assert "Nothing was ever reserved for the user" in said(user.budget("show"))
    assert shown(user) == {}


def test_the_budget_of_a_session_is_shown_by_itself(user: User) -> None:
    result = user.ask({"text": "Done.", "usage": TOKENS}, max_budget_usd=0.25)
    show = ("show", "--session", result.session_id)
    [line] = json.loads(said(user.budget(*show, "--json")))
    assert (line["meter"], line["window"], line["resetsAt"]) == ("ai", "lifetime", None)
    assert (line["spent"], line["reserved"], line["limit"]) == (COST_NANOS, 0, 250_000_000)
    without = user.ask({"text": "Done.", "usage": TOKENS})
    [line] = json.loads(said(user.budget("show", "--session", without.session_id, "--json")))
    assert (line["meter"], line["spent"], line["limit"]) == ("ai", COST_NANOS, None)
    unknown = str(uuid.uuid4())
    assert re.fullmatch(
        f"Nothing was ever reserved in the session '{unknown}' of .*\n",
        said(user.budget("show", "--session", unknown)),
    )


def test_a_credit_lets_a_user_go_on_while_the_server_runs(spender: User) -> None:
    small = COST_NANOS / 1_000_000_000
    refusal = spender.ask({"text": "No."}, ai_dollars=small)
    assert refusal.error.reason == "user_budget_exhausted"
    said(spender.budget("credit", "--dollars", "0.5", "--note", "sorry"))
    assert spender.ask({"text": "Yes."}, ai_dollars=small).result == "Yes."
    assert spender.lines()[0]["creditedNanos"] == 500_000_000
    said(spender.budget("credit", "--compute-seconds", "1.5"))
    assert spender.lines()[0]["creditedMs"] == 1_500


def test_a_moved_anchor_begins_a_new_window_while_the_server_runs(spender: User) -> None:
    small = COST_NANOS / 1_000_000_000
    assert spender.ask({"text": "No."}, ai_dollars=small).error.code == "BUDGET_EXCEEDED"
    now = datetime.now(UTC).isoformat()
    told = said(spender.budget("anchor", "day", now))
    assert told.startswith(f"Windows of a day begin at {now[:23]}Z for the user")
    assert shown(spender)["ai", "day"]["spent"] == 0
    assert spender.ask({"text": "Yes."}, ai_dollars=0.5).result == "Yes."


def test_a_refund_of_somebody_elses_charge_is_refused(spender: User) -> None:
    stranger = User(spender.server)
    stranger.ask({"text": ["one ", "two"], "cut_after_chunks": 1}, {"text": "whole"})
    [charge] = stranger.lines("--list", "estimated")
    for call_id in (charge["callId"], "no-such-call"):
        assert "This user has no charge" in refused(spender.budget("refund", "--call", call_id))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("credit", "ann"), "Give one of --dollars and --compute-seconds"),
        (("credit", "ann", "--dollars", "1", "--compute-seconds", "1"), "Give one of"),
        (("credit", "ann", "--dollars", "0"), "more than 0"),
        (("credit", "ann", "--dollars=-1"), "more than 0"),
        (("credit", "ann", "--dollars", "0.0000000001"), "whole nano-dollars"),
        (("credit", "ann", "--dollars", "1e30"), "more than 0, at most"),
        (("credit", "ann", "--dollars", "NaN"), "more than 0"),
        (("credit", "ann", "--compute-seconds", "0.0001"), "whole milliseconds"),
        (("credit", "\x07", "--dollars", "1"), "user id must not contain control characters"),
        (("credit", "ann", "--dollars", "1", "--project", "nobody"), "no project 'nobody'"),
        (("anchor", "ann", "lifetime", "2026-01-31"), "A lifetime has no beginning"),
        (("project", "credit", "default"), "Give one of --dollars and --compute-seconds"),
        (("project", "credit", "nobody", "--dollars", "1"), "no project 'nobody'"),
        (("project", "show", "nobody"), "no project 'nobody'"),
        (("project", "anchor", "default", "lifetime", "2026-01-31"), "A lifetime has no"),
    ],
)
def test_a_correction_that_makes_no_sense_is_refused(
    server: Server, arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(chucky("budget", *arguments, "--db", server.db))


# --- the budget of a project ------------------------------------------------------------------


class Project:
    """A project of a running server with a budget of its own: two cents a day."""

    def __init__(self, server: Server, policy: Path) -> None:
        self.server = server
        self.name = f"project-{uuid.uuid4().hex}"
        made = json.loads(said(self.run("projects", "create", self.name, "--json")))
        self.project_id, self.hmac_key = made["projectId"], made["hmacKey"]
        budgets = [{"ai": 20_000, "window": "day"}]
        policy.write_text(json.dumps({"budgets": budgets, "models": [MODEL]}))
        said(self.run("projects", "policy", self.name, "--set", policy))
        # The server sees it within a second.
        while self.ask("probe", model="haiku", tokens={}).subtype == "success":
            pass

    def run(self, *arguments: object) -> Result:
        return chucky(*arguments, "--db", self.server.database)

    def ask(self, user: str, model: str = MODEL, tokens: dict[str, Any] = TOKENS) -> Any:
        """Have a turn of one call of one of its users."""
        budget = create_budget(1_000, 100)
        token = create_token(user, self.project_id, self.hmac_key, budget)
        script = json.dumps([{"text": "Done.", "usage": {**NO_TOKENS, **tokens}}])
        with Chucky(token, self.server.url, model=model) as client:
            return client.prompt(f"Go.\n```offline\n{script}\n```")

    def budget(self, command: str, *arguments: object) -> Result:
        return self.run("budget", "project", command, self.name, *arguments)

    def day(self) -> dict[str, Any]:
        """How its dollars of the day stand."""
        lines = json.loads(said(self.budget("show", "--json")))
        [day] = [line for line in lines if (line["meter"], line["window"]) == ("ai", "day")]
        assert isinstance(day, dict)
        return day


@pytest.fixture
def project(any_server: Server, tmp_path: Path) -> Project:
    return Project(any_server, tmp_path / "policy.json")


def test_the_budget_of_a_project_is_shown_and_corrected_apart_from_its_users(
    project: Project,
) -> None:
    assert "Nothing was ever reserved under a budget of the project" in said(project.budget("show"))
    calls = 0
    while (last := project.ask("ann")).subtype == "success":
        calls += 1
    assert last.error.reason == "developer_budget_exhausted"
    assert project.ask("bob").error.reason == "developer_budget_exhausted"
    told = said(project.budget("credit", "--dollars", "0.5", "--note", "sorry"))
    assert told == f"Gave $0.50 to the project {project.name}.\n"
    assert project.ask("bob").subtype == "success"
    assert project.day()["spent"] == (calls + 1) * COST_NANOS - 500_000_000
    # Nobody has more of a budget of their own by it.
    where = ("--project", project.name, "--json")
    lines = json.loads(said(project.run("budget", "show", "bob", *where)))
    assert {line["spent"] for line in lines if line["meter"] == "ai"} == {COST_NANOS}

    now = datetime.now(UTC).isoformat()
    told = said(project.budget("anchor", "day", now))
    assert told == f"Windows of a day begin at {now[:23]}Z for the project {project.name}.\n"
    assert project.day()["spent"] == 0
    assert project.ask("ann").subtype == "success"
    assert said(project.run("verify")).startswith("All adds up")


def test_usage_shows_what_was_given_to_a_project_beside_its_users(project: Project) -> None:
    project.ask("ann")
    said(project.budget("credit", "--dollars", "1"))
    said(project.budget("credit", "--compute-seconds", "2"))
    lines = json.loads(said(project.run("usage", "--project", project.name, "--json")))
    given = {line["user"]: (line["creditedNanos"], line["creditedMs"]) for line in lines}
    assert given.pop("") == (10**9, 2_000)
    assert set(given.values()) == {(0, 0)}
    assert "–" in said(project.run("usage", "--project", project.name))


# --- prices -----------------------------------------------------------------------------------


def test_prices_are_shown_with_their_source_and_date_and_whose_they_are(tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text(
        f'[prices."{MODEL}"]\ninput = 1.5\noutput = "7.25"\n'
        '[models."house-model"]\nfamily = "house"\nreleased = 2026-01-01\n'
        "context_tokens = 1000\nmax_output_tokens = 1000\n"
    )
    text = said(chucky("prices", "--config", config))
    assert re.search(rf"{MODEL} +1\.50 +7\.25 +1\.875 +3\.00 +1\.50 +operator", text)
    assert re.search(r"claude-haiku-5-5 +0\.10 .*\n +prompts over 100,000 tokens +0\.50 ", text)
    assert re.search(r"house-model( +–)+ +nobody: refused", text)
    today = datetime.now(UTC).date().isoformat()
    assert re.search(rf"Dollars per million tokens on {today}, from genai-prices \d", text)

    told = json.loads(said(chucky("prices", "--json", "--config", config)))
    assert told["date"] == today
    prices = {price["model"]: price for price in told["prices"]}
    assert (prices[MODEL]["source"], prices[MODEL]["input"]) == ("operator", 1_500_000_000)
    assert prices["claude-haiku-5-5"]["source"].startswith("genai-prices ")
    assert prices["house-model"] == {"model": "house-model", "source": None}


# --- verify -----------------------------------------------------------------------------------


def test_everything_a_running_server_has_booked_adds_up(spender: User) -> None:
    text = said(chucky("verify", "--db", spender.server.database))
    assert re.fullmatch(
        r"All adds up: [\d,]+ entries, \d+ open reservations, [\d,]+ accounts, [\d,]+ windows\.\n",
        text,
    )
    told = json.loads(said(chucky("verify", "--json", "--db", spender.server.database)))
    assert told["ok"] is True
    assert told["problems"] == []
    assert told["entries"] >= 2


@pytest.fixture
def copy(spender: User, tmp_path: Path) -> Iterator[tuple[Path, sqlite3.Connection]]:
    """The database of the running server, copied while it runs, to be tampered with."""
    path = tmp_path / "copy.db"
    with (
        closing(sqlite3.connect(spender.server.db)) as original,
        closing(sqlite3.connect(path, isolation_level=None)) as made,
    ):
        original.backup(made)
        yield path, made


@only_sqlite
def test_what_does_not_add_up_is_named_and_ends_with_1(
    spender: User, copy: tuple[Path, sqlite3.Connection]
) -> None:
    path, connection = copy
    said(chucky("verify", "--db", path))
    connection.execute(
        "UPDATE ledger_accounts SET settled = settled + 7 "
        "WHERE user_id = ? AND session_id = '' AND meter = 'ai'",
        (spender.name,),
    )
    result = chucky("verify", "--db", path)
    assert result.exit_code == 1
    first, last = result.stdout.splitlines()
    assert first == (
        f"account of user '{spender.name}' of project {spender.server.project_id}, ai in "
        f"nano-dollars: It says settled {COST_NANOS + 7}, reserved 0; its entries and open "
        f"reservations say settled {COST_NANOS}, reserved 0."
    )
    assert last.startswith("1 problems in ")
    told = json.loads(chucky("verify", "--json", "--db", path).stdout)
    assert told["ok"] is False
    assert [f"{each['row']}: {each['sentence']}" for each in told["problems"]] == [first]


@only_sqlite
def test_what_has_no_price_is_listed_with_what_the_provider_reported(
    spender: User, copy: tuple[Path, sqlite3.Connection]
) -> None:
    path, connection = copy
    connection.execute("DROP TRIGGER ledger_entries_stay")
    connection.execute(
        "UPDATE ledger_entries SET unpriced = 'searches: 2' WHERE user_id = ? AND meter = 'ai'",
        (spender.name,),
    )
    text = said(chucky("usage", "--list", "unpriced", "--db", path))
    assert "No price is known for what the provider reported of " in text
    assert text.endswith(": searches: 2\n")
    [line] = json.loads(said(chucky("usage", "--json", "--user", spender.name, "--db", path)))
    assert line["unpriced"] == 1


@pytest.mark.parametrize(
    "arguments", [("usage",), ("verify",), ("budget", "show", "ann"), ("budget", "credit", "ann")]
)
def test_a_database_that_does_not_exist_is_told_and_not_created(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "nowhere.db"
    more = ("--dollars", "1") if "credit" in arguments else ()
    assert "There is no database" in refused(chucky(*arguments, *more, "--db", path))
    assert not path.exists()


def test_a_database_in_which_nothing_was_spent_adds_up(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    Store.open(path).close()
    assert said(chucky("verify", "--db", path)).startswith("All adds up: 0 entries, 0 open")
    assert "Nothing was spent" in said(chucky("usage", "--db", path))
    assert json.loads(said(chucky("usage", "--json", "--db", path))) == []
