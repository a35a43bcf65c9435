"""The way to the model a server was set up for, opened while the server already listens.

The packages of the model's side take longer to load than all else together, and the first call
comes after the first connection. So loading goes on beside the listening, and a call that comes
earlier waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from chucky.server.model.catalog import Catalog
from chucky.server.model.gate import Provider
from chucky.server.settings import Settings

ANTHROPIC_URL = "https://api.anthropic.com"
OFFLINE_NOTICE = (
    "The offline model answers: no provider key is set. Set ANTHROPIC_API_KEY for answers of "
    "Claude."
)


def model_notice(settings: Settings) -> str | None:
    """The sentence that says that the offline model answers, if it does."""
    return OFFLINE_NOTICE if _is_offline(settings) else None


@contextlib.asynccontextmanager
async def opening_provider(
    settings: Settings, catalog: Catalog
) -> AsyncIterator[asyncio.Task[Provider]]:
    """Yield the task that opens the provider; it is closed at the end.

    Prices of the operator's own are read before this returns, so that a fault in them ends the
    start and not the first turn.

    Raises:
        ValidationError: A price is wrong.
    """
    async with contextlib.AsyncExitStack() as stack:
        opening = asyncio.create_task(_open(settings, catalog, stack))
        try:
            if settings.prices:
                await asyncio.shield(opening)
            yield opening
        finally:
            await asyncio.wait([opening])


async def _open(settings: Settings, catalog: Catalog, stack: contextlib.AsyncExitStack) -> Provider:
    url = settings.upstream_url or ANTHROPIC_URL
    if _is_offline(settings):
        url = await stack.enter_async_context(_offline_model())
    provider = await asyncio.to_thread(_load, settings, catalog, url)
    stack.push_async_callback(provider.upstream.close)
    return provider


def _load(settings: Settings, catalog: Catalog, url: str) -> Provider:
    from chucky.server.model.anthropic_api import AnthropicUpstream
    from chucky.server.model.pricing import PriceTable

    # Servers of other vendors mostly want no key, but the header must be there.
    upstream = AnthropicUpstream(api_key=settings.anthropic_api_key or "none", base_url=url)
    return Provider(upstream, PriceTable(catalog, settings.prices))


def _is_offline(settings: Settings) -> bool:
    return settings.anthropic_api_key is None and settings.upstream_url is None


@contextlib.asynccontextmanager
async def _offline_model() -> AsyncIterator[str]:
    """Run the offline model on a free port of this machine, and say where."""
    serve = await asyncio.to_thread(_load_offline_model)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve("127.0.0.1", 0, ready=port.set_result))
    try:
        either: list[asyncio.Future[Any]] = [port, serving]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        yield f"http://127.0.0.1:{port.result()}"
    finally:
        serving.cancel()
        await asyncio.wait([serving])


def _load_offline_model() -> Any:
    from chucky.offline.app import serve

    return serve
