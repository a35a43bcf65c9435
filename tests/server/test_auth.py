"""Which tokens the server takes: a table of forged, damaged, expired and good ones."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chucky.errors import AuthenticationError
from chucky.server.auth import (
    Budget,
    Identity,
    authenticate,
    judge,
    read_token,
)
from chucky.server.permissions import Permissions
from chucky.server.projects import Project, ProjectKey
from chucky.tokens import TokenBudget, create_budget, create_token

NOW = 1_800_000_000
SUB = f"user-{secrets.token_hex(4)}"


def new_key() -> str:
    return f"hk_live_{secrets.token_hex(16)}"


LIVE_KEY, OLDER_KEY, REVOKED_KEY = new_key(), new_key(), new_key()
OTHER_KEY, DISABLED_KEY = new_key(), new_key()
PROJECT, OTHER, DISABLED, KEYLESS, UNKNOWN = (secrets.token_hex(16) for _ in range(5))
PROJECTS = {
    project.project_id: project
    for project in (
        Project(
            PROJECT, "shop", keys=(ProjectKey("live", LIVE_KEY), ProjectKey("older", OLDER_KEY))
        ),
        Project(OTHER, "other", keys=(ProjectKey("other", OTHER_KEY),)),
        Project(DISABLED, "closed", disabled=True, keys=(ProjectKey("closed", DISABLED_KEY),)),
        Project(KEYLESS, "keyless"),
    )
}


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsegment(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def sign(
    payload: object, key: str = LIVE_KEY, header: object = None, digest: str = "sha256"
) -> str:
    """Sign by the standard library alone; bytes go in as they are, anything else as JSON."""
    parts = (header if header is not None else {"alg": "HS256", "typ": "JWT"}, payload)
    text = ".".join(segment(p if isinstance(p, bytes) else compact(p)) for p in parts)
    return f"{text}.{segment(mac(text, key, digest))}"


def mac(text: str, key: str = LIVE_KEY, digest: str = "sha256") -> bytes:
    return hmac.new(key.encode(), text.encode(), getattr(hashlib, digest)).digest()


ABSENT = object()


def claims(**changes: object) -> dict[str, Any]:
    good: dict[str, Any] = {
        "sub": SUB,
        "iss": PROJECT,
        "iat": NOW - 10,
        "exp": NOW + 3600,
        "budget": {
            "ai": 1_000_000,
            "compute": 3_600,
            "window": "day",
            "windowStart": "2026-01-01T00:00:00Z",
        },
    }
    return {name: value for name, value in (good | changes).items() if value is not ABSENT}


def budget(**changes: object) -> dict[str, Any]:
    changed = claims()["budget"] | changes
    return {name: value for name, value in changed.items() if value is not ABSENT}


def raw_claims(name: str, text: str) -> bytes:
    """Good claims in which one value is replaced by text that json.dumps would not write."""
    return compact(claims(**{name: "@@"})).replace(b'"@@"', text.encode())


GOOD = sign(claims())
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")


@dataclass(frozen=True)
class Case:
    """A token and what becomes of it; no reason means that it is taken."""

    name: str
    token: str
    reason: str | None = None


def good_cases() -> list[Case]:
    unicode_user = "名前-Ünïcödé-🙂"
    return [
        Case("plain", GOOD),
        Case("signed by PyJWT", jwt.encode(claims(), LIVE_KEY, algorithm="HS256")),
        Case("spelled with spaces, as 0.2.0 does", sign(json.dumps(claims()).encode())),
        Case("older key that is still live", sign(claims(), OLDER_KEY)),
        Case("other project with its own key", sign(claims(iss=OTHER), OTHER_KEY)),
        Case("header without typ", sign(claims(), header={"alg": "HS256"})),
        Case("header with lower-case typ", sign(claims(), header={"alg": "HS256", "typ": "jwt"})),
        Case("header in the other order", sign(claims(), header={"typ": "JWT", "alg": "HS256"})),
        Case("header with kid", sign(claims(), header={"alg": "HS256", "kid": "key-1"})),
        Case("header with jku", sign(claims(), header={"alg": "HS256", "jku": "https://x.test"})),
        Case("unknown claim", sign(claims(jti="1", name="Ann"))),
        Case("user name in many scripts", sign(claims(sub=unicode_user))),
        Case("user name not escaped", sign(raw_claims("sub", f'"{unicode_user}"'))),
        Case("user name of 256 characters", sign(claims(sub="x" * 256))),
        Case("expired 59 s ago", sign(claims(exp=NOW - 59, iat=NOW - 3600))),
        Case("expires this second", sign(claims(exp=NOW))),
        Case("issued 59 s ahead", sign(claims(iat=NOW + 59))),
        Case("issued 60 s ahead", sign(claims(iat=NOW + 60))),
        Case("nbf in the past", sign(claims(nbf=NOW - 5))),
        Case("nbf 59 s ahead", sign(claims(nbf=NOW + 59))),
        Case("fractional iat and exp", sign(claims(iat=NOW - 0.5, exp=NOW + 0.5))),
        Case("exp written as 1.9e9", sign(raw_claims("exp", "1.9e9"))),
        Case("lasts a century", sign(claims(exp=NOW + 100 * 365 * 86_400))),
        Case("budget of nothing", sign(claims(budget=budget(ai=0, compute=0)))),
        Case("budget as large as it gets", sign(claims(budget=budget(ai=2**53, compute=2**53)))),
        *(
            Case(f"window {window}", sign(claims(budget=budget(window=window))))
            for window in ("hour", "day", "week", "month", "lifetime")
        ),
        Case("empty permissions", sign(claims(permissions={}))),
        Case("empty permissions as PHP writes them", sign(claims(permissions=[]))),
        Case("empty sdkConfig as PHP writes it", sign(claims(sdkConfig=[]))),
        Case("sdkConfig with anything in it", sign(claims(sdkConfig={"a": [1, None, {"b": 0.5}]}))),
        Case("escaped surrogate pair", sign(raw_claims("sdkConfig", '{"a":"\\ud83d\\ude42"}'))),
        Case("63 objects in the claims", sign(claims(sdkConfig=nested(63)))),
        Case("large but allowed", sign(claims(sdkConfig={"systemPrompt": "x" * 11_000}))),
    ]  # fmt: skip


WINDOW_STARTS = {
    "2026-01-01T00:00:00.123Z": datetime(2026, 1, 1, microsecond=123_000, tzinfo=UTC),
    "2026-01-01T00:00:00.123456Z": datetime(2026, 1, 1, microsecond=123_456, tzinfo=UTC),
    "2026-01-01T00:00:00.123456789Z": datetime(2026, 1, 1, microsecond=123_456, tzinfo=UTC),
    "2026-01-01T00:00:00.123456789-05:00": datetime(2026, 1, 1, 5, 0, 0, 123_456, tzinfo=UTC),
    "2026-01-01T00:00:00.5Z": datetime(2026, 1, 1, microsecond=500_000, tzinfo=UTC),
    "2026-01-01T00:00:00.000250+00:00Z": datetime(2026, 1, 1, microsecond=250, tzinfo=UTC),
    "2026-01-01T00:00:00+00:00Z": datetime(2026, 1, 1, tzinfo=UTC),
    "2026-01-01T05:30:00+05:30Z": datetime(2026, 1, 1, tzinfo=UTC),
    "2026-01-01T05:30:00+05:30": datetime(2026, 1, 1, tzinfo=UTC),
    "2026-01-01T05:30:00+0530": datetime(2026, 1, 1, tzinfo=UTC),
    "2025-12-31T16:00:00-08:00": datetime(2026, 1, 1, tzinfo=UTC),
    "2026-01-01T00:00:00+00:00": datetime(2026, 1, 1, tzinfo=UTC),
    "2026-01-01T00:00:00-00:00": datetime(2026, 1, 1, tzinfo=UTC),
    "2026-01-01T00:00:00Z": datetime(2026, 1, 1, tzinfo=UTC),
    "2026-01-01T00:00:00": datetime(2026, 1, 1, tzinfo=UTC),
    "2026-01-01T00:00Z": datetime(2026, 1, 1, tzinfo=UTC),
    "2026-01-01": datetime(2026, 1, 1, tzinfo=UTC),
    "2026-01-01t00:00:00z": datetime(2026, 1, 1, tzinfo=UTC),
    "2026-01-01 00:00:00Z": datetime(2026, 1, 1, tzinfo=UTC),
    "2024-02-29T23:59:59Z": datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC),
    "0001-01-01T00:00:00Z": datetime(1, 1, 1, tzinfo=UTC),
    "9999-12-31T23:59:59.999999Z": datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
}

BAD_WINDOW_STARTS: tuple[object, ...] = (
    "", "soon", "now", "Z", "2026", "2026-01", "20260101", "2026-W01-1", "2026-13-01",
    "2026-02-29T00:00:00Z", "2026-00-10", "2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z",
    "2026-01-01T00:00:60Z", "2026-01-01T00:00:00+24:00", "2026-01-01T00:00:00+05:60",
    "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00ZZ", "2026-01-01T00:00:00Z ",
    " 2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z\n", "2026/01/01", "01.01.2026",
    "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "-2026-01-01", "٢٠٢٦-٠١-٠١",
    "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "1767225600",
    1_767_225_600, 1_767_225_600.5, None, True, [], {},
)  # fmt: skip


def window_start_cases() -> list[Case]:
    return [
        Case("no windowStart", sign(claims(budget=budget(windowStart=ABSENT)))),
        *(
            Case(f"windowStart {start}", sign(claims(budget=budget(windowStart=start))))
            for start in WINDOW_STARTS
        ),
        *(
            Case(
                f"bad windowStart {start!r}",
                sign(claims(budget=budget(windowStart=start))),
                "token_claims",
            )
            for start in BAD_WINDOW_STARTS
        ),
    ]


def malformed_cases() -> list[Case]:
    def bad(name: str, token: str) -> Case:
        return Case(name, token, "token_malformed")

    inner = GOOD.encode()
    return [
        Case("empty", "", "token_missing"),
        bad("a word", "xyzzy"),
        bad("null", "null"),
        bad("blank", " "),
        bad("only dots", ".."),
        bad("JSON in place of a token", json.dumps(claims())),
        bad("header alone", HEADER),
        bad("without a signature part", f"{HEADER}.{PAYLOAD}"),
        bad("four parts", f"{GOOD}.{SIGNATURE}"),
        bad("five parts, as when encrypted", f"{GOOD}.AAAA.AAAA"),
        bad("leading blank", f" {GOOD}"),
        bad("trailing blank", f"{GOOD} "),
        bad("trailing newline", f"{GOOD}\n"),
        bad("blank in the middle", f"{HEADER}. {PAYLOAD}.{SIGNATURE}"),
        bad("line break in the payload", f"{HEADER}.{PAYLOAD[:20]}\n{PAYLOAD[20:]}.{SIGNATURE}"),
        bad("with the word Bearer", f"Bearer {GOOD}"),
        bad("in quotes", f'"{GOOD}"'),
        bad("percent-encoded dots", GOOD.replace(".", "%2E")),
        bad("full-width dots", GOOD.replace(".", "．")),
        bad("null byte at the end", f"{GOOD}\x00"),
        bad("byte order mark", f"\ufeff{GOOD}"),
        bad("letter from another script", GOOD.replace("e", "е", 1)),
        bad("lone surrogate", f"{GOOD}\ud800"),
        bad("padded signature", f"{GOOD}="),
        bad("padded header", sign_text(HEADER + "==", PAYLOAD)),
        bad("padded payload", sign_text(HEADER, PAYLOAD + "=" * (-len(PAYLOAD) % 4 or 4))),
        bad("standard base64 alphabet", sign_text(HEADER, "//77" * 9)),
        bad("signature with loose last bits", f"{HEADER}.{PAYLOAD}.{loosen(SIGNATURE)}"),
        bad("signature of impossible length", GOOD[:-2]),
        bad("empty header", sign_text("", PAYLOAD)),
        bad("empty payload", sign_text(HEADER, "")),
        bad("payload not base64", sign_text(HEADER, "p@yload!")),
        bad("payload of impossible length", sign_text(HEADER, "AAAAA")),
        bad("parts in the wrong order", f"{SIGNATURE}.{PAYLOAD}.{HEADER}"),
        bad("payload not UTF-8", sign(b"\xff\xfe{}")),
        bad("payload in UTF-16", sign(json.dumps(claims()).encode("utf-16"))),
        bad("payload with byte order mark", sign(b"\xef\xbb\xbf" + compact(claims()))),
        bad("payload not JSON", sign(b"sub=user")),
        bad("payload cut off", sign(compact(claims())[:-1])),
        bad("payload followed by more", sign(compact(claims()) + b"{}")),
        bad("payload with a comment", sign(compact(claims()) + b"//")),
        bad("payload in single quotes", sign(compact(claims()).replace(b'"', b"'"))),
        bad("payload a list", sign([claims()])),
        bad("payload a string", sign("claims")),
        bad("payload a number", sign(7)),
        bad("payload null", sign(None)),
        bad("payload true", sign(True)),
        bad("token in a token", sign(inner)),
        bad("token in a token, as a string", sign(GOOD)),
        bad("lists that never close", sign(b'{"a":' + b"[" * 9_000)),
        bad("5000 lists in each other", sign(raw_claims("sdkConfig", "[" * 5_000 + "]" * 5_000))),
        bad("64 objects in the claims", sign(claims(sdkConfig=nested(64)))),
        bad("integer of 5000 digits", sign(raw_claims("exp", "9" * 5_000))),
        bad("NaN", sign(raw_claims("exp", "NaN"))),
        bad("Infinity", sign(raw_claims("exp", "Infinity"))),
        bad("-Infinity", sign(raw_claims("iat", "-Infinity"))),
        bad("number beyond all floats", sign(raw_claims("exp", "1e999"))),
        bad("NaN as the money", sign(raw_claims("budget", '{"ai":NaN,"compute":1}'))),
        bad("infinite money", sign(raw_claims("budget", '{"ai":1e400,"compute":1}'))),
        bad("NaN deep in sdkConfig", sign(raw_claims("sdkConfig", '{"a":[{"b":NaN}]}'))),
        bad("half a surrogate pair", sign(raw_claims("sub", '"a\\ud800"'))),
        bad("half a surrogate pair in a name", sign(raw_claims("sdkConfig", '{"\\uDFFF":1}'))),
        bad("sub twice", sign(duplicate("sub", '"admin"'))),
        bad("exp twice", sign(duplicate("exp", str(NOW + 9)))),
        bad("iss twice", sign(duplicate("iss", json.dumps(OTHER)))),
        bad("budget twice", sign(duplicate("budget", "{}"))),
        bad("the same claim twice with the same value", sign(duplicate("sub", json.dumps(SUB)))),
        bad("one name in two spellings", sign(compact(claims())[:-1] + b',"\\u0073ub":"admin"}')),
        bad("ai twice in the budget", sign(raw_claims("budget", '{"ai":1,"ai":9,"compute":1}'))),
        bad("alg twice", sign(claims(), header=b'{"alg":"none","alg":"HS256"}')),
        bad("header not JSON", sign(claims(), header=b"HS256")),
        bad("header a list", sign(claims(), header=["HS256"])),
        bad("header null", sign(claims(), header=b"null")),
        bad("header with crit", sign(claims(), header={"alg": "HS256", "crit": ["exp"], "exp": 1})),
        bad("header with empty crit", sign(claims(), header={"alg": "HS256", "crit": []})),
        bad("header with b64", sign(claims(), header={"alg": "HS256", "b64": False})),
        bad("header with another typ", sign(claims(), header={"alg": "HS256", "typ": "at+jwt"})),
        bad("header with a typ that is no text", sign(claims(), header={"alg": "HS256", "typ": 1})),
        bad("20 KB, well signed", sign(claims(sdkConfig={"systemPrompt": "x" * 15_000}))),
        bad("20 KB of nothing", "." * 20_480),
        bad("a megabyte", "A" * 1_000_000),
    ]  # fmt: skip


def sign_text(header: str, payload: str) -> str:
    return f"{header}.{payload}.{segment(mac(f'{header}.{payload}'))}"


def loosen(text: str) -> str:
    """Spell a signature of 32 bytes differently: its last character carries two unused bits."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) + 1]


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def duplicate(name: str, value: str) -> bytes:
    return compact(claims())[:-1] + f',"{name}":{value}}}'.encode()


