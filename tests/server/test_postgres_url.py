"""The address of a PostgreSQL database in the settings, and the password in it."""

from __future__ import annotations

import json
import pickle
import secrets
from pathlib import Path

import pytest

from chucky.errors import ValidationError
from chucky.server.postgres_url import PostgresUrl
from chucky.server.settings import Settings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "postgresql://alice:{}@db.example:5432/chucky",
            "postgresql://alice@db.example:5432/chucky",
        ),
        ("postgres://alice:{}@db.example/chucky", "postgres://alice@db.example/chucky"),
        (
            "postgresql://alice:{}@[::1]:5432/x?sslmode=require",
            "postgresql://alice@[::1]:5432/x?sslmode=require",
        ),
        ("postgresql://:{}@/x?host=%2Frun", "postgresql://@/x?host=%2Frun"),
        ("postgresql://alice:a:{}@one:1,two:2/x", "postgresql://alice@one:1,two:2/x"),
        ("postgresql://db/x?password={}&user=alice", "postgresql://db/x?user=alice"),
        ("postgresql://db/x?user=alice&pass%77ord={}", "postgresql://db/x?user=alice"),
        ("postgresql://db/x?sslpassword={}", "postgresql://db/x"),
    ],
)
def test_a_password_shows_nowhere(url: str, shown: str) -> None:
    password = secrets.token_hex(8)
    whole = url.format(password)
    settings = Settings.load({}, environ={"CHUCKY_DB": whole}, directory=Path("/"))
    assert isinstance(settings.db, PostgresUrl)
    assert settings.db.secret_url == whole
    assert settings.db.has_password
    assert str(settings.db) == shown
    assert repr(settings.db) == f"PostgresUrl({shown!r})"
    assert password not in f"{settings!r} {settings}"
    assert pickle.loads(pickle.dumps(settings.db)) == settings.db


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgresql:///x",
        "postgresql://db",
        "postgresql://alice@db:5432/x?sslmode=require&target_session_attrs=read-write",
        "postgres://%2Frun%2Fpostgresql/x",
    ],
)
def test_an_address_without_a_password_is_shown_as_it_is(url: str) -> None:
    assert not PostgresUrl(url).has_password
    assert str(PostgresUrl(url)) == url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://alice:{}@home@db/x",  # an @ in the password
        "postgresql://alice:{}/x@db/x",
        "postgresql://alice:{} x@db/x",
        "postgresql://alice:{}%zz@db/x",
        "postgresql://db?password={}@x",
        "POSTGRESQL://alice:{}@db/x",
        "mysql://alice:{}@db/x",
        "sqlite:///{}",
    ],
)
def test_a_wrong_address_is_refused_without_being_repeated(url: str) -> None:
    password = secrets.token_hex(8)
    with pytest.raises(ValidationError, match="CHUCKY_DB must be") as caught:
        Settings.load({}, environ={"CHUCKY_DB": url.format(password)}, directory=Path("/"))
    assert password not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"


def test_an_address_is_taken_from_every_place_a_setting_comes_from(tmp_path: Path) -> None:
    url = "postgresql://alice@db/x"
    (tmp_path / "chucky.toml").write_text(f"db = {json.dumps(url)}\n")
    from_file = Settings.load({}, environ={}, directory=tmp_path)
    from_argument = Settings.load({"db": url}, environ={}, directory=Path("/"))
    already_read = Settings.load({"db": PostgresUrl(url)}, environ={}, directory=Path("/"))
    assert from_file.db == from_argument.db == already_read.db == PostgresUrl(url)
