"""Tokens: who a user is and what they may spend, signed so that a client can carry it.

A token is a JWT in the compact form, signed with HS256 by a key of the project. The application
makes it with :func:`create_token` where nobody else can read the key, and hands it to a client
that needs to be trusted with nothing: the server counts what the user spends against the budget
in the token.

The rules of what a token may look like are here, in one place, because both sides need them: this
module refuses to make a token that the server would refuse to accept. They are stricter than a
general JWT library on purpose: one spelling per token (base64url in its only form, no padding),
JSON without duplicate names and without numbers that are not numbers.
"""

from __future__ import annotations

import base64
import hmac
import json
import math
import re
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_UP, Context, Decimal
from typing import Any, Literal, NoReturn, NotRequired, TypeAlias, TypedDict, TypeGuard, get_args

from chucky.errors import ValidationError

__all__ = [
    "Budget",
    "BudgetToken",
    "DecodedToken",
    "TokenBudget",
    "Window",
    "create_budget",
    "create_token",
    "decode_token",
    "extract_project_id",
    "is_token_expired",
    "verify_token",
]

Window: TypeAlias = Literal["hour", "day", "week", "month", "lifetime"]

ALGORITHM = "HS256"
WINDOWS: tuple[str, ...] = get_args(Window)
MAX_TOKEN_LENGTH = 16 * 1024
MAX_IDENTIFIER_LENGTH = 256
MAX_NESTING = 64
# The largest whole number that every JSON library, JavaScript's included, reads unchanged.
MAX_AMOUNT = 2**53

_MICROS_PER_DOLLAR = 1_000_000
_SECONDS_PER_HOUR = 3_600
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_BUDGET_ENTRIES = ("ai", "compute", "window", "windowStart")
# Control characters, halves of a surrogate pair (no UTF-8 for them), line and paragraph separators.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
# RFC 3339 and what SDKs write besides: a date alone, no offset, `+0530`, and the `+00:00Z` that
# 0.2.0 of the Python SDK made from an aware datetime.
_INSTANT = re.compile(
    r"(\d{4}-\d\d-\d\d)"
    r"(?:[Tt ]((?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?)"
    r"([+-](?:[01]\d|2[0-3]):?[0-5]\d)?[Zz]?)?",
    re.ASCII,
)


class Budget(TypedDict):
    """The budget as it stands in a token.

    Attributes:
        ai: What the models may cost per window, in micro-dollars (1 USD = 1,000,000).
        compute: How long turns may run per window, in seconds.
        window: How often both start again.
        windowStart: When the first window starts, ISO 8601; when absent, at the first use.
    """

    ai: int
    compute: int
    window: Window
    windowStart: NotRequired[str]


class BudgetToken(TypedDict, total=False):
    """The claims of a token.

    Attributes:
        sub: The user's id, as the application knows it.
        iss: The project's id.
        exp: When the token ends, in seconds since 1970.
        iat: When it was made, in seconds since 1970.
        budget: What the user may spend.
        permissions: Which models and tools the user may use, and for how many turns.
        sdkConfig: Session options that replace the ones the client asks for.
    """

    sub: str
    iss: str
    exp: int
    iat: int
    budget: Budget
    permissions: dict[str, Any]
    sdkConfig: dict[str, Any]


class DecodedToken(TypedDict):
    """A token taken apart by :func:`decode_token`; nothing in it has been verified.

    Attributes:
        header: The algorithm and type.
        payload: The claims, see :class:`BudgetToken` for those of a good token.
        signature: The signature as it stands in the token, base64url.
    """

    header: dict[str, Any]
    payload: dict[str, Any]
    signature: str


@dataclass
class TokenBudget:
    """What one user may spend per window; make it with :func:`create_budget`.

    Attributes:
        ai: What the models may cost, in micro-dollars (1 USD = 1,000,000).
        compute: How long turns may run, in seconds.
        window: How often both start again: hour, day, week, month, or lifetime for never.
        window_start: When the first window starts, ISO 8601.
    """

    ai: int
    compute: int
    window: Window
    window_start: str


