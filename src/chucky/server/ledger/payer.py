"""What one turn pays: its model calls and its compute, reserved before and settled after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from chucky.errors import ChuckyError
from chucky.server.ledger.accounts import (
    Bill,
    Holder,
    Limit,
    Meter,
    Standing,
    TurnRate,
    busy,
    cut_short,
    exceeded,
    too_fast,
)
from chucky.server.ledger.compute import ComputeClock
from chucky.server.ledger.ledger import Ledger
from chucky.server.ledger.operations import (
    Also,
    Booked,
    Busy,
    Checkpoint,
    Exceeded,
    Granted,
    Operation,
    Outcome,
    Refused,
    Reserve,
    Settle,
    TooFast,
    Void,
    new_reservation_id,
)
from chucky.server.ledger.wishes import Wish
from chucky.server.model.allowance import Allowance
from chucky.server.model.payment import Charge, Payment, Quote

# A call whose first quote does not pay for so much output is looked at more closely; so much may
# always be taken at once.
FAIR_TOKENS = 8_192
# Rather than waiting for others, a call takes so much.
FALLBACK_TOKENS = 4_096
# An input whose bound takes more than this part of the money left is counted first: held as it is,
# it would be missing for calls side by side.
_BOUND_SHARE = 16
# How long the end of a turn waits for the ledger.
_SETTLING_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """What a turn must keep to.

    Attributes:
        ai: Limits of what its model calls may cost.
        compute: Limits of how long it may run.
        rates: How many turns may begin.
        calls: How often it may call the model; None for the server's own limit.
    """

    ai: tuple[Limit, ...] = ()
    compute: tuple[Limit, ...] = ()
    rates: tuple[TurnRate, ...] = ()
    calls: int | None = None


Finish = Callable[[Bill], Callable[[Any], object]]
"""Says what is to be written when a turn has ended, of its bill: a function of a transaction."""


class TurnPayer:
    """Pays for one turn out of the ledger; see :class:`~chucky.server.model.payment.Payer`.

    Attributes:
        allowance: How often it may call the model.
        charged_nanos: What its model calls have cost so far.
    """

    def __init__(
        self,
        ledger: Ledger,
        holder: Holder,
        limits: TurnLimits,
        *,
        min_output_tokens: int,
        end_turn: Callable[[ChuckyError], None],
    ) -> None:
        """Make the payer of a turn; nothing is held yet.

        Args:
            ledger: Where it is paid from.
            holder: Who pays.
            limits: What must not be exceeded.
            min_output_tokens: With less output left to pay for a call is not made.
            end_turn: Ends the turn when its compute is used up.
        """
        self._ledger = ledger
        self._holder = holder
        self._limits = limits
        self._min_output_tokens = min_output_tokens
        self._end_turn = end_turn
        self._clock = ComputeClock(ledger, holder, limits.compute, limits.rates, self._stop)
        self._beginning = asyncio.Lock()
        self._settlements: list[asyncio.Future[list[Outcome]]] = []
        self._due: list[Settle | Void] = []
        self.allowance = Allowance(limits.calls)
        self.charged_nanos = 0
        self._has_ended = False
        self._is_refused = False  # the database has failed this turn
        self._waits_for: Standing | None = None

    async def reserve(self, quote: Quote, *, is_final: bool) -> CallPayment | None:
        """Hold money for a call; see :class:`~chucky.server.model.payment.Payer`."""
        call_id = new_reservation_id()
        wish = self._wish(quote, is_final=is_final)
        wanted = Reserve(
            call_id,
            self._holder,
            "ai",
            wish,
            self._limits.ai,
            price=quote.price,
            usage=quote.usage,
        )
        if not is_final and self._ledger.has_line(wanted):
            return None
        with self._clock.waiting():
            outcome = await self._held(wanted, may_wait=is_final)
        if isinstance(outcome, Granted):
            return CallPayment(self, call_id, outcome, is_clamped=outcome.units < quote.max_tokens)
        if not is_final and _may_differ(outcome):
            return None
        raise _refusal(outcome)

    def _wish(self, quote: Quote, *, is_final: bool) -> Wish:
        fair_tokens = min(FAIR_TOKENS, quote.max_tokens)
        return Wish(
            fixed=quote.input_nanos,
            rate=quote.output_rate,
            units=quote.max_tokens,
            least_units=self._min_output_tokens if is_final else fair_tokens,
            fair_units=FAIR_TOKENS,
            fallback_units=FALLBACK_TOKENS if is_final else fair_tokens,
            fixed_share=1 if is_final else _BOUND_SHARE,
        )

    async def _held(self, wanted: Reserve, *, may_wait: bool) -> Outcome:
        """What comes of a reservation, and of the turn's first compute together with it."""
        if not self._clock.has_begun:
            async with self._beginning:
                if not self._clock.has_begun:
                    return await self._hold(self._clock.first_slice(), wanted, may_wait=may_wait)
        return await self._hold(wanted, may_wait=may_wait)

    async def _hold(self, *group: Reserve, may_wait: bool) -> Outcome:
        try:
            if may_wait:
                outcomes = await self._ledger.reserve(*group, told=self._note_wait)
                self._waits_for = None  # not on the way of an error: `overdue` asks afterwards
            else:
                outcomes = await self._ledger.ask(*group)
        except ChuckyError as error:
            self._note_fault(error)
            raise
        first = outcomes[0]
        if not self._clock.has_begun and isinstance(first, Granted):
            self._clock.begin(first)
        return outcomes[-1]

    def _stop(self, error: ChuckyError) -> None:
        self._note_fault(error)
        self._end_turn(error)

    def _note_fault(self, error: ChuckyError) -> None:
        self._is_refused = self._is_refused or error.code == "STORE_ERROR"

    def _note_wait(self, standing: Standing) -> None:
        self._waits_for = standing

    def overdue(self) -> ChuckyError | None:
        """The error of a turn whose time is over while it waits for money; None if it does not."""
        return None if self._waits_for is None else busy(self._waits_for)

    def calling(self) -> AbstractContextManager[None]:
        """While a call runs, compute is used."""
        return self._clock.calling()

    def waiting(self) -> AbstractContextManager[None]:
        """While the turn waits for its user's tool, and no call runs, no compute is used."""
        return self._clock.waiting()

    def settle(self, call_id: str, charge: Charge) -> None:
        """Book what a call has cost."""
        self._ledger.unwatch(call_id)
        self.charged_nanos += charge.nanos
        spent = Settle(
            call_id,
            self._holder,
            "ai",
            charge.nanos,
            charge.usage,
            is_estimated=charge.is_estimated,
            unpriced=charge.unpriced,
            limits=self._limits.ai,
        )
        self._owe(spent)

    def void(self, call_id: str) -> None:
        """Free what was held for a call that cost nothing."""
        self._ledger.unwatch(call_id)
        self._owe(Void(call_id, self._holder, "ai"))

    def follow(self, call_id: str, progress: Callable[[], Charge]) -> None:
        """Let a call say how far it is."""
        self._ledger.watch(call_id, lambda: _checkpoint(call_id, progress()))

    def end(self) -> None:
        """End the turn: settle its compute, without waiting. Safe to call again."""
        if self._clock.has_begun and not self._has_ended:
            self._has_ended = True
            self._owe(self._clock.end())

    def _owe(self, ending: Settle | Void) -> None:
        # Not at once: what ends in the same moment is written in one group.
        if not self._due:
            asyncio.get_running_loop().call_soon(self._post_due)
        self._due.append(ending)

    def _post_due(self) -> None:
        if self._due:
            self._settlements.append(self._ledger.post(*self._take_due()))

    def _take_due(self) -> list[Settle | Void]:
        due, self._due = self._due, []
        return due

    async def close(self, finish: Finish | None = None) -> Bill:
        """End the turn, and wait until all it has cost is written.

        What cannot be written now is written as soon as it can be, also after an error here. An
        answer is worth waiting for a database that fails; a turn that it has failed already is not.

        Args:
            finish: Gives what is to be written in the transaction that books the last of it. It is
                called in the ledger's thread.

        Raises:
            ChuckyError: It could not be written in time.
        """
        self.end()
        last: list[Operation] = [*self._take_due()]
        booked: list[Outcome] | None = None
        has_given_up = False

        def write(transaction: Any, outcomes: Sequence[Outcome]) -> None:
            if finish is not None and not has_given_up:
                finish(self._bill(booked, outcomes))(transaction)

        try:
            try:
                booked = await self._written(list(self._settlements))
            finally:
                # Also for a client that leaves meanwhile: its turn ends all the same.
                posted = self._ledger.post(*last, Also(write, self._holder.session_id))
            return _bill([*booked, *await self._written([posted])])
        except ChuckyError:
            has_given_up = True
            raise

    def _bill(self, booked: list[Outcome] | None, last: Sequence[Outcome]) -> Bill:
        """The bill; what is known of it where not all of it is, for then there must be one too."""
        try:
            if booked is not None:
                return _bill([*booked, *last])
        except ChuckyError:
            pass  # whoever waits is told
        return Bill(self.charged_nanos)

    async def _written(self, posted: Sequence[asyncio.Future[list[Outcome]]]) -> list[Outcome]:
        return await _outcomes(self._ledger, posted, is_patient=not self._is_refused)


