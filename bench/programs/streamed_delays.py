"""Worker: reads many paced streams at once and measures how late each event comes.

Asked with ``streams`` and either ``url`` and ``token`` (through the server, with our client) or
``base_url`` (directly, with the ``anthropic`` client), it answers with ``milliseconds``: for each
event from its being sent by the provider to its being in the application's hands. Only the time in
which all streams ran counts. The provider writes the moment into each event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from anthropic import AsyncAnthropic

from bench.worker import MODEL, work
from chucky import Chucky

_SECONDS = 60

Stream = Callable[[], AsyncIterator[str]]


async def through_server(client: Chucky) -> AsyncIterator[str]:
    """The texts of the deltas of one answer, relayed by the server."""
    async with client.create_session() as session:
        await session.send("Go.")
        async for message in session.stream():
            if message["type"] == "stream_event":
                event = message["event"]
                if event["type"] == "content_block_delta":
                    yield event["delta"]["text"]


async def directly(client: AsyncAnthropic) -> AsyncIterator[str]:
    """The texts of the deltas of one answer, from the provider itself."""
    stream = await client.messages.create(
        model=MODEL,
        max_tokens=32_000,
        messages=[{"role": "user", "content": "Go."}],
        stream=True,
    )
    async for event in stream:
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            yield event.delta.text


async def delays_ms(stream: Stream, streams: int) -> list[float]:
    """Read so many streams at once and say how late their events were."""
    seen: list[list[tuple[int, int]]] = [[] for _ in range(streams)]

    async def read(events: list[tuple[int, int]]) -> None:
        async for sent_at in stream():
            events.append((int(sent_at), time.monotonic_ns()))

    async with asyncio.TaskGroup() as tasks:
        for events in seen:
            tasks.create_task(read(events))
    all_began = max(events[0][0] for events in seen)
    first_ended = min(events[-1][0] for events in seen)
    delays = [
        (arrived - sent) / 1e6
        for events in seen
        for sent, arrived in events
        if all_began <= sent <= first_ended
    ]
    assert delays, "the streams were never all there at once"
    return delays


async def run(given: dict[str, Any]) -> dict[str, Any]:
    """Do what the worker is asked for."""
    async with asyncio.timeout(_SECONDS):
        if "url" in given:
            client = Chucky(
                given["token"], given["url"], model=MODEL, include_partial_messages=True
            )
            async with client:
                delays = await delays_ms(lambda: through_server(client), given["streams"])
        else:
            direct = AsyncAnthropic(base_url=given["base_url"], api_key="none", max_retries=0)
            async with direct:
                delays = await delays_ms(lambda: directly(direct), given["streams"])
    return {"milliseconds": delays}


if __name__ == "__main__":
    work(run)
