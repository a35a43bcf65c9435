"""What is said about money that was spent after its lease had ended."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from chucky.server.ledger.operations import Booked, Operation, Outcome, Settle

logger = logging.getLogger("chucky.server")


def log_what_came_too_late(operations: Sequence[Operation], outcomes: Sequence[Outcome]) -> None:
    """Log what was settled when it had ended already.

    Mostly its lease had run out; then what it cost is booked, and may be more than a limit allows.
    What was settled or voided before, by whomever, keeps that end.
    """
    for spent, booked in zip(operations, outcomes, strict=False):
        if not isinstance(spent, Settle) or not isinstance(booked, Booked):
            continue
        if booked.amount != spent.amount:
            logger.error(
                "%d (%s) was spent and %d is booked for %s, which had ended already (%s)",
                spent.amount,
                spent.meter,
                booked.amount,
                spent.reservation_id,
                booked.kind,
            )
        elif booked.kind == "late":
            logger.warning(
                "%d (%s) is booked for %s, %d of it when nothing was held for it any more, because "
                "its lease had ended",
                booked.amount,
                spent.meter,
                spent.reservation_id,
                booked.excess,
            )