class CallPayment:
    """Money held for one call; see :class:`~chucky.server.model.payment.Payment`."""

    def __init__(
        self, payer: TurnPayer, call_id: str, granted: Granted, *, is_clamped: bool
    ) -> None:
        self._payer = payer
        self._call_id = call_id
        self._granted = granted
        self.is_clamped = is_clamped

    @property
    def max_tokens(self) -> int:
        """How much output is paid for."""
        return self._granted.units

    @property
    def held_nanos(self) -> int:
        """How much is held."""
        return self._granted.amount

    def follow(self, progress: Callable[[], Charge]) -> None:
        """Let the call say how far it is, in case this process dies."""
        self._payer.follow(self._call_id, progress)

    def settle(self, charge: Charge) -> None:
        """Book what was spent; the rest is free again."""
        self._payer.settle(self._call_id, charge)

    def void(self) -> None:
        """Free everything."""
        self._payer.void(self._call_id)

    def exhausted(self) -> ChuckyError:
        """The error of an answer that was cut short because no more was paid for."""
        return cut_short(min(self._granted.standings, key=lambda standing: standing.left))


@dataclass(slots=True)
class FreePayer:
    """Pays for everything and counts what it was: for a server whose ledger is switched off.

    Attributes:
        ledger: Writes what is to be written at the end of a turn, though nothing is booked.
        session_id: Whose turn it is.
        allowance: How often the turn may call the model.
        charged_nanos: What was spent.
    """

    ledger: Ledger | None = None
    session_id: str = ""
    allowance: Allowance = field(default_factory=Allowance)
    charged_nanos: int = 0

    async def reserve(self, quote: Quote, *, is_final: bool) -> Payment | None:
        """Hold nothing."""
        del is_final
        return _FreePayment(self, quote.max_tokens)

    def calling(self) -> AbstractContextManager[None]:
        """Count no compute."""
        return nullcontext()

    def waiting(self) -> AbstractContextManager[None]:
        """Count no compute."""
        return nullcontext()

    def overdue(self) -> ChuckyError | None:
        """Nothing is waited for."""
        return None

    def end(self) -> None:
        """End nothing."""

    async def close(self, finish: Finish | None = None) -> Bill:
        """Say what was spent, after having ``finish`` written.

        Raises:
            ChuckyError: It could not be written in time.
        """
        bill = Bill(self.charged_nanos)
        has_given_up = False

        def write(transaction: Any, _outcomes: Sequence[Outcome]) -> None:
            if finish is not None and not has_given_up:
                finish(bill)(transaction)

        if finish is not None and self.ledger is not None:
            posted = self.ledger.post(Also(write, self.session_id))
            try:
                await _outcomes(self.ledger, [posted], is_patient=True)
            except ChuckyError:
                has_given_up = True
                raise
        return bill


