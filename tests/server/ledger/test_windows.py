"""Budget windows by calendar and clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chucky.server.ledger.windows import FOREVER, KINDS, iso_time, milliseconds, window_at

MOMENTS = st.datetimes(
    min_value=datetime(1971, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(2200, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)


def at(text: str) -> int:
    return milliseconds(datetime.fromisoformat(text))


def window(kind: str, anchor: str, now: str) -> tuple[str, str]:
    found = window_at(kind, at(anchor), at(now))
    assert found.start_ms is not None
    assert found.end_ms is not None
    return iso_time(found.start_ms)[:16], iso_time(found.end_ms)[:16]


@pytest.mark.parametrize(
    ("kind", "anchor", "now", "start", "end"),
    [
        ("hour", "2026-03-01T10:20Z", "2026-03-01T10:20Z", "2026-03-01T10:20", "2026-03-01T11:20"),
        ("hour", "2026-03-01T10:20Z", "2026-03-01T10:19Z", "2026-03-01T09:20", "2026-03-01T10:20"),
        ("day", "2026-03-28T23:00Z", "2026-03-29T22:59Z", "2026-03-28T23:00", "2026-03-29T23:00"),
        # The clocks of Europe change on this day, and those of a budget do not.
        (
            "day",
            "2026-03-28T00:00+01:00",
            "2026-03-29T23:30+02:00",
            "2026-03-28T23:00",
            "2026-03-29T23:00",
        ),
        ("week", "2026-02-25T08:00Z", "2026-03-04T07:59Z", "2026-02-25T08:00", "2026-03-04T08:00"),
        ("week", "2026-02-25T08:00Z", "2026-03-04T08:00Z", "2026-03-04T08:00", "2026-03-11T08:00"),
        # An offset is only another way to write a moment.
        (
            "day",
            "2026-05-01T00:00-07:00",
            "2026-05-02T06:59Z",
            "2026-05-01T07:00",
            "2026-05-02T07:00",
        ),
        # An anchor long past, before 1970, or still to come.
        ("hour", "0001-01-01T00:30Z", "2026-05-02T06:59Z", "2026-05-02T06:30", "2026-05-02T07:30"),
        ("week", "1969-12-29T00:00Z", "1970-01-04T23:00Z", "1969-12-29T00:00", "1970-01-05T00:00"),
        ("day", "9999-12-31T12:00Z", "2026-05-02T06:59Z", "2026-05-01T12:00", "2026-05-02T12:00"),
    ],
)
def test_hours_days_and_weeks_are_fixed_lengths_from_the_anchor(
    kind: str, anchor: str, now: str, start: str, end: str
) -> None:
    assert window(kind, anchor, now) == (start, end)


@pytest.mark.parametrize(
    ("anchor", "now", "start", "end"),
    [
        ("2026-01-31T10:00Z", "2026-02-10T00:00Z", "2026-01-31T10:00", "2026-02-28T10:00"),
        ("2026-01-31T10:00Z", "2026-02-28T09:59Z", "2026-01-31T10:00", "2026-02-28T10:00"),
        ("2026-01-31T10:00Z", "2026-02-28T10:00Z", "2026-02-28T10:00", "2026-03-31T10:00"),
        ("2026-01-31T10:00Z", "2026-04-30T10:00Z", "2026-04-30T10:00", "2026-05-31T10:00"),
        ("2027-12-31T00:00Z", "2028-02-29T00:00Z", "2028-02-29T00:00", "2028-03-31T00:00"),
        ("2028-02-29T00:00Z", "2029-03-01T00:00Z", "2029-02-28T00:00", "2029-03-29T00:00"),
        ("2028-02-29T00:00Z", "2032-02-29T00:00Z", "2032-02-29T00:00", "2032-03-29T00:00"),
        ("2026-01-30T00:00Z", "2100-03-01T00:00Z", "2100-02-28T00:00", "2100-03-30T00:00"),
        ("2026-05-15T06:00Z", "2026-05-15T05:59Z", "2026-04-15T06:00", "2026-05-15T06:00"),
        ("2026-05-15T06:00Z", "2026-12-31T23:59Z", "2026-12-15T06:00", "2027-01-15T06:00"),
        ("0001-01-31T00:00Z", "2026-06-30T12:00Z", "2026-06-30T00:00", "2026-07-31T00:00"),
        ("9999-12-31T00:00Z", "2026-02-28T12:00Z", "2026-02-28T00:00", "2026-03-31T00:00"),
        (
            "2026-01-31T23:00-05:00",
            "2026-02-28T12:00Z",
            "2026-02-01T04:00",
            "2026-03-01T04:00",
        ),
    ],
)
def test_a_month_ends_on_the_anchors_day_or_the_last_of_a_shorter_month(
    anchor: str, now: str, start: str, end: str
) -> None:
    assert window("month", anchor, now) == (start, end)


@given(kind=st.sampled_from(["hour", "day", "week", "month"]), anchor=MOMENTS, now=MOMENTS)
def test_every_moment_is_in_exactly_one_window_and_windows_touch(
    kind: str, anchor: datetime, now: datetime
) -> None:
    anchor_ms, now_ms = milliseconds(anchor), milliseconds(now)
    found = window_at(kind, anchor_ms, now_ms)
    assert found.start_ms is not None
    assert found.end_ms is not None
    assert found.contains(now_ms)
    assert window_at(kind, anchor_ms, found.start_ms) == found
    assert window_at(kind, anchor_ms, found.end_ms - 1) == found
    assert window_at(kind, anchor_ms, found.end_ms).start_ms == found.end_ms
    assert window_at(kind, anchor_ms, found.start_ms - 1).end_ms == found.start_ms
    assert window_at(kind, anchor_ms, anchor_ms).start_ms == anchor_ms


def test_a_lifetime_has_neither_beginning_nor_end() -> None:
    assert window_at("lifetime", 0, at("2026-05-15T06:00Z")) is FOREVER
    assert FOREVER.contains(-(10**15))
    assert FOREVER.contains(10**15)


def test_a_window_that_is_not_known_is_refused() -> None:
    assert "lifetime" in KINDS
    with pytest.raises(ValueError, match="'year'"):
        window_at("year", 0, 0)


def test_a_moment_is_exact_to_the_millisecond() -> None:
    moment = datetime(2026, 1, 1, 0, 0, 0, 999_999, tzinfo=UTC)
    assert iso_time(milliseconds(moment)) == "2026-01-01T00:00:00.999Z"
    before = datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC) + timedelta(microseconds=999_500)
    assert milliseconds(before) == -1
