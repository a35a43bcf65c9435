"""What a turn may spend: by its token, its session and its project, which all hold."""

from __future__ import annotations

from collections.abc import Iterator

from chucky.server.admission.grant import Grant
from chucky.server.auth import Budget, Identity
from chucky.server.ledger.accounts import Limit, Meter, Scope, TurnRate
from chucky.server.ledger.payer import TurnLimits
from chucky.server.ledger.windows import LIFETIME, milliseconds
from chucky.server.policy import ProjectBudget, ProjectPolicy

_NANOS_PER_MICRO = 1_000
_MILLISECONDS_PER_SECOND = 1_000


def turn_limits(identity: Identity, project: ProjectPolicy, grant: Grant | None) -> TurnLimits:
    """The limits of a turn.

    Args:
        identity: Who asks; the budget of its token is the user's.
        project: The policy of its project, which may have budgets of its own.
        grant: What its session was granted; None for no session, as for a look at the budget.
    """
    ai, compute = [], []
    assert identity.budget is not None, "tokens without a budget are refused"
    for scope, budget in _budgets(identity.budget, project):
        if budget.ai_micros is not None:
            ai.append(_limit(scope, budget, budget.ai_micros * _NANOS_PER_MICRO))
        if budget.compute_seconds is not None:
            compute.append(_limit(scope, budget, budget.compute_seconds * _MILLISECONDS_PER_SECOND))
    if grant is not None and grant.max_budget_nanos is not None:
        ai.append(Limit("session", LIFETIME, grant.max_budget_nanos))
    calls = None if grant is None else grant.max_turns
    return TurnLimits(tuple(ai), tuple(compute), tuple(_rates(project)), calls)


def user_limits(identity: Identity) -> dict[Meter, tuple[Limit, ...]]:
    """The limits of a token's own budget, for looking at how they stand."""
    limits = turn_limits(identity, ProjectPolicy(), None)
    return {"ai": limits.ai, "compute": limits.compute}


def _budgets(
    user: Budget, project: ProjectPolicy
) -> Iterator[tuple[Scope, Budget | ProjectBudget]]:
    yield "user", user
    for budget in project.budgets:
        yield "project", budget


def _limit(scope: Scope, budget: Budget | ProjectBudget, amount: int) -> Limit:
    start = budget.window_start
    return Limit(scope, budget.window, amount, None if start is None else milliseconds(start))


def _rates(project: ProjectPolicy) -> Iterator[TurnRate]:
    if project.max_turns_per_minute is not None:
        yield TurnRate("project", project.max_turns_per_minute)
    if project.max_user_turns_per_minute is not None:
        yield TurnRate("user", project.max_user_turns_per_minute)