@dataclass(slots=True)
class _FreePayment:
    payer: FreePayer
    max_tokens: int
    held_nanos: int | None = field(default=None, init=False)

    def follow(self, progress: Callable[[], Charge]) -> None:
        pass  # nothing has to be known if the process dies

    def settle(self, charge: Charge) -> None:
        self.payer.charged_nanos += charge.nanos

    def void(self) -> None:
        pass  # nothing is held

    def exhausted(self) -> ChuckyError:
        raise AssertionError("nothing is cut short where everything is paid for")


async def _outcomes(
    ledger: Ledger, posted: Sequence[asyncio.Future[list[Outcome]]], *, is_patient: bool
) -> list[Outcome]:
    is_written = await ledger.all_written(
        posted, timeout_seconds=_SETTLING_SECONDS, is_patient=is_patient
    )
    if not is_written:
        raise ChuckyError(
            "What this turn has cost cannot be written at the moment; it will be. The server's "
            "log says why.",
            code="STORE_ERROR",
            reason="ledger_unavailable",
        )
    return [outcome for each in posted for outcome in each.result()]


def _checkpoint(call_id: str, charge: Charge) -> Checkpoint:
    return Checkpoint(call_id, charge.nanos, charge.usage)


def _may_differ(outcome: Outcome) -> bool:
    """Whether a closer look at the input, or a wait, may come to something else."""
    match outcome:
        case Busy():
            return True
        case Exceeded(standing):
            return standing.meter == "ai"
    return False


def _refusal(outcome: Outcome) -> ChuckyError:
    match outcome:
        case Exceeded(standing):
            return exceeded(standing)
        case Busy(standing):
            return busy(standing)
        case TooFast(rate, resets_ms):
            return too_fast(rate, resets_ms)
    raise AssertionError(f"a reservation came to {outcome!r}")


def _bill(outcomes: Iterable[Outcome]) -> Bill:
    sums: dict[Meter, int] = {"ai": 0, "compute": 0}
    standings: dict[tuple[Meter, Limit], Standing] = {}
    for outcome in outcomes:
        if isinstance(outcome, Booked):
            sums[outcome.meter] += outcome.amount
            standings |= {(each.meter, each.limit): each for each in outcome.standings}
        elif isinstance(outcome, Refused):
            raise ChuckyError(
                f"The ledger lost a reservation: {outcome.sentence}", code="STORE_ERROR"
            )
    return Bill(sums["ai"], sums["compute"], tuple(standings.values()))
