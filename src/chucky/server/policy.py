"""What the operator decided for all sessions of one project: ``chucky projects policy``.

A JSON object with any of

====================  ==========================================================================
``models``            the only models its users may use, by id or alias
``allowedTools``      the only tools; ``blockedTools`` the ones that nobody may use
``maxTurns``          how often the model may be called to answer one message
``maxThinkingTokens`` how much a client may have a model think; 0 turns thinking off
``betas``             the beta features a client may ask for, out of those the server allows
``budgets``           what all users together may spend: a list of ``{"ai": micro-dollars,
                      "compute": seconds, "window": …, "windowStart"?: …}``, as in tokens; one of
                      ``ai`` and ``compute`` may be left out. All of them hold
``maxBudgetUsd``      what one session may spend at most, in dollars
``retentionDays``     for how many days after anything happened in it a session is kept
``maxSessions``       how many sessions may be open at once in each server process;
                      ``maxSessionsPerUser`` the same for each user
``maxTurnsPerMinute`` how many turns may begin in a minute; ``maxTurnsPerUserPerMinute`` the same
                      for each user
``locked``            options that clients may not set; the token's ``sdkConfig`` still may
====================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from chucky import tokenform
from chucky.errors import ValidationError
from chucky.jsontext import read_json
from chucky.server.permissions import Permissions, name_set, read_permissions, whole_number

_PERMISSIONS = ("models", "allowedTools", "blockedTools", "maxTurns")
_COUNTS = (
    "maxSessions",
    "maxSessionsPerUser",
    "maxTurnsPerMinute",
    "maxTurnsPerUserPerMinute",
)
_OTHERS = (
    "maxThinkingTokens",
    "betas",
    "locked",
    "budgets",
    "maxBudgetUsd",
    "retentionDays",
    *_COUNTS,
)
MAX_BUDGETS = 8

_NANOS_PER_DOLLAR = 1_000_000_000

LOCKABLE = frozenset(
    {
        "agents",
        "allowDangerouslySkipPermissions",
        "allowedTools",
        "betas",
        "continue",
        "disallowedTools",
        "env",
        "fallbackModel",
        "forkSession",
        "includePartialMessages",
        "jobId",
        "maxBudgetUsd",
        "maxThinkingTokens",
        "maxTurns",
        "mcpServers",
        "outputFormat",
        "permissionMode",
        "resume",
        "resumeSessionAt",
        "sessionId",
        "settingSources",
        "systemPrompt",
        "tools",
        "vessel",
    }
)


@dataclass(frozen=True, slots=True)
class ProjectBudget:
    """What all users of a project together may spend per window.

    Attributes:
        ai_micros: What the models may cost, in micro-dollars; None for any amount.
        compute_seconds: How long turns may run; None for any time.
        window: ``hour``, ``day``, ``week``, ``month`` or ``lifetime``.
        window_start: When the first window starts, in UTC; None for the first use.
    """

    ai_micros: int | None
    compute_seconds: int | None
    window: str
    window_start: datetime | None


@dataclass(frozen=True, slots=True)
class ProjectPolicy:
    """A project's policy; without arguments it allows everything.

    Attributes:
        permissions: Limits of the kinds that tokens know, too.
        max_thinking_tokens: The largest ``maxThinkingTokens``; None for any.
        betas: The only beta features; None for all that the server allows.
        locked: Options that clients may not set.
        budgets: What all its users together may spend; all of them hold.
        max_budget_nanos: What one session may spend, in nano-dollars; None for no limit of its own.
        max_sessions: How many sessions may be open in a process; None for no limit of its own.
        max_user_sessions: The same for each user.
        max_turns_per_minute: How many turns may begin in a minute; None for any number.
        max_user_turns_per_minute: The same for each user.
        retention_days: For how many days after anything happened in it a session is kept; None
            for ever.
        is_damaged: Whether what is stored cannot be understood, so that nothing may be allowed.
    """

    permissions: Permissions = field(default_factory=Permissions)
    max_thinking_tokens: int | None = None
    betas: frozenset[str] | None = None
    locked: frozenset[str] = frozenset()
    budgets: tuple[ProjectBudget, ...] = ()
    max_budget_nanos: int | None = None
    max_sessions: int | None = None
    max_user_sessions: int | None = None
    max_turns_per_minute: int | None = None
    max_user_turns_per_minute: int | None = None
    retention_days: int | None = None
    is_damaged: bool = False


def read_policy(text: str) -> ProjectPolicy:
    """Read a policy from its JSON text.

    Raises:
        ValidationError: It is none; the sentence names what is wrong.
    """
    try:
        return _policy(read_json(text, unique_names=True))
    except ValueError as error:
        # A fault of one entry begins with a point, where its name goes on.
        gap = "" if str(error).startswith(".") else " "
        raise ValidationError(f"The policy{gap}{error}.", reason="policy_invalid") from None


def _policy(entries: Any) -> ProjectPolicy:
    if not isinstance(entries, dict):
        raise ValueError("must be a JSON object")
    said = {name: value for name, value in entries.items() if name not in _OTHERS}
    locked = name_set(entries, "locked") if "locked" in entries else frozenset()
    if unknown := sorted(locked - LOCKABLE):
        hint = " (use 'models' to limit models)" if "model" in unknown else ""
        raise ValueError(f".locked names {unknown[0]!r:.80}, which is no option to lock{hint}")
    return ProjectPolicy(
        permissions=read_permissions(said, _PERMISSIONS),
        max_thinking_tokens=(
            whole_number(entries, "maxThinkingTokens", 0)
            if "maxThinkingTokens" in entries
            else None
        ),
        betas=name_set(entries, "betas") if "betas" in entries else None,
        locked=locked,
        budgets=tuple(_budgets(entries["budgets"])) if "budgets" in entries else (),
        max_budget_nanos=_dollars(entries, "maxBudgetUsd"),
        max_sessions=_count(entries, "maxSessions"),
        max_user_sessions=_count(entries, "maxSessionsPerUser"),
        max_turns_per_minute=_count(entries, "maxTurnsPerMinute"),
        max_user_turns_per_minute=_count(entries, "maxTurnsPerUserPerMinute"),
        retention_days=_count(entries, "retentionDays"),
    )


def _count(entries: dict[str, Any], name: str) -> int | None:
    return whole_number(entries, name, 1) if name in entries else None


def _dollars(entries: dict[str, Any], name: str) -> int | None:
    if name not in entries:
        return None
    nanos = dollars_to_nanos(entries[name])
    if nanos is None:
        raise ValueError(f".{name} must be an amount of dollars, 0 or more")
    return nanos


def dollars_to_nanos(dollars: object) -> int | None:
    """Read an amount of dollars, as options and policies give it, as nano-dollars rounded down.

    Returns:
        The amount; None if it is no number, below 0 or not finite.
    """
    if not tokenform.is_number(dollars) or not 0 <= dollars <= tokenform.MAX_AMOUNT / 1_000_000:
        return None
    # The shortest decimal that is this float: 0.1 means a tenth, not what is stored for it.
    return int(Decimal(repr(dollars)) * _NANOS_PER_DOLLAR)


def _budgets(given: Any) -> Iterator[ProjectBudget]:
    if not isinstance(given, list) or len(given) > MAX_BUDGETS:
        raise ValueError(f".budgets must be a list of at most {MAX_BUDGETS} budgets")
    for budget in given:
        meters = {"ai", "compute"} & budget.keys() if isinstance(budget, dict) else set()
        if not meters:
            raise ValueError(".budgets must hold budgets with ai, compute or both, and a window")
        if fault := tokenform.budget_fault({"ai": 0, "compute": 0, **budget}):
            raise ValueError(f".budgets holds one that is not possible: {fault}")
        yield ProjectBudget(
            budget.get("ai"),
            budget.get("compute"),
            budget["window"],
            tokenform.read_instant(budget.get("windowStart")),
        )
