"""What a session says itself: what it is, its first message, and the one that ends a turn."""

from __future__ import annotations

import logging
from typing import Any

from chucky import wire
from chucky.errors import ChuckyError
from chucky.server.admission import Grant
from chucky.server.engines.base import Answer
from chucky.server.ledger.accounts import Bill, amounts, warned_percent
from chucky.server.ledger.accounts import details as standing_details
from chucky.server.ledger.windows import iso_time
from chucky.server.model.meter import Meter
from chucky.server.model.payment import CutShortError
from chucky.server.model.pricing import nanos_to_dollars
from chucky.server.sessions.log import Past

logger = logging.getLogger("chucky.server")

# Subtypes that some published clients do not survive: for those that named `result_details`.
_PRECISE_SUBTYPES = {
    "STRUCTURED_OUTPUT": "error_max_structured_output_retries",
    "session_budget_exhausted": "error_max_budget_usd",
}


def session_info(past: Past, grant: Grant, *, keeps_log: bool) -> dict[str, Any]:
    """Say what a session is and may do, as the data of ``session_info``."""
    session = past.session
    info = {
        "sessionId": session.session_id,
        "state": "ready",
        "messageCount": past.message_count,
        "model": grant.model.id,
        "tools": [tool.visible_name for tool in grant.tools],
        "capabilities": [each for each in wire.CAPABILITIES if each != wire.REPLAY or keeps_log],
        "ignored": list(grant.ignored),
        "notices": list(grant.notices),
    }
    if session.created_ms:
        info["createdAt"] = iso_time(session.created_ms)
        info["lastActivityAt"] = iso_time(session.active_ms)
    if keeps_log:
        info["seq"] = session.last_seq
    return info


def init_message(grant: Grant) -> dict[str, Any]:
    """Make the message that says what a session has, without its ids."""
    return {
        "type": "system",
        "subtype": "init",
        "cwd": "",
        "tools": [tool.visible_name for tool in grant.tools],
        "mcp_servers": [{"name": name, "status": "connected"} for name in grant.server_names],
        "model": grant.model.id,
        "permissionMode": "default",
    }


def result_message(
    outcome: Answer | ChuckyError,
    bill: Bill,
    meter: Meter,
    *,
    grant: Grant | None,
    duration_ms: int,
    calls_before: int,
    nanos_before: int,
    has_details: bool,
) -> dict[str, Any]:
    """Make the result of a turn, without its ids.

    Args:
        outcome: The answer, or what went wrong.
        bill: What the turn has cost.
        meter: What its model calls have used.
        grant: What its session may do; None where it may do nothing.
        duration_ms: How long it took.
        calls_before: How often the model answered in the turns before.
        nanos_before: What those cost, in nano-dollars.
        has_details: Whether the client named `result_details`.
    """
    usage = meter.usage
    result: dict[str, Any] = {
        "type": "result",
        "subtype": _subtype(outcome),
        "is_error": isinstance(outcome, ChuckyError),
        "duration_ms": duration_ms,
        "duration_api_ms": meter.api_ms,
        "num_turns": calls_before + meter.calls,
        "result": _text(outcome),
        "total_cost_usd": nanos_to_dollars(nanos_before + bill.ai_nanos),
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_creation_input_tokens": usage.cache_write_5m_tokens
            + usage.cache_write_1h_tokens,
            "cache_read_input_tokens": usage.cache_read_tokens,
        },
    }
    if isinstance(outcome, ChuckyError):
        result["errors"] = [str(outcome)]
    elif grant is not None and grant.output_schema is not None:
        result["structured_output"] = outcome.structured_output
    if has_details:
        result |= _details(outcome, bill, grant)
    return result


def _details(outcome: Answer | ChuckyError, bill: Bill, grant: Grant | None) -> dict[str, Any]:
    details: dict[str, Any] = {
        "turn_cost_usd": nanos_to_dollars(bill.ai_nanos),
        "turn_compute_ms": bill.compute_ms,
        "budgets": [
            {**standing_details(each), "warning": warned_percent(each)}
            for each in bill.standings
            if each.limit.scope != "project"  # that is the developer's business
        ],
    }
    if isinstance(outcome, Answer):
        details["model"] = outcome.model
        details["stop_reason"] = outcome.stop_reason
    else:
        if grant is not None:
            details["model"] = grant.model.id
        for word in (outcome.code, outcome.reason or ""):
            if precise := _PRECISE_SUBTYPES.get(word):
                details["subtype"] = precise
        details["error"] = {
            **outcome.details,
            "code": outcome.code,
            "reason": outcome.reason,
            "message": str(outcome),
        }
    return details


def _text(outcome: Answer | ChuckyError) -> str:
    """What the result says: the answer, as far as it came, or what went wrong."""
    if isinstance(outcome, Answer) or (isinstance(outcome, CutShortError) and outcome.text):
        return outcome.text
    return str(outcome)


def _subtype(outcome: Answer | ChuckyError) -> str:
    """The subtype, out of the three that every published client survives."""
    if isinstance(outcome, Answer):
        return "success"
    return "error_max_turns" if outcome.code == "MAX_TURNS" else "error_during_execution"


def log_warnings(session_id: str, bill: Bill) -> None:
    """Log which budgets are nearly spent."""
    for standing in bill.standings:
        if percent := bill.reached_percent(standing):
            logger.warning(
                "session %s: %d %% of the %s budget of the %s is spent: %s in this %s",
                session_id,
                percent,
                standing.meter,
                standing.limit.scope,
                amounts(standing),
                standing.limit.window,
            )
