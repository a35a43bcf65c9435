"""What has to be known before operations are decided on: it is read first, and together."""

from __future__ import annotations

from collections.abc import Iterable

from chucky.server.ledger.accounts import (
    METERS,
    AccountKey,
    Holder,
    Limit,
    Meter,
    account_keys,
    own_keys,
)
from chucky.server.ledger.operations import (
    Adjust,
    Extend,
    Look,
    Operation,
    Reanchor,
    Reserve,
    Settle,
    Sweep,
    Void,
)
from chucky.server.ledger.rows import AnchorKey
from chucky.server.ledger.windows import LIFETIME


class Needs:
    """What a batch of operations needs.

    Attributes:
        accounts: The accounts that are touched if they are there.
        created: Those among them that are made if they are not.
        anchors: The anchors of windows; with the limit that sets it, if it is set by being used.
        reservations: The reservations that may be open.
        entries: What may be booked already.
        sweeps: The sweeps among the operations.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        """Look through operations, in order."""
        self.accounts: set[AccountKey] = set()
        self.created: set[AccountKey] = set()
        self.anchors: dict[AnchorKey, Limit | None] = {}
        self.reservations: set[str] = set()
        self.entries: set[str] = set()
        self.sweeps: list[Sweep] = []
        for operation in operations:
            self._add(operation)

    def _add(self, operation: Operation) -> None:
        match operation:
            case Reserve() | Extend() | Settle():
                self._spend(operation)
            case Void():
                self.touch(operation.holder, operation.meter)
                self.reservations.add(operation.reservation_id)
            case Adjust():
                self._book(operation.holder, operation.meter)
                self.entries.update(filter(None, (operation.entry_key, operation.refers_to)))
            case Look():
                for meter, limits in operation.limits.items():
                    self.touch(operation.holder, meter)
                    self._anchor(operation.holder, limits)
            case Reanchor():
                for meter in METERS:
                    self.touch(operation.holder, meter)
            case Sweep():
                self.sweeps.append(operation)

    def touch(self, holder: Holder, meter: Meter) -> None:
        """Need the accounts in which a payer's spending counts."""
        self.accounts.update(account_keys(holder, meter).values())

    def _book(self, holder: Holder, meter: Meter) -> None:
        """Need the accounts too that must be there before anything is booked on them."""
        self.touch(holder, meter)
        self.created.update(own_keys(holder, meter))

    def _spend(self, operation: Reserve | Extend | Settle) -> None:
        holder = operation.holder
        self._book(holder, operation.meter)
        for limit in operation.limits:
            self.created.add(holder.key(limit.scope, operation.meter))
        self._anchor(holder, operation.limits, is_set=not isinstance(operation, Settle))
        if not isinstance(operation, Reserve) or operation.is_repeated:
            self.reservations.add(operation.reservation_id)

    def _anchor(self, holder: Holder, limits: Iterable[Limit], *, is_set: bool = False) -> None:
        for limit in limits:
            if limit.window == LIFETIME:
                continue
            key = anchor_key(holder, limit)
            if self.anchors.get(key) is None:
                self.anchors[key] = limit if is_set else None


def anchor_key(holder: Holder, limit: Limit) -> AnchorKey:
    """Whose anchor decides where a limit's windows begin."""
    user_id = "" if limit.scope == "project" else holder.user_id
    return AnchorKey(holder.project_id, user_id, limit.window)
