"""What the gate holds for a call, how it lowers it, and what it charges, however the call ends."""

from __future__ import annotations

import asyncio
import json
import logging
import unicodedata
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chucky.errors import BudgetExceededError, ChuckyError, ValidationError
from chucky.server.model.allowance import Allowance
from chucky.server.model.allowed import check_priceable
from chucky.server.model.bounds import InputSize, input_nanos_bound, largest_context
from chucky.server.model.catalog import Catalog, Model
from chucky.server.model.gate import Gate, Provider
from chucky.server.model.meter import Meter
from chucky.server.model.payment import Charge, CutShortError, Quote
from chucky.server.model.pricing import Price, PriceTable, Rate, Usage
from chucky.server.model.upstream import ModelRequest, UpstreamError

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
CATALOG = Catalog.load()
PRICES = PriceTable(CATALOG)
SONNET = CATALOG.models["claude-sonnet-5-5"]  # 2,000 nano-dollars a token in, 10,000 out
HAIKU = CATALOG.models["claude-haiku-5-5"]  # five times as dear beyond 100,000 tokens
REQUEST = {
    "model": SONNET.id,
    "max_tokens": 1_000,
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
}


# --- a payer and a provider that the test decides about ---------------------------------------


@dataclass
class Purse:
    """Pays for calls and keeps what it was asked and told.

    Attributes:
        tokens: How much output it pays for; None for all that is asked for.
        counts_first: Whether it wants to know more exactly before it pays.
    """

    tokens: int | None = None
    counts_first: bool = False
    quotes: list[Quote] = field(default_factory=list)
    charges: list[Charge] = field(default_factory=list)
    voided: int = 0
    held_nanos: int | None = None
    max_tokens: int = 0
    progress: Any = None
    allowance: Allowance = field(default_factory=Allowance)

    async def reserve(self, quote: Quote, *, is_final: bool) -> Purse | None:
        """Hold what the quote says, for as much output as there is money for."""
        self.quotes.append(quote)
        if self.counts_first and not is_final:
            return None
        asked = quote.max_tokens
        self.max_tokens = asked if self.tokens is None else min(asked, self.tokens)
        self.held_nanos = quote.input_nanos - (-self.max_tokens * quote.output_rate // 1_000_000)
        return self

    def calling(self) -> AbstractContextManager[None]:
        """Count no compute."""
        return nullcontext()

    def waiting(self) -> AbstractContextManager[None]:
        """Count no compute."""
        return nullcontext()

    def follow(self, progress: Any) -> None:
        """Keep what says how far the call is."""
        self.progress = progress

    def settle(self, charge: Charge) -> None:
        """Keep what was charged."""
        self.charges.append(charge)

    def void(self) -> None:
        """Count what was free."""
        self.voided += 1

    def exhausted(self) -> ChuckyError:
        """The error of an answer cut short."""
        return BudgetExceededError("No more.", reason="user_budget_exhausted")


@dataclass
class Answers:
    """A provider: the events it sends, and what it fails with after them.

    Attributes:
        counted: What it counts, or how it fails to.
    """

    events: Sequence[Mapping[str, Any]] = ()
    error: UpstreamError | None = None
    counted: int | UpstreamError | None = 12
    requests: list[Mapping[str, Any]] = field(default_factory=list)
    counts: int = 0

    async def upstream_for(self, model: Model, project_id: str) -> Answers:
        """Serve every model."""
        return self

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncIterator[AsyncIterator[str]]:
        """Answer."""
        self.requests.append(request.fields)
        yield self._events()

    async def _events(self) -> AsyncIterator[str]:
        for event in self.events:
            yield json.dumps(event)
        if self.error is not None:
            raise self.error

    async def count_tokens(self, request: ModelRequest) -> int | None:
        """Count."""
        self.counts += 1
        if isinstance(self.counted, UpstreamError):
            raise self.counted
        return self.counted

    async def close(self) -> None:
        """Let go of nothing."""


async def call(
    answers: Answers,
    purse: Purse | None = None,
    request: Mapping[str, Any] = REQUEST,
    *,
    model: Model = SONNET,
    leave_after: int | None = None,
    betas: Sequence[str] = (),
) -> Purse:
    """Make a call, read it to its end or leave after so many events; return who has paid."""
    purse = purse or Purse()
    ready: asyncio.Future[Provider] = asyncio.get_running_loop().create_future()
    ready.set_result(Provider(answers, PRICES))
    gate = Gate(ready, lambda: NOW)
    meter = Meter()
    stream = gate.call(model, request, meter, payer=purse, project_id="p", betas=betas)
    async with aclosing(stream) as events:
        count = 0
        async for _ in events:
            count += 1
            if count == leave_after:
                break
    return purse


class Unanswered(Answers):
    """A provider that does not answer; ``has_got`` says whether it got anything of a request."""

    def __init__(self, *, has_got: bool) -> None:
        super().__init__()
        self.has_got = has_got
        self.is_asked = asyncio.Event()

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncIterator[AsyncIterator[str]]:
        """Answer nothing."""
        request.is_unsent = not self.has_got
        self.is_asked.set()
        await asyncio.Event().wait()
        yield self._events()


@pytest.mark.parametrize("has_got", [True, False])
async def test_what_is_interrupted_before_anything_was_sent_is_free(has_got: bool) -> None:
    provider, purse = Unanswered(has_got=has_got), Purse()
    calling = asyncio.create_task(call(provider, purse))
    async with asyncio.timeout(20):
        await provider.is_asked.wait()
        calling.cancel()
        await asyncio.wait([calling])
    assert calling.cancelled()
    assert purse.voided == (0 if has_got else 1)
    assert [each.is_estimated for each in purse.charges] == ([True] if has_got else [])


def start(**usage: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": {"usage": {"input_tokens": 10, **usage}}}


def says(text: str) -> dict[str, Any]:
    delta = {"type": "text_delta", "text": text}
    return {"type": "content_block_delta", "index": 0, "delta": delta}


def end(reason: str | None = "end_turn", **usage: Any) -> dict[str, Any]:
    said = {"usage": usage} if usage else {}
    return {"type": "message_delta", "delta": {"stop_reason": reason}, **said}


STOP = {"type": "message_stop"}
BROKEN = UpstreamError("It broke.", reason="model_unreachable")


# --- what is charged --------------------------------------------------------------------------


async def test_what_the_provider_reports_is_charged_to_the_nano() -> None:
    split = {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4}
    cached = {
        "cache_creation_input_tokens": 7,
        "cache_read_input_tokens": 5,
        "cache_creation": split,
    }
    events = [start(**cached), says("Hi"), end(output_tokens=9), STOP]
    purse = await call(Answers(events))
    # 10x2000 + 9x10000 + 3x2500 + 4x4000 + 5x100
    assert purse.charges == [Charge(Usage(10, 9, 3, 4, 5), 134_000)]


async def test_a_prompt_beyond_a_tier_is_charged_at_its_rate() -> None:
    events = [start(input_tokens=100_001), end(output_tokens=10), STOP]
    purse = await call(Answers(events), model=HAIKU)
    assert purse.charges == [Charge(Usage(100_001, 10), 100_001 * 500 + 10 * 2_500)]


async def test_events_that_come_twice_are_charged_once() -> None:
    events = [start(), start(), says("Hi"), end(output_tokens=9), end(output_tokens=9), STOP, STOP]
    purse = await call(Answers(events))
    assert purse.charges == [Charge(Usage(10, 9), 110_000)]


@pytest.mark.parametrize("error", [BROKEN, None])
async def test_an_answer_lost_after_its_final_report_is_charged_exactly(
    error: UpstreamError | None,
) -> None:
    answers = Answers([start(), says("word " * 900), end(output_tokens=9)], error)
    purse = Purse()
    with pytest.raises(UpstreamError):
        await call(answers, purse)
    assert purse.charges == [Charge(Usage(10, 9), 110_000)]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("x" * 300, 100), ("x" * 301, 101), ("東京" * 50, 100), ("", 4), ("\ud800", 4)],
)
async def test_an_answer_lost_in_the_middle_is_charged_as_far_as_it_came(
    text: str, tokens: int
) -> None:
    purse = Purse()
    with pytest.raises(UpstreamError):
        await call(Answers([start(output_tokens=4), says(text)], BROKEN), purse)
    nanos = 20_000 + 10_000 * tokens
    assert purse.charges == [Charge(Usage(10, tokens), nanos, is_estimated=True)]