def algorithm_cases() -> list[Case]:
    def bad(name: str, token: str) -> Case:
        return Case(name, token, "token_algorithm")

    spellings: tuple[object, ...] = (
        "none", "None", "NONE", "nOnE", "", "null", None, "hs256", "Hs256", "HS256 ", " HS256",
        "HS-256", "HS384", "HS512", "RS256", "ES256", "PS256", "EdDSA", "dir", "HS256\x00",
        0, 256, True, ["HS256"], {"alg": "HS256"},
    )  # fmt: skip
    unsigned = segment(compact({"alg": "none", "typ": "JWT"}))
    return [
        bad("no alg", sign(claims(), header={"typ": "JWT"})),
        bad("ALG in place of alg", sign(claims(), header={"ALG": "HS256"})),
        bad("alg none without a signature", f"{unsigned}.{PAYLOAD}."),
        bad("HS512, rightly signed", sign(claims(), header={"alg": "HS512"}, digest="sha512")),
        bad("HS384, rightly signed", sign(claims(), header={"alg": "HS384"}, digest="sha384")),
        bad("HS512 by PyJWT", jwt.encode(claims(), LIVE_KEY * 2, algorithm="HS512")),
        bad("payload in place of the header", f"{PAYLOAD}.{PAYLOAD}.{SIGNATURE}"),
        bad("parts swapped: payload and header", f"{PAYLOAD}.{HEADER}.{SIGNATURE}"),
        *(bad(f"alg {alg!r}", sign(claims(), header={"alg": alg})) for alg in spellings),
    ]


