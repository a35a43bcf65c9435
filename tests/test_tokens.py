"""Making, showing and verifying tokens, as an application does it."""

from __future__ import annotations

import base64
import decimal
import hashlib
import hmac
import json
import secrets
import subprocess
import sys
import time
import warnings
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chucky.errors import ChuckyError, ValidationError
from chucky.tokenform import MAX_AMOUNT, read_instant
from chucky.tokens import (
    TokenBudget,
    Window,
    create_budget,
    create_token,
    decode_token,
    extract_project_id,
    is_token_expired,
    verify_token,
)

KEY = f"hk_live_{secrets.token_hex(16)}"
BUDGET = TokenBudget(1_000_000, 3_600, "day", "2026-01-01T00:00:00Z")


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(
    claims: object,
    key: str = KEY,
    header: object = None,
    digest: str = "sha256",
    spaces: bool = True,
) -> str:
    """Sign by the standard library alone, by default the way the SDK 0.2.0 spells JSON."""
    separators = (", ", ": ") if spaces else (",", ":")
    parts = (header or {"alg": "HS256", "typ": "JWT"}, claims)
    text = ".".join(segment(json.dumps(part, separators=separators).encode()) for part in parts)
    mac = hmac.new(key.encode(), text.encode(), getattr(hashlib, digest)).digest()
    return f"{text}.{segment(mac)}"


def token_ending(seconds_from_now: float) -> str:
    return sign({"sub": "u", "iss": "p", "iat": 1, "exp": time.time() + seconds_from_now})


# --- the module -----------------------------------------------------------------------------


def test_importing_the_module_loads_nothing_that_is_slow_or_opens_sockets() -> None:
    program = (
        "import sys, chucky.tokens\n"
        "heavy = {'jwt', 'pydantic', 'websockets', 'asyncio', 'socket', 'ssl', 'http'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"


# --- create_budget --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dollars", "micros"),
    [
        (2.01, 2_010_000),
        (1.00, 1_000_000),
        (1, 1_000_000),
        (0, 0),
        (-0.0, 0),
        (0.1 + 0.2, 300_000),
        (Decimal("19.99"), 19_990_000),
        (Decimal("0.0000005"), 1),
        (0.0000005, 1),
        (Decimal("0.00000049999999999999999999999999999999999999999999999999999999999"), 0),
        (Decimal("1.0000015"), 1_000_002),
        (Decimal("1E+3"), 1_000_000_000),
        (Decimal("1E-1000000000"), 0),
        (1e-320, 0),
        (9_007_199_254, 9_007_199_254_000_000),
    ],
)
def test_dollars_become_exact_micro_dollars_rounded_half_up(
    dollars: float | Decimal, micros: int
) -> None:
    """defect 21"""
    assert create_budget(dollars, 1).ai == micros


@pytest.mark.parametrize(
    ("hours", "seconds"),
    [
        (1.13, 4_068),
        (1, 3_600),
        (0.5, 1_800),
        (Decimal("0.0001"), 0),
        (Decimal(1) / Decimal(7200), 1),
        (10_000, 36_000_000),
    ],
)
def test_hours_become_whole_seconds_rounded_half_up(hours: float | Decimal, seconds: int) -> None:
    """defect 21"""
    assert create_budget(1, hours).compute == seconds


@settings(deadline=None)
@given(st.integers(0, 10**11))
def test_every_amount_in_cents_is_exact(cents: int) -> None:
    assert create_budget(cents / 100, 0).ai == cents * 10_000


def test_amounts_do_not_depend_on_the_decimal_context_of_the_caller() -> None:
    with decimal.localcontext() as context:
        context.prec = 2
        context.rounding = decimal.ROUND_UP
        context.traps[decimal.Inexact] = True
        assert create_budget(123.456789, 1.13).ai == 123_456_789


