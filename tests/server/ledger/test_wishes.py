"""How much of a wish is granted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chucky.server.ledger.accounts import Limit, Standing
from chucky.server.ledger.wishes import Verdict, Wish

# 3,000 nano-dollars of input, and 10 for each token of output.
WISH = Wish(3_000, 10_000_000, 32_000, 64, 8_192, 4_096)


def standing(limit: int, spent: int = 0, reserved: int = 0) -> Standing:
    return Standing("ai", Limit("user", "day", limit), spent, reserved)


@pytest.mark.parametrize(
    ("limit", "spent", "reserved", "verdict"),
    [
        # An eighth of 10 million nanos buys 125,000 tokens: everything is granted.
        (10_000_000, 0, 0, 32_000),
        # An eighth of what is left buys 12,500 tokens.
        (1_000_000, 0, 0, 12_500),
        (2_000_000, 1_000_000, 0, 12_500),
        # What others hold does not lower the share of one.
        (1_000_000, 0, 800_000, 12_500),
        # So much may always be taken, though an eighth buys fewer.
        (400_000, 0, 0, 8_192),
        (655_360, 0, 0, 8_192),
        (655_440, 0, 0, 8_193),
        # What the money buys at all: (83,000 - 3,000) / 10.
        (83_000, 0, 0, 8_000),
        (83_009, 0, 0, 8_000),
        (83_010, 0, 0, 8_001),
        # It does not fit beside the others, and 4,096 tokens do.
        (400_000, 0, 315_081, 4_096),
        (400_000, 0, 315_080, 8_192),
        (400_000, 0, 400_000 - 43_960, 4_096),
        # Not even those: it waits.
        (400_000, 0, 400_000 - 43_959, "busy"),
        (400_000, 0, 400_000, "busy"),
        # Fewer than 4,096 are there at all, and others hold some of them.
        (23_000, 0, 0, 2_000),
        (23_000, 0, 1, "busy"),
        # 64 tokens are the least.
        (3_640, 0, 0, 64),
        (3_639, 0, 0, "exceeded"),
        (3_640, 0, 1, "busy"),
        (1_000_000, 996_360, 0, 64),
        (1_000_000, 996_361, 0, "exceeded"),
        # More was charged than there was.
        (1_000_000, 1_000_001, 0, "exceeded"),
        (0, 0, 0, "exceeded"),
    ],
)
def test_what_is_granted(limit: int, spent: int, reserved: int, verdict: Verdict) -> None:
    assert WISH.verdict([standing(limit, spent, reserved)]) == verdict


def test_without_a_limit_everything_is_granted() -> None:
    assert WISH.verdict([]) == 32_000


def test_a_bound_that_is_much_of_what_is_left_is_looked_at_again() -> None:
    rough = replace(WISH, fixed_share=16)
    assert rough.verdict([standing(48_000)]) == 4_500
    assert rough.verdict([standing(47_999)]) == "busy"
    assert rough.verdict([standing(48_000, spent=1)]) == "busy"


def test_all_limits_hold_the_tightest_decides() -> None:
    wide, tight = standing(10_000_000), standing(83_000)
    assert WISH.verdict([wide, tight]) == WISH.verdict([tight, wide]) == 8_000
    assert WISH.verdict([wide, standing(0)]) == "exceeded"
    assert WISH.verdict([wide, standing(1_000_000, 0, 1_000_000)]) == "busy"


def test_fewer_than_the_least_are_granted_to_who_asked_for_fewer() -> None:
    assert replace(WISH, units=10).verdict([standing(3_100)]) == 10
    assert replace(WISH, units=10).verdict([standing(3_099)]) == "exceeded"


def test_what_costs_nothing_is_granted_whole() -> None:
    assert replace(WISH, rate=0).verdict([standing(3_000)]) == 32_000
    assert replace(WISH, rate=0).verdict([standing(2_999)]) == "exceeded"


@given(
    fixed=st.integers(0, 10**9),
    rate=st.integers(0, 10**11),
    units=st.integers(1, 128_000),
    limit=st.integers(0, 10**10),
    spent=st.integers(0, 10**10),
    reserved=st.integers(0, 10**10),
)
def test_what_is_granted_fits_and_what_is_refused_does_not(
    fixed: int, rate: int, units: int, limit: int, spent: int, reserved: int
) -> None:
    wish = Wish(fixed, rate, units, 64, 8_192, 4_096)
    verdict = wish.verdict([standing(limit, spent, reserved)])
    left = limit - spent
    assert (verdict == "exceeded") == (wish.cost(min(64, units)) > left)
    if verdict == "busy":
        assert wish.cost(min(4_096, units)) > left - reserved
        assert reserved > 0
    if isinstance(verdict, int):
        assert min(64, units) <= verdict <= units
        assert wish.cost(verdict) <= left - reserved
