"""What the ledger is asked to do, and what comes of it.

Every operation names its reservation by an id that the caller made up, so that one that is sent
again, because nobody knows whether it was written, is done once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from chucky.server.ledger.accounts import (
    Holder,
    Limit,
    Meter,
    Standing,
    TurnRate,
)
from chucky.server.ledger.wishes import Wish
from chucky.server.model.pricing import Price, Usage


def new_reservation_id() -> str:
    """Make an id for a reservation: a UUID that begins with the time (RFC 9562, version 7), in hex.

    What is new then lies side by side in the indexes of the database, and a commit writes half as
    many pages as with ids that are random from the first digit.
    """
    random = secrets.randbits(74)
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | 0x7 << 76 | random >> 62 << 64 | 0b10 << 62 | random % (1 << 62)
    return f"{value:032x}"


class Reserve(NamedTuple):
    """Hold an amount before it is spent.

    Attributes:
        reservation_id: The id of the model call, or one made up for the compute of a turn.
        holder: Who pays.
        meter: What is reserved.
        wish: How much.
        limits: What must not be exceeded; all of them hold.
        rates: How many turns may begin; looked at for compute, of which each turn reserves once.
        price: What a model call costs, kept for the entry.
        usage: What is booked if this process dies before anything else is known.
        is_repeated: Whether it may have been written before.
    """

    reservation_id: str
    holder: Holder
    meter: Meter
    wish: Wish
    limits: tuple[Limit, ...]
    rates: tuple[TurnRate, ...] = ()
    price: Price | None = None
    usage: Usage = Usage()
    is_repeated: bool = False


class Extend(NamedTuple):
    """Hold more under a reservation that is open, because what it holds is nearly spent."""

    reservation_id: str
    holder: Holder
    meter: Meter
    wish: Wish
    limits: tuple[Limit, ...]


class Settle(NamedTuple):
    """End a reservation with what was really spent.

    Attributes:
        amount: What was spent, in the meter's unit.
        usage: The tokens of a model call.
        is_estimated: Whether the amount was counted here because the provider did not say.
        unpriced: What the provider reported that nothing here can price; ``''`` for nothing.
        limits: Whose standing is wanted afterwards.
    """

    reservation_id: str
    holder: Holder
    meter: Meter
    amount: int
    usage: Usage = Usage()
    is_estimated: bool = False
    unpriced: str = ""
    limits: tuple[Limit, ...] = ()


class Void(NamedTuple):
    """End a reservation of which nothing was spent."""

    reservation_id: str
    holder: Holder
    meter: Meter


@dataclass(frozen=True, slots=True)
class Look:
    """See how limits stand; nothing is written."""

    holder: Holder
    limits: Mapping[Meter, tuple[Limit, ...]]


@dataclass(frozen=True, slots=True)
class Adjust:
    """Book an operator's correction.

    Attributes:
        entry_key: Names the correction, so that it is booked once.
        kind: ``credit`` gives an amount; ``refund`` gives back what a charge took.
        amount: What the user gets, in the meter's unit; more than 0.
        refers_to: The reservation whose charge is refunded.
        note: Why.
    """

    entry_key: str
    kind: str
    holder: Holder
    meter: Meter
    amount: int
    refers_to: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Reanchor:
    """Move the anchor of a window kind; what was spent counts in the windows that result."""

    holder: Holder
    window: str
    anchor_ms: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a reservation would be booked with if this process died now."""

    reservation_id: str
    amount: int
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Beat:
    """Say that reservations are still in use."""

    owner: str
    checkpoints: tuple[Checkpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Sweep:
    """End the reservations that nobody renews any more, each with its checkpoint.

    Attributes:
        everything: Also those whose lease lasts: after a start, when nobody else can own any.
    """

    everything: bool = False


@dataclass(frozen=True, slots=True)
class Also:
    """Have something else written in the same transaction.

    Attributes:
        write: Writes it, in the ledger's thread; is told the outcomes of its group so far.
        about: What it is about, for those who wait until all about that is written.
    """

    write: Callable[[Any, Sequence[Outcome]], object]
    about: str = ""


Operation = Reserve | Extend | Settle | Void | Look | Adjust | Reanchor | Beat | Sweep | Also


class Granted(NamedTuple):
    """A reservation is held.

    Attributes:
        units: How many units it was granted; for :class:`Extend` how many more.
        amount: What the whole reservation holds.
        standings: How its limits stood before.
    """

    units: int
    amount: int
    standings: tuple[Standing, ...] = ()


@dataclass(frozen=True, slots=True)
class Busy:
    """What was wished for is there, but others hold it at the moment."""

    standing: Standing


@dataclass(frozen=True, slots=True)
class Exceeded:
    """Settled spending leaves too little."""

    standing: Standing


@dataclass(frozen=True, slots=True)
class TooFast:
    """Too many turns began in too short a time."""

    rate: TurnRate
    resets_ms: int


class Booked(NamedTuple):
    """A reservation has ended, now or before.

    Attributes:
        meter: What was reserved.
        kind: How: ``settle``, ``void`` or ``expire``; ``late`` if it had expired before.
        amount: What was charged for it in all.
        excess: How much of that was more than was held when it was booked.
        standings: How the limits that were asked for stand now.
    """

    meter: Meter
    kind: str
    amount: int
    excess: int = 0
    standings: tuple[Standing, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """How limits stand."""

    standings: tuple[Standing, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """It is done.

    Attributes:
        count: How many things it was done to.
    """

    count: int = 1


@dataclass(frozen=True, slots=True)
class Refused:
    """It cannot be done; the sentence says why."""

    sentence: str


Outcome = Granted | Busy | Exceeded | TooFast | Booked | Seen | Done | Refused
