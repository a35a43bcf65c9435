"""The way to the model a server was set up for, opened while the server already listens.

The packages of the model's side take longer to load than all else together, and the first call
comes after the first connection. So loading goes on beside the listening, and a call that comes
earlier waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from chucky.server.model.catalog import Catalog, Model
from chucky.server.model.gate import Provider
from chucky.server.model.providers import Providers, ProviderSettings
from chucky.server.model.upstream import Upstream
from chucky.server.settings import Settings

OFFLINE_NOTICE = (
    "The offline model answers: no provider key is set. Set ANTHROPIC_API_KEY for answers of "
    "Claude."
)

FindKey = Callable[[str, str], str | None]
"""Gives the key a project has for a provider: ``find_key(project_id, provider)``."""


@contextlib.asynccontextmanager
async def opening_provider(
    settings: Settings, providers: Providers, catalog: Catalog, find_key: FindKey
) -> AsyncIterator[asyncio.Task[Provider]]:
    """Yield the task that opens the provider; it is closed at the end.

    Prices of the operator's own are read before this returns, so that a fault in them ends the
    start and not the first turn.

    Raises:
        ValidationError: A price is wrong.
    """
    async with contextlib.AsyncExitStack() as stack:
        opening = asyncio.create_task(_open(settings, providers, catalog, find_key, stack))
        try:
            if settings.prices:
                await asyncio.shield(opening)
            yield opening
        finally:
            await asyncio.wait([opening])


async def _open(
    settings: Settings,
    providers: Providers,
    catalog: Catalog,
    find_key: FindKey,
    stack: contextlib.AsyncExitStack,
) -> Provider:
    offline_url = None
    if providers.is_offline:
        offline_url = await stack.enter_async_context(_offline_model())
    upstreams = _Upstreams(providers, find_key, offline_url)
    stack.push_async_callback(upstreams.close)
    return await asyncio.to_thread(_load, settings, catalog, upstreams)


def _load(settings: Settings, catalog: Catalog, upstreams: _Upstreams) -> Provider:
    from chucky.server.model.pricing import PriceTable

    upstreams.open_default()
    return Provider(upstreams, PriceTable(catalog, settings.prices))


class _Upstreams:
    """The ways to the providers, each opened when it is first needed."""

    def __init__(self, providers: Providers, find_key: FindKey, offline_url: str | None) -> None:
        self._providers = providers
        self._find_key = find_key
        self._offline_url = offline_url
        self._opening = asyncio.Lock()
        # One for each provider and key. Operators set keys, so there are never many.
        self._opened: dict[tuple[str, str | None], Upstream] = {}

    def open_default(self) -> None:
        """Open what most calls will need. Blocks for as long as packages take to load."""
        default = self._providers.default
        if default.is_usable or self._offline_url is not None:
            self._opened[(default.name, None)] = self._open(default, None)

    async def upstream_for(self, model: Model, project_id: str) -> Upstream:
        """See :class:`~chucky.server.model.upstream.Upstreams`."""
        key = self._find_key(project_id, model.provider)
        self._providers.serves_offline(model, key)  # refuses a provider without credentials
        name = (model.provider, key)
        if name not in self._opened:
            async with self._opening:
                if name not in self._opened:
                    settings = self._providers.by_name[model.provider]
                    self._opened[name] = await asyncio.to_thread(self._open, settings, key)
        return self._opened[name]

    def _open(self, settings: ProviderSettings, key: str | None) -> Upstream:
        # Loading the package takes longer than all else at start.
        from chucky.server.model.anthropic_api import open_upstream

        if key is None and not settings.is_usable:
            return open_upstream(replace(settings, base_url=self._offline_url))
        return open_upstream(settings if key is None else replace(settings, api_key=key))

    async def close(self) -> None:
        """Close them all."""
        for upstream in self._opened.values():
            await upstream.close()


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
