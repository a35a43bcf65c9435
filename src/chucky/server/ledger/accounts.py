"""What is counted and limited: meters, accounts, limits, and how a limit stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from chucky.errors import BudgetExceededError, ChuckyError, RateLimitError
from chucky.server.ledger.windows import FOREVER, Window, iso_time

Meter = Literal["ai", "compute"]
"""What is counted: ``ai`` in nano-dollars, ``compute`` in milliseconds."""

METERS: tuple[Meter, ...] = ("ai", "compute")

# From these parts of a budget on a result says so, and the log.
WARNED_PERCENTS = (95, 80)

Scope = Literal["user", "project", "session"]

# Every operation asks for its payer's keys several times.
_REMEMBERED_KEYS = 1024


class AccountKey(NamedTuple):
    """Whose account, and of what. A user's has no session, a project's has neither."""

    project_id: str
    user_id: str
    session_id: str
    meter: Meter


class Holder(NamedTuple):
    """Who pays for a turn."""

    project_id: str
    user_id: str
    session_id: str = ""
    turn_id: str = ""

    def key(self, scope: Scope, meter: Meter) -> AccountKey:
        """The account of a scope."""
        return account_keys(self, meter)[scope]


@lru_cache(_REMEMBERED_KEYS)
def account_keys(holder: Holder, meter: Meter) -> Mapping[Scope, AccountKey]:
    """The accounts in which a payer's spending counts: of a user if any, for money of a session."""
    project_id, user_id, session_id, _ = holder
    keys: dict[Scope, AccountKey] = {"project": AccountKey(project_id, "", "", meter)}
    if user_id:
        keys["user"] = AccountKey(project_id, user_id, "", meter)
    if session_id and meter == "ai":  # no budget of a session is one of compute
        keys["session"] = AccountKey(project_id, user_id, session_id, meter)
    return keys


@lru_cache(_REMEMBERED_KEYS)
def own_keys(holder: Holder, meter: Meter) -> frozenset[AccountKey]:
    """The accounts that a payer has whatever the limits are: all but that of a user's project."""
    keys = account_keys(holder, meter)
    return frozenset(keys[scope] for scope in keys if scope != "project" or not holder.user_id)


@dataclass(frozen=True, slots=True)
class Limit:
    """What an account may have spent in a window.

    Attributes:
        scope: Whose account is limited.
        window: The kind of window.
        amount: The most that may be spent in each, in the meter's unit.
        start_ms: Where the first window should begin; it counts only at the first use of this kind
            of window by this user or project. None for then.
    """

    scope: Scope
    window: str
    amount: int
    start_ms: int | None = None


class Standing(NamedTuple):
    """How a limit stands at one moment.

    Attributes:
        meter: What is counted.
        limit: The limit.
        spent: What was settled in the window.
        reserved: What open reservations hold; it may be spent yet, or come back.
        window: The window it is about.
    """

    meter: Meter
    limit: Limit
    spent: int
    reserved: int
    window: Window = FOREVER

    @property
    def left(self) -> int:
        """What settled spending leaves; below 0 if more was charged than reserved."""
        return self.limit.amount - self.spent

    @property
    def free(self) -> int:
        """What neither settled spending nor open reservations hold."""
        return self.left - self.reserved


@dataclass(frozen=True, slots=True)
class Bill:
    """What a turn has cost.

    Attributes:
        ai_nanos: What its model calls cost.
        compute_ms: How long it ran.
        standings: How its limits stand now; those of a meter it did not use are missing.
    """

    ai_nanos: int = 0
    compute_ms: int = 0
    standings: tuple[Standing, ...] = ()

    def reached_percent(self, standing: Standing) -> int | None:
        """The threshold of a limit that was reached by this turn and not before it."""
        own = self.ai_nanos if standing.meter == "ai" else self.compute_ms
        before = warned_percent(standing._replace(spent=standing.spent - own))
        percent = warned_percent(standing)
        return None if percent == before else percent


@dataclass(frozen=True, slots=True)
class TurnRate:
    """How many turns may begin in any span of so many milliseconds."""

    scope: Scope
    turns: int
    span_ms: int = 60_000


_REASONS = {
    "user": ("user_budget_exhausted", "The budget of this user"),
    "project": ("developer_budget_exhausted", "The budget of this application"),
    "session": ("session_budget_exhausted", "The budget of this session"),
}
_THINGS: dict[Meter, str] = {"ai": "model calls", "compute": "compute time"}


