"""What was spent and what is left, told to programs and to operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from chucky.server.ledger.accounts import METERS, Meter, Standing
from chucky.server.ledger.windows import (
    FOREVER,
    KINDS,
    LIFETIME,
    Window,
    iso_time,
    kind_between,
    window_at,
)

_UNIT = 1_000  # nano-dollars in a micro-dollar, milliseconds in a second

Grouping = Literal["day", "model", "session", "user"]
"""What usage is summed by; days are those of UTC."""

Doubt = Literal["estimated", "excess", "unpriced"]
"""Why an operator may want to look at a charge: it was counted here because the provider did not
say, it was more than was held for it, or the provider reported something that has no price here."""


def usage_report(standings: Iterable[Standing]) -> dict[str, Any]:
    """What a user has spent and has left: the answer of ``GET /usage``.

    ``ai`` is in micro-dollars and ``compute`` in seconds; what was used is rounded up.
    """
    report: dict[str, Any] = {}
    allowed = True
    for standing in standings:
        budget = standing.limit.amount // _UNIT
        used = -(-standing.spent // _UNIT)
        report[standing.meter] = {
            "used": used,
            "remaining": max(budget - used, 0),
            "budget": budget,
        }
        allowed = allowed and used < budget
        end_ms = standing.window.end_ms
        report["window"] = standing.limit.window
        report["resetsAt"] = None if end_ms is None else iso_time(end_ms)
    return {**report, "allowed": allowed}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries a report is about.

    Attributes:
        project_id: Those of this project; None for all.
        user_id: Those of this user; None for all.
        since_ms: Those booked from this moment on; None for all.
    """

    project_id: str | None = None
    user_id: str | None = None
    since_ms: int | None = None


class UsageLine(NamedTuple):
    """What one group of entries of a project comes to.

    What a late settlement changes counts at its own time, so that for a day it may be below 0.

    Attributes:
        project_id: The project.
        group: The day, model, session or user; ``''`` for what belongs to no model or session.
        calls: Model calls that were charged.
        input_tokens: Tokens of their prompts that were neither written to nor read from a cache.
        output_tokens: Tokens of their answers.
        cache_write_5m_tokens: Prompt tokens written to caches of five minutes.
        cache_write_1h_tokens: Prompt tokens written to caches of one hour.
        cache_read_tokens: Prompt tokens read from caches.
        ai_nanos: What the calls cost, in nano-dollars.
        compute_ms: How long turns ran.
        estimated: Charges that are estimates, of either meter.
        estimated_nanos: What those that are calls come to; contained in ``ai_nanos``.
        excess: Calls that cost more than was held for them when it was booked.
        excess_nanos: How much more; contained in ``ai_nanos``.
        unpriced: Calls for which the provider reported something that has no price here.
        credited_nanos: What operators gave and gave back; not taken off ``ai_nanos``.
        credited_ms: The same for compute.
    """

    project_id: str
    group: str
    calls: int
    input_tokens: int
    output_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    cache_read_tokens: int
    ai_nanos: int
    compute_ms: int
    estimated: int
    estimated_nanos: int
    excess: int
    excess_nanos: int
    unpriced: int
    credited_nanos: int
    credited_ms: int


class ChargeLine(NamedTuple):
    """One charge, or what a late settlement has added to one.

    Attributes:
        call_id: Its id, by which it can be refunded.
        at_ms: When it was booked.
        project_id: The project that it was charged in.
        user_id: The user.
        session_id: The session.
        meter: What was spent.
        model: The model that was called; ``''`` for compute.
        amount: How much, in the meter's unit; for a late settlement how much more than before.
        reserved: What was held for it.
        excess: How much of the amount is more than that.
        is_estimated: Whether it was counted here because the provider did not say.
        unpriced: What the provider reported that has no price here.
        refunded: How much of the charge was given back.
    """

    call_id: str
    at_ms: int
    project_id: str
    user_id: str
    session_id: str
    meter: Meter
    model: str
    amount: int
    reserved: int
    excess: int
    is_estimated: bool
    unpriced: str
    refunded: int


class AccountLine(NamedTuple):
    """An account as it is kept.

    Attributes:
        meter: What is counted.
        settled: All that was ever settled.
        reserved: What open reservations hold.
        limit: The limit that the last reservation was granted under; None for none.
        start_ms: The beginning of the window of that grant; None for a lifetime.
        end_ms: The end of that window.
    """

    meter: Meter
    settled: int
    reserved: int
    limit: int | None
    start_ms: int | None
    end_ms: int | None


class ReportRows(Protocol):
    """A ledger at one moment, for reports."""

    @property
    def now_ms(self) -> int:
        """That moment."""
        ...

    def usage(self, selection: Selection, by: Grouping) -> Iterable[UsageLine]:
        """Sum entries up, ordered by project and group."""
        ...

    def charges(self, selection: Selection, doubt: Doubt) -> Iterable[ChargeLine]:
        """Charges that an operator may want to look at, the latest first."""
        ...

    def accounts(self, project_id: str, user_id: str, session_id: str) -> list[AccountLine]:
        """The accounts of a session, or with ``''`` those of its user, or of the project itself."""
        ...

    def anchors(self, project_id: str, user_id: str) -> dict[str, int]:
        """When windows of each kind begin that this user (or project) has used."""
        ...

    def spent_between(
        self, project_id: str, user_id: str, meter: Meter, start_ms: int, end_ms: int
    ) -> int:
        """The sum of a user's (or project's) entries from one moment to before another."""
        ...


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """How the budget of a meter stands in one kind of window.

    Attributes:
        meter: What is counted.
        window: The window that is now.
        anchor_ms: Where windows of this kind begin; None for a lifetime.
        spent: What is settled in it, in the meter's unit.
        reserved: What open reservations hold, whatever window they are going to count in.
        limit: The limit that the last reservation was granted under, if that was in such a
            window; a token says what it is now.
    """

    meter: Meter
    window: Window
    anchor_ms: int | None
    spent: int
    reserved: int
    limit: int | None


def budget_lines(
    rows: ReportRows, project_id: str, user_id: str, session_id: str = ""
) -> Iterator[BudgetLine]:
    """How the budgets of a user stand.

    Args:
        rows: The ledger.
        project_id: The project.
        user_id: The user; ``''`` for the project itself.
        session_id: The session whose own budget is meant, which has no windows; ``''`` for none.
    """
    anchors = {} if session_id else rows.anchors(project_id, user_id)
    accounts = {each.meter: each for each in rows.accounts(project_id, user_id, session_id)}
    for meter in METERS:
        account = accounts.get(meter)
        if account is None:
            continue
        for kind in KINDS:
            if kind == LIFETIME:
                yield _budget_line(account, FOREVER, None, account.settled)
            elif (anchor_ms := anchors.get(kind)) is not None:
                window = window_at(kind, anchor_ms, rows.now_ms)
                assert window.start_ms is not None
                assert window.end_ms is not None
                spent = rows.spent_between(
                    project_id, user_id, meter, window.start_ms, window.end_ms
                )
                yield _budget_line(account, window, anchor_ms, spent)


def _budget_line(
    account: AccountLine, window: Window, anchor_ms: int | None, spent: int
) -> BudgetLine:
    is_of_last_grant = kind_between(account.start_ms, account.end_ms) == window.kind
    return BudgetLine(
        account.meter,
        window,
        anchor_ms,
        spent,
        account.reserved,
        account.limit if is_of_last_grant else None,
    )
