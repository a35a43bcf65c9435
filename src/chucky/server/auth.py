"""From a token to an identity: who is calling, and what the token lets them do.

A pure decision: nothing here reads a clock, a file or a database. The caller brings the time and
the project::

    identity = authenticate(token, directory.lookup, now)

and at every turn, as the verdict changes with time and project, :func:`check_again`.

Every refusal is an :class:`~chucky.errors.AuthenticationError` whose ``reason`` is one of

==========================  ====================================================================
``token_missing``           there is no token
``token_malformed``         it has not the form of a token
``token_algorithm``         it is not signed with HS256
``token_signature``         no live key of the project signed it, or there is no such project
``project_disabled``        the operator has disabled the project
``token_claims``            a claim is missing, has the wrong type or is not understood
``token_expired``           its time is over
``token_not_yet_valid``     it is dated in the future
==========================  ====================================================================

No message quotes the token or a value from it. Whether a project exists can only be learnt by
whoever has a key of it. Everything else is looked at after the signature, and what is not
understood is refused: it may have been meant as a restriction.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from chucky import tokenform
from chucky.errors import AuthenticationError, ValidationError
from chucky.server.permissions import TOKEN_ENTRIES, Permissions, read_permissions
from chucky.server.projects import Project, ProjectKey

LEEWAY_SECONDS = 60

# A token of an unknown project is held against this key, which nobody has. So it is refused in
# the same words, after the same work, as one with a wrong signature.
_NOBODYS_KEYS = (ProjectKey("nobody", secrets.token_hex(32)),)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a token lets its user spend per window.

    Attributes:
        ai_micros: What the models may cost, in micro-dollars.
        compute_seconds: How long turns may run.
        window: ``hour``, ``day``, ``week``, ``month`` or ``lifetime``.
        window_start: When the token would have the first window start, in UTC; None if it does
            not say.
    """

    ai_micros: int
    compute_seconds: int
    window: str
    window_start: datetime | None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling, as a verified token says.

    Attributes:
        project_id: The project whose key signed the token.
        user_id: The user, as the project's application knows them.
        key_id: The key that signed the token.
        issued_at: When the token was made, in seconds since 1970.
        expires_at: When it ends, in seconds since 1970.
        budget: What the user may spend. None only where the caller allowed tokens without one;
            what that means for money is then for the caller to say.
        permissions: What the user is limited to.
        sdk_config: Session options that replace those the client asks for, with the names of the
            wire. Not shown by ``repr``: prompts and environments are in it.
    """

    project_id: str
    user_id: str
    key_id: str
    issued_at: float
    expires_at: float
    budget: Budget | None
    permissions: Permissions = field(default_factory=Permissions)
    sdk_config: Mapping[str, Any] = field(
        default_factory=lambda: MappingProxyType({}), repr=False, hash=False
    )


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """A token that has the right form and names a project; nothing else is known of it yet.

    Attributes:
        project_id: The project the token claims to be of. Good for looking that project up, and
            for nothing else.
        parts: The token taken apart.
    """

    project_id: str
    parts: tokenform.TokenParts


def authenticate(
    token: str,
    find_project: Callable[[str], Project | None],
    now: float,
    *,
    allow_unbudgeted: bool = False,
) -> Identity:
    """Verify a token and say who it stands for.

    Args:
        token: The token as the client sent it; empty if it sent none.
        find_project: Gives the project with an id, or None. Asked at most once.
        now: The time, in seconds since 1970.
        allow_unbudgeted: Whether a token without a budget is accepted, with ``budget=None``.
            It is refused by default: whoever forgot the budget did not mean "without limit".

    Raises:
        AuthenticationError: The token is refused; ``reason`` says why.
    """
    unverified = read_token(token)
    project = find_project(unverified.project_id)
    return judge(unverified, project, now, allow_unbudgeted=allow_unbudgeted)


def read_token(token: str) -> UnverifiedToken:
    """Do the part of :func:`authenticate` that needs no project: judge the token's form.

    Raises:
        AuthenticationError: With the reason ``token_missing``, ``token_malformed``,
            ``token_algorithm``, or ``token_claims`` when it names no project.
    """
    if not token:
        raise _refusal(
            "token_missing", "There is no token; ask the application for one and send it along."
        )
    try:
        parts = tokenform.read_token(token)
    except ValidationError as error:
        raise _refusal("token_malformed", error.message) from None
    if parts.header.get("alg") != tokenform.ALGORITHM:
        raise _refusal(
            "token_algorithm",
            f"The token is not signed with {tokenform.ALGORITHM}, the only algorithm accepted; "
            "make tokens with create_token.",
        )
    if fault := tokenform.header_fault(parts.header):
        raise _refusal(
            "token_malformed",
            f"The token cannot be understood: {fault}; make tokens with create_token.",
        )
    project_id = parts.payload.get("iss")
    if fault := tokenform.identifier_fault(project_id):
        raise _bad_claim(f"iss {fault}")
    return UnverifiedToken(str(project_id), parts)


def judge(
    unverified: UnverifiedToken,
    project: Project | None,
    now: float,
    *,
    allow_unbudgeted: bool = False,
) -> Identity:
    """Do the rest of :func:`authenticate`: judge a token against its project and the time.

    Args:
        unverified: From :func:`read_token`.
        project: The project with the id ``unverified.project_id``; None if there is none.
        now: The time, in seconds since 1970.
        allow_unbudgeted: As for :func:`authenticate`.

    Raises:
        AuthenticationError: The token is refused; ``reason`` says why.
    """
    key = _signing_key(unverified, project)
    if project is None or key is None:
        raise _no_live_key()
    _require_enabled(project)
    claims = unverified.parts.payload
    if fault := tokenform.identifier_fault(claims.get("sub")):
        raise _bad_claim(f"sub {fault}")
    if "aud" in claims:
        raise _bad_claim("aud must be absent: the token is meant for another service")
    issued_at, expires_at = _lifetime(claims, now)
    return Identity(
        project_id=project.project_id,
        user_id=claims["sub"],
        key_id=key.key_id,
        issued_at=issued_at,
        expires_at=expires_at,
        budget=_budget(claims, allow_unbudgeted=allow_unbudgeted),
        permissions=_permissions(_object_claim(claims, "permissions")),
        sdk_config=MappingProxyType(_object_claim(claims, "sdkConfig")),
    )


def check_key(identity: Identity, find_project: Callable[[str], Project | None]) -> None:
    """Check that the key and project of a verified token are still good.

    Raises:
        AuthenticationError: The key was revoked (``token_signature``) or the project disabled.
    """
    project = find_project(identity.project_id)
    if project is None or all(key.key_id != identity.key_id for key in project.keys):
        raise _no_live_key()
    _require_enabled(project)


def check_again(
    identity: Identity, find_project: Callable[[str], Project | None], now: float
) -> None:
    """Check that a verified token is still good: its key, its project and its time.

    Raises:
        AuthenticationError: It is not; ``reason`` says why.
    """
    check_key(identity, find_project)
    _require_unexpired(identity.expires_at, now)


def _no_live_key() -> AuthenticationError:
    return _refusal(
        "token_signature",
        "The token is not signed with a live key of its project; ask the application for a new "
        "one.",
    )


def _require_enabled(project: Project) -> None:
    if project.disabled:
        raise _refusal(
            "project_disabled",
            "The project of this token is disabled; its owner can have the operator of the "
            "server enable it again.",
        )


def _require_unexpired(expires_at: float, now: float) -> None:
    if expires_at <= now - LEEWAY_SECONDS:
        raise _refusal("token_expired", "The token has expired; ask the application for a new one.")


def _signing_key(unverified: UnverifiedToken, project: Project | None) -> ProjectKey | None:
    # The ids are compared because a store may find more than the very id that was asked for
    # (letter case, trailing blanks), and the id of the token is what spending is booked under.
    known = project is not None and project.project_id == unverified.project_id
    keys = project.keys if project is not None and known else ()
    for key in keys or _NOBODYS_KEYS:
        if tokenform.signature_matches(unverified.parts, key.secret):
            return key
    return None


def _lifetime(claims: Mapping[str, Any], now: float) -> tuple[float, float]:
    issued_at = _instant_claim(claims, "iat")
    expires_at = _instant_claim(claims, "exp")
    if expires_at <= issued_at:
        raise _bad_claim("exp must be later than iat")
    not_before = _instant_claim(claims, "nbf") if "nbf" in claims else issued_at
    _require_unexpired(expires_at, now)
    if max(issued_at, not_before) > now + LEEWAY_SECONDS:
        raise _refusal(
            "token_not_yet_valid",
            "The token is dated in the future (iat or nbf); set the clock of the machine that "
            "signs tokens, or try again later.",
        )
    return issued_at, expires_at


def _instant_claim(claims: Mapping[str, Any], name: str) -> float:
    # RFC 7519 allows fractions of a second.
    value = claims.get(name)
    if not tokenform.is_number(value) or not 0 <= value <= tokenform.MAX_AMOUNT:
        raise _bad_claim(f"{name} must be a time as a number of seconds since 1970")
    return float(value)


def _budget(claims: Mapping[str, Any], *, allow_unbudgeted: bool) -> Budget | None:
    if "budget" not in claims:
        if allow_unbudgeted:
            return None
        raise _bad_claim("budget is missing")
    budget = claims["budget"]
    if fault := tokenform.budget_fault(budget):
        raise _bad_claim(fault)
    return Budget(
        ai_micros=budget["ai"],
        compute_seconds=budget["compute"],
        window=budget["window"],
        window_start=tokenform.read_instant(budget.get("windowStart")),
    )


def _object_claim(claims: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = claims.get(name, {})
    if value == []:
        # PHP writes a map without entries as a list.
        return {}
    if not isinstance(value, dict):
        raise _bad_claim(f"{name} must be an object")
    return value


def _permissions(entries: dict[str, Any]) -> Permissions:
    try:
        return read_permissions(entries, TOKEN_ENTRIES)
    except ValueError as error:
        # A fault of one entry begins with a point, where its name goes on.
        gap = "" if str(error).startswith(".") else " "
        raise _bad_claim(f"permissions{gap}{error}") from None


def _bad_claim(fault: str) -> AuthenticationError:
    return _refusal(
        "token_claims",
        f"The token's claims are not accepted: {fault}; the application has to make a new token.",
    )


def _refusal(reason: str, sentence: str) -> AuthenticationError:
    return AuthenticationError(sentence, reason=reason)