async def test_what_is_estimated_is_never_more_than_what_was_held() -> None:
    purse = Purse(tokens=20)
    with pytest.raises(UpstreamError):
        await call(Answers([start(), says("x" * 3_000)], BROKEN), purse)
    [charge] = purse.charges
    assert charge.is_estimated
    assert charge.nanos == purse.held_nanos


async def test_who_leaves_pays_for_what_had_arrived() -> None:
    answers = Answers([start(), says("x" * 300), says("x" * 300), end(output_tokens=200), STOP])
    purse = await call(answers, leave_after=2)
    assert purse.charges == [Charge(Usage(10, 100), 1_020_000, is_estimated=True)]


async def test_a_call_that_dies_unanswered_is_charged_with_its_estimated_input() -> None:
    purse = Purse()
    with pytest.raises(UpstreamError):
        await call(Answers([], BROKEN), purse)
    [charge] = purse.charges
    assert charge.is_estimated
    assert charge.usage.output_tokens == 0
    assert 0 < charge.nanos <= (purse.held_nanos or 0)


async def test_a_call_the_provider_refused_is_free() -> None:
    refused = UpstreamError("No.", reason="model_overloaded", is_free=True)
    purse = Purse()
    with pytest.raises(UpstreamError):
        await call(Answers([], refused), purse)
    assert (purse.charges, purse.voided) == ([], 1)