def signature_cases() -> list[Case]:
    def bad(name: str, token: str) -> Case:
        return Case(name, token, "token_signature")

    signature = unsegment(SIGNATURE)

    def flipped(bit: int) -> str:
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        return segment(bytes(changed))

    richer = segment(compact(claims(budget=budget(ai=10**9))))
    later = segment(compact(claims(exp=NOW + 10**6)))
    shorter = segment(compact({"alg": "HS256"}))
    unkeyed = hashlib.sha256(f"{HEADER}.{PAYLOAD}".encode()).digest()
    other = sign(claims(sub="another user"))
    return [
        *(
            bad(f"bit {bit} of the signature flipped", f"{HEADER}.{PAYLOAD}.{flipped(bit)}")
            for bit in (0, 1, 7, 8, 100, 127, 128, 200, 254, 255)
        ),
        bad("signature left out", f"{HEADER}.{PAYLOAD}."),
        bad("signature cut to half", f"{HEADER}.{PAYLOAD}.{segment(signature[:16])}"),
        bad("signature short of a byte", f"{HEADER}.{PAYLOAD}.{segment(signature[:-1])}"),
        bad("signature with a byte more", f"{HEADER}.{PAYLOAD}.{segment(signature + b'0')}"),
        bad("signature in hexadecimal", f"{HEADER}.{PAYLOAD}.{segment(signature.hex().encode())}"),
        bad("signature of zeros", f"{HEADER}.{PAYLOAD}.{segment(bytes(32))}"),
        bad("signature of another token", f"{HEADER}.{PAYLOAD}.{other.rpartition('.')[2]}"),
        bad("signature over the payload alone", f"{HEADER}.{PAYLOAD}.{segment(mac(PAYLOAD))}"),
        bad("SHA-512 under the name of HS256", sign(claims(), digest="sha512")),
        bad("SHA-1 under the name of HS256", sign(claims(), digest="sha1")),
        bad("unkeyed hash", f"{HEADER}.{PAYLOAD}.{segment(unkeyed)}"),
        bad("payload with more money", f"{HEADER}.{richer}.{SIGNATURE}"),
        bad("payload with more time", f"{HEADER}.{later}.{SIGNATURE}"),
        bad("header without typ put in front", f"{shorter}.{PAYLOAD}.{SIGNATURE}"),
        bad("a key of nobody", sign(claims(), new_key())),
        bad("an empty key", sign(claims(), "")),
        bad("the project's id as the key", sign(claims(), PROJECT)),
        bad("the key without its prefix", sign(claims(), LIVE_KEY.removeprefix("hk_live_"))),
        bad("the key in capitals", sign(claims(), LIVE_KEY.upper())),
        bad("the key with a newline", sign(claims(), LIVE_KEY + "\n")),
        bad("a revoked key", sign(claims(), REVOKED_KEY)),
        bad("another project's key", sign(claims(), OTHER_KEY)),
        bad("own key, another project's id", sign(claims(iss=OTHER))),
        bad("a disabled project's key", sign(claims(), DISABLED_KEY)),
        bad("a disabled project, wrong key", sign(claims(iss=DISABLED))),
        bad("a project without keys", sign(claims(iss=KEYLESS))),
        bad("a project without keys, empty key", sign(claims(iss=KEYLESS), "")),
        bad("an unknown project", sign(claims(iss=UNKNOWN))),
        bad("the project in capitals", sign(claims(iss=PROJECT.upper() + "X"))),
        bad("the project with a blank", sign(claims(iss=f"{PROJECT} "))),
        bad("an SQL wildcard as the project", sign(claims(iss="%"))),
        bad("a path as the project", sign(claims(iss=f"../{PROJECT}"))),
        bad("expired and wrongly signed", sign(claims(exp=1, iat=0), new_key())),
        bad("bad claims and wrongly signed", sign(claims(budget=None, sub=None), new_key())),
    ]  # fmt: skip