@dataclass(frozen=True, slots=True, repr=False)
class TokenParts:
    """A token taken apart, with what its signature has to be checked against.

    Has no useful ``repr``: whoever has these parts has the token.
    """

    header: dict[str, Any]
    payload: dict[str, Any]
    signing_input: bytes
    signature: bytes


def create_budget(
    ai_dollars: int | float | Decimal,
    compute_hours: int | float | Decimal,
    window: Window = "day",
    window_start: datetime | None = None,
) -> TokenBudget:
    """Say what one user may spend, in dollars and hours.

    Amounts are taken as they are written, so ``2.01`` is exactly 2,010,000 micro-dollars, and
    rounded half up to the whole micro-dollar and second.

    Args:
        ai_dollars: What the models may cost per window, in dollars.
        compute_hours: How long turns may run per window, in hours.
        window: How often both start again: ``"hour"``, ``"day"``, ``"week"``, ``"month"``, or
            ``"lifetime"`` for never.
        window_start: When the first window starts; now by default. A naive datetime is taken as
            UTC.

    Raises:
        ValidationError: An amount is negative, too large or not a number, the window is not one
            of the five, or ``window_start`` is not a datetime.

    Example:
        >>> budget = create_budget(ai_dollars=2.01, compute_hours=0.5, window="month")
        >>> budget.ai, budget.compute
        (2010000, 1800)
    """
    if window not in WINDOWS:
        raise ValidationError(f"window must be one of {', '.join(WINDOWS)}; got {window!r}.")
    return TokenBudget(
        ai=_whole_units("ai_dollars", ai_dollars, _MICROS_PER_DOLLAR),
        compute=_whole_units("compute_hours", compute_hours, _SECONDS_PER_HOUR),
        window=window,
        window_start=_utc_text(datetime.now(UTC) if window_start is None else window_start),
    )


def create_token(
    user_id: str,
    project_id: str,
    secret: str,
    budget: TokenBudget | Mapping[str, object],
    expires_in: int | float = 3600,
    *,
    permissions: Mapping[str, Any] | None = None,
    sdk_config: Mapping[str, Any] | None = None,
) -> str:
    """Make a token for one user. Only for code that runs where users cannot read ``secret``.

    Args:
        user_id: Who the user is to the application; spending is counted per project and user.
        project_id: The project the secret belongs to.
        secret: The project's HMAC key, whole, as the server showed it.
        budget: What the user may spend: from :func:`create_budget`, or a dict with the names of
            the wire (``ai``, ``compute``, ``window``, optionally ``windowStart``).
        expires_in: How long the token is good for, in seconds; fractions are dropped.
        permissions: What the user is limited to, with the names of the wire: ``allowedModels``,
            ``allowedTools``, ``blockedTools``, ``maxTurns``.
        sdk_config: Session options, with the names of the wire, that replace whatever the client
            asks for: ``model``, ``systemPrompt``, ``maxTurns`` and so on.

    Returns:
        The signed token.

    Raises:
        ValidationError: An argument is missing or is something the server would refuse.
    """
    for name, value in (("user_id", user_id), ("project_id", project_id)):
        if fault := identifier_fault(value):
            raise ValidationError(f"{name} {fault}.")
    issued_at = int(time.time())
    claims: dict[str, Any] = {
        "sub": user_id,
        "iss": project_id,
        "iat": issued_at,
        "exp": issued_at + _lifetime_seconds(expires_in),
        "budget": _budget_claim(budget),
    }
    for name, claim, entries in (
        ("permissions", "permissions", permissions),
        ("sdk_config", "sdkConfig", sdk_config),
    ):
        if entries is not None:
            claims[claim] = _object_claim(name, entries)
    header = {"alg": ALGORITHM, "typ": "JWT"}
    signing_input = f"{_encode_segment(header)}.{_encode_segment(claims)}"
    signature = _sign(signing_input.encode(), secret)
    token = f"{signing_input}.{_base64url(signature)}"
    if len(token) > MAX_TOKEN_LENGTH:
        raise ValidationError(
            f"The token would have {len(token)} characters and may have {MAX_TOKEN_LENGTH}; "
            "put less into permissions and sdk_config."
        )
    return token