@pytest.mark.parametrize(
    ("begin", "finish", "input_tokens"),
    [
        # Some servers that speak the API report no usage at all, or only a part of it.
        ({"type": "message_start", "message": {}}, end(), None),
        ({"type": "message_start", "message": {}}, end(output_tokens=2), None),
        (start(output_tokens=1), end(), 10),
    ],
)
async def test_what_the_provider_does_not_report_is_estimated(
    begin: dict[str, Any], finish: dict[str, Any], input_tokens: int | None
) -> None:
    purse = await call(Answers([begin, says("x" * 300), finish, STOP]))
    [charge] = purse.charges
    assert charge.is_estimated
    assert charge.usage.output_tokens == 100
    assert charge.usage.input_tokens == (input_tokens or purse.quotes[0].usage.input_tokens) > 0


async def test_charges_that_have_no_price_are_named_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = {"service_tier": "standard", "server_tool_use": {"web_search_requests": 0}}
    novel = {"novel_tokens": 7, "server_tool_use": {"web_search_requests": 2}, "\ud800": 1}
    free = await call(Answers([start(**known), end(output_tokens=9), STOP]))
    assert free.charges[0].unpriced == ""
    with caplog.at_level(logging.ERROR, "chucky.server"):
        purse = await call(Answers([start(**novel), end(output_tokens=9), STOP]))
    [charge] = purse.charges
    assert charge.nanos == 110_000
    assert "novel_tokens" in charge.unpriced
    assert "web_search_requests" in charge.unpriced
    assert charge.unpriced.isascii()
    assert "novel_tokens" in caplog.text


async def test_what_has_no_price_is_booked_also_where_nothing_else_was_used() -> None:
    events = [start(input_tokens=0, novel_tokens=7), end(output_tokens=0), STOP]
    purse = await call(Answers(events))
    assert purse.voided == 0
    assert "novel_tokens" in purse.charges[0].unpriced


@pytest.mark.parametrize("count", [-1, 1.5, "9", 2**70])
async def test_a_report_that_makes_no_sense_ends_the_call_and_is_not_charged(count: Any) -> None:
    purse = Purse()
    with pytest.raises(UpstreamError) as caught:
        await call(Answers([start(), says("x" * 300), end(output_tokens=count), STOP]), purse)
    assert caught.value.reason == "model_stream_malformed"
    assert purse.charges == [Charge(Usage(10, 100), 1_020_000, is_estimated=True)]


async def test_a_call_says_how_far_it_is() -> None:
    said: list[int] = []

    @dataclass
    class Slow(Answers):
        async def _events(self) -> AsyncIterator[str]:
            for event in self.events:
                yield json.dumps(event)
                said.append(purse.progress().usage.output_tokens)

    purse = Purse()
    slow = Slow([start(), says("x" * 300), says("x" * 300), end(output_tokens=150), STOP])
    await call(slow, purse)
    assert said == [0, 100, 200, 150, 150]