def claim_cases() -> list[Case]:
    def bad(name: str, **changes: object) -> Case:
        return Case(name, sign(claims(**changes)), "token_claims")

    wrong_ids: tuple[object, ...] = (
        "", " ", "\t", "a\nb", "a\x00b", "\x7f", "a\u0085b", "a\u2028b", "x" * 257,
        None, True, 7, 1.5, ["a"], {"a": 1},
    )  # fmt: skip
    wrong_times: tuple[object, ...] = (
        None, True, False, "", str(NOW), "tomorrow", [NOW], {}, -1, -0.5, 2**53 + 1,
        1e300, 10**4_000,
    )  # fmt: skip
    wrong_amounts: tuple[object, ...] = (
        -1, -(10**30), 0.5, 1.0, 1e6, 2**53 + 1, 10**30, 10**4_000, True, False, None, "1", "",
        [1], {},
    )  # fmt: skip
    wrong_windows: tuple[object, ...] = (
        "", "year", "Day", "DAY", "day ", "daily", "minute", None, 86_400, True, ["day"],
        {"day": 1},
    )  # fmt: skip
    no_budgets: tuple[object, ...] = (None, [], [1], "1", 1, True, {})
    everything: tuple[object, ...] = (None, "", "all", 0, True, ["a"], [{}])
    wrong_lists: tuple[object, ...] = (
        None, True, 1, {}, {"a": 1}, "", [""], [None], [["a"]], ["a", 1],
    )  # fmt: skip
    return [
        *(bad(f"no {name}", **{name: ABSENT}) for name in ("sub", "iss", "iat", "exp", "budget")),
        *(
            bad(f"{name} {index}: {str(value)[:9]!r}", **{name: value})
            for name, values in (
                ("sub", wrong_ids), ("iss", wrong_ids),
                ("iat", wrong_times), ("exp", wrong_times), ("nbf", wrong_times),
            )
            for index, value in enumerate(values)
        ),
        bad("exp equal to iat", iat=NOW, exp=NOW),
        bad("exp before iat", iat=NOW + 30, exp=NOW + 10),
        bad("audience", aud="chucky"),
        bad("audience, empty", aud=""),
        bad("audiences", aud=["a", "b"]),
        *(bad(f"budget {value!r}", budget=value) for value in no_budgets),
        *(
            bad(f"budget without {name}", budget=budget(**{name: ABSENT}))
            for name in ("ai", "compute", "window")
        ),
        *(
            bad(f"{name} {index}: {str(value)[:9]}", budget=budget(**{name: value}))
            for name in ("ai", "compute")
            for index, value in enumerate(wrong_amounts)
        ),
        *(
            bad(f"window {index}: {value!r}", budget=budget(window=value))
            for index, value in enumerate(wrong_windows)
        ),
        bad("unknown entry in the budget", budget=budget(tokens=5)),
        bad("budget entry in capitals", budget=budget(AI=5)),
        *(
            bad(f"{name} {value!r}", **{name: value})
            for name in ("permissions", "sdkConfig")
            for value in everything
        ),
        *(
            bad(f"permissions.{name} {value!r}", permissions={name: value})
            for name in ("tools", "allowedTools", "blockedTools", "allowedModels", "model")
            for value in wrong_lists
        ),
        *(
            bad(f"permissions.{name} 'a'", permissions={name: "a"})
            for name in ("tools", "allowedTools", "blockedTools", "allowedModels")
        ),
        *(
            bad(f"permissions.{name} {str(value)[:9]!r}", permissions={name: value})
            for name in ("maxTurns", "maxTurnsPerSession")
            for value in (None, True, 0, -1, 1.5, 2.0, "3", [3], 2**53 + 1)
        ),
        *(
            bad(f"unknown permission {name}", permissions={name: ["a"]})
            for name in ("allowed_tools", "AllowedTools", "disallowedTools", "blockedModels", "")
        ),
    ]  # fmt: skip


