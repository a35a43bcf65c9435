"""``chucky projects`` and ``chucky token``, and how every command reports what is wrong."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from chucky.cli import main as entry
from chucky.cli.app import app
from chucky.server.postgres_url import PostgresUrl
from chucky.server.store import Store
from chucky.tokens import decode_token, verify_token

Db = Path | PostgresUrl
ENTRY = [sys.executable, "-m", "chucky.cli.main"]
BUDGET = ("--ai-dollars", "1", "--compute-hours", "1", "--window", "day")


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's own settings, home or current directory."""
    for name in [*os.environ]:
        if name.startswith(("CHUCKY_", "ANTHROPIC_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def db(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Db:
    """A database of each kind in turn, as ``--db`` names it; its password is in the environment."""
    place: Db = tmp_path / "chucky.db"
    if request.param == "postgres":
        monkeypatch.setenv("PGPASSWORD", request.getfixturevalue("postgres").password)
        place = PostgresUrl(str(PostgresUrl(request.getfixturevalue("postgres_url"))))
    with closing(Store.open(place)) as store:
        store.ensure_default_project()
    return place


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
    assert "Traceback" not in result.stderr
    assert exit_code == 2 or re.fullmatch(r"Error: .*\n", result.stderr)
    return result.stderr


def key_of(db: Db, name: str = "default") -> tuple[str, str]:
    with closing(Store.open(db)) as store:
        project = store.find_project(name)
    return project.project_id, project.keys[0].secret


def claims_of(token: str) -> dict[str, Any]:
    return decode_token(token)["payload"]


# --- the real command -----------------------------------------------------------------------


def test_the_real_command_creates_a_project_and_makes_its_token(tmp_path: Path) -> None:
    """From another directory, through the default database, as a user would."""

    def run(*arguments: str) -> str:
        finished = subprocess.run(
            [*ENTRY, *arguments], capture_output=True, text=True, timeout=30, check=False
        )
        assert (finished.returncode, finished.stderr) == (0, "")
        return finished.stdout

    made = json.loads(run("projects", "create", "acme", "--json"))
    token = run("token", "--user", "alice", "--project", "acme", *BUDGET).splitlines()[-1]
    assert verify_token(token, made["hmacKey"])
    assert claims_of(token)["iss"] == made["projectId"]
    assert (tmp_path / "data" / "chucky" / "chucky.db").is_file()


def test_the_real_command_ends_in_one_line_and_the_exit_code_1(tmp_path: Path) -> None:
    finished = subprocess.run(
        [*ENTRY, "token", "--user", "alice", *BUDGET, "--db", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr == (
        f"Error: The database '{tmp_path}' is a directory; name a file in it with --db.\n"
    )


def test_making_a_token_loads_neither_a_server_nor_a_client(db: Db) -> None:
    program = (
        "import sys; from chucky.cli.main import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, "token", "--user", "alice", *BUDGET, "--db", str(db)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in finished.stderr.split()}
    heavy = {"anthropic", "starlette", "uvicorn", "websockets", "rich", "httpx"}
    assert not loaded & heavy


def test_a_fault_of_ours_is_one_line_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("chucky.cli.app.app", broken)
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == 1
    assert re.fullmatch("Error: KeyError: 'oops' .*\n", capsys.readouterr().err)
    monkeypatch.setenv("CHUCKY_LOG_LEVEL", "debug")
    with pytest.raises(SystemExit):
        entry.main()
    assert "Traceback" in capsys.readouterr().err


def test_a_package_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "chucky.cli.app")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == 1
    assert "needs the package 'typer', which comes with the server" in capsys.readouterr().err


def test_the_version_is_that_of_the_package() -> None:
    from chucky import __version__

    assert said(chucky("--version")) == f"chucky {__version__}\n"


@pytest.mark.parametrize(
    "command",
    [
        *("", "serve", "migrate", "projects", "projects create", "token", "prompt", "chat"),
        *("usage", "budget", "budget show", "budget credit", "budget refund", "budget anchor"),
        *("prices", "verify", "offline"),
    ],
)
def test_every_command_explains_itself(command: str) -> None:
    text = said(chucky(*command.split(), "--help"))
    assert text.startswith(f"Usage: chucky {command}".rstrip())


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("projects", "create"),
        ("projects", "create", "acme", "--what"),
        ("token", *BUDGET),
        ("token", "--user", "alice", "--ai-dollars", "much", "--compute-hours", "1"),
        ("token", "--user", "alice", *BUDGET, "--window", "year"),
        ("token", "--user", "alice", *BUDGET, "--expires-in", "0"),
        ("serve", "--port", "http"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_how_to_get_help(arguments: tuple[str, ...]) -> None:
    text = refused(chucky(*arguments), exit_code=2)
    assert text.startswith("Usage: ")
    assert "--help' for help" in text


# --- projects -------------------------------------------------------------------------------


def test_creating_a_project_prints_its_id_and_key_as_json(db: Db) -> None:
    text = said(chucky("projects", "create", "acme", "--json", "--db", db))
    assert text.count("\n") == 1
    made = json.loads(text)
    assert list(made) == ["projectId", "hmacKey"]
    assert (made["projectId"], made["hmacKey"]) == key_of(db, "acme")


def test_creating_a_project_prints_its_id_and_key_for_people(db: Db) -> None:
    text = said(chucky("projects", "create", "acme", "--db", db))
    project_id, secret = key_of(db, "acme")
    assert "Created the project acme." in text
    assert f"Project id: {project_id}\n" in text
    assert re.search(rf"HMAC key: +{secret}\n", text)


def test_the_first_project_creates_the_database(tmp_path: Path) -> None:
    said(chucky("projects", "create", "acme", "--db", tmp_path / "new.db"))
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o600


def test_listing_shows_every_project_and_no_secret(db: Db) -> None:
    chucky("projects", "create", "acme", "--db", db)
    chucky("projects", "rotate-key", "acme", "--keep-old", "--db", db)
    chucky("projects", "disable", "default", "--db", db)
    text = said(chucky("projects", "list", "--db", db))
    (default_id, default_key), (acme_id, acme_key) = key_of(db), key_of(db, "acme")
    assert [line.split() for line in text.splitlines()] == [
        ["default", default_id, "disabled", "1", "key"],
        ["acme", acme_id, "enabled", "2", "keys"],
    ]
    as_json = said(chucky("projects", "list", "--json", "--db", db))
    entries = json.loads(as_json)
    assert [(each["name"], each["projectId"], each["disabled"]) for each in entries] == [
        ("default", default_id, True),
        ("acme", acme_id, False),
    ]
    assert [len(each["keyIds"]) for each in entries] == [1, 2]
    for secret in (default_key, acme_key):
        assert secret not in text + as_json


def test_rotating_prints_the_new_key_and_revokes_the_old_one(db: Db) -> None:
    project_id, old = key_of(db)
    text = said(chucky("projects", "rotate-key", project_id, "--json", "--db", db))
    made = json.loads(text)
    assert made == {"projectId": project_id, "hmacKey": key_of(db)[1]}
    assert made["hmacKey"] != old
    with closing(Store.open(db)) as store:
        assert len(store.find_project("default").keys) == 1
    again = said(chucky("projects", "rotate-key", "default", "--db", db))
    assert "All earlier keys are revoked." in again
    assert key_of(db)[1] in again


def test_rotating_with_keep_old_revokes_nothing(db: Db) -> None:
    _, old = key_of(db)
    text = said(chucky("projects", "rotate-key", "default", "--keep-old", "--db", db))
    assert "The other keys stay alive." in text
    with closing(Store.open(db)) as store:
        assert [key.secret for key in store.find_project("default").keys][1:] == [old]


def test_a_disabled_project_makes_no_tokens_until_it_is_enabled(db: Db) -> None:
    assert said(chucky("projects", "disable", "default", "--db", db)) == (
        "The project default is disabled.\n"
    )
    text = refused(chucky("token", "--user", "alice", *BUDGET, "--db", db))
    assert "is disabled" in text
    assert "chucky projects enable default" in text
    assert said(chucky("projects", "enable", "default", "--db", db)) == (
        "The project default is enabled.\n"
    )
    said(chucky("token", "--user", "alice", *BUDGET, "--db", db))


def test_a_policy_is_set_shown_and_cleared(db: Db, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"maxTurns": 3}\n')
    command = ("projects", "policy", "default", "--db", db)
    assert "everything is allowed" in said(chucky(*command))
    assert said(chucky(*command, "--set", path)) == '{"maxTurns": 3}\n'
    path.write_text('{"maxTurn": 3}')
    assert "'maxTurn'" in refused(chucky(*command, "--set", path))
    assert said(chucky(*command)) == '{"maxTurns": 3}\n'
    assert "--clear" in refused(chucky(*command, "--set", path, "--clear"))
    assert "everything is allowed" in said(chucky(*command, "--clear"))


def test_a_provider_key_is_read_from_standard_input_and_never_shown(db: Db) -> None:
    secret = secrets.token_urlsafe()
    arguments = [*map(str, ("projects", "provider-key", "default", "--db", db))]

    def run(*more: str, key: str = "") -> Result:
        return CliRunner().invoke(app, [*arguments, *more], input=key)

    assert secret not in said(run(key=f"{secret}\n"))
    with closing(Store.open(db)) as store:
        assert store.find_project("default").provider_key("anthropic") == secret
    listed = said(chucky("projects", "list", "--json", "--db", db))
    assert secret not in listed
    assert json.loads(listed)[0]["providerKeys"] == ["anthropic"]
    for wrong in ("", "\n", "two words\n"):
        assert "key" in refused(run(key=wrong))
    said(run("--remove"))
    with closing(Store.open(db)) as store:
        assert store.find_project("default").provider_keys == ()


@pytest.mark.parametrize("command", ["rotate-key", "disable", "enable", "policy", "provider-key"])
def test_a_project_that_does_not_exist_is_told(db: Db, command: str) -> None:
    text = refused(chucky("projects", command, "defualt", "--db", db))
    assert "no project 'defualt'; did you mean 'default'?" in text


def test_a_name_that_is_taken_or_impossible_is_told(db: Db) -> None:
    text = refused(chucky("projects", "create", "default", "--json", "--db", db))
    assert "already a project named 'default'" in text
    assert "is not possible" in refused(chucky("projects", "create", "a b", "--db", db))


@pytest.mark.parametrize(
    "arguments",
    [
        ("projects", "list"),
        ("projects", "rotate-key", "default"),
        ("projects", "disable", "default"),
        ("token", "--user", "alice", *BUDGET),
        ("prompt", "Hello"),
        ("chat",),
    ],
)
def test_a_database_that_does_not_exist_is_told_and_not_created(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "typo.db"
    assert f"There is no database '{path}'" in refused(chucky(*arguments, "--db", path))
    assert not path.exists()


# --- tokens ---------------------------------------------------------------------------------


def test_a_token_carries_what_was_asked_for_alone_on_the_last_line(db: Db) -> None:
    project_id, secret = key_of(db)
    text = said(
        chucky(
            *("token", "--user", "alice", "--ai-dollars", "2.01", "--compute-hours", "0.5"),
            *("--window", "month", "--expires-in", "60", "--db", db),
        )
    )
    token = text.splitlines()[-1]
    assert verify_token(token, secret)
    claims = claims_of(token)
    assert (claims["sub"], claims["iss"]) == ("alice", project_id)
    assert claims["exp"] - claims["iat"] == 60
    budget = claims["budget"]
    assert (budget["ai"], budget["compute"], budget["window"]) == (2_010_000, 1800, "month")
    assert "permissions" not in claims


def test_a_token_is_good_for_an_hour_and_a_daily_budget_by_default(db: Db) -> None:
    arguments = ("token", "--user", "alice", "--ai-dollars", "1", "--compute-hours", "1")
    claims = claims_of(said(chucky(*arguments, "--db", db)).strip())
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["budget"]["window"] == "day"


def test_a_token_can_limit_models_and_turns(db: Db) -> None:
    limits = ("--model", "haiku", "--model", "sonnet", "--max-turns", "3")
    token = said(chucky("token", "--user", "alice", *BUDGET, *limits, "--db", db)).strip()
    assert claims_of(token)["permissions"] == {
        "allowedModels": ["haiku", "sonnet"],
        "maxTurns": 3,
    }


def test_a_token_is_signed_with_the_newest_key(db: Db) -> None:
    chucky("projects", "rotate-key", "default", "--keep-old", "--db", db)
    token = said(chucky("token", "--user", "alice", *BUDGET, "--db", db)).strip()
    assert verify_token(token, key_of(db)[1])


def test_a_token_of_a_named_project_has_its_id(db: Db) -> None:
    made = json.loads(said(chucky("projects", "create", "acme", "--json", "--db", db)))
    for project in ("acme", made["projectId"]):
        arguments = ("token", "--user", "alice", *BUDGET, "--project", project)
        token = said(chucky(*arguments, "--db", db)).strip()
        assert claims_of(token)["iss"] == made["projectId"]
    arguments = ("token", "--user", "alice", *BUDGET, "--project", "acne")
    assert "did you mean 'acme'" in refused(chucky(*arguments, "--db", db))


def test_the_default_project_is_made_when_a_token_needs_it(tmp_path: Path) -> None:
    db = tmp_path / "new.db"
    chucky("projects", "create", "acme", "--db", db)
    token = said(chucky("token", "--user", "alice", *BUDGET, "--db", db)).strip()
    assert claims_of(token)["iss"] == key_of(db)[0]


@pytest.mark.parametrize("dollars", [Decimal(-1), Decimal("NaN"), Decimal("Infinity")])
def test_an_impossible_budget_is_told(db: Db, dollars: Decimal) -> None:
    arguments = ("token", "--user", "alice", f"--ai-dollars={dollars}", "--compute-hours", "1")
    assert "ai_dollars" in refused(chucky(*arguments, "--db", db))


def test_an_empty_user_is_told(db: Db) -> None:
    assert "user_id" in refused(chucky("token", "--user", "", *BUDGET, "--db", db))


# --- settings -------------------------------------------------------------------------------


def test_the_database_may_come_from_the_environment_or_the_file(
    db: Db, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("token", "--user", "alice", *BUDGET)
    refused(chucky(*arguments))
    name = "chucky.db" if isinstance(db, Path) else str(db)
    (tmp_path / "chucky.toml").write_text(f'db = "{name}"')
    said(chucky(*arguments))
    (tmp_path / "chucky.toml").rename(tmp_path / "other.toml")
    refused(chucky(*arguments))
    said(chucky(*arguments, "--config", "other.toml"))
    monkeypatch.setenv("CHUCKY_DB", str(db))
    said(chucky(*arguments))


@pytest.mark.parametrize(
    "arguments", [("projects", "list"), ("token", "--user", "alice", *BUDGET), ("serve",)]
)
def test_wrong_settings_are_told_all_at_once(
    db: Db, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "chucky.toml").write_text("prot = 1")
    monkeypatch.setenv("CHUCKY_TOOL_TIMEOUT", "5")
    result = chucky(*arguments, "--db", db)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "Error: 2 settings are wrong."
    assert "did you mean port?" in result.stderr
    assert "did you mean CHUCKY_TOOL_TIMEOUT_SECONDS?" in result.stderr


@pytest.mark.parametrize("form", ["postgresql://alice:{}@db/x", "postgres://db/x?password={}"])
@pytest.mark.parametrize("command", ["serve", "migrate", "projects list"])
def test_a_password_that_others_could_read_is_refused(form: str, command: str) -> None:
    password = secrets.token_hex()
    text = refused(chucky(*command.split(), "--db", form.format(password)))
    assert "can read the password in --db; leave it out there" in text
    assert password not in text


def test_serving_beyond_this_machine_needs_an_explicit_word(db: Db) -> None:
    text = refused(chucky("serve", "--host", "0.0.0.0", "--db", db))
    assert "can be reached from other machines" in text


def test_a_token_is_not_made_for_a_server_elsewhere(db: Db) -> None:
    url = "wss://chucky.example.org/ws"
    text = refused(chucky("prompt", "Hello", "--url", url, "--db", db))
    assert text == f"Error: A token is needed for '{url}': give one with CHUCKY_TOKEN or --token.\n"


def test_an_address_that_cannot_be_known_is_asked_for(
    db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHUCKY_PORT", "0")
    assert "name its address with --url" in refused(chucky("prompt", "Hello", "--db", db))


def test_no_error_repeats_a_token(db: Db) -> None:
    token = secrets.token_hex()
    result = chucky("prompt", "Hello", "--url", "nonsense", "--token", token, "--db", db)
    assert result.exit_code == 1
    assert token not in result.output
