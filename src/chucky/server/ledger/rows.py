"""The ledger as rows, whatever database they are in.

A store offers transactions of these reads and writes and decides nothing; what they mean is in
:mod:`chucky.server.ledger.booking`, once for all stores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from chucky.server.ledger.accounts import Account, AccountKey, Holder, Meter
from chucky.server.model.pricing import Usage


class AnchorKey(NamedTuple):
    """Whose window of which kind; the project's own has no user."""

    project_id: str
    user_id: str
    window_kind: str


@dataclass(slots=True)
class Reservation:
    """An open reservation.

    Attributes:
        reservation_id: Its id.
        holder: Who pays.
        meter: What is reserved.
        amount: How much, in the meter's unit.
        units: How many units of what was wished for that is.
        checkpoint: What is booked if its owner dies.
        usage: The tokens that make up the checkpoint.
        price: The price of a model call, as JSON text; ``''`` for compute.
        model: The model of a model call; ``''`` for compute.
        granted_ms: When it was granted.
        expires_ms: Until when its owner may leave it without a sign of life.
        owner: The process that made it.
    """

    reservation_id: str
    holder: Holder
    meter: Meter
    amount: int
    units: int
    checkpoint: int
    usage: Usage
    price: str
    model: str
    granted_ms: int
    expires_ms: int
    owner: str


class TokenChange(NamedTuple):
    """By how much the tokens of a call are other than was booked before; see
    :class:`~chucky.server.model.pricing.Usage`. Below 0 where they are fewer.
    """

    input_tokens: int
    output_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    cache_read_tokens: int

    @classmethod
    def between(cls, booked: Usage | TokenChange, real: Usage) -> TokenChange:
        """What has to be added to what is booked, for it to be what is real."""
        return cls(*(getattr(real, each) - getattr(booked, each) for each in cls._fields))


@dataclass(slots=True)
class Entry:
    """What is written once and never changed.

    Attributes:
        entry_key: The id of the reservation it ends, or of the correction it is.
        kind: ``settle``, ``void`` or ``expire``: the end of a reservation. ``late``: what a
            settlement that came after an ``expire`` makes it differ from it. ``credit`` or
            ``refund``: an operator's correction.
        holder: Who pays.
        meter: What was spent.
        amount: How much, in the meter's unit; below 0 for what a user gets.
        reserved: What the reservation held.
        excess: How much of the amount was more than that.
        is_estimated: Whether the amount was counted here because the provider did not say.
        started_ms: When the reservation was granted.
        at_ms: When it was booked, which decides the window it counts in.
        model: The model that was called; ``''`` if none was.
        usage: Its tokens; of a ``late`` entry, how they differ.
        price: Its price, as JSON text.
        unpriced: What the provider reported that nothing here can price.
        refers_to: The entry that a refund gives back, or that a late settlement corrects.
        note: Why, said by the operator.
    """

    entry_key: str
    kind: str
    holder: Holder
    meter: Meter
    amount: int
    at_ms: int
    started_ms: int
    reserved: int = 0
    excess: int = 0
    is_estimated: bool = False
    model: str = ""
    usage: Usage | TokenChange = field(default_factory=Usage)
    price: str = ""
    unpriced: str = ""
    refers_to: str = ""
    note: str = ""


@dataclass(slots=True)
class Ending:
    """How a reservation ended, or what a correction was, as far as it is asked for.

    Attributes:
        kind: That of its entry; ``late`` if it had expired and was settled then.
        holder: Who pays.
        meter: What was spent.
        amount: How much, in the meter's unit; with a late settlement what both come to.
        excess: How much of it was more than was held when it was booked.
        refunded: What refunds have given back of it.
        expired: The entry that a late settlement would correct; None if there is none, or it is
            corrected already.
    """

    kind: str
    holder: Holder
    meter: Meter
    amount: int
    excess: int
    refunded: int = 0
    expired: Entry | None = None

    @property
    def is_charge(self) -> bool:
        """Whether something was spent, which can be refunded."""
        return self.kind in ("settle", "expire", "late")


@dataclass(slots=True)
class Changes:
    """What a batch of operations writes."""

    accounts: dict[AccountKey, Account] = field(default_factory=dict)
    anchors: dict[AnchorKey, int] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    entries: list[Entry] = field(default_factory=list)


class LedgerTransaction(Protocol):
    """One transaction.

    What belongs to the accounts that it locks stays as it is until it ends.
    """

    @property
    def now_ms(self) -> int:
        """The time of this transaction, in milliseconds since 1970.

        Once accounts are locked, it is not before that.
        """
        ...

    def lock_accounts(
        self, keys: Collection[AccountKey], needed: Collection[AccountKey] = ()
    ) -> dict[AccountKey, Account]:
        """Read accounts, with the windows that are now; nobody else may until the end.

        Called once at most, before anything is written.

        Args:
            keys: Which.
            needed: Those among them that are created if they are missing, with what entries and
                reservations say of them.
        """
        ...

    def anchors(self, keys: Collection[AnchorKey]) -> dict[AnchorKey, int]:
        """The anchors there are."""
        ...

    def spent_between(self, key: AccountKey, start_ms: int, end_ms: int) -> int:
        """The sum of an account's entries from one moment to before another."""
        ...

    def reservations(self, ids: Collection[str]) -> dict[str, Reservation]:
        """The open reservations among these."""
        ...

    def expired(self, owner: str | None) -> list[Reservation]:
        """Other owners' reservations whose lease is over; all there are if None asks.

        At most a thousand at a time.
        """
        ...

    def endings(self, keys: Collection[str]) -> dict[str, Ending]:
        """What was booked under these keys, late settlements with what they correct."""
        ...

    def turn_starts(self, key: AccountKey, since_ms: int) -> Sequence[int]:
        """When turns of a user or project began, from a moment on, the earliest first."""
        ...

    def renew(
        self, owner: str, expires_ms: int, checkpoints: Mapping[str, tuple[int, Usage]]
    ) -> int:
        """Renew the lease of a process and those of its reservations, and write checkpoints.

        Returns:
            How many reservations it has.
        """
        ...

    def enter(self, owner: str, lease_ms: int, *, is_alone: bool) -> None:
        """Note that a process lives, and forget those whose leases are over.

        Args:
            owner: The process.
            lease_ms: Until when it is taken to live, if it does not renew that.
            is_alone: Whether no other can live, whatever their leases say.
        """
        ...

    def leave(self, owner: str) -> None:
        """Note that a process ends, which holds nothing any more."""
        ...

    def forget_windows(self, project_id: str, user_id: str, kind: str) -> None:
        """Drop the sums of a window kind, which are counted again when they are needed."""
        ...

    def write(self, changes: Changes) -> None:
        """Write what a batch of operations changed."""
        ...


class LedgerRows(Protocol):
    """A database with a ledger in it. Everything here blocks and belongs into a thread."""

    def transaction(self) -> AbstractContextManager[LedgerTransaction]:
        """Begin a transaction; it is committed durably at the end, or rolled back on an error.

        Raises:
            ChuckyError: The database failed; nothing of it is written, or it is not known
                whether it is.
        """
        ...

    def close(self) -> None:
        """Close the database."""
        ...
