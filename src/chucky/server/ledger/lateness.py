"""What is said about money that was spent after its lease had ended."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from chucky.server.ledger.booking import Group
from chucky.server.ledger.operations import Booked, Outcome, Settle

logger = logging.getLogger("chucky.server")


def log_what_came_too_late(operations: Group, outcomes: Sequence[Outcome]) -> None:
    """Log what is booked in another way than it was spent, because a lease had ended."""
    for spent, booked in zip(operations, outcomes, strict=False):
        if (
            isinstance(spent, Settle)
            and isinstance(booked, Booked)
            and (booked.kind, booked.amount) != ("settle", spent.amount)
        ):
            logger.warning(
                "%d (%s) was spent and %d is booked for %s, because its lease had ended (%s)",
                spent.amount,
                spent.meter,
                booked.amount,
                spent.reservation_id,
                booked.kind,
            )
