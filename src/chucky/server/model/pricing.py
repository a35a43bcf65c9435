"""What a call costs, in whole nano-dollars.

The numbers come from the genai-prices package (the only import of it is here) or from the
operator; which numbers belong to which model is decided by the model table, by equality of ids.
genai-prices can also guess a model from the beginning of a name, which would price an unknown
model like a known one, so its matching is never used. Rates are integers and costs are rounded up
once, at the end: the result is exact, and never too little.

Rates are those of a standard call. What is billed at another rate (batches, fast mode, a chosen
inference region, server tools) has to be refused before the call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from chucky.errors import ValidationError
from chucky.server.model.catalog import Catalog, Model

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

_NANOS_PER_DOLLAR = 1_000_000_000
_NANOS_PER_MICRO = 1_000
_MICROS_PER_DOLLAR = 1_000_000
_TOKENS_PER_RATE = 1_000_000
# Beyond every context there is, and what they cost still fits the 64 bits of a database.
_MOST_TOKENS = 1_000_000_000

Kind = Literal["input", "output", "cache_read", "cache_write_5m", "cache_write_1h"]
_KINDS: tuple[Kind, ...] = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one call, each counted in exactly one field.

    Attributes:
        input_tokens: Prompt tokens that were neither written to nor read from a cache.
        output_tokens: Answer tokens, thinking included.
        cache_write_5m_tokens: Prompt tokens written to a cache entry of five minutes.
        cache_write_1h_tokens: Prompt tokens written to a cache entry of one hour.
        cache_read_tokens: Prompt tokens read from a cache.

    Raises:
        ValueError: A field is negative or not a whole number.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                _checked_count(name, value)

    def __add__(self, other: Usage) -> Usage:
        if not isinstance(other, Usage):
            return NotImplemented
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def prompt_tokens(self) -> int:
        """All tokens of the prompt, cached or not: what selects the tier of a rate."""
        return (
            self.input_tokens
            + self.cache_write_5m_tokens
            + self.cache_write_1h_tokens
            + self.cache_read_tokens
        )

    @classmethod
    def from_api(cls, raw: Mapping[str, Any]) -> Usage:
        """Read the ``usage`` object of a Messages API answer; a missing or null field is 0.

        Cache writes whose lifetime is not stated count as five-minute writes (what the API does
        unless it is asked otherwise), or as one-hour writes if the call has any of those.

        Raises:
            ValueError: A count is negative or not a whole number.
        """
        written = _count(raw, "cache_creation_input_tokens")
        split = raw.get("cache_creation")
        if split is None:
            split = {}
        if not isinstance(split, Mapping):
            raise ValueError(f"usage.cache_creation must be an object, not {split!r:.60}.")
        short = _count(split, "ephemeral_5m_input_tokens")
        long = _count(split, "ephemeral_1h_input_tokens")
        unstated = max(written - short - long, 0)
        return cls(
            input_tokens=_count(raw, "input_tokens"),
            output_tokens=_count(raw, "output_tokens"),
            cache_write_5m_tokens=short if long else short + unstated,
            cache_write_1h_tokens=long + unstated if long else 0,
            cache_read_tokens=_count(raw, "cache_read_input_tokens"),
        )


def merge_usage(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Combine two usage objects of one stream: ``message_start``'s, then ``message_delta``'s.

    The counts of a stream are cumulative, so a later value replaces an earlier one, unless it is
    null or missing. It has to happen on the raw objects: a ``message_delta`` repeats the sum of
    the cache writes without their split by lifetime, which only ``message_start`` has.
    """
    return {**earlier, **{name: value for name, value in later.items() if value is not None}}


def _count(raw: Mapping[str, Any], name: str) -> int:
    value = raw.get(name)
    if value is None:
        return 0
    count = _checked_count(f"usage.{name}", value)
    if count > _MOST_TOKENS:
        raise ValueError(f"usage.{name} is more than any call has: {value!r:.60}.")
    return count


def _checked_count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} must be a whole number of tokens, not {value!r:.60}.")
    return value


