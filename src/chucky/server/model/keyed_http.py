"""Streams of the Messages API for those who pay with a key; the only module that imports aiohttp.

The HTTP client of the ``anthropic`` package takes three times the processor time for a call, which
is half of all that a server has to do for a turn.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from ssl import SSLContext
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from chucky.server.model.provider_errors import late, read_or_none, status_error, unreachable
from chucky.server.model.upstream import ModelRequest, UpstreamError

# The time between two events may be long while a model thinks; the API sends pings meanwhile.
_SECONDS_BETWEEN_EVENTS = 120.0
# A connection is made in the first; the second is the wait for one of them, should all be in use.
_CONNECT_SECONDS = 10.0
_POOL_SECONDS = 60.0
# Until an answer begins. aiohttp limits no other part of it while the request is being written.
_ANSWER_SECONDS = 240.0
_MOST_CONNECTIONS = 1_000
_KEEP_ALIVE_SECONDS = 15.0


class KeyedHttp:
    """Calls to one address. Connections are made when they are needed and kept for a while."""

    def __init__(self, url: str, headers: Mapping[str, str], tls: SSLContext) -> None:
        """Prepare; nothing is connected yet.

        Args:
            url: The whole address of the call.
            headers: What each call is sent with; the key is among them.
            tls: Which certificates are trusted.
        """
        self._url = URL(url, encoded=True)
        self._headers = headers
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None  # made on the event loop

    @asynccontextmanager
    async def stream(
        self, request: ModelRequest, headers: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Make a call; the context yields the answer's body.

        Raises:
            UpstreamError: On entering or while iterating.
        """
        request.is_unsent = True
        with _own_errors():
            async with asyncio.timeout(_ANSWER_SECONDS):
                # A redirection is not followed: it would take the key elsewhere.
                response = await self._opened().post(
                    self._url,
                    data=io.BytesIO(request.body),  # written piece by piece
                    headers={**self._headers, **headers},
                    allow_redirects=False,
                    trace_request_ctx=request,
                )
        async with response:
            if not 200 <= response.status < 300:
                raise await _refusal(response)
            yield _chunks(response)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=self._tls, limit=_MOST_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE_SECONDS
                ),
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=_CONNECT_SECONDS + _POOL_SECONDS,
                    sock_connect=_CONNECT_SECONDS,
                    sock_read=_SECONDS_BETWEEN_EVENTS,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[_noting_what_is_sent()],
                proxy=_proxy_for(self._url),
            )
        return self._session

    async def close(self) -> None:
        """Let go of connections."""
        if self._session is not None:
            await self._session.close()


def _noting_what_is_sent() -> aiohttp.TraceConfig:
    async def note(_session: object, context: Any, _headers: object) -> None:
        context.trace_request_ctx.is_unsent = False

    tracing = aiohttp.TraceConfig()
    tracing.on_request_headers_sent.append(note)  # called before the first byte goes out
    return tracing


def _proxy_for(url: URL) -> str | None:
    """The proxy that the environment names; aiohttp would look for it anew with each call."""
    if url.host is None or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    return proxies.get(url.scheme, proxies.get("all"))


async def _refusal(response: aiohttp.ClientResponse) -> UpstreamError:
    with _own_errors():
        body = read_or_none(await response.read())
    return status_error(response.status, body, response.headers.get("retry-after"))


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    with _own_errors():
        async for chunk in response.content.iter_any():
            yield chunk


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    # What was not sent is free: there was no connection.
    except aiohttp.ConnectionTimeoutError as error:
        raise late(is_free=True) from error
    except aiohttp.ClientConnectorError as error:
        raise unreachable(is_free=True) from error
    except TimeoutError as error:
        raise late(is_free=False) from error
    except (aiohttp.ClientError, OSError) as error:
        raise unreachable(is_free=False) from error