def decode_token(token: str) -> DecodedToken:
    """Show what is in a token, without checking that it is genuine or still good.

    Raises:
        ValidationError: It is not a token. (The error is a ``ValueError`` too.)
    """
    parts = read_token(token)
    return {
        "header": parts.header,
        "payload": parts.payload,
        "signature": _base64url(parts.signature),
    }


def verify_token(token: str, secret: str) -> bool:
    """Tell whether a token was signed with this secret, by HS256, and has not expired.

    The time of expiry counts to the second, as in :func:`is_token_expired`. Never raises: what
    cannot be read is not verified.
    """
    try:
        parts = read_token(token)
    except ValidationError:
        return False
    return (
        parts.header.get("alg") == ALGORITHM
        and header_fault(parts.header) is None
        and signature_matches(parts, secret)
        and not _is_past(parts.payload.get("exp"))
    )


def is_token_expired(token: str) -> bool:
    """Tell whether a token has expired; one that cannot be read, or has no expiry, counts as such.

    The server tolerates clocks that differ by a minute; this function does not, so that a client
    fetches a new token in good time. The signature is not looked at.
    """
    try:
        parts = read_token(token)
    except ValidationError:
        return True
    return _is_past(parts.payload.get("exp"))


def extract_project_id(hmac_key: str) -> NoReturn:
    """Refuse: an HMAC key does not contain the id of its project.

    It once did, and every token showed the key that way. The name stays so that old code gets
    told what to do instead.

    Raises:
        ValidationError: Always; 0.2.0 raised ``DeprecationWarning``.
    """
    raise ValidationError(
        "An HMAC key does not contain its project's id; pass project_id as the server shows it "
        "next to the key (`chucky projects` on your own server, app.chucky.cloud for the hosted "
        "one)."
    )


# What follows is shared with the server half and is no part of the public API.


def read_token(token: str) -> TokenParts:
    """Take a token apart, judging its form but neither its signature nor its claims.

    Raises:
        ValidationError: It has not the form of a token. The message never quotes it.
    """
    if not isinstance(token, str):
        raise _malformed("a token is a string")
    if len(token) > MAX_TOKEN_LENGTH:
        raise _malformed(f"it has more than {MAX_TOKEN_LENGTH} characters")
    segments = token.split(".")
    if len(segments) != 3:
        raise _malformed("it must be three parts joined by dots")
    header, payload, signature = (_decode_segment(segment) for segment in segments)
    return TokenParts(
        header=_read_object("header", header),
        payload=_read_object("payload", payload),
        signing_input=token.rpartition(".")[0].encode(),
        signature=signature,
    )


def header_fault(header: Mapping[str, Any]) -> str | None:
    """Say what a token's header asks for that is not understood here, apart from the algorithm."""
    for name in ("crit", "b64"):
        if name in header:
            return f"the header names the extension {name!r}, which is not supported"
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.upper() != "JWT":
        return "the header's typ must be 'JWT'"
    return None


def signature_matches(parts: TokenParts, secret: str) -> bool:
    """Tell, in constant time, whether a token was signed with this secret by HS256."""
    try:
        expected = _sign(parts.signing_input, secret)
    except ValidationError:
        return False
    return hmac.compare_digest(expected, parts.signature)


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a value of a JSON document is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def identifier_fault(value: object) -> str | None:
    """Say what is wrong with the id of a user or project; the answer follows the id's name."""
    if not isinstance(value, str) or not value.strip():
        return "must be a non-empty string"
    if len(value) > MAX_IDENTIFIER_LENGTH:
        return f"must have at most {MAX_IDENTIFIER_LENGTH} characters"
    if any(unicodedata.category(character) in _UNSAFE_CATEGORIES for character in value):
        return "must not contain control characters"
    return None


