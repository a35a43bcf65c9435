"""What calls cost, to the nano-dollar, against hand-computed sums and genai-prices' own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import ROUND_CEILING, Decimal
from typing import Any

import genai_prices.types
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from chucky.errors import ValidationError
from chucky.server.model.catalog import Catalog, Model
from chucky.server.model.pricing import (
    Price,
    PriceTable,
    Rate,
    Usage,
    merge_usage,
    micros_up,
    nanos_to_dollars,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
CATALOG = Catalog.load()
PRICES = PriceTable(CATALOG)
ANTHROPIC = next(p for p in get_snapshot().providers if p.id == "anthropic")

NEW_MODEL: dict[str, Any] = {
    "family": "mine",
    "released": date(2026, 11, 20),
    "context_tokens": 1_000_000,
    "max_output_tokens": 128_000,
}


def price(model_id: str, at: datetime = NOW) -> Price:
    return PRICES.price_of(CATALOG.models[model_id], at)


def own_price(**override: Any) -> Price:
    table = PriceTable(CATALOG, {"claude-opus-5-5": override})
    return table.price_of(CATALOG.models["claude-opus-5-5"], NOW)


def faults_of(overrides: Mapping[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        PriceTable(CATALOG, overrides)
    assert caught.value.reason == "invalid_prices"
    return caught.value.message


# Tokens: input, output, 5-minute writes, 1-hour writes, reads. Worked out by hand from the price
# pages; nano-dollars per token are the dollars per million times 1000.
@pytest.mark.parametrize(
    ("model_id", "tokens", "nanos"),
    [
        # 1000x3000 + 500x15000 + 200x3750 + 100x6000 + 10000x300
        ("claude-sonnet-4-5-20250929", (1_000, 500, 200, 100, 10_000), 14_850_000),
        # 50000x3000 + 10000x15000 + 50000x3750 + 50000x300
        ("claude-sonnet-4-5-20250929", (50_000, 10_000, 50_000, 0, 50_000), 502_500_000),
        # 147x3000 + 33x15000
        ("claude-sonnet-4-5-20250929", (147, 33, 0, 0, 0), 936_000),
        # 7x1000 + 3x5000 + 11x1250 + 13x2000 + 17x100
        ("claude-haiku-4-5-20251001", (7, 3, 11, 13, 17), 63_450),
        # 1x5000 + 1x25000 + 1x6250 + 1x10000 + 1x500
        ("claude-opus-4-5-20251101", (1, 1, 1, 1, 1), 46_750),
        # 1000x2000 + 1000x10000 + 1000x2500 + 1000x4000 + 1000x100
        ("claude-sonnet-5-5", (1_000, 1_000, 1_000, 1_000, 1_000), 18_600_000),
        # 1000x4000 + 1000x20000 + 1000x5000 + 1000x8000 + 1000x200
        ("claude-opus-5-5", (1_000, 1_000, 1_000, 1_000, 1_000), 37_200_000),
        # 400000x8000 + 128000x40000 + 500000x200: no tier below a million
        ("claude-fable-5-2", (400_000, 128_000, 0, 0, 500_000), 8_420_000_000),
        # the largest prompt below the tier: 99990x100 + 10x500 + 4x125 + 3x200 + 3x10
        ("claude-haiku-5-5", (99_990, 10, 4, 3, 3), 10_005_130),
        # one token more, and every token costs five times as much:
        # 99991x500 + 10x2500 + 4x625 + 3x1000 + 3x50
        ("claude-haiku-5-5", (99_991, 10, 4, 3, 3), 50_026_150),
        # cached tokens alone reach the tier too: 1x500 + 1x2500 + 100000x50
        ("claude-haiku-5-5", (1, 1, 0, 0, 100_000), 5_003_000),
        ("claude-haiku-5-5", (0, 0, 0, 0, 0), 0),
    ],
)
def test_a_call_costs_what_the_price_page_says(
    model_id: str, tokens: tuple[int, int, int, int, int], nanos: int
) -> None:
    assert price(model_id).cost_nanos(Usage(*tokens)) == nanos


def test_a_price_that_changes_on_a_date_changes_at_midnight_utc() -> None:
    usage = Usage(input_tokens=200_001, output_tokens=10)
    tiered = 200_001 * 10_000 + 10 * 37_500
    flat = 200_001 * 5_000 + 10 * 25_000

    def cost(at: datetime) -> int:
        return price("claude-opus-4-6", at).cost_nanos(usage)

    east = timezone(timedelta(hours=2))
    assert cost(datetime(2026, 3, 12, 23, 59, 59, tzinfo=UTC)) == tiered
    assert cost(datetime(2026, 3, 13, 1, 59, tzinfo=east)) == tiered
    assert cost(datetime(2026, 3, 13, tzinfo=UTC)) == flat
    assert cost(datetime(2026, 3, 13, 2, tzinfo=east)) == flat


def test_a_time_without_a_zone_has_no_price() -> None:
    with pytest.raises(ValueError, match="time zone"):
        price("claude-opus-5-5", NOW.replace(tzinfo=None))


# Whole prompts of exactly a tier's start, and one token more, are found by chance too rarely.
counts = st.integers(min_value=0, max_value=400_000) | st.sampled_from(
    [0, 100_000, 100_001, 200_000, 200_001]
)


@settings(deadline=None)
@given(
    model=st.sampled_from(list(CATALOG.models.values())),
    at=st.datetimes(
        min_value=datetime(2026, 1, 1),  # noqa: DTZ001 - the zone is added by timezones
        max_value=datetime(2027, 1, 1),  # noqa: DTZ001
        timezones=st.just(UTC),
    ),
    tokens=st.tuples(counts, counts, counts, counts, counts),
)
def test_every_cost_is_the_one_genai_prices_computes(
    model: Model, at: datetime, tokens: tuple[int, int, int, int, int]
) -> None:
    uncached, output, short, long, read = tokens
    raw = {
        "input_tokens": uncached,
        "output_tokens": output,
        "cache_creation_input_tokens": short + long,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long},
    }
    (entry,) = [entry for entry in ANTHROPIC.models if entry.id == model.price]
    _, theirs = ANTHROPIC.extract_usage({"model": model.id, "usage": raw})
    calculated = entry.calc_price(theirs, ANTHROPIC, genai_request_timestamp=at)
    dollars: Decimal = calculated.total_price

    ours = PRICES.price_of(model, at).cost_nanos(Usage.from_api(raw))
    assert ours == int((dollars * 10**9).to_integral_value(ROUND_CEILING))


def test_every_model_that_is_not_retired_has_a_price_of_its_own() -> None:
    for model in CATALOG.models.values():
        if not model.is_retired(NOW.date()):
            found = PRICES.price_of(model, NOW)
            assert found.model == model.id
            assert min(found.input.base, found.output.base, found.cache_read.base) > 0
            assert found.cache_write_5m.base > found.input.base


def test_a_price_entry_is_found_by_equality_never_by_what_a_name_begins_with() -> None:
    one_token = genai_prices.types.Usage(input_tokens=1)
    guessed = get_snapshot().calc(one_token, "claude-opus-4-8-x", "anthropic", None, NOW)
    assert guessed.model.id == "claude-opus-4-8"
    catalog = Catalog.load({"claude-opus-4-8-x": {**NEW_MODEL, "price": "claude-opus-4-8-x"}})
    with pytest.raises(ValidationError) as caught:
        PriceTable(catalog).price_of(catalog.models["claude-opus-4-8-x"], NOW)
    assert caught.value.reason == "model_without_price"


def test_a_model_without_a_price_is_refused_by_naming_the_setting_to_add() -> None:
    catalog = Catalog.load({"my-model": NEW_MODEL})
    model = catalog.models["my-model"]
    with pytest.raises(ValidationError, match=r'\[prices\."my-model"\] with input and output'):
        PriceTable(catalog).price_of(model, NOW)
    priced = PriceTable(catalog, {"my-model": {"input": 1, "output": 2}}).price_of(model, NOW)
    assert priced.cost_nanos(Usage(1_000, 1_000)) == 3_000_000


def test_a_published_price_with_charges_we_cannot_count_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = genai_prices.types.ModelPrice(
        input_mtok=Decimal(1), output_mtok=Decimal(2), requests_kcount=Decimal(3)
    )
    entry = next(entry for entry in ANTHROPIC.models if entry.id == "claude-opus-5-5")
    monkeypatch.setattr(entry, "prices", odd)
    with pytest.raises(ValidationError, match="requests_kcount"):
        PriceTable(CATALOG).price_of(CATALOG.models["claude-opus-5-5"], NOW)


def test_a_published_price_without_cache_rates_charges_the_documented_multiples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiers = [genai_prices.types.Tier(start=100, price=Decimal("3.3"))]
    bare = genai_prices.types.ModelPrice(
        input_mtok=genai_prices.types.TieredPrices(Decimal("1.1"), tiers), output_mtok=Decimal(2)
    )
    entry = next(entry for entry in ANTHROPIC.models if entry.id == "claude-opus-5-5")
    monkeypatch.setattr(entry, "prices", bare)
    found = PriceTable(CATALOG).price_of(CATALOG.models["claude-opus-5-5"], NOW)
    assert found.cache_write_5m == Rate(1_375_000_000, ((100, 4_125_000_000),))
    assert found.cache_write_1h == Rate(2_200_000_000, ((100, 6_600_000_000),))
    assert found.cache_read == found.input


def test_the_operators_price_replaces_the_published_one_completely() -> None:
    found = own_price(input="3", output=15.5)
    assert found.source == "operator"
    assert found.input == Rate(3_000_000_000)
    assert found.output == Rate(15_500_000_000)
    assert found.cache_write_5m == Rate(3_750_000_000)
    assert found.cache_write_1h == Rate(6_000_000_000)
    assert found.cache_read == Rate(3_000_000_000)


def test_the_operator_can_give_every_rate_as_number_or_text() -> None:
    found = own_price(input=0, output="0.1", cache_read=0.1, cache_write_5m=7, cache_write_1h="1e1")
    assert [found.input.base, found.output.base, found.cache_read.base] == [0, 10**8, 10**8]
    assert [found.cache_write_5m.base, found.cache_write_1h.base] == [7 * 10**9, 10**10]


@pytest.mark.parametrize(("tokens", "nanos"), [(0, 0), (1, 1), (666, 1), (667, 2), (2_000, 3)])
def test_a_cost_is_rounded_up_to_the_nano_once(tokens: int, nanos: int) -> None:
    found = own_price(input="0.0000015", output=0)
    assert found.cost_nanos(Usage(input_tokens=tokens)) == nanos


def test_fractions_of_a_nano_of_different_kinds_add_up_before_rounding() -> None:
    found = own_price(input="0.0000005", output="0.0000005")
    assert found.cost_nanos(Usage(input_tokens=1_000, output_tokens=1_000)) == 1


@pytest.mark.parametrize(
    "value",
    ["-1", -0.5, "NaN", float("nan"), "inf", "sNaN", "3 dollars", "", True, None, [3], "1e999999"],
)
def test_a_price_that_is_no_amount_is_refused(value: object) -> None:
    message = faults_of({"claude-opus-5-5": {"input": value, "output": 15}})
    assert 'prices."claude-opus-5-5" has input = ' in message


@pytest.mark.parametrize("value", ["0.0000000001", "1e-999999", "1.00000000000000000000000000001"])
def test_a_price_too_fine_to_be_kept_exactly_is_refused(value: str) -> None:
    assert "nine decimals" in faults_of({"claude-opus-5-5": {"input": value, "output": 15}})


def test_all_faults_of_the_prices_are_reported_at_once() -> None:
    message = faults_of(
        {
            "claude-opus-5-5": {"input": "-1", "cache": 3},
            "claude-opus-4-5": {"input": 1, "output": 1},
            "claude-opus-5": 3,
        }
    )
    for part in (
        "prices.\"claude-opus-5-5\" has an unknown field 'cache'",
        'prices."claude-opus-5-5" lacks output',
        "input = '-1'",
        'prices."claude-opus-4-5" is for no model of the table',
        'prices."claude-opus-5" must be a table',
    ):
        assert part in message


def test_prices_that_are_no_tables_at_all_are_refused() -> None:
    bad: Any = [3]
    assert "tables by model id" in faults_of(bad)


def test_a_price_can_be_written_down_and_says_where_it_comes_from() -> None:
    written = json.loads(json.dumps(price("claude-haiku-5-5").as_dict()))
    assert written.pop("source").startswith("genai-prices ")
    assert written == {
        "model": "claude-haiku-5-5",
        "input": {"base": 100_000_000, "tiers": [[100_000, 500_000_000]]},
        "output": {"base": 500_000_000, "tiers": [[100_000, 2_500_000_000]]},
        "cache_read": {"base": 10_000_000, "tiers": [[100_000, 50_000_000]]},
        "cache_write_5m": {"base": 125_000_000, "tiers": [[100_000, 625_000_000]]},
        "cache_write_1h": {"base": 200_000_000, "tiers": [[100_000, 1_000_000_000]]},
    }
    assert price("claude-opus-5-5").as_dict()["input"] == 4_000_000_000


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        ({}, Usage()),
        ({"input_tokens": 3, "output_tokens": 4}, Usage(3, 4)),
        (
            {"input_tokens": 3, "output_tokens": 4, "cache_creation": None, "service_tier": "x"},
            Usage(3, 4),
        ),
        (
            {
                "input_tokens": 1,
                "output_tokens": 2,
                "cache_read_input_tokens": 9,
                "cache_creation_input_tokens": 7,
                "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
            },
            Usage(1, 2, 3, 4, 9),
        ),
        ({"cache_creation_input_tokens": 7}, Usage(cache_write_5m_tokens=7)),
        (
            {
                "cache_creation_input_tokens": 9,
                "cache_creation": {"ephemeral_5m_input_tokens": 4},
            },
            Usage(cache_write_5m_tokens=9),
        ),
        (
            {
                "cache_creation_input_tokens": 9,
                "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 1},
            },
            Usage(cache_write_5m_tokens=4, cache_write_1h_tokens=5),
        ),
        (
            {
                "cache_creation_input_tokens": None,
                "cache_creation": {"ephemeral_1h_input_tokens": 4},
            },
            Usage(cache_write_1h_tokens=4),
        ),
    ],
)
def test_usage_is_read_from_what_the_api_sends(raw: Mapping[str, Any], usage: Usage) -> None:
    assert Usage.from_api(raw) == usage


@pytest.mark.parametrize(
    "raw",
    [
        {"input_tokens": -1},
        {"output_tokens": 1.0},
        {"output_tokens": "1"},
        {"cache_read_input_tokens": True},
        {"cache_creation": 7},
        {"cache_creation": {"ephemeral_1h_input_tokens": -7}},
    ],
)
def test_usage_that_is_no_count_is_refused(raw: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^usage\."):
        Usage.from_api(raw)


def test_a_usage_cannot_be_made_with_a_negative_count() -> None:
    with pytest.raises(ValueError, match="cache_read_tokens"):
        Usage(cache_read_tokens=-1)


def test_the_end_of_a_stream_overrides_its_start_where_it_says_something() -> None:
    start = {
        "input_tokens": 10,
        "output_tokens": 1,
        "cache_creation_input_tokens": 7,
        "cache_read_input_tokens": 5,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
    }
    end = {
        "input_tokens": None,
        "output_tokens": 90,
        "cache_creation_input_tokens": 7,
        "cache_read_input_tokens": 0,
    }
    assert Usage.from_api(merge_usage(start, end)) == Usage(10, 90, 3, 4, 0)
    assert start["output_tokens"] == 1


def test_usages_add_up_field_by_field() -> None:
    assert Usage(1, 2, 3, 4, 5) + Usage(10, 20, 30, 40, 50) == Usage(11, 22, 33, 44, 55)
    assert Usage(1, 2, 3, 4, 5).prompt_tokens == 13


@pytest.mark.parametrize(
    ("nanos", "micros", "dollars"),
    [
        (0, 0, 0.0),
        (1, 1, 0.000001),
        (1_000, 1, 0.000001),
        (1_001, 2, 0.000002),
        (936_000, 936, 0.000936),
        (855_000_000, 855_000, 0.855),
        (10**18 + 1, 10**15 + 1, 1_000_000_000.000001),
    ],
)
def test_nanos_are_shown_as_micros_and_dollars_rounded_up(
    nanos: int, micros: int, dollars: float
) -> None:
    assert micros_up(nanos) == micros
    assert nanos_to_dollars(nanos) == dollars


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=10**15))
def test_shown_dollars_are_right_to_the_micro_dollar_and_never_less(nanos: int) -> None:
    shown = Decimal(repr(nanos_to_dollars(nanos)))
    assert 0 <= shown - Decimal(nanos).scaleb(-9) < Decimal("0.000001")
    assert shown == shown.quantize(Decimal("0.000001"))
