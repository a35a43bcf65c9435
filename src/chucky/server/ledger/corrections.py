"""What an operator corrects in a ledger, also while servers use it.

A correction is an entry like any other, or the move of an anchor. It is done in one transaction by
the rules of :mod:`chucky.server.ledger.booking`; servers see it with their next one.
"""

from __future__ import annotations

import uuid

from chucky.errors import ValidationError
from chucky.server.ledger.accounts import Holder, Meter, amount_text
from chucky.server.ledger.booking import book
from chucky.server.ledger.operations import Adjust, Operation, Reanchor, Refused
from chucky.server.ledger.rows import Ending, LedgerRows, LedgerTransaction

_OWNER = "operator"


def give_credit(
    rows: LedgerRows, holder: Holder, meter: Meter, amount: int, note: str = ""
) -> None:
    """Give an amount, which counts in the windows that are now.

    Args:
        rows: The ledger.
        holder: The user; without one, the project itself.
        meter: Of what.
        amount: How much, in the meter's unit; more than 0.
        note: Why.

    Raises:
        ChuckyError: It could not be written.
    """
    with rows.transaction() as transaction:
        _do(transaction, Adjust(uuid.uuid4().hex, "credit", holder, meter, amount, note=note))


def refund(
    rows: LedgerRows,
    holder: Holder,
    call_id: str,
    meter: Meter | None = None,
    amount: int | None = None,
    note: str = "",
) -> tuple[Meter, int]:
    """Give back a charge, or a part of it; it counts in the windows that are now.

    Args:
        rows: The ledger.
        holder: The user.
        call_id: The id of the charge, as reports tell it.
        meter: What the amount is of; None if the charge says it.
        amount: How much, in the meter's unit, more than 0; None for all that is left of the charge.
        note: Why.

    Returns:
        What was given back: the meter and the amount.

    Raises:
        ValidationError: The user has no such charge, or less of it is left.
        ChuckyError: It could not be written.
    """
    with rows.transaction() as transaction:
        charge = transaction.endings([call_id]).get(call_id)
        if charge is None or not _is_charge_of(holder, charge):
            raise ValidationError(
                f"This user has no charge {call_id!r}; `chucky usage --list estimated` lists the "
                "ids of those that were estimated."
            )
        left = charge.amount - charge.refunded
        if left < max(amount or 0, 1):
            raise ValidationError(
                f"No more than {amount_text(charge.meter, left)} is left of the charge "
                f"{call_id!r}: it was {amount_text(charge.meter, charge.amount)}, of which "
                f"{amount_text(charge.meter, charge.refunded)} is refunded already."
            )
        wanted = Adjust(
            uuid.uuid4().hex,
            "refund",
            charge.holder,  # not the operator's idea of it: the session's own budget gets it too
            meter or charge.meter,
            amount or left,
            call_id,
            note,
        )
        _do(transaction, wanted)
    return wanted.meter, wanted.amount


def move_anchor(rows: LedgerRows, holder: Holder, window: str, anchor_ms: int) -> None:
    """Have a user's (or project's) windows of a kind begin at a moment, before and after it.

    Raises:
        ChuckyError: It could not be written.
    """
    with rows.transaction() as transaction:
        _do(transaction, Reanchor(holder, window, anchor_ms))


def _is_charge_of(holder: Holder, ending: Ending) -> bool:
    return (
        ending.is_charge
        and ending.holder.project_id == holder.project_id
        and ending.holder.user_id == holder.user_id
    )


def _do(transaction: LedgerTransaction, operation: Operation) -> None:
    [[outcome]] = book(transaction, [[operation]], _OWNER)
    if isinstance(outcome, Refused):
        raise ValidationError(outcome.sentence)
