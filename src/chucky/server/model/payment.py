"""Who pays for model calls, as the gate sees it: reserve before a call, settle after it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from chucky.errors import BudgetExceededError, ChuckyError
from chucky.server.model.allowance import Allowance
from chucky.server.model.pricing import Price, Usage


@dataclass(frozen=True, slots=True)
class Quote:
    """What a call may cost at most.

    Attributes:
        price: The price of its model.
        input_nanos: What its input costs at most.
        output_rate: What a million tokens of output cost at most, in nano-dollars.
        max_tokens: How much output is asked for.
        usage: What is known of its use before it is made: an estimate of its input.
    """

    price: Price
    input_nanos: int
    output_rate: int
    max_tokens: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class Charge:
    """What a call has used.

    Attributes:
        usage: Its tokens.
        nanos: What they cost.
        is_estimated: Whether they were counted here because the provider did not say.
        unpriced: What the provider reported that nothing here can price; ``''`` for nothing.
    """

    usage: Usage
    nanos: int
    is_estimated: bool = False
    unpriced: str = ""


class CutShortError(BudgetExceededError):
    """An answer ended where no more output was paid for.

    Attributes:
        text: As far as it came.
    """

    text = ""


class Payment(Protocol):
    """Money held for one call, which ends with :meth:`settle` or :meth:`void`."""

    @property
    def max_tokens(self) -> int:
        """How much output is paid for."""
        ...

    @property
    def held_nanos(self) -> int | None:
        """How much is held; None for without limit."""
        ...

    def follow(self, progress: Callable[[], Charge]) -> None:
        """Let the call say how far it is, in case this process dies."""
        ...

    def settle(self, charge: Charge) -> None:
        """Book what was spent; the rest is free again."""
        ...

    def void(self) -> None:
        """Free everything: the call was never made, or costs nothing."""
        ...

    def exhausted(self) -> ChuckyError:
        """The error of an answer that was cut short because no more was paid for."""
        ...


class Payer(Protocol):
    """Pays for everything a turn does."""

    @property
    def allowance(self) -> Allowance:
        """How often the turn may call a model."""
        ...

    async def reserve(self, quote: Quote, *, is_final: bool) -> Payment | None:
        """Hold money for a call.

        Args:
            quote: What it may cost.
            is_final: Whether the quote is the best there is. Another one must fit without a wait
                and with a fair amount of output; otherwise a closer look at the input is worth
                its time, and None asks for it.

        Raises:
            ChuckyError: There is too little left (``BUDGET_EXCEEDED``), or the ledger failed.
        """
        ...

    def calling(self) -> AbstractContextManager[None]:
        """While a call runs, compute is used."""
        ...

    def waiting(self) -> AbstractContextManager[None]:
        """While the turn waits for its user's tool, and no call runs, no compute is used."""
        ...
