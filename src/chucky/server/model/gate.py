"""The one gate to a model: every model call of every engine goes through it.

It makes one call, once, and counts what the call really used. Whether a failed call is made
again is its caller's decision; each attempt is a call of its own here, with its own cost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from chucky.server.model.catalog import Model
from chucky.server.model.events import Event
from chucky.server.model.meter import Meter
from chucky.server.model.pricing import PriceTable, Usage, merge_usage
from chucky.server.model.upstream import UpstreamError, Upstreams

# How many characters of output make a token, where the provider did not live to say: rather too
# few, so that an interrupted answer is not counted too low.
_CHARACTERS_PER_TOKEN = 3


@dataclass(slots=True)
class _Count:
    """What one call has used so far."""

    reported: dict[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    characters: int = 0
    complete: bool = False

    def take(self, event: Event) -> None:
        if event.delta is not None:
            self.characters += len(event.delta.piece)
            return
        match event.fields:
            case {"type": "message_start", "message": {"usage": dict(usage)}}:
                self._report(usage)
            case {"type": "content_block_delta", "delta": dict(delta)}:
                self.characters += sum(len(v) for k, v in delta.items() if _is_output(k, v))
            case {"type": "message_delta", "usage": dict(usage)}:
                self._report(usage)
            case {"type": "message_stop"}:
                self.complete = True

    def _report(self, usage: dict[str, Any]) -> None:
        self.reported = merge_usage(self.reported, usage)
        try:
            self.usage = Usage.from_api(self.reported)
        except ValueError as error:
            raise UpstreamError(
                f"The model's stream reported a usage that makes no sense ({error}).",
                reason="model_stream_malformed",
            ) from error

    def total(self) -> Usage:
        """The usage as reported, its output estimated if the stream was cut short."""
        if self.complete or not self.reported:
            return self.usage
        estimate = -(-self.characters // _CHARACTERS_PER_TOKEN)
        return replace(self.usage, output_tokens=max(estimate, self.usage.output_tokens))


@dataclass(frozen=True, slots=True)
class Provider:
    """Where model calls go, and what they cost there."""

    upstreams: Upstreams
    prices: PriceTable


class Gate:
    """Makes model calls and counts them."""

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
        project_id: str,
        betas: Sequence[str] = (),
    ) -> AsyncGenerator[Event, None]:
        """Call a model and yield its stream's events.

        Whatever way it ends, by the end of the stream, an error or the reader leaving, the
        tokens used until then are priced and added to ``meter``.

        Args:
            model: The model; ``request`` must name it.
            request: The body of the Messages API, without ``stream``.
            meter: Where usage and cost are added.
            project_id: Whose call it is; a project may have a provider key of its own.
            betas: Beta features of the provider that this call uses.

        Raises:
            ValidationError: The model has no price, or its provider no credentials; nothing was
                sent.
            UpstreamError: The call failed, or its stream broke off.
        """
        # Shielded: a turn that is interrupted while it waits must not end the loading.
        provider = await asyncio.shield(self._provider)
        price = provider.prices.price_of(model, self._clock())
        upstream = await provider.upstreams.upstream_for(model, project_id)
        if model.provider_model is not None:
            request = {**request, "model": model.provider_model}
        count = _Count()
        started_at = time.monotonic_ns()
        try:
            async with upstream.stream(request, betas) as events:
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
        finally:
            usage = count.total()
            meter.add(
                Meter(
                    usage=usage,
                    cost_nanos=price.cost_nanos(usage),
                    calls=int(count.complete),
                    api_ms=(time.monotonic_ns() - started_at) // 1_000_000,
                )
            )


def _is_output(key: str, value: object) -> bool:
    return key in ("text", "thinking", "partial_json") and isinstance(value, str)