def other_cases() -> list[Case]:
    closed = sign(claims(iss=DISABLED), DISABLED_KEY)
    return [
        Case("a disabled project", closed, "project_disabled"),
        Case(
            "a disabled project, expired",
            sign(claims(iss=DISABLED, exp=2, iat=1), DISABLED_KEY),
            "project_disabled",
        ),
        Case("expired 60 s ago", sign(claims(exp=NOW - 60, iat=1)), "token_expired"),
        Case("expired 61 s ago", sign(claims(exp=NOW - 61, iat=1)), "token_expired"),
        Case("expired 60.5 s ago", sign(claims(exp=NOW - 60.5, iat=1)), "token_expired"),
        Case("expired long ago", sign(claims(exp=1, iat=0)), "token_expired"),
        Case("issued 61 s ahead", sign(claims(iat=NOW + 61)), "token_not_yet_valid"),
        Case("issued 60.5 s ahead", sign(claims(iat=NOW + 60.5)), "token_not_yet_valid"),
        Case(
            "issued in milliseconds",
            sign(claims(iat=NOW * 1000, exp=NOW * 1000 + 1)),
            "token_not_yet_valid",
        ),
        Case(
            "issued 61 s ahead, nbf in the past",
            sign(claims(iat=NOW + 61, nbf=NOW - 5)),
            "token_not_yet_valid",
        ),
        Case("nbf 61 s ahead", sign(claims(nbf=NOW + 61)), "token_not_yet_valid"),
    ]


