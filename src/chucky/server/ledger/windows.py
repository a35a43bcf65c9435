"""Budget windows: spans of time of which each has the whole budget again.

A window kind has an anchor, a moment at which one of its windows begins; every other window follows
from it by calculation, so nothing has to be reset at a boundary. Hours, days and weeks are fixed
lengths. A month goes from the anchor's day and time to the same day of the next month, or to that
month's last day where it is shorter. All times are milliseconds since 1970, UTC.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_HOUR_MS = 3_600_000
_LENGTHS_MS = {"hour": _HOUR_MS, "day": 24 * _HOUR_MS, "week": 7 * 24 * _HOUR_MS}

LIFETIME = "lifetime"
KINDS = (*_LENGTHS_MS, "month", LIFETIME)


class Window(NamedTuple):
    """One window.

    Attributes:
        kind: ``hour``, ``day``, ``week``, ``month`` or ``lifetime``.
        start_ms: Its first moment; None for a lifetime, which has always been.
        end_ms: The first moment after it; None for a lifetime, which never ends.
    """

    kind: str
    start_ms: int | None = None
    end_ms: int | None = None

    def contains(self, at_ms: int) -> bool:
        """Whether a moment is in it."""
        return (self.start_ms is None or self.start_ms <= at_ms) and (
            self.end_ms is None or at_ms < self.end_ms
        )

    def is_over(self, at_ms: int) -> bool:
        """Whether it has ended before a moment."""
        return self.end_ms is not None and self.end_ms <= at_ms


FOREVER = Window(LIFETIME)


def window_at(kind: str, anchor_ms: int, now_ms: int) -> Window:
    """The window of a kind that a moment is in.

    Raises:
        ValueError: There is no such kind.
    """
    if kind == LIFETIME:
        return FOREVER
    if kind == "month":
        return _month_at(anchor_ms, now_ms)
    if kind not in _LENGTHS_MS:
        raise ValueError(f"there is no window {kind!r}")
    length_ms = _LENGTHS_MS[kind]
    start_ms = anchor_ms + (now_ms - anchor_ms) // length_ms * length_ms
    return Window(kind, start_ms, start_ms + length_ms)


def kind_between(start_ms: int | None, end_ms: int | None) -> str:
    """The kind of a window with these ends."""
    if start_ms is None or end_ms is None:
        return LIFETIME
    lengths = {length_ms: kind for kind, length_ms in _LENGTHS_MS.items()}
    return lengths.get(end_ms - start_ms, "month")


def _month_at(anchor_ms: int, now_ms: int) -> Window:
    anchor, now = _moment(anchor_ms), _moment(now_ms)
    months = (now.year - anchor.year) * 12 + now.month - anchor.month
    if _months_later(anchor, months) > now:
        months -= 1
    return Window(
        "month",
        milliseconds(_months_later(anchor, months)),
        milliseconds(_months_later(anchor, months + 1)),
    )


def _months_later(anchor: datetime, months: int) -> datetime:
    years, month = divmod(anchor.month - 1 + months, 12)
    year = anchor.year + years
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)


def milliseconds(moment: datetime) -> int:
    """A moment as milliseconds since 1970."""
    return (moment - _EPOCH) // _MILLISECOND


def _moment(at_ms: int) -> datetime:
    return _EPOCH + at_ms * _MILLISECOND


def iso_time(at_ms: int) -> str:
    """A moment as it is written for people and programs: ``2026-01-31T00:00:00.000Z``."""
    return _moment(at_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")
