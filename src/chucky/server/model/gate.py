"""The one gate to a model: every model call of every engine goes through it.

It makes one call, once: takes one of the calls that the turn may make, reserves what it may cost,
makes it with no more output than is paid for, and settles what it really used. Whether a failed
call is made again is its caller's decision; each attempt is a call of its own here, with its own
cost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from chucky.server.model.allowed import check_priceable, unpriced_usage
from chucky.server.model.bounds import InputSize, input_nanos_bound, largest_context
from chucky.server.model.catalog import Model
from chucky.server.model.events import Event
from chucky.server.model.meter import Meter
from chucky.server.model.payment import Charge, CutShortError, Payer, Payment, Quote
from chucky.server.model.pricing import Price, PriceTable, Usage, merge_usage
from chucky.server.model.upstream import ModelRequest, Upstream, UpstreamError, Upstreams

logger = logging.getLogger("chucky.server")

# How many bytes of output make a token, where the provider did not live to say: rather too few, so
# that an interrupted answer is not counted too low.
_BYTES_PER_TOKEN = 3
# The least thinking the API accepts.
_LEAST_THINKING_TOKENS = 1_024


@dataclass(slots=True)
class _Count:
    """What one call has used so far.

    Attributes:
        usage: As the provider reported it; before that, what is known of the input.
        reported: Its report as it came.
        output_bytes: How much of the answer has arrived.
        stop_reason: Why the model stopped.
        is_final: Whether the report was made after the last of the answer.
        complete: Whether the stream came to its end.
        has_failed: Whether the model did not answer. An answer that its reader left is one.
    """

    usage: Usage
    reported: dict[str, Any] = field(default_factory=dict)
    output_bytes: int = 0
    stop_reason: str | None = None
    is_final: bool = False
    complete: bool = False
    has_failed: bool = False

    def take(self, event: Event) -> None:
        if event.delta is not None:
            self.output_bytes += _bytes(event.delta.piece)
            return
        match event.fields:
            case {"type": "message_start", "message": {"usage": dict(usage)}}:
                self._report(usage)
            case {"type": "content_block_delta", "delta": dict(delta)}:
                self.output_bytes += sum(_bytes(v) for k, v in delta.items() if _is_output(k, v))
            case {"type": "message_delta", **rest}:
                self._take_end(rest)
            case {"type": "message_stop"}:
                self.complete = True

    def _take_end(self, message_delta: dict[str, Any]) -> None:
        match message_delta:
            case {"delta": {"stop_reason": str(reason)}}:
                self.stop_reason = reason
        match message_delta:
            case {"usage": dict(usage)}:
                self._report(usage)
                self.is_final = self.stop_reason is not None and "input_tokens" in self.reported

    def _report(self, usage: dict[str, Any]) -> None:
        self.reported = merge_usage(self.reported, usage)
        known = {"input_tokens": self.usage.input_tokens, **self.reported}
        try:
            self.usage = Usage.from_api(known)
        except ValueError as error:
            raise UpstreamError(
                f"The model's stream reported a usage that makes no sense ({error}).",
                reason="model_stream_malformed",
            ) from error

    def total(self) -> Usage:
        """The usage as reported, its output estimated if no report was the last."""
        if self.is_final:
            return self.usage
        estimate = -(-self.output_bytes // _BYTES_PER_TOKEN)
        return replace(self.usage, output_tokens=max(estimate, self.usage.output_tokens))

    def charge(self, price: Price, held_nanos: int | None) -> Charge:
        """What is to be booked; an estimate is never more than what is held."""
        usage = self.total()
        nanos = price.cost_nanos(usage)
        if self.is_final:
            return Charge(usage, nanos, unpriced=unpriced_usage(self.reported))
        if held_nanos is not None:
            nanos = min(nanos, held_nanos)
        return Charge(usage, nanos, is_estimated=True)


@dataclass(frozen=True, slots=True)
class Provider:
    """Where model calls go, and what they cost there."""

    upstreams: Upstreams
    prices: PriceTable


class Gate:
    """Makes model calls and has them paid for."""

    def __init__(self, provider: asyncio.Future[Provider], clock: Callable[[], datetime]) -> None:
        """Make a gate; a call waits until the provider is there."""
        self._provider = provider
        self._clock = clock

    async def call(
        self,
        model: Model,
        request: Mapping[str, Any],
        meter: Meter,
        *,
        payer: Payer,
        project_id: str,
        betas: Sequence[str] = (),
        is_aside: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """Call a model and yield its stream's events.

        Whatever way it ends, by the end of the stream, an error or the reader leaving, the tokens
        used until then are priced, booked and added to ``meter``.

        Args:
            model: The model; ``request`` must name it.
            request: The body of the Messages API, without ``stream``.
            meter: Where usage is added.
            payer: Pays for it.
            project_id: Whose call it is; a project may have a provider key of its own.
            betas: Beta features of the provider that this call uses.
            is_aside: Whether it is made for the server's own sake: it gives back the call of the
                turn's that it took.

        Raises:
            ValidationError: The model or something in the request has no price, or the provider
                no credentials; nothing was sent.
            ChuckyError: The turn may make no more calls (``MAX_TURNS``); nothing was sent.
            BudgetExceededError: Too little money is left; nothing was sent.
            CutShortError: The answer ended where no more was paid for, after its last event.
            UpstreamError: The call failed, or its stream broke off.
        """
        # Shielded: a turn that is interrupted while it waits must not end the loading.
        provider = await asyncio.shield(self._provider)
        price = provider.prices.price_of(model, self._clock())
        check_priceable(request)
        upstream = await provider.upstreams.upstream_for(model, project_id)
        if model.provider_model is not None:
            request = {**request, "model": model.provider_model}
        wanted = ModelRequest(request, betas)
        payment, usage = await _reserve(payer, upstream, model, wanted, price)
        count = _Count(usage)
        paid = _within(wanted, payment.max_tokens)
        call = _paid_call(upstream, paid, count)
        started_at = time.monotonic_ns()
        try:
            payment.follow(lambda: count.charge(price, payment.held_nanos))
            with payer.calling():
                async with aclosing(call) as events:
                    async for event in events:
                        yield event
        except UpstreamError as error:
            count.usage = Usage() if error.is_free else count.usage
            count.has_failed = not count.complete
            raise
        finally:
            if paid.is_unsent:
                count.usage = Usage()
            charge = count.charge(price, payment.held_nanos)
            _end(payment, charge)
            if is_aside or count.has_failed:
                payer.allowance.give_back()
            meter.add(
                Meter(
                    usage=charge.usage,
                    calls=int(count.complete),
                    api_ms=(time.monotonic_ns() - started_at) // 1_000_000,
                )
            )
        if count.stop_reason == "max_tokens" and payment.max_tokens < request["max_tokens"]:
            why = payment.exhausted()
            raise CutShortError(str(why), reason=why.reason, details=why.details)


async def _paid_call(
    upstream: Upstream, request: ModelRequest, count: _Count
) -> AsyncGenerator[Event, None]:
    async with upstream.stream(request) as events:
        async for text in events:
            event = Event(text)
            count.take(event)
            yield event
    if not count.complete:
        raise UpstreamError(
            "The model's answer broke off before its end.",
            reason="model_stream_dropped",
            retryable=True,
        )


async def _reserve(
    payer: Payer, upstream: Upstream, model: Model, request: ModelRequest, price: Price
) -> tuple[Payment, Usage]:
    """Take one of the turn's calls, and hold what it may cost."""
    payer.allowance.take()
    try:
        return await _hold(payer, upstream, model, request, price)
    except BaseException:
        payer.allowance.give_back()
        raise


