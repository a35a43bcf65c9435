"""What a token may look like: its form, its claims, its signature.

The rules are in one place because both halves need them: the client refuses to make a token that
the server would refuse to accept. They are stricter than a general JWT library on purpose: one
spelling per token (base64url in its only form, no padding), JSON without duplicate names and
without numbers that are not numbers.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, TypeGuard, get_args

from chucky.errors import ValidationError
from chucky.jsontext import read_json

Window: TypeAlias = Literal["hour", "day", "week", "month", "lifetime"]

ALGORITHM = "HS256"
WINDOWS: tuple[str, ...] = get_args(Window)
MAX_TOKEN_LENGTH = 16 * 1024
MAX_IDENTIFIER_LENGTH = 256
MAX_NESTING = 64
# The largest whole number that every JSON library, JavaScript's included, reads unchanged.
MAX_AMOUNT = 2**53

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


@dataclass(frozen=True, slots=True, repr=False)
class TokenParts:
    """A token taken apart, with what its signature has to be checked against.

    Has no useful ``repr``: whoever has these parts has the token.
    """

    header: dict[str, Any]
    payload: dict[str, Any]
    signing_input: bytes
    signature: bytes


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
        header=read_object("header", header),
        payload=read_object("payload", payload),
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
        expected = sign(parts.signing_input, secret)
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


def sign(message: bytes, secret: object) -> bytes:
    """Sign with HS256.

    Raises:
        ValidationError: The secret cannot be a key of HS256.
    """
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


def _malformed(fault: str) -> ValidationError:
    # "Invalid token format" is what 0.2.0 said.
    return ValidationError(
        f"Invalid token format: {fault}; pass the token on exactly as create_token made it."
    )


def base64url(data: bytes) -> str:
    """Write bytes in base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def encode_segment(value: Mapping[str, Any]) -> str:
    """Write the header or the claims as the part of a token."""
    return base64url(json.dumps(value, separators=(",", ":")).encode())


def _decode_segment(segment: str) -> bytes:
    if _BASE64URL.fullmatch(segment) and len(segment) % 4 != 1:
        data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        # The last character may hold bits that decoding drops; with them a token would have
        # several spellings, and a list of revoked ones could be walked around.
        if base64url(data) == segment:
            return data
    raise _malformed("its parts must be base64url without padding")


def read_object(name: str, data: bytes) -> dict[str, Any]:
    """Read the header or the claims out of a part of a token.

    Raises:
        ValidationError: They are not a JSON object by the rules of this module.
    """
    try:
        value = read_json(data, max_depth=MAX_NESTING, unique_names=True)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _malformed(
            f"its {name} must be a JSON object in UTF-8, with finite numbers, no name twice and at "
            f"most {MAX_NESTING} levels"
        )
    return value