CASES = [
    *good_cases(),
    *window_start_cases(),
    *malformed_cases(),
    *algorithm_cases(),
    *signature_cases(),
    *claim_cases(),
    *other_cases(),
]
TAKEN = [case for case in CASES if case.reason is None]
REFUSED = [case for case in CASES if case.reason is not None]


def check(token: str, now: float = NOW, **options: Any) -> Identity:
    return authenticate(token, PROJECTS.get, now, **options)


def refusal(token: str, now: float = NOW) -> AuthenticationError:
    with pytest.raises(AuthenticationError) as caught:
        check(token, now)
    return caught.value


def check_claims(**changes: object) -> Identity:
    return check(sign(claims(**changes)))


# --- the table ------------------------------------------------------------------------------


def test_the_table_is_as_large_as_promised_and_names_each_row_once() -> None:
    assert len(CASES) >= 200
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.reason for case in CASES} == {
        None,
        "token_missing",
        "token_malformed",
        "token_algorithm",
        "token_signature",
        "project_disabled",
        "token_claims",
        "token_expired",
        "token_not_yet_valid",
    }


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_a_good_token_is_taken(case: Case) -> None:
    identity = check(case.token)
    payload = json.loads(unsegment(case.token.split(".")[1]))
    assert (identity.project_id, identity.user_id) == (payload["iss"], payload["sub"])
    assert (identity.issued_at, identity.expires_at) == (payload["iat"], payload["exp"])


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_bad_token_is_refused_for_the_right_reason_and_never_quoted(case: Case) -> None:
    error = refusal(case.token)
    assert (error.code, error.reason) == ("AUTHENTICATION_ERROR", case.reason)

    said = f"{error!s} {error!r} {error.details} {error.__cause__} {error.__context__}"
    assert case.token not in said or not case.token.strip()
    for part in case.token.split(".")[1:]:
        assert not any(part[start : start + 8] in said for start in range(len(part) - 7))
    assert not any(word in said for word in (SUB, PROJECT, OTHER, UNKNOWN, LIVE_KEY, OTHER_KEY))


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_every_refusal_is_one_sentence_that_says_what_to_do(case: Case) -> None:
    text = str(refusal(case.token))
    assert text[0].isupper()
    assert text.endswith(".")
    assert "\n" not in text
    advice = ("ask ", "make ", "pass ", "set ", "has to make", "can have")
    assert any(word in text for word in advice), text


# --- what a good token says -----------------------------------------------------------------


def test_the_identity_says_everything_the_token_does() -> None:
    token = sign(
        claims(
            permissions={"allowedTools": ["get_time"], "maxTurns": 4},
            sdkConfig={"model": "claude-haiku-4-5"},
        ),
        OLDER_KEY,
    )
    assert check(token) == Identity(
        project_id=PROJECT,
        user_id=SUB,
        key_id="older",
        issued_at=NOW - 10,
        expires_at=NOW + 3600,
        budget=Budget(1_000_000, 3_600, "day", datetime(2026, 1, 1, tzinfo=UTC)),
        permissions=Permissions(allowed_tools=frozenset({"get_time"}), max_turns=4),
        sdk_config={"model": "claude-haiku-4-5"},
    )


def test_every_token_our_own_sdk_makes_is_taken() -> None:
    start = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    budgets: list[Any] = [
        create_budget(2.01, 1.13),
        create_budget(0, 0, "lifetime"),
        create_budget(9_000_000_000, 10_000, "month", start),
        TokenBudget(1, 1, "hour", "2026-01-01T00:00:00+00:00Z"),
        {"ai": 1, "compute": 1, "window": "week"},
    ]
    for spend in budgets:
        token = create_token(
            SUB,
            PROJECT,
            LIVE_KEY,
            spend,
            permissions={"allowedModels": ["a"], "blockedTools": ["b"]},
            sdk_config={"systemPrompt": "Быть кратким 🙂"},
        )
        identity = check(token, time.time())
        assert identity.user_id == SUB
        assert identity.permissions.models == frozenset({"a"})
        assert identity.sdk_config == {"systemPrompt": "Быть кратким 🙂"}