async def _hold(
    payer: Payer, upstream: Upstream, model: Model, request: ModelRequest, price: Price
) -> tuple[Payment, Usage]:
    """Hold what a call may cost; where a cheap look at the input is too dear, count it first."""
    size = InputSize.of(request)
    most_tokens = largest_context(model, request.betas)
    usage = Usage(input_tokens=size.estimate(most_tokens))
    bound = size.bound(most_tokens)
    payment = await payer.reserve(_quote(price, request.fields, bound, usage), is_final=False)
    if payment is not None:
        return payment, usage
    counted = await _counted(upstream, request)
    if counted is not None:
        bound = counted
        usage = Usage(input_tokens=counted)
    payment = await payer.reserve(_quote(price, request.fields, bound, usage), is_final=True)
    assert payment is not None, "a final quote is paid for or refused"
    return payment, usage


async def _counted(upstream: Upstream, request: ModelRequest) -> int | None:
    try:
        return await upstream.count_tokens(request)
    except UpstreamError as error:
        # Servers that speak the Messages API need not have this part of it.
        if error.reason != "model_not_found":
            raise
        return None


def _quote(price: Price, request: Mapping[str, Any], tokens: int, usage: Usage) -> Quote:
    return Quote(
        price=price,
        input_nanos=input_nanos_bound(request, price, tokens),
        output_rate=price.dearest_output_rate(tokens),
        max_tokens=request["max_tokens"],
        usage=usage,
    )


def _within(request: ModelRequest, max_tokens: int) -> ModelRequest:
    """The request with no more output than is paid for, and with thinking that leaves room."""
    if max_tokens >= request.fields["max_tokens"]:
        return request
    clamped = {**request.fields, "max_tokens": max_tokens}
    thinking = clamped.get("thinking") or {}
    if thinking.get("budget_tokens", 0) > max_tokens * 3 // 4:
        budget_tokens = max_tokens * 3 // 4
        if budget_tokens < _LEAST_THINKING_TOKENS:
            del clamped["thinking"]
        else:
            clamped["thinking"] = {**thinking, "budget_tokens": budget_tokens}
    return ModelRequest(clamped, request.betas)


def _end(payment: Payment, charge: Charge) -> None:
    if charge.unpriced:
        logger.error("a provider charges for what has no price here: %s", charge.unpriced)
    if charge.usage == Usage() and not charge.unpriced:
        payment.void()
    else:
        payment.settle(charge)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _is_output(key: str, value: object) -> bool:
    return key in ("text", "thinking", "partial_json") and isinstance(value, str)