# --- what is held -----------------------------------------------------------------------------


async def test_the_provider_counts_only_where_a_bound_is_too_dear() -> None:
    answers = Answers([start(), end(output_tokens=9), STOP])
    await call(answers)
    assert answers.counts == 0
    purse = await call(answers, Purse(counts_first=True))
    assert answers.counts == 1
    bound, counted = purse.quotes
    assert counted.input_nanos == 12 * 2_000 < bound.input_nanos


@pytest.mark.parametrize("counted", [None, UpstreamError("Where?", reason="model_not_found")])
async def test_where_nobody_counts_the_bound_stands(counted: Any) -> None:
    answers = Answers([start(), end(output_tokens=9), STOP], counted=counted)
    purse = await call(answers, Purse(counts_first=True))
    bound, final = purse.quotes
    assert final.input_nanos == bound.input_nanos


async def test_a_count_that_fails_for_now_fails_the_call() -> None:
    overloaded = UpstreamError("Full.", reason="model_overloaded", retryable=True)
    purse = Purse(counts_first=True)
    with pytest.raises(UpstreamError):
        await call(Answers(counted=overloaded), purse)
    assert (purse.charges, purse.voided) == ([], 0)


SHORT, LONG = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}


@pytest.mark.parametrize(("mark", "rate"), [(None, 2_000), (SHORT, 2_500), (LONG, 4_000)])
@pytest.mark.parametrize("where", ["system", "messages", "tools"])
async def test_input_is_held_at_the_dearest_kind_it_can_be(
    where: str, mark: dict[str, str] | None, rate: int
) -> None:
    marked = {} if mark is None else {"cache_control": mark}
    block = {"type": "text", "text": "Hello", **marked}
    parts: dict[str, Any] = {
        "system": {"system": [block]},
        "messages": {"messages": [{"role": "user", "content": [block]}]},
        "tools": {"tools": [{"name": "t", "input_schema": {}, **marked}]},
    }
    answers = Answers([start(), end(output_tokens=9), STOP])
    purse = await call(answers, Purse(counts_first=True), {**REQUEST, **parts[where]})
    assert purse.quotes[-1].input_nanos == 12 * rate


@pytest.mark.parametrize(("tokens", "rate", "out"), [(100_000, 100, 500), (100_001, 500, 2_500)])
async def test_a_tier_that_the_input_can_reach_is_held(tokens: int, rate: int, out: int) -> None:
    answers = Answers([start(), end(output_tokens=9), STOP], counted=tokens)
    purse = await call(answers, Purse(counts_first=True), model=HAIKU)
    assert purse.quotes[-1].input_nanos == tokens * rate
    assert purse.quotes[-1].output_rate == out * 1_000_000


TEXTS = st.text(st.characters(codec="utf-8"), max_size=300)
BLOCKS = st.builds(lambda text: {"type": "text", "text": text}, TEXTS)
TOOLS = st.builds(
    lambda name, text: {"name": name, "description": text, "input_schema": {"type": "object"}},
    TEXTS,
    TEXTS,
)


@given(
    blocks=st.lists(BLOCKS, min_size=1, max_size=5),
    system=st.lists(BLOCKS, max_size=2),
    tools=st.lists(TOOLS, max_size=3),
    results=st.lists(BLOCKS, max_size=3),
)
def test_text_never_has_more_bytes_than_the_bound_has_tokens(
    blocks: list[Any], system: list[Any], tools: list[Any], results: list[Any]
) -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": results}
    messages = [{"role": "user", "content": [*blocks, result]}]
    size = size_of({"messages": messages, "system": system, "tools": tools})
    texts = [each["text"] for each in (*blocks, *system, *results)]
    texts += [each["name"] + each["description"] for each in tools]
    assert size.bound(10**9) >= sum(len(text.encode()) for text in texts)
    normalized = [unicodedata.normalize("NFKC", text) for text in texts]
    assert size.bound(10**9) >= sum(len(text.encode()) for text in normalized)
    assert 0 < size.estimate(10**9) <= size.bound(10**9)