def budget_fault(budget: object) -> str | None:
    """Say what is wrong with a budget as it stands in a token."""
    if not isinstance(budget, Mapping):
        return "budget must be an object with ai, compute and window"
    for name in budget:
        if name not in _BUDGET_ENTRIES:
            return f"budget has the unknown entry {str(name)[:64]!r}"
    for name, unit in (("ai", "micro-dollars"), ("compute", "seconds")):
        amount = budget.get(name)
        # Not isinstance: True is an int too.
        if type(amount) is not int or not 0 <= amount <= MAX_AMOUNT:
            return f"budget.{name} must be a whole number of {unit} from 0 to {MAX_AMOUNT}"
    if budget.get("window") not in WINDOWS:
        return f"budget.window must be one of {', '.join(WINDOWS)}"
    if "windowStart" in budget and read_instant(budget["windowStart"]) is None:
        return "budget.windowStart must be a time like '2026-01-31T00:00:00Z'"
    return None


def read_instant(text: object) -> datetime | None:
    """Read a point in time in any of the spellings that SDKs put into tokens.

    Returns:
        The time in UTC, cut to the microsecond; None if it cannot be read. Without an offset it
        is taken as UTC, and a date alone as its first moment.
    """
    match = _INSTANT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    date, clock, offset = match.groups()
    try:
        instant = datetime.fromisoformat(f"{date}T{clock or '00:00'}{offset or '+00:00'}")
        return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        # 31 February, the year 0, or a time that falls outside the years 1 to 9999 in UTC.
        return None