@pytest.mark.parametrize(("text", "instant"), WINDOW_STARTS.items())
def test_each_spelling_of_the_window_start_is_read_as_the_instant_it_means(
    text: str, instant: datetime
) -> None:
    identity = check_claims(budget=budget(windowStart=text))
    assert identity.budget is not None
    assert identity.budget.window_start == instant
    assert identity.budget.window_start.utcoffset() == timedelta(0)


def test_a_budget_may_leave_the_start_of_its_window_open() -> None:
    assert check_claims(budget=budget(windowStart=ABSENT)).budget == Budget(
        1_000_000, 3_600, "day", None
    )


def test_a_token_without_a_budget_is_taken_only_where_that_is_allowed() -> None:
    token = sign(claims(budget=ABSENT))
    assert refusal(token).reason == "token_claims"
    assert "budget is missing" in str(refusal(token))
    assert check(token, allow_unbudgeted=True).budget is None


def test_allowing_tokens_without_a_budget_does_not_excuse_a_bad_one() -> None:
    for wrong in (None, {}, budget(ai=-1), budget(ai=ABSENT)):
        with pytest.raises(AuthenticationError, match="budget"):
            check(sign(claims(budget=wrong)), allow_unbudgeted=True)
    assert check(GOOD, allow_unbudgeted=True).budget is not None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sub": ""}, "sub must"),
        ({"iss": 7}, "iss must"),
        ({"iat": "now"}, "iat must"),
        ({"exp": None}, "exp must"),
        ({"exp": 1, "iat": 1}, "exp must be later than iat"),
        ({"nbf": []}, "nbf must"),
        ({"aud": "x"}, "aud must"),
        ({"budget": budget(ai=0.5)}, "budget.ai must"),
        ({"budget": budget(compute=-1)}, "budget.compute must"),
        ({"budget": budget(window="year")}, "hour, day, week, month, lifetime"),
        ({"budget": budget(windowStart="soon")}, "budget.windowStart must"),
        ({"budget": budget(dollars=1)}, "'dollars'"),
        ({"permissions": "all"}, "permissions must"),
        ({"permissions": {"tools": "a"}}, "permissions.tools must"),
        ({"permissions": {"maxTurns": 0}}, "permissions.maxTurns must"),
        ({"permissions": {"allowedPaths": []}}, "'allowedPaths'"),
        ({"sdkConfig": 1}, "sdkConfig must"),
    ],
)
def test_a_refused_claim_is_named(changes: dict[str, object], named: str) -> None:
    assert named in str(refusal(sign(claims(**changes))))


def test_the_name_of_an_unknown_entry_is_shown_but_not_at_any_length() -> None:
    assert len(str(refusal(sign(claims(permissions={"x" * 5_000: 1}))))) < 300
    assert len(str(refusal(sign(claims(budget=budget(**{"x" * 5_000: 1})))))) < 300


# --- permissions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_permissions", "expected"),
    [
        ({}, Permissions(None, None, frozenset(), None)),
        (
            {"tools": ["a", "b"], "blockedTools": ["c"], "maxTurns": 5, "model": "m"},
            Permissions(frozenset("m"), frozenset("ab"), frozenset("c"), 5),
        ),
        (
            {"allowedModels": ["m", "n"], "allowedTools": ["a"], "maxTurnsPerSession": 6},
            Permissions(frozenset("mn"), frozenset("a"), frozenset(), 6),
        ),
        (
            {"allowedTools": ["a", "a"], "maxTurns": 1},
            Permissions(None, frozenset("a"), frozenset(), 1),
        ),
        ({"model": ["m", "n"]}, Permissions(models=frozenset("mn"))),
        ({"allowedTools": []}, Permissions(allowed_tools=frozenset())),
        ({"allowedModels": []}, Permissions(models=frozenset())),
        (
            {"tools": ["a", "b"], "allowedTools": ["b", "c"]},
            Permissions(allowed_tools=frozenset("b")),
        ),
        ({"tools": ["a"], "allowedTools": ["c"]}, Permissions(allowed_tools=frozenset())),
        ({"model": "m", "allowedModels": ["m", "n"]}, Permissions(models=frozenset("m"))),
        ({"model": "x", "allowedModels": ["m", "n"]}, Permissions(models=frozenset())),
        ({"maxTurns": 9, "maxTurnsPerSession": 2}, Permissions(max_turns=2)),
        ({"maxTurns": 2, "maxTurnsPerSession": 9}, Permissions(max_turns=2)),
    ],
)
def test_the_three_spellings_of_permissions_come_to_the_same_and_the_narrowest_holds(
    given_permissions: dict[str, Any], expected: Permissions
) -> None:
    assert check_claims(permissions=given_permissions).permissions == expected


# --- secrets stay secret --------------------------------------------------------------------


def test_an_unknown_project_looks_like_a_wrong_signature_in_every_respect() -> None:
    refusals = [
        refusal(sign(claims(iss=iss), key))
        for iss, key in (
            (UNKNOWN, LIVE_KEY),
            (PROJECT, OTHER_KEY),
            (PROJECT, REVOKED_KEY),
            (OTHER, LIVE_KEY),
            (DISABLED, LIVE_KEY),
            (KEYLESS, LIVE_KEY),
        )
    ]
    assert len({(str(e), e.code, e.reason, str(e.details), str(e.args)) for e in refusals}) == 1