def size_of(fields: Mapping[str, Any]) -> InputSize:
    return InputSize.of(ModelRequest(fields))


def image(data: str) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/png", "data": data}
    return {"type": "image", "source": source}


def test_a_character_that_normalizing_makes_longer_is_bounded_as_it_is_then() -> None:
    text = "\ufdfa" * 1_000
    size = size_of({"messages": [{"role": "user", "content": text}]})
    assert size.bound(10**9) >= len(unicodedata.normalize("NFKC", text).encode()) == 33_000


MARKS = "\u0301\u0323"


@given(
    text=st.text(
        st.characters(codec="utf-8", min_codepoint=0x80)
        | st.sampled_from("ae\u00e9\uac00\uac01\u1100\u1161\u11a8\u3067\ufb03\ufdfa" + MARKS),
        max_size=12,
    )
)
def test_no_text_is_longer_when_it_is_normalized_than_its_bound(text: str) -> None:
    many = 1_000  # so that the bound's allowance for what a provider adds hides nothing
    size = size_of({"messages": [{"role": "user", "content": f"{text} " * many}]})
    normalized = f"{unicodedata.normalize('NFKC', text)} ".encode()
    assert size.bound(10**9) - 1_000 >= len(normalized) * many


@pytest.mark.timeout(20)
def test_a_long_run_of_combining_marks_is_measured_in_no_time() -> None:
    # To normalize it takes minutes.
    size = size_of({"messages": [{"role": "user", "content": MARKS * 200_000}]})
    assert size.bound(10**9) >= len(MARKS.encode()) * 200_000


def test_images_are_bounded_by_their_number_and_pdfs_by_the_context() -> None:
    def within(*blocks: dict[str, Any]) -> dict[str, Any]:
        return {"type": "tool_result", "tool_use_id": "t", "content": list(blocks)}

    assert size_of({"messages": [{"role": "user", "content": "Hi"}]}).images == 0
    for block in (image("A" * 4), image("A" * 400_000)):
        messages = [{"role": "user", "content": [block, within(block)]}]
        assert size_of({"messages": messages}).images == 2
        size = size_of({"messages": messages})
        assert 10_000 < size.bound(200_000) < 12_000
    pdf = {"type": "document", "source": {"type": "base64", "data": "AAAA"}}
    text = {"type": "document", "source": {"type": "text", "data": "A" * 50}}
    for document, expected in ((pdf, True), (text, False)):
        for blocks in ([document], [within(document)]):
            size = size_of({"messages": [{"role": "user", "content": blocks}]})
            assert (size.bound(200_000) == 200_000) == expected


def test_a_beta_may_widen_the_context_and_with_it_the_bound() -> None:
    small = CATALOG.models["claude-sonnet-4-5-20250929"]
    assert largest_context(small, ()) == 200_000
    assert largest_context(small, ("context-1m-2025-08-07",)) == 1_000_000


@given(
    kinds=st.tuples(*[st.integers(0, 300_000)] * 4),
    rates=st.tuples(*[st.integers(0, 10**11)] * 5),
    tier=st.integers(1, 400_000),
    ttl=st.sampled_from(["5m", "1h"]),
)
def test_no_mixture_of_kinds_costs_more_than_the_bound(
    kinds: tuple[int, ...], rates: tuple[int, ...], tier: int, ttl: str
) -> None:
    tiers = [Rate(rate, ((tier, rate * 2),)) for rate in rates]
    price = Price("m", "operator", *tiers)
    mark = {"type": "ephemeral", "ttl": ttl}
    request = {"messages": [{"role": "user", "content": [{"type": "text", "cache_control": mark}]}]}
    uncached, short, long, read = kinds
    used = Usage(uncached, 0, short, long if ttl == "1h" else 0, read)
    bound = input_nanos_bound(request, price, sum(kinds))
    assert price.cost_nanos(used) <= bound
    output_nanos = -(-700 * price.dearest_output_rate(sum(kinds)) // 1_000_000)
    assert price.cost_nanos(replace(used, output_tokens=700)) <= bound + output_nanos


# --- how a call is lowered --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paid", "thinking", "expected"),
    [
        (10_000, {"type": "enabled", "budget_tokens": 4_000}, 4_000),
        (4_000, {"type": "enabled", "budget_tokens": 4_000}, 3_000),
        (1_366, {"type": "enabled", "budget_tokens": 4_000}, 1_024),
        (1_365, {"type": "enabled", "budget_tokens": 4_000}, None),
        (64, {"type": "enabled", "budget_tokens": 1_024}, None),
    ],
)
async def test_thinking_is_lowered_or_dropped_with_the_output(
    paid: int, thinking: dict[str, Any], expected: int | None
) -> None:
    answers = Answers([start(), end(output_tokens=9), STOP])
    request = {**REQUEST, "max_tokens": 36_000, "thinking": thinking}
    await call(answers, Purse(tokens=paid), request)
    [sent] = answers.requests
    assert sent["max_tokens"] == paid
    assert sent.get("thinking", {}).get("budget_tokens") == expected
    assert request["thinking"] is thinking