def _whole_units(name: str, value: object, units_per_one: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValidationError(f"{name} must be a number; got {type(value).__name__}.")
    # By way of the shortest spelling, so that the float 2.01 is 2.01 and not a hair less.
    amount = Decimal(str(float(value))) if isinstance(value, float) else Decimal(value)
    if not amount.is_finite() or not 0 <= amount <= MAX_AMOUNT:
        raise _out_of_range(name, units_per_one)
    # A context of our own: wide enough to be exact, whatever the caller has set for theirs.
    exact = Context(prec=len(amount.as_tuple().digits) + 8, Emin=MIN_EMIN, Emax=MAX_EMAX)
    units = int(
        exact.multiply(amount, Decimal(units_per_one)).to_integral_value(
            rounding=ROUND_HALF_UP, context=exact
        )
    )
    if units > MAX_AMOUNT:
        raise _out_of_range(name, units_per_one)
    return units


def _out_of_range(name: str, units_per_one: int) -> ValidationError:
    # The value itself is left out: an int of thousands of digits cannot even be printed.
    return ValidationError(f"{name} must be a number from 0 to {MAX_AMOUNT // units_per_one}.")


def _utc_text(instant: object) -> str:
    if not isinstance(instant, datetime):
        raise ValidationError(f"window_start must be a datetime; got {type(instant).__name__}.")
    if instant.utcoffset() is None:
        instant = instant.replace(tzinfo=UTC)
    try:
        instant = instant.astimezone(UTC)
    except OverflowError:
        raise ValidationError("window_start must lie in the years 1 to 9999 in UTC.") from None
    return instant.replace(tzinfo=None).isoformat() + "Z"


def _lifetime_seconds(expires_in: object) -> int:
    if not is_number(expires_in) or not 1 <= expires_in <= MAX_AMOUNT // 2:
        raise ValidationError("expires_in must be a number of seconds, at least 1.")
    return int(expires_in)


def _budget_claim(budget: object) -> dict[str, object]:
    if isinstance(budget, TokenBudget):
        claim: dict[str, object] = {
            "ai": budget.ai,
            "compute": budget.compute,
            "window": budget.window,
            "windowStart": budget.window_start,
        }
    elif isinstance(budget, Mapping):
        claim = dict(budget)
    else:
        raise ValidationError(
            f"budget must come from create_budget or be a dict; got {type(budget).__name__}."
        )
    if fault := budget_fault(claim):
        raise ValidationError(f"{fault}.")
    return claim


def _object_claim(name: str, entries: object) -> dict[str, Any]:
    if not isinstance(entries, Mapping):
        raise ValidationError(f"{name} must be a dict; got {type(entries).__name__}.")
    claim = dict(entries)
    try:
        _read_object(name, json.dumps({name: claim}).encode())
    except (TypeError, ValueError, RecursionError):
        raise ValidationError(
            f"{name} must hold nothing but JSON: text, finite numbers, true, false, null, lists "
            f"and dicts of these, at most {MAX_NESTING - 1} in each other."
        ) from None
    return claim


def _sign(message: bytes, secret: object) -> bytes:
    # PyJWT is imported late because it takes longer than the rest of this package together. Its
    # algorithm is used directly: jwt.encode and jwt.decode warn about short secrets, which is not
    # ours to pass on to callers, and read JSON and base64 more generously than this module does.
    from jwt.algorithms import HMACAlgorithm
    from jwt.exceptions import InvalidKeyError

    if not isinstance(secret, str) or not secret:
        raise ValidationError("secret must be a non-empty string: the project's HMAC key.")
    hs256 = HMACAlgorithm(HMACAlgorithm.SHA256)
    try:
        return hs256.sign(message, hs256.prepare_key(secret.encode()))
    except (InvalidKeyError, UnicodeEncodeError):
        raise ValidationError(
            "secret cannot be used for HS256: it looks like a public key or is not valid text; "
            "pass the project's HMAC key."
        ) from None


def _is_past(exp: object) -> bool:
    return not is_number(exp) or exp <= time.time()


def _malformed(fault: str) -> ValidationError:
    # "Invalid token format" is what 0.2.0 said.
    return ValidationError(
        f"Invalid token format: {fault}; pass the token on exactly as create_token made it."
    )


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _encode_segment(value: Mapping[str, Any]) -> str:
    return _base64url(json.dumps(value, separators=(",", ":")).encode())


def _decode_segment(segment: str) -> bytes:
    if _BASE64URL.fullmatch(segment) and len(segment) % 4 != 1:
        data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        # The last character may hold bits that decoding drops; with them a token would have
        # several spellings, and a list of revoked ones could be walked around.
        if _base64url(data) == segment:
            return data
    raise _malformed("its parts must be base64url without padding")


def _read_object(name: str, data: bytes) -> dict[str, Any]:
    value = _read_json(data)
    if not isinstance(value, dict):
        raise _malformed(
            f"its {name} must be a JSON object in UTF-8, with finite numbers, no name twice and at "
            f"most {MAX_NESTING} levels"
        )
    return value


def _read_json(data: bytes) -> object:
    """Return the value, or None when the text is not JSON by the rules of this module."""
    try:
        text = data.decode()
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            object_pairs_hook=_unique_names,
        )
        if "\\u" in text:
            # An escape can smuggle in half a surrogate pair, which nothing can store or send.
            json.dumps(value, ensure_ascii=False).encode()
        _refuse_deep_nesting(value, MAX_NESTING)
    except (ValueError, RecursionError):
        # Not raised on from here: the decoder's error carries the whole text it was reading.
        return None
    return value


def _refuse_deep_nesting(value: object, levels: int) -> None:
    # Whatever reads these values later may recurse, and a stack ends at no fixed depth.
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        if isinstance(item, dict | list):
            if levels == 1:
                raise ValueError("nested too deeply")
            _refuse_deep_nesting(item, levels - 1)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("out of range")
    return number


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice")
    return entries