@dataclass(frozen=True, slots=True)
class Rate:
    """What one kind of token costs, in nano-dollars per million tokens.

    Attributes:
        base: The rate of a call whose prompt reaches no tier.
        tiers: ``(start, rate)`` by rising start. The highest tier whose start the whole prompt
            *exceeds* holds for all tokens of this kind, not only for those above its start.
    """

    base: int
    tiers: tuple[tuple[int, int], ...] = ()

    def for_prompt(self, prompt_tokens: int) -> int:
        """The rate of a call with a prompt of this size (cached tokens included)."""
        for start, rate in reversed(self.tiers):
            if prompt_tokens > start:
                return rate
        return self.base

    def times(self, percent: int) -> Rate:
        """This rate multiplied, rounded up."""
        return Rate(
            _divide_up(self.base * percent, 100),
            tuple((start, _divide_up(rate * percent, 100)) for start, rate in self.tiers),
        )

    def as_json(self) -> int | dict[str, Any]:
        """The rate as plain data: a number, or an object when there are tiers."""
        if not self.tiers:
            return self.base
        return {"base": self.base, "tiers": [list(tier) for tier in self.tiers]}


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs at one moment.

    Attributes:
        model: The exact id of the model.
        source: Where the numbers come from: ``"genai-prices 0.2.3"`` or ``"operator"``.
        input, output, cache_read, cache_write_5m, cache_write_1h: The rate of each kind of token.
    """

    model: str
    source: str
    input: Rate
    output: Rate
    cache_read: Rate
    cache_write_5m: Rate
    cache_write_1h: Rate

    def __hash__(self) -> int:
        # With each call its text is looked up; all fields and their tiers would take longer.
        return hash((self.model, self.source, self.input.base))

    def cost_nanos(self, usage: Usage) -> int:
        """The cost of a call in nano-dollars: exact, rounded up once over all its tokens."""
        return self._cost_nanos(usage, usage.prompt_tokens)

    def _cost_nanos(self, usage: Usage, prompt: int) -> int:
        return _divide_up(
            usage.input_tokens * self.input.for_prompt(prompt)
            + usage.output_tokens * self.output.for_prompt(prompt)
            + usage.cache_read_tokens * self.cache_read.for_prompt(prompt)
            + usage.cache_write_5m_tokens * self.cache_write_5m.for_prompt(prompt)
            + usage.cache_write_1h_tokens * self.cache_write_1h.for_prompt(prompt),
            _TOKENS_PER_RATE,
        )

    def dearest_cost_nanos(self, usage: Usage) -> int:
        """The most that a call of at most this usage can cost, whichever tier its prompt is in."""
        sizes = [0, *(start + 1 for kind in _KINDS for start, _ in getattr(self, kind).tiers)]
        reached = [size for size in sizes if size <= usage.prompt_tokens]
        return max(self._cost_nanos(usage, size) for size in reached)

    def dearest_output_rate(self, prompt_tokens: int) -> int:
        """The rate of output, in nano-dollars per million tokens, at most for such a prompt."""
        reached = [rate for start, rate in self.output.tiers if start < prompt_tokens]
        return max(self.output.base, *reached) if reached else self.output.base

    def as_dict(self) -> dict[str, Any]:
        """The price as plain data that JSON can hold; rates in nano-dollars per million tokens."""
        rates = {str(kind): getattr(self, kind).as_json() for kind in _KINDS}
        return {"model": self.model, "source": self.source, **rates}


@lru_cache(maxsize=256)
def price_text(price: Price) -> str:
    """A price as JSON text, always the same for the same price."""
    return json.dumps(price.as_dict(), separators=(",", ":"), sort_keys=True)


@lru_cache(maxsize=256)
def read_price(text: str) -> Price:
    """Read a price that :func:`price_text` wrote.

    Raises:
        ValueError: It is none.
    """
    try:
        fields = json.loads(text)
        fields |= {kind: _read_rate(fields[kind]) for kind in _KINDS}
        return Price(**fields)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{text!r:.80} is no price ({error!r}).") from error


def _read_rate(value: Any) -> Rate:
    if isinstance(value, int):
        return Rate(value)
    return Rate(value["base"], tuple((start, rate) for start, rate in value["tiers"]))


class PriceTable:
    """The price of every model: the operator's where there is one, else the published one.

    A price of the operator stands for itself; nothing of the published one is mixed in. Where a
    price says nothing about caching, a cache write costs what the vendor documents for its
    models (1.25 times the input rate for five minutes, twice for an hour), and a cache read,
    whose discount differs by model, costs as much as input: never too little.

    Attributes:
        source: Where the published prices come from.
    """

    def __init__(self, catalog: Catalog, overrides: Mapping[str, Any] | None = None) -> None:
        """Take over the published prices as they are now.

        Args:
            catalog: The model table.
            overrides: The ``[prices."<model id>"]`` tables of ``chucky.toml``: ``input`` and
                ``output``, and optionally ``cache_read``, ``cache_write_5m`` and
                ``cache_write_1h``, in dollars per million tokens, as numbers or in quotes.

        Raises:
            ValidationError: An override is wrong. All faults are in the message, and one by one
                in ``details["faults"]``.
        """
        self._published = _published_entries()
        self.source = f"genai-prices {metadata.version('genai-prices')}"
        self._own = _read_overrides({} if overrides is None else overrides, catalog)
        # The published price that was asked for last, of each model.
        self._read: dict[str, tuple[ModelPrice, Price]] = {}

    def price_of(self, model: Model, at: datetime) -> Price:
        """The price of a model at a moment (published prices change on given dates).

        Raises:
            ValidationError: Nobody has priced the model, or it has charges that are not for
                tokens; the message names the setting to add.
            ValueError: ``at`` has no time zone.
        """
        if at.tzinfo is None:
            raise ValueError("The time of a price must have a time zone.")
        own = self._own.get(model.id)
        if own is not None:
            return own
        entry = None if model.price is None else self._published.get(model.price)
        if entry is None or not entry.prices:
            raise _unpriced(model.id, "has no price")
        prices = entry.get_prices(at)
        read = self._read.get(model.id)
        if read is None or read[0] is not prices:
            price = _published_price(model.id, self.source, prices)
            read = self._read[model.id] = (prices, price)
        return read[1]


def micros_up(nanos: int) -> int:
    """Nano-dollars as micro-dollars, rounded up: what tokens and budgets count in."""
    return _divide_up(nanos, _NANOS_PER_MICRO)


def nanos_to_dollars(nanos: int) -> float:
    """Nano-dollars as dollars for the edge, e.g. ``total_cost_usd``.

    Rounded up to the micro-dollar, so that it agrees with :func:`micros_up` and a cost is never
    shown as nothing; the float is the nearest one to that decimal number. For showing only: money
    is never counted in it.
    """
    return micros_up(nanos) / _MICROS_PER_DOLLAR


def _divide_up(number: int, by: int) -> int:
    return -(-number // by)


# The keys of genai-prices that are charges for tokens of ours, by kind of token. Cache writes have
# a general price and may have one by lifetime; the first that is there counts.
_PUBLISHED_KEYS: dict[Kind, tuple[str, ...]] = {
    "input": ("input_mtok",),
    "output": ("output_mtok",),
    "cache_read": ("cache_read_mtok",),
    "cache_write_5m": ("cache_write_5m_mtok", "cache_write_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok",),
}
# Charges that no call of ours can cause: server tools are refused before the call.
_IGNORED_KEYS = frozenset({"web_searches_kcount"})


def _published_entries() -> dict[str, ModelInfo]:
    # Loading the package takes longer than the rest of a server's start, so it is not done by
    # whoever merely imports this module.
    from genai_prices.data_snapshot import get_snapshot

    return {
        entry.id: entry
        for provider in get_snapshot().providers
        if provider.id == "anthropic"
        for entry in provider.models
    }


def _published_price(model_id: str, source: str, prices: ModelPrice) -> Price:
    values = {key: value for key, value in vars(prices).items() if value is not None}
    understood = _IGNORED_KEYS.union(*_PUBLISHED_KEYS.values())
    foreign = sorted(values.keys() - understood)
    if foreign:
        raise _unpriced(model_id, f"has charges that are not understood ({', '.join(foreign)})")
    rates: dict[Kind, Rate] = {}
    for kind, keys in _PUBLISHED_KEYS.items():
        value = next((values[key] for key in keys if key in values), None)
        if value is not None:
            rates[kind] = _published_rate(model_id, value)
    if "input" not in rates or "output" not in rates:
        raise _unpriced(model_id, "has no complete price")
    return _price(model_id, source, rates)


def _published_rate(model_id: str, value: Decimal | TieredPrices) -> Rate:
    base, steps = (value, []) if isinstance(value, Decimal) else (value.base, value.tiers)
    try:
        tiers = sorted((step.start, _rate_nanos(step.price)) for step in steps)
        return Rate(_rate_nanos(base), tuple(tiers))
    except ValueError as error:
        raise _unpriced(model_id, f"has a published price that {error}") from error


def _price(model_id: str, source: str, rates: Mapping[Kind, Rate]) -> Price:
    charged = rates["input"]
    return Price(
        model=model_id,
        source=source,
        input=charged,
        output=rates["output"],
        cache_read=rates.get("cache_read", charged),
        cache_write_5m=rates.get("cache_write_5m", charged.times(125)),
        cache_write_1h=rates.get("cache_write_1h", charged.times(200)),
    )


def _unpriced(model_id: str, what: str) -> ValidationError:
    return ValidationError(
        f'The model {model_id!r} {what}: add [prices."{model_id}"] with input and output '
        "(dollars per million tokens) to chucky.toml.",
        reason="model_without_price",
        details={"model": model_id},
    )


_MOST_DOLLARS = Decimal(1_000_000)
_FINEST_DOLLARS = Decimal("0.000000001")


def _rate_nanos(dollars: Decimal) -> int:
    """Dollars per million tokens as nano-dollars per million tokens.

    Raises:
        ValueError: The price is not a number, is negative, absurdly large, or finer than a
            nano-dollar, so that it could not be kept exactly. The message completes a sentence.
    """
    if not dollars.is_finite() or dollars < 0:
        raise ValueError("must be zero or more, and finite")
    if dollars > _MOST_DOLLARS:
        raise ValueError(f"must not be above {_MOST_DOLLARS} dollars per million tokens")
    # The limit above keeps every digit of the quantized number within the decimal context.
    rounded = dollars.quantize(_FINEST_DOLLARS)
    if rounded != dollars:
        raise ValueError("must not have more than nine decimals")
    return int(rounded * _NANOS_PER_DOLLAR)


def _read_overrides(overrides: Any, catalog: Catalog) -> dict[str, Price]:
    if not isinstance(overrides, Mapping):
        overrides, faults = {}, ["prices must be tables by model id"]
    else:
        faults = []
    own: dict[str, Price] = {}
    for model_id, table in overrides.items():
        if model_id not in catalog.models:
            faults.append(f'prices."{model_id}" is for no model of the table (exact ids only)')
        elif not isinstance(table, Mapping):
            faults.append(f'prices."{model_id}" must be a table')
        else:
            found, rates = _read_override(table)
            faults += [f'prices."{model_id}" {fault}' for fault in found]
            if not found:
                own[model_id] = _price(model_id, "operator", rates)
    if faults:
        raise ValidationError(
            f"The prices are not valid: {'; '.join(faults)}.",
            reason="invalid_prices",
            details={"faults": faults},
        )
    return own


def _read_override(table: Mapping[str, Any]) -> tuple[list[str], dict[Kind, Rate]]:
    faults = [
        f"has an unknown field {name!r:.60} (there are {', '.join(_KINDS)})"
        for name in table
        if name not in _KINDS
    ]
    missing = [kind for kind in ("input", "output") if kind not in table]
    if missing:
        faults.append(f"lacks {' and '.join(missing)}")
    rates: dict[Kind, Rate] = {}
    for kind in _KINDS:
        if kind in table:
            try:
                rates[kind] = Rate(_rate_nanos(_decimal(table[kind])))
            except ValueError as error:
                faults.append(f"has {kind} = {table[kind]!r:.60}, which {error}")
    return faults, rates


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError("must be a number of dollars per million tokens")
    try:
        # By way of str: the float 0.1 means the number that was written, not its binary neighbour.
        return Decimal(str(value))
    except InvalidOperation:
        raise ValueError("must be a number of dollars per million tokens") from None
