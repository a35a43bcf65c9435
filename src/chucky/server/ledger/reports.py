"""How budgets stand, told to programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from chucky.server.ledger.accounts import Standing
from chucky.server.ledger.windows import iso_time

_UNIT = 1_000  # nano-dollars in a micro-dollar, milliseconds in a second


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
        allowed = allowed and standing.left > 0
        end_ms = standing.window.end_ms
        report["window"] = standing.limit.window
        report["resetsAt"] = None if end_ms is None else iso_time(end_ms)
    return {**report, "allowed": allowed}