@pytest.mark.parametrize("name", ["ai_dollars", "compute_hours"])
@pytest.mark.parametrize(
    "amount",
    [
        -1,
        -0.01,
        Decimal("-1E-30"),
        float("nan"),
        float("inf"),
        float("-inf"),
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("Infinity"),
        True,
        "2.01",
        None,
        1j,
        2**53 + 1,
        2**52,
        10**5000,
        1e300,
        Decimal("1E+999999999"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_impossible_amount_is_refused_by_the_name_of_its_argument(
    name: str, amount: Any
) -> None:
    amounts: dict[str, Any] = {"ai_dollars": 1, "compute_hours": 1, name: amount}
    with pytest.raises(ValidationError, match=f"^{name} must be"):
        create_budget(**amounts)


def test_each_of_the_five_windows_is_taken() -> None:
    windows: tuple[Window, ...] = ("hour", "day", "week", "month", "lifetime")
    assert tuple(create_budget(1, 1, window).window for window in windows) == windows
    assert create_budget(1, 1).window == "day"


@pytest.mark.parametrize("window", ["year", "Day", "", None, ["day"], 1])
def test_an_unknown_window_is_refused_with_a_list_of_the_known_ones(window: Any) -> None:
    with pytest.raises(ValidationError, match=r"^window .* hour, day, week, month, lifetime"):
        create_budget(1, 1, window)


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (datetime(2026, 1, 31, tzinfo=UTC), "2026-01-31T00:00:00Z"),
        (datetime(2026, 1, 31, 12, 30, 15, 250), "2026-01-31T12:30:15.000250Z"),  # noqa: DTZ001
        (
            datetime(2026, 1, 31, 5, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))),
            "2026-01-31T00:00:00Z",
        ),
        (datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2))), "2025-12-31T22:00:00Z"),
    ],
)
def test_the_start_of_the_window_is_written_in_utc_with_one_z(start: datetime, text: str) -> None:
    """defect 20"""
    assert create_budget(1, 1, window_start=start).window_start == text


def test_a_naive_start_is_utc_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    naive = datetime(2026, 1, 31, 12)  # noqa: DTZ001
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert create_budget(1, 1, window_start=naive).window_start == "2026-01-31T12:00:00Z"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_window_starts_now_unless_told_otherwise() -> None:
    before = datetime.now(UTC)
    start = create_budget(1, 1).window_start
    instant = read_instant(start)
    assert instant is not None
    assert before <= instant <= datetime.now(UTC)
    assert start.endswith("Z")
    assert "+" not in start


@pytest.mark.parametrize(
    "start",
    [
        "2026-01-01T00:00:00Z",
        date(2026, 1, 1),
        1_700_000_000,
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
    ],
)
def test_a_start_that_is_no_point_in_time_is_refused_by_name(start: Any) -> None:
    with pytest.raises(ValidationError, match=r"^window_start must"):
        create_budget(1, 1, window_start=start)


@settings(deadline=None)
@given(st.datetimes(timezones=st.timezones()))
def test_every_start_reads_back_as_the_same_instant(start: datetime) -> None:
    try:
        expected = start.astimezone(UTC)
    except OverflowError:
        return
    assert read_instant(create_budget(1, 1, window_start=start).window_start) == expected


# --- create_token ---------------------------------------------------------------------------


def test_a_token_has_the_header_and_the_claims_of_the_wire() -> None:
    before = int(time.time())
    decoded = decode_token(create_token("user-1", "project-1", KEY, BUDGET, 60))
    after = int(time.time())

    assert decoded["header"] == {"alg": "HS256", "typ": "JWT"}
    issued_at = decoded["payload"]["iat"]
    assert before <= issued_at <= after
    assert decoded["payload"] == {
        "sub": "user-1",
        "iss": "project-1",
        "iat": issued_at,
        "exp": issued_at + 60,
        "budget": {
            "ai": 1_000_000,
            "compute": 3_600,
            "window": "day",
            "windowStart": "2026-01-01T00:00:00Z",
        },
    }


def test_a_token_lasts_an_hour_unless_told_otherwise() -> None:
    payload = decode_token(create_token("u", "p", KEY, BUDGET))["payload"]
    assert payload["exp"] - payload["iat"] == 3600


def test_other_jwt_libraries_accept_the_signature_under_the_whole_key() -> None:
    token = create_token("user-1", "project-1", KEY, BUDGET)
    claims = jwt.decode(token, KEY, algorithms=["HS256"], options={"require": ["exp", "iat"]})
    assert claims == decode_token(token)["payload"]
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, KEY.removeprefix("hk_live_"), algorithms=["HS256"])


def test_a_dict_is_as_good_as_a_token_budget() -> None:
    """defect 24"""
    wire = {"ai": 5, "compute": 6, "window": "lifetime"}
    token = create_token("u", "p", KEY, wire)
    assert decode_token(token)["payload"]["budget"] == wire
    assert verify_token(token, KEY)


def test_permissions_and_options_travel_only_when_given() -> None:
    """defect 24"""
    limits = {"allowedTools": ["get_time"], "maxTurns": 3}
    config = {"model": "claude-haiku-4-5", "systemPrompt": "Быть кратким 🙂"}
    payload = decode_token(
        create_token("u", "p", KEY, BUDGET, permissions=limits, sdk_config=config)
    )["payload"]
    assert payload["permissions"] == limits
    assert payload["sdkConfig"] == config

    empty = decode_token(create_token("u", "p", KEY, BUDGET, permissions={}))["payload"]
    assert empty["permissions"] == {}
    assert "sdkConfig" not in empty


