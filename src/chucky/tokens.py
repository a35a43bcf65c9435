"""Tokens: who a user is and what they may spend, signed so that a client can carry it.

A token is a JWT in the compact form, signed with HS256 by a key of the project. The application
makes it with :func:`create_token` where nobody else can read the key, and hands it to a client
that needs to be trusted with nothing: the server counts what the user spends against the budget
in the token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_UP, Context, Decimal
from typing import Any, NoReturn, NotRequired, TypedDict

from chucky.errors import ValidationError
from chucky.tokenform import (
    ALGORITHM,
    MAX_AMOUNT,
    MAX_NESTING,
    MAX_TOKEN_LENGTH,
    WINDOWS,
    Window,
    base64url,
    budget_fault,
    encode_segment,
    header_fault,
    identifier_fault,
    is_number,
    read_object,
    read_token,
    sign,
    signature_matches,
)

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

_MICROS_PER_DOLLAR = 1_000_000
_SECONDS_PER_HOUR = 3_600


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
    signing_input = f"{encode_segment(header)}.{encode_segment(claims)}"
    signature = sign(signing_input.encode(), secret)
    token = f"{signing_input}.{base64url(signature)}"
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
        "signature": base64url(parts.signature),
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
        raise ValidationError(
            f"expires_in must be a number of seconds from 1 to {MAX_AMOUNT // 2}."
        )
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
        read_object(name, json.dumps({name: claim}).encode())
    except (TypeError, ValueError, RecursionError):
        raise ValidationError(
            f"{name} must hold nothing but JSON: text, finite numbers, true, false, null, lists "
            f"and dicts of these, at most {MAX_NESTING - 1} in each other."
        ) from None
    return claim


def _is_past(exp: object) -> bool:
    return not is_number(exp) or exp <= time.time()