async def test_thinking_without_a_budget_stays_as_it_is() -> None:
    answers = Answers([start(), end(output_tokens=9), STOP])
    adaptive = {"type": "adaptive", "display": "summarized"}
    await call(answers, Purse(tokens=64), {**REQUEST, "thinking": adaptive})
    assert answers.requests[0]["thinking"] == adaptive


async def test_an_answer_that_our_limit_cuts_short_says_so_and_is_charged() -> None:
    purse = Purse(tokens=64)
    with pytest.raises(CutShortError) as caught:
        await call(Answers([start(), end("max_tokens", output_tokens=64), STOP]), purse)
    assert caught.value.reason == "user_budget_exhausted"
    assert purse.charges == [Charge(Usage(10, 64), 660_000)]


async def test_an_answer_that_ends_at_what_was_asked_for_is_an_answer() -> None:
    purse = await call(Answers([start(), end("max_tokens", output_tokens=1_000), STOP]))
    assert purse.charges[0].usage.output_tokens == 1_000


# --- what has no price ------------------------------------------------------------------------

TEXT = {"type": "text", "text": "Hi"}


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("request_part", "named"),
    [
        ({"service_tier": "auto"}, "service_tier"),
        ({"speed": "fast"}, "speed"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"context_management": {}}, "context_management"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [{"type": "code_execution_20250825", "name": "x"}]}, "code_execution_20250825"),
        ({"tools": [{"type": None, "name": "x"}]}, "None"),
        (user({"type": "server_tool_use"}), "server_tool_use"),
        (user({"type": "container_upload"}), "container_upload"),
        (user({"type": "image", "source": {"type": "url", "url": "x"}}), "url"),
        (user({"type": "document", "source": {"type": "file", "file_id": "x"}}), "file"),
        (user({"type": "tool_result", "content": [{"type": "search_result"}]}), "search_result"),
        (
            user(
                {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url"}}]}
            ),
            "url",
        ),
    ],
)
async def test_what_cannot_be_priced_is_refused_by_name(
    request_part: dict[str, Any], named: str
) -> None:
    answers, purse = Answers(), Purse()
    with pytest.raises(ValidationError) as caught:
        await call(answers, purse, {**REQUEST, **request_part})
    assert caught.value.reason == "not_priceable"
    assert named in caught.value.message
    assert not answers.requests
    assert not purse.quotes


def test_what_engines_ask_for_can_be_priced() -> None:
    check_priceable(
        {
            **REQUEST,
            **user(TEXT, {"type": "tool_result", "content": [TEXT, image("AAAA")]}),
            "system": [TEXT],
            "tools": [{"name": "t", "input_schema": {}}, {"type": "custom", "name": "u"}],
            "thinking": {"type": "adaptive"},
            "output_config": {},
            "metadata": {},
        }
    )


# Its name begins like that of a model with a price.
BOGUS = replace(
    CATALOG.models["claude-sonnet-4-5-20250929"], id="claude-sonnet-4-5-bogus", price=None
)


async def test_a_model_without_a_price_is_refused_before_anything_is_held() -> None:
    answers, purse = Answers(), Purse()
    with pytest.raises(ValidationError) as caught:
        await call(answers, purse, {**REQUEST, "model": BOGUS.id}, model=BOGUS)
    assert caught.value.reason == "model_without_price"
    assert not answers.requests
    assert not purse.quotes