def test_a_short_secret_neither_warns_nor_touches_the_warning_filters() -> None:
    """defect 20"""
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        token = create_token(
            user_id="user-123",
            project_id="your-project-id",
            secret="your-hmac-secret",
            budget=create_budget(ai_dollars=1.00, compute_hours=1, window="day"),
        )
        assert verify_token(token, "your-hmac-secret")
    assert caught == []
    assert list(warnings.filters) == filters


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"user_id": ""}, "user_id"),
        ({"user_id": "  "}, "user_id"),
        ({"user_id": None}, "user_id"),
        ({"user_id": 7}, "user_id"),
        ({"user_id": "x" * 257}, "user_id"),
        ({"user_id": "a\nb"}, "user_id"),
        ({"user_id": "a\x00b"}, "user_id"),
        ({"user_id": "a\ud800"}, "user_id"),
        ({"user_id": "a\u2028b"}, "user_id"),
        ({"project_id": ""}, "project_id"),
        ({"project_id": None}, "project_id"),
        ({"secret": ""}, "secret"),
        ({"secret": None}, "secret"),
        ({"secret": b"bytes"}, "secret"),
        ({"secret": "\ud800"}, "secret"),
        ({"secret": "-----BEGIN PUBLIC KEY-----\nMA==\n-----END PUBLIC KEY-----"}, "secret"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": 0.5}, "expires_in"),
        ({"expires_in": -1}, "expires_in"),
        ({"expires_in": True}, "expires_in"),
        ({"expires_in": "60"}, "expires_in"),
        ({"expires_in": float("nan")}, "expires_in"),
        ({"expires_in": float("inf")}, "expires_in"),
        ({"expires_in": 10**400}, "expires_in"),
        ({"budget": None}, "budget"),
        ({"budget": 5}, "budget"),
        ({"budget": {}}, "budget.ai"),
        ({"budget": {"ai": 1, "window": "day"}}, "budget.compute"),
        ({"budget": {"ai": 1.5, "compute": 1, "window": "day"}}, "budget.ai"),
        ({"budget": {"ai": 1, "compute": True, "window": "day"}}, "budget.compute"),
        ({"budget": {"ai": 1, "compute": 1, "window": "year"}}, "budget.window"),
        ({"budget": TokenBudget(-1, 1, "day", "2026-01-01")}, "budget.ai"),
        ({"budget": TokenBudget(MAX_AMOUNT + 1, 1, "day", "2026-01-01")}, "budget.ai"),
        ({"budget": TokenBudget(1, 1, "day", "soon")}, "budget.windowStart"),
        (
            {"budget": {"ai": 1, "compute": 1, "window": "day", "window_start": "2026-01-01"}},
            "window_start",
        ),
        ({"permissions": ["get_time"]}, "permissions"),
        ({"permissions": {"allowedTools": {"a", "b"}}}, "permissions"),
        ({"sdk_config": "model"}, "sdk_config"),
        ({"sdk_config": {"x": float("nan")}}, "sdk_config"),
        ({"sdk_config": {"x": float("inf")}}, "sdk_config"),
        ({"sdk_config": {"x": "\udfff"}}, "sdk_config"),
        ({"sdk_config": {1: "a", "1": "b"}}, "sdk_config"),
        ({"sdk_config": {"x": json.loads("[" * 63 + "]" * 63)}}, "sdk_config"),
        ({"sdk_config": {"x": "y" * 20_000}}, "sdk_config"),
    ],
)
def test_an_argument_the_server_would_refuse_is_refused_by_name(
    changes: dict[str, Any], name: str
) -> None:
    arguments: dict[str, Any] = {
        "user_id": "u",
        "project_id": "p",
        "secret": KEY,
        "budget": BUDGET,
        **changes,
    }
    with pytest.raises(ValidationError, match=name) as caught:
        create_token(**arguments)
    assert KEY not in str(caught.value)


# --- decode_token ---------------------------------------------------------------------------


