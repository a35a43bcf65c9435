"""The time a turn takes, counted and paid for slice by slice.

Compute runs while a turn is at work; it stands still while the turn waits for its user's tools or
for money. A slice is reserved before it is used and the next one before it is used up, so the limit
holds in the middle of a turn.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chucky.errors import ChuckyError
from chucky.server.ledger.accounts import Holder, Limit, TurnRate, busy, exceeded
from chucky.server.ledger.ledger import Ledger
from chucky.server.ledger.operations import (
    Busy,
    Checkpoint,
    Exceeded,
    Extend,
    Granted,
    Outcome,
    Reserve,
    Settle,
    new_reservation_id,
)
from chucky.server.ledger.wishes import Wish

_SLICE_MS = 10_000
_LEAST_SLICE_MS = 1_000
_PRICE_OF_A_MILLION_MS = 1_000_000
# How soon a slice is asked for again that was refused: others may give back what they hold, and a
# new window may begin.
_RETRY_SECONDS = 0.25

_SLICE = Wish(
    fixed=0,
    rate=_PRICE_OF_A_MILLION_MS,
    units=_SLICE_MS,
    least_units=1,
    fair_units=_LEAST_SLICE_MS,
    fallback_units=_LEAST_SLICE_MS // 4,
)


class ComputeClock:
    """Counts a turn's compute; it stands until :meth:`begin`."""

    def __init__(
        self,
        ledger: Ledger,
        holder: Holder,
        limits: tuple[Limit, ...],
        rates: tuple[TurnRate, ...],
        end_turn: Callable[[ChuckyError], None],
    ) -> None:
        """Make a clock.

        Args:
            ledger: Where slices are reserved.
            holder: Who pays.
            limits: What must not be exceeded.
            rates: How many turns may begin.
            end_turn: Ends the turn when the compute is used up.
        """
        self._ledger = ledger
        self._holder = holder
        self._limits = limits
        self._rates = rates
        self._end_turn = end_turn
        self._loop = asyncio.get_running_loop()
        self._reservation_id = ""
        self._held_ms = 0
        self._used_seconds = 0.0
        self._running_since: float | None = None
        self._calls = 0
        self._waits = 0
        self._is_asking = False
        self._refusal: Busy | Exceeded | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.has_begun = False

    @property
    def used_ms(self) -> int:
        """What was used, never more than what was paid for."""
        seconds = self._used_seconds
        if self._running_since is not None:
            seconds += self._loop.time() - self._running_since
        return min(math.ceil(seconds * 1000), self._held_ms)

    def first_slice(self) -> Reserve:
        """The reservation that has to be granted before :meth:`begin`."""
        # One that failed was given back, and what has ended never begins again.
        self._reservation_id = new_reservation_id()
        return Reserve(
            self._reservation_id, self._holder, "compute", _SLICE, self._limits, self._rates
        )

    def begin(self, granted: Granted) -> None:
        """Start counting."""
        self.has_begun = True
        self._held_ms = granted.amount
        self._ledger.watch(self._reservation_id, self._checkpoint)
        self._run_or_stand()

    def end(self) -> Settle:
        """Stop counting and say what was used."""
        self._stand()
        self._ledger.unwatch(self._reservation_id)
        return Settle(
            self._reservation_id, self._holder, "compute", self.used_ms, limits=self._limits
        )

    @contextmanager
    def calling(self) -> Iterator[None]:
        """While a model call runs, the clock runs."""
        self._calls += 1
        self._run_or_stand()
        try:
            yield
        finally:
            self._calls -= 1
            self._run_or_stand()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While something is waited for and no call runs, the clock stands."""
        self._waits += 1
        self._run_or_stand()
        try:
            yield
        finally:
            self._waits -= 1
            self._run_or_stand()

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self._reservation_id, self.used_ms)

    def _run_or_stand(self) -> None:
        if not self.has_begun or (self._waits and not self._calls):
            self._stand()
        elif self._running_since is None:
            self._running_since = self._loop.time()
            self._set_timer()

    def _stand(self) -> None:
        if self._running_since is not None:
            self._used_seconds += self._loop.time() - self._running_since
            self._running_since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        left_seconds = max(self._held_ms - self.used_ms, 0) / 1000
        if self._is_asking:
            pause_seconds = left_seconds
        elif self._refusal is not None:
            pause_seconds = min(left_seconds, _RETRY_SECONDS)
        else:
            pause_seconds = left_seconds / 2
        self._timer = self._loop.call_later(pause_seconds, self._look)

    def _look(self) -> None:
        if self.used_ms >= self._held_ms:
            self._end_turn(self._used_up())
            return
        if not self._is_asking:
            self._is_asking = True
            more = Extend(self._reservation_id, self._holder, "compute", _SLICE, self._limits)
            self._ledger.post(more).add_done_callback(self._take)
        self._set_timer()

    def _take(self, asked: asyncio.Future[list[Outcome]]) -> None:
        self._is_asking = False
        if asked.cancelled():
            return
        [outcome] = asked.result()
        if isinstance(outcome, Granted):
            self._held_ms, self._refusal = outcome.amount, None
        elif isinstance(outcome, Busy | Exceeded):
            self._refusal = outcome
        if self._running_since is not None:
            self._set_timer()

    def _used_up(self) -> ChuckyError:
        match self._refusal:
            case Exceeded(standing):
                return exceeded(standing)
            case Busy(standing):
                return busy(standing)
        return ChuckyError(
            "The ledger did not answer in time, so the compute of this turn could not be paid for; "
            "try again in a moment.",
            code="STORE_ERROR",
            reason="ledger_unavailable",
        )
