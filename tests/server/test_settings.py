"""Where settings come from, which one counts, and how faults are told."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from chucky.errors import ValidationError
from chucky.server.settings import Settings, default_db_path, is_loopback

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"
NAMES = [each.name for each in fields(Settings)]


def load(
    directory: Path, arguments: Mapping[str, Any] | None = None, /, **environ: str
) -> Settings:
    return Settings.load(arguments, environ=environ, directory=directory)


def write(directory: Path, text: str) -> Path:
    path = directory / "chucky.toml"
    path.write_text(text)
    return path


def faults(
    directory: Path, arguments: Mapping[str, Any] | None = None, /, **environ: str
) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        load(directory, arguments, **environ)
    return str(caught.value).splitlines()


# --- what there is --------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_documentation(tmp_path: Path) -> None:
    settings = load(tmp_path, XDG_DATA_HOME=str(tmp_path))
    assert settings == Settings(db=tmp_path / "chucky" / "chucky.db")
    assert (settings.host, settings.port, settings.log_level) == ("127.0.0.1", 8787, "info")
    assert settings.max_frame_bytes == 16 * 1024 * 1024


def written(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def test_every_setting_is_documented_with_its_names_and_default() -> None:
    lines = DOCS.read_text().splitlines()
    table = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    for each in fields(Settings):
        row = table[each.name]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 4
        if each.name in TABLES:
            assert cells[1] == "none"
            continue
        assert f"`CHUCKY_{each.name.upper()}`" in cells[1]
        if each.default is not MISSING and each.default is not None:
            assert cells[2].strip('`"') == written(each.default)
        elif each.name != "db":
            assert cells[2] == "none"
    assert set(table) - {"chucky.toml"} - {name for name in table if name.isupper()} == set(NAMES)


MASTER_KEY = secrets.token_hex(32)
TABLES = {"models", "prices", "providers"}
SAMPLES: dict[str, tuple[str, Any]] = {
    "host": ("::1", "::1"),
    "port": ("0", 0),
    "db": ("/srv/chucky.db", Path("/srv/chucky.db")),
    "upstream_url": ("http://localhost:9/v", "http://localhost:9/v"),
    "anthropic_api_key": ("sk-sample", "sk-sample"),
    "master_key": (MASTER_KEY, MASTER_KEY),
    "allowed_betas": ("one-beta, another-beta", ("one-beta", "another-beta")),
    "allow_remote": ("yes", True),
    "tls_cert": (str(DOCS), DOCS),
    "tls_key": (str(DOCS), DOCS),
    "tool_timeout_seconds": ("2.5", 2.5),
    "turn_timeout_seconds": ("60", 60.0),
    "idle_timeout_seconds": ("1e3", 1000.0),
    "max_frame_bytes": ("65536", 65536),
    "stall_timeout_seconds": ("0.1", 0.1),
    "drain_seconds": ("0", 0.0),
    "max_sessions": ("1000000", 1_000_000),
    "max_running_turns": ("1", 1),
    "max_sessions_per_user": ("1", 1),
    "max_queued_inputs": ("1000", 1000),
    "model_attempts": ("1", 1),
    "min_output_tokens": ("100", 100),
    "ledger": ("off", False),
    "session_log": ("off", False),
    "reconnect_grace_seconds": ("1.5", 1.5),
    "evict_after_seconds": ("1.5", 1.5),
    "succession": ("off", False),
    "log_level": ("Debug", "debug"),
}


def test_every_setting_can_come_from_the_environment(tmp_path: Path) -> None:
    assert set(SAMPLES) == set(NAMES) - TABLES
    environ = {f"CHUCKY_{name.upper()}": text for name, (text, _) in SAMPLES.items()}
    settings = load(tmp_path, None, **environ)
    assert {name: getattr(settings, name) for name in SAMPLES} == {
        name: value for name, (_, value) in SAMPLES.items()
    }


def test_every_setting_can_come_from_the_file(tmp_path: Path) -> None:
    lines = [
        f"{name} = {value!r}".replace("True", "true").replace("False", "false")
        if isinstance(value, int | float)
        else f'{name} = "{", ".join(value) if isinstance(value, tuple) else value}"'
        for name, (_, value) in SAMPLES.items()
    ]
    tables = '[models."claude-x"]\nalias = "x"\n[prices."claude-x"]\ninput = 1\n'
    write(tmp_path, "\n".join([*lines, tables]))
    settings = load(tmp_path)
    assert {name: getattr(settings, name) for name in SAMPLES} == {
        name: value for name, (_, value) in SAMPLES.items()
    }
    assert settings.models == {"claude-x": {"alias": "x"}}
    assert settings.prices == {"claude-x": {"input": 1}}


def test_every_setting_can_be_an_argument(tmp_path: Path) -> None:
    arguments = {name: value for name, (_, value) in SAMPLES.items()}
    settings = load(tmp_path, arguments)
    assert {name: getattr(settings, name) for name in SAMPLES} == arguments


# --- which one counts -----------------------------------------------------------------------


def test_arguments_come_before_the_environment_before_the_file(tmp_path: Path) -> None:
    write(tmp_path, "port = 1\nmodel_attempts = 2\nlog_level = 'error'")
    settings = load(tmp_path, {"port": 3, "db": None}, CHUCKY_PORT="2", CHUCKY_MODEL_ATTEMPTS="5")
    assert (settings.port, settings.model_attempts, settings.log_level) == (3, 5, "error")


def test_an_argument_that_is_false_or_zero_counts(tmp_path: Path) -> None:
    settings = load(
        tmp_path, {"port": 0, "succession": False}, CHUCKY_PORT="5", CHUCKY_SUCCESSION="1"
    )
    assert (settings.port, settings.succession) == (0, False)


def test_the_key_of_the_anthropic_tools_is_used_unless_there_is_one_of_ours(
    tmp_path: Path,
) -> None:
    common, ours = secrets.token_hex(), secrets.token_hex()
    assert load(tmp_path, ANTHROPIC_API_KEY=common).anthropic_api_key == common
    both = load(tmp_path, ANTHROPIC_API_KEY=common, CHUCKY_ANTHROPIC_API_KEY=ours)
    assert both.anthropic_api_key == ours
    assert load(tmp_path, ANTHROPIC_API_KEY="").anthropic_api_key is None


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    assert load(tmp_path, CHUCKY_PORT="", CHUCKY_CONFIG="").port == 8787


def test_the_file_is_the_argument_before_the_variable_before_the_directory(
    tmp_path: Path,
) -> None:
    write(tmp_path, "port = 1")
    (tmp_path / "two.toml").write_text("port = 2")
    (tmp_path / "three.toml").write_text("port = 3")
    environ = {"CHUCKY_CONFIG": str(tmp_path / "two.toml")}
    assert load(tmp_path).port == 1
    assert load(tmp_path, None, **environ).port == 2
    loaded = Settings.load(config="three.toml", environ=environ, directory=tmp_path)
    assert loaded.port == 3


def test_relative_paths_begin_where_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "my.toml").write_text('db = "data.db"')
    environ = {"CHUCKY_CONFIG": "etc/my.toml"}
    assert load(tmp_path, None, **environ).db == tmp_path / "etc" / "data.db"
    assert load(tmp_path, None, **environ, CHUCKY_DB="data.db").db == tmp_path / "data.db"
    assert load(tmp_path, {"db": Path("~/data.db")}).db == tmp_path / "home" / "data.db"


def test_the_default_database_is_the_same_from_every_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".local" / "share" / "chucky" / "chucky.db"
    assert default_db_path({}) == expected
    assert default_db_path({"XDG_DATA_HOME": "relative/is/ignored"}) == expected
    assert default_db_path({"XDG_DATA_HOME": "/data"}) == Path("/data/chucky/chucky.db")


# --- what is wrong --------------------------------------------------------------------------


def test_all_faults_are_told_at_once_one_line_each(tmp_path: Path) -> None:
    path = write(tmp_path, "prot = 1\nmodel_attempts = 99\n[models]\nx = 1")
    lines = faults(tmp_path, {"port": -1}, CHUCKY_LOGLEVEL="debug", CHUCKY_SUCCESSION="maybe")
    assert lines[0] == "6 settings are wrong."
    assert set(lines[1:]) == {
        f"There is no setting 'prot' in {str(path)!r}; did you mean port?",
        f"model_attempts in {str(path)!r} must be from 1 to 10, not 99.",
        f"models in {str(path)!r} must hold a table for each name, and 'x' is none.",
        "There is no environment variable CHUCKY_LOGLEVEL; did you mean CHUCKY_LOG_LEVEL?",
        "CHUCKY_SUCCESSION must be true or false, not 'maybe'.",
        "--port must be from 0 to 65,535, not -1.",
    }


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("host", "http://x", "must be an address or host name alone"),
        ("host", " ", "must be an address or host name alone"),
        ("port", "65536", "must be from 0 to 65,535, not 65,536"),
        ("port", "80.5", "must be a whole number, not '80.5'"),
        ("port", "9" * 5000, "must be a whole number"),
        ("upstream_url", "localhost:9", "must be an address like https://host/path"),
        ("upstream_url", "https://", "must be an address like https://host/path"),
        ("upstream_url", "https://host:99999", "must be an address like https://host/path"),
        ("upstream_url", "https://[", "must be an address like https://host/path"),
        ("allow_remote", "2", "must be true or false, not '2'"),
        ("tls_cert", "/nowhere.pem", "must name a file, and '/nowhere.pem' is none"),
        ("tool_timeout_seconds", "0", "must be from 0.1 to 86,400 seconds"),
        ("tool_timeout_seconds", "nan", "must be from 0.1 to 86,400 seconds"),
        ("turn_timeout_seconds", "inf", "must be from 0.1 to 604,800 seconds"),
        ("turn_timeout_seconds", "soon", "must be a number of seconds, not 'soon'"),
        ("idle_timeout_seconds", "-1", "must be from 0.1 to 604,800 seconds"),
        ("max_frame_bytes", "1023", "must be from 1,024 to 268,435,456, not 1,023"),
        ("max_sessions_per_user", "0", "must be from 1 to 100,000, not 0"),
        ("max_queued_inputs", "1001", "must be from 1 to 1,000, not 1,001"),
        ("model_attempts", "0", "must be from 1 to 10, not 0"),
        ("master_key", "short", "must be 64 hexadecimal digits"),
        ("log_level", "loud", "must be one of debug, info, warning, error, not 'loud'"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_its_name_and_what_it_may_be(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    (fault,) = faults(tmp_path, None, **{f"CHUCKY_{name.upper()}": text})
    assert fault.startswith(f"CHUCKY_{name.upper()} ")
    assert said in fault


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("port = '80'", "must be a whole number, not '80'"),
        ("port = true", "must be a whole number, not True"),
        ("tool_timeout_seconds = true", "must be a number of seconds, not True"),
        ("succession = 'yes'", "must be true or false, not 'yes'"),
        ("host = 1", "must be text, not 1"),
        ("db = 1", "must be a path, not 1"),
        ("db = ''", "must be a path, not ''"),
        ("db = 'a\\u0000b'".replace("'", '"'), "must be a path"),
        ("models = 1", "must be tables by name"),
        ("prices = []", "must be tables by name"),
    ],
)
def test_a_value_of_the_wrong_type_in_the_file_is_told(
    tmp_path: Path, line: str, said: str
) -> None:
    path = write(tmp_path, line)
    (fault,) = faults(tmp_path)
    assert str(path) in fault
    assert said in fault


def test_a_misspelt_variable_of_ours_is_an_error_and_those_of_others_are_not(
    tmp_path: Path,
) -> None:
    others = ["API_KEY", "WORKER_URL", "PORTAL_URL", "URL", "TOKEN", "PROJECT_ID", "HMAC_KEY"]
    load(tmp_path, None, **{f"CHUCKY_{name}": "x" for name in [*others, "OFFLINE_URL"]}, CHUCK="x")
    (fault,) = faults(tmp_path, CHUCKY_TOOL_TIMEOUT="5")
    assert fault == (
        "There is no environment variable CHUCKY_TOOL_TIMEOUT; "
        "did you mean CHUCKY_TOOL_TIMEOUT_SECONDS?"
    )
    (fault,) = faults(tmp_path, CHUCKY_ZZZZZZZZ="5")
    assert "docs/settings.md lists" in fault


def test_a_table_in_the_environment_is_told_where_it_belongs(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, CHUCKY_MODELS="{}")
    assert fault == "CHUCKY_MODELS is a table, so only the file chucky.toml can set it."


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, CHUCKY_CONFIG="gone.toml")
    assert fault.startswith(f"There is no settings file '{tmp_path}/gone.toml'")
    load(tmp_path)


@pytest.mark.parametrize("content", [b"port = = 1", b"\xff\xfe", b"port = 1\nport = 2"])
def test_a_file_that_is_not_toml_is_told_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "chucky.toml").write_bytes(content)
    (fault,) = faults(tmp_path)
    assert fault.startswith(f"The settings file '{tmp_path}/chucky.toml' is not TOML (")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, CHUCKY_CONFIG=str(tmp_path))
    assert fault == f"The settings file '{tmp_path}' cannot be read (Is a directory)."


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "chucky.example.org"])
def test_an_address_others_can_reach_needs_tls_or_an_explicit_word(
    tmp_path: Path, host: str
) -> None:
    (fault,) = faults(tmp_path, {"host": host})
    assert f"host {host!r} can be reached from other machines" in fault
    assert "--allow-remote" in fault
    assert load(tmp_path, {"host": host, "allow_remote": True}).host == host
    assert load(tmp_path, {"host": host, "tls_cert": DOCS, "tls_key": DOCS}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "[::1]", "localhost"])
def test_loopback_addresses_need_nothing(tmp_path: Path, host: str) -> None:
    assert is_loopback(load(tmp_path, {"host": host}).host)


@pytest.mark.parametrize(("given", "absent"), [("tls_cert", "tls_key"), ("tls_key", "tls_cert")])
def test_half_of_tls_is_refused(tmp_path: Path, given: str, absent: str) -> None:
    (fault,) = faults(tmp_path, {given: DOCS})
    assert fault == f"{given} is given without {absent}; TLS needs both."


def test_what_follows_from_another_fault_is_not_told_as_well(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, {"host": "0.0.0.0", "tls_cert": "/nowhere", "tls_key": DOCS})
    assert fault.startswith("--tls-cert must name a file")


def test_an_argument_that_does_not_exist_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="prot"):
        load(tmp_path, {"prot": 1})


# --- secrets --------------------------------------------------------------------------------


def test_the_provider_key_shows_in_no_repr_and_no_fault(tmp_path: Path) -> None:
    key = secrets.token_hex()
    assert key not in repr(load(tmp_path, CHUCKY_ANTHROPIC_API_KEY=key))
    for bad in (f"{key} {key}", f"{key}\n{key}", f"{key}ä"):
        (fault,) = faults(tmp_path, CHUCKY_ANTHROPIC_API_KEY=bad)
        assert fault == ("CHUCKY_ANTHROPIC_API_KEY must be a key in one piece, without spaces.")


def test_a_password_in_the_upstream_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    password = secrets.token_hex()
    for url in (f"https://user:{password}@host/", f"https://host/?key={password}"):
        (fault,) = faults(tmp_path, CHUCKY_UPSTREAM_URL=url)
        assert "without user, query or fragment" in fault
        assert not re.search(password, fault)


def test_a_broken_file_does_not_repeat_what_is_in_it(tmp_path: Path) -> None:
    key = secrets.token_hex()
    write(tmp_path, f'anthropic_api_key = "{key}\nport = 1')
    (fault,) = faults(tmp_path)
    assert key not in fault