def test_decoding_shows_a_token_of_0_2_0_without_checking_it() -> None:
    claims = {"sub": "u", "iss": "p", "iat": 1, "exp": 2, "budget": {"ai": 1}}
    token = sign(claims, key="another key")
    assert decode_token(token) == {
        "header": {"alg": "HS256", "typ": "JWT"},
        "payload": claims,
        "signature": token.rpartition(".")[2],
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "token",
        "a.b",
        "a.b.c",
        "..",
        "e30.e30.e30.e30",
        "e30=.e30.AAAA",
        "W10.e30.AAAA",
        "e30.bnVsbA.AAAA",
        " e30.e30.AAAA",
        "e30.e30.A",
        "e30.e30.AB",
        "\ud800.e30.AAAA",
        None,
        b"e30.e30.AAAA",
    ],
)
def test_what_is_no_token_is_refused_as_a_value_error(text: Any) -> None:
    with pytest.raises(ValueError, match=r"^Invalid token format") as caught:
        decode_token(text)
    assert isinstance(caught.value, ChuckyError)


# --- verify_token and is_token_expired ------------------------------------------------------


@pytest.mark.parametrize("spaces", [True, False])
def test_a_token_signed_with_the_secret_is_verified(spaces: bool) -> None:
    exp = int(time.time()) + 60
    assert verify_token(sign({"sub": "u", "exp": exp}, spaces=spaces), KEY)


def test_only_the_secret_it_was_signed_with_verifies_a_token() -> None:
    token = create_token("u", "p", KEY, BUDGET)
    assert verify_token(token, KEY)
    others: list[Any] = [KEY[:-1], KEY + " ", KEY.upper(), "", "\ud800", None, KEY.encode()]
    assert [verify_token(token, other) for other in others] == [False] * len(others)


@pytest.mark.parametrize(
    ("header", "digest"),
    [
        ({"alg": "none"}, "sha256"),
        ({"alg": "hs256"}, "sha256"),
        ({"alg": ["HS256"]}, "sha256"),
        ({"typ": "JWT"}, "sha256"),
        ({"alg": "HS512"}, "sha512"),
        ({"alg": "HS256"}, "sha512"),
        ({"alg": "HS256", "crit": ["x"], "x": 1}, "sha256"),
        ({"alg": "HS256", "b64": True}, "sha256"),
        ({"alg": "HS256", "typ": "at+jwt"}, "sha256"),
    ],
    ids=str,
)
def test_a_token_by_another_algorithm_or_with_extensions_is_not_verified(
    header: dict[str, Any], digest: str
) -> None:
    """defect 22"""
    token = sign({"sub": "u", "exp": time.time() + 60}, header=header, digest=digest)
    assert not verify_token(token, KEY)


def test_an_expired_token_is_neither_verified_nor_usable() -> None:
    """defect 22"""
    assert is_token_expired(token_ending(-1))
    assert not verify_token(token_ending(-1), KEY)
    assert not is_token_expired(token_ending(60))
    assert verify_token(token_ending(60), KEY)


def test_expiry_is_told_without_looking_at_the_signature() -> None:
    assert not is_token_expired(create_token("u", "p", "some other key", BUDGET))


@pytest.mark.parametrize("exp", [None, True, "9999999999", [9999999999], {}])
def test_a_token_without_a_readable_expiry_counts_as_expired(exp: Any) -> None:
    assert is_token_expired(sign({"exp": exp}))
    assert not verify_token(sign({"exp": exp}), KEY)
    assert is_token_expired(sign({}))


@settings(deadline=None)
@given(st.text() | st.lists(st.text("AQeyJfw0-_=é", max_size=12), max_size=4).map(".".join))
def test_no_text_makes_verification_raise(text: str) -> None:
    assert verify_token(text, KEY) is False
    assert is_token_expired(text) is True


@settings(deadline=None)
@given(st.data())
def test_no_changed_character_goes_unnoticed(data: st.DataObject) -> None:
    token = create_token("u", "p", KEY, BUDGET)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters().filter(lambda character: character != token[place]))
    assert not verify_token(token[:place] + other + token[place + 1 :], KEY)


# --- extract_project_id ---------------------------------------------------------------------


def test_asking_a_key_for_its_project_id_says_where_the_id_really_is() -> None:
    """defect 23"""
    with pytest.raises(ValidationError, match="pass project_id as the server shows it") as caught:
        extract_project_id(KEY)
    assert KEY not in str(caught.value)
    assert not isinstance(caught.value, Warning)


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """defect 22: time cannot be asserted, so the comparison that is made for it is watched."""
    compared: list[tuple[bytes, bytes]] = []

    def watch(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("chucky.tokenform.hmac.compare_digest", watch)
    token = create_token("user", "project", KEY, BUDGET)
    assert verify_token(token, KEY)
    assert not verify_token(token, KEY[::-1])
    assert [len(one) for one, _ in compared] == [32, 32]