def exceeded(standing: Standing) -> BudgetExceededError:
    """The refusal at a limit, as a client gets it."""
    reason, whose = _REASONS[standing.limit.scope]
    end_ms = standing.window.end_ms
    when = "it does not come back" if end_ms is None else f"it comes back at {iso_time(end_ms)}"
    return BudgetExceededError(
        f"{whose} for {_THINGS[standing.meter]} is used up: {amounts(standing)} in this "
        f"{standing.limit.window}; {when}.",
        reason=reason,
        details=details(standing),
    )


def cut_short(standing: Standing) -> BudgetExceededError:
    """The error of an answer that was cut short because no more of it was paid for."""
    reason, whose = _REASONS[standing.limit.scope]
    return BudgetExceededError(
        f"The answer was cut short: {whose.lower()} pays for no more of it "
        f"({amounts(standing)} were spent before it); ask for less at once.",
        reason=reason,
        details=details(standing),
    )


def busy(standing: Standing) -> ChuckyError:
    """The refusal of a call that waited until its turn's deadline for money that others hold."""
    _, whose = _REASONS[standing.limit.scope]
    return ChuckyError(
        f"{whose} for {_THINGS[standing.meter]} is held by other calls that are still running, and "
        "this turn's time is over; try again when they have ended.",
        code="BUDGET_BUSY",
        reason="budget_reserved",
        details={**details(standing), "retryable": True},
    )


def too_fast(rate: TurnRate, resets_ms: int) -> RateLimitError:
    """The refusal of a turn that came too soon after others."""
    is_user = rate.scope == "user"
    whose = "This user" if is_user else "This application"
    return RateLimitError(
        f"{whose} may begin {rate.turns} turns in {rate.span_ms // 1000} s, and has; try again at "
        f"{iso_time(resets_ms)}.",
        reason="user_rate_reached" if is_user else "developer_rate_reached",
        details={"spent": rate.turns, "limit": rate.turns, "resets_at": iso_time(resets_ms)},
    )


def warned_percent(standing: Standing) -> int | None:
    """The highest threshold that spending has reached, in percent; None below the first."""
    for percent in WARNED_PERCENTS:
        if standing.spent * 100 >= standing.limit.amount * percent:
            return percent
    return None


def amounts(standing: Standing) -> str:
    """Spent and limit, for people."""
    spent, limit = standing.spent, standing.limit.amount
    return f"{amount_text(standing.meter, spent)} of {amount_text(standing.meter, limit)}"


def amount_text(meter: Meter, amount: int) -> str:
    """An amount of a meter, for people."""
    if meter == "ai":
        return dollars(amount)
    return f"{amount / 1000:,.3f}".rstrip("0").rstrip(".") + " s"


def dollars(nanos: int) -> str:
    """Nano-dollars for people: to the micro-dollar, rounded up, at least to the cent."""
    micros = -(-nanos // 1000)
    sign, micros = ("-", -micros) if micros < 0 else ("", micros)
    whole, fraction = divmod(micros, 1_000_000)
    digits = f"{fraction:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole:,}.{digits}"


def details(standing: Standing) -> dict[str, Any]:
    """How a limit stands, as plain data: micro-dollars, or seconds."""
    unit = 1000  # nanos in a micro-dollar, and milliseconds in a second
    end_ms = standing.window.end_ms
    return {
        "meter": standing.meter,
        "scope": standing.limit.scope,
        "spent": -(-standing.spent // unit),
        "limit": standing.limit.amount // unit,
        "window": standing.limit.window,
        "resets_at": None if end_ms is None else iso_time(end_ms),
    }


@dataclass(slots=True)
class Account:
    """One account while a transaction works on it.

    Attributes:
        account_id: Its number in the store.
        key: Whose it is.
        settled: All that was ever settled.
        reserved: What open reservations hold.
        spent: What was settled in each window that is counted, by window.
        has_spent: Whether that has changed.
        granted: The limit and window of the last reservation that this transaction grants; no
            limit if none holds for this account. None if it grants nothing here.
    """

    account_id: int
    key: AccountKey
    settled: int
    reserved: int
    spent: dict[Window, int] = field(default_factory=dict)
    has_spent: bool = False
    granted: tuple[int | None, Window] | None = None

    def begin(self, now_ms: int) -> None:
        """Let a transaction begin, at a moment.

        Windows that are over are dropped. One that is still to come, because the clock was set
        back, is written already: what is booked when it comes has to be added to it.
        """
        self.has_spent, self.granted = False, None
        if any([window.is_over(now_ms) for window in self.spent]):  # noqa: C419 - much faster
            self.spent = {
                each: sum_ for each, sum_ in self.spent.items() if not each.is_over(now_ms)
            }
