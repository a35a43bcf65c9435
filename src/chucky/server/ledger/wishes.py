"""What a reservation asks for, and how much of it is granted: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from chucky.server.ledger.accounts import Standing

Verdict = int | Literal["busy", "exceeded"]

_RATE_UNIT = 1_000_000
# One call takes no more than this part of what is left, so that calls side by side all fit.
_SHARE = 8


@dataclass(frozen=True, slots=True)
class Wish:
    """Something fixed, and units on top of it of which fewer will do.

    For a model call the fixed part is its input and a unit is a token of output; for compute a
    unit is a millisecond.

    Attributes:
        fixed: What is needed before any unit, in the meter's unit.
        rate: The price of a million units.
        units: How many are wanted.
        least_units: With fewer it is not worth beginning.
        fair_units: So many may always be taken, where the share of one call would be less.
        fallback_units: So many are taken rather than waiting for more.
        fixed_share: The fixed part must be no more than such a part of what is left, or it is
            ``busy``: for a bound that is much too high, and that others would have to wait for.
    """

    fixed: int
    rate: int
    units: int
    least_units: int
    fair_units: int
    fallback_units: int
    fixed_share: int = 1

    def cost(self, units: int) -> int:
        """What so many units are reserved with."""
        return self.fixed - (-units * self.rate // _RATE_UNIT)

    def verdict(self, standings: Sequence[Standing]) -> Verdict:
        """How many units to grant under all of these limits.

        Returns:
            The units; ``busy`` if what is wanted is there but held by open reservations;
            ``exceeded`` if settled spending leaves too little.
        """
        if not standings:
            return self.units
        left = min([standing.left for standing in standings])
        free = min([standing.free for standing in standings])
        if self.cost(min(self.least_units, self.units)) > left:
            return "exceeded"
        if self.fixed * self.fixed_share > left:
            return "busy"
        wanted = min(
            self.units,
            self._units_for(left - self.fixed),
            max(self.fair_units, self._units_for(left // _SHARE)),
        )
        for units in (wanted, min(wanted, self.fallback_units)):
            if self.cost(units) <= free:
                return units
        return "busy"

    def _units_for(self, amount: int) -> int:
        return self.units if self.rate == 0 else amount * _RATE_UNIT // self.rate