def test_nothing_shows_a_key_a_token_or_a_prompt() -> None:
    token = sign(claims(sdkConfig={"systemPrompt": "the recipe"}))
    unverified = read_token(token)
    shown = f"{PROJECTS[PROJECT]!r} {unverified!r} {unverified.parts!r} {check(token)!r}"
    assert LIVE_KEY not in shown
    assert "the recipe" not in shown
    assert not any(part in shown for part in token.split("."))


def test_a_key_cannot_be_empty() -> None:
    with pytest.raises(ValueError, match="'k1' must not be empty"):
        ProjectKey("k1", "")


def test_short_and_odd_project_keys_neither_warn_nor_crash() -> None:
    pem = "-----BEGIN PUBLIC KEY-----\nMA==\n-----END PUBLIC KEY-----"
    odd = Project("p", "odd", keys=(ProjectKey("pem", pem), ProjectKey("short", "a")))
    identity = authenticate(sign(claims(iss="p"), "a"), {"p": odd}.get, NOW)
    assert identity.key_id == "short"
    with pytest.raises(AuthenticationError) as caught:
        authenticate(sign(claims(iss="p"), pem), {"p": odd}.get, NOW)
    assert caught.value.reason == "token_signature"


# --- the project is looked up by the caller -------------------------------------------------


def test_the_project_is_looked_up_once_and_only_for_a_token_that_can_be_read() -> None:
    asked: list[str] = []

    def find(project_id: str) -> Project | None:
        asked.append(project_id)
        return PROJECTS.get(project_id)

    authenticate(GOOD, find, NOW)
    assert asked == [PROJECT]
    for damaged in ("", "a.b.c", sign(claims(iss="")), sign(claims(), header={"alg": "none"})):
        with pytest.raises(AuthenticationError):
            authenticate(damaged, find, NOW)
    assert asked == [PROJECT]


def test_a_project_that_was_not_asked_for_is_no_project() -> None:
    upper = read_token(sign(claims(iss=PROJECT.upper() + "A")))
    with pytest.raises(AuthenticationError) as caught:
        judge(upper, PROJECTS[PROJECT], NOW)
    assert caught.value.reason == "token_signature"


def test_the_same_token_is_judged_anew_as_time_and_project_change() -> None:
    unverified = read_token(GOOD)
    project = PROJECTS[PROJECT]
    assert unverified.project_id == PROJECT
    assert judge(unverified, project, NOW).key_id == "live"

    changes: list[tuple[Project | None, float, str]] = [
        (project, NOW + 3660, "token_expired"),
        (project, NOW - 71, "token_not_yet_valid"),
        (None, NOW, "token_signature"),
        (Project(PROJECT, "shop", True, project.keys), NOW, "project_disabled"),
        (Project(PROJECT, "shop", False, project.keys[1:]), NOW, "token_signature"),
        (Project(PROJECT, "shop", False, ()), NOW, "token_signature"),
    ]
    for changed, now, reason in changes:
        with pytest.raises(AuthenticationError) as caught:
            judge(unverified, changed, now)
        assert caught.value.reason == reason


# --- whatever comes -------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip
CLAIM_NAMES = ("sub", "iss", "iat", "exp", "nbf", "aud", "budget", "permissions", "sdkConfig")
BUDGET_NAMES = ("ai", "compute", "window", "windowStart")
PERMISSION_NAMES = ("tools", "allowedModels", "model", "blockedTools", "maxTurns")


def outcome(token: str) -> Identity | AuthenticationError:
    try:
        return check(token)
    except AuthenticationError as error:
        return error


@settings(deadline=None)
@given(st.text() | st.lists(st.text("AQeyJfw0-_=é", max_size=12), max_size=4).map(".".join))
def test_any_text_gives_an_identity_or_a_refusal(text: str) -> None:
    assert isinstance(outcome(text), AuthenticationError)


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(st.sampled_from(CLAIM_NAMES), JSON, max_size=2),
    st.dictionaries(st.sampled_from(BUDGET_NAMES), JSON, max_size=1),
    st.dictionaries(st.sampled_from(PERMISSION_NAMES), JSON, max_size=2),
)
def test_any_signed_claims_give_an_identity_or_a_refusal(
    changes: dict[str, Any], money: dict[str, Any], limits: dict[str, Any]
) -> None:
    signed = claims(budget=budget(**money), permissions=limits) | changes
    result = outcome(sign(signed))
    if isinstance(result, Identity):
        assert result.user_id == signed["sub"]
        assert result.budget is not None
        assert result.budget.ai_micros >= 0
    else:
        assert result.reason is not None


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_no_damage_to_a_good_token_goes_unnoticed(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(start, min(len(GOOD), start + 4)))
    put_in = data.draw(st.text(max_size=2) | st.text("AQeyJfw0-_=.", max_size=2))
    damaged = GOOD[:start] + put_in + GOOD[end:]
    assert isinstance(outcome(damaged), Identity) == (damaged == GOOD)


def test_no_single_bit_of_the_signature_is_spare() -> None:
    signature = int.from_bytes(unsegment(SIGNATURE))
    for bit in range(256):
        changed = (signature ^ 1 << bit).to_bytes(32)
        assert refusal(f"{HEADER}.{PAYLOAD}.{segment(changed)}").reason == "token_signature"
