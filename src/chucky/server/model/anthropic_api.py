"""Model calls through the ``anthropic`` package; the only module that imports it."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anthropic
import httpx2  # the HTTP client of the anthropic package

from chucky.errors import ChuckyError
from chucky.jsontext import with_whole_characters
from chucky.server.model.keyed_http import KeyedHttp
from chucky.server.model.provider_errors import (
    late,
    read_or_none,
    status_error,
    stream_error,
    unreachable,
)
from chucky.server.model.providers import ANTHROPIC_URL, ProviderSettings
from chucky.server.model.sse import server_sent_events
from chucky.server.model.upstream import ModelRequest, UpstreamError

logger = logging.getLogger("chucky.server")

# The time between two events may be long while a model thinks; the API sends pings meanwhile.
_TIMEOUT = httpx2.Timeout(connect=10.0, read=120.0, write=60.0, pool=60.0)

# What `count_tokens` takes of a request.
_COUNTED_FIELDS = (
    "model",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
)

_Client = (
    anthropic.AsyncAnthropic | anthropic.AsyncAnthropicBedrock | anthropic.AsyncAnthropicVertex
)


def open_upstream(provider: ProviderSettings) -> AnthropicUpstream:
    """Prepare calls to a provider; nothing is connected yet. Blocks while packages load.

    Raises:
        ChuckyError: A package is missing; the sentence says how to install it.
    """
    try:
        if provider.kind == "anthropic":
            return _direct_upstream(provider)
        return AnthropicUpstream(_CLIENTS[provider.kind](provider), provider)
    except ImportError:
        raise UpstreamError(
            f"The provider {provider.name!r} needs packages that are not installed on this server: "
            f"its operator installs the extra '{provider.kind}'.",
            reason="provider_not_installed",
        ) from None


def _direct_upstream(provider: ProviderSettings) -> AnthropicUpstream:
    tls = httpx2.create_ssl_context()
    client = anthropic.AsyncAnthropic(
        # Servers of other vendors mostly want no key, but the header must be there.
        api_key=provider.api_key or "none",
        base_url=provider.base_url or ANTHROPIC_URL,
        max_retries=0,
        timeout=_TIMEOUT,
        http_client=anthropic.DefaultAsyncHttpxClient(verify=tls, timeout=_TIMEOUT),
    )
    named = client.default_headers.items()
    http = KeyedHttp(
        str(client.base_url.join("v1/messages")),
        {name: value for name, value in named if isinstance(value, str)},
        tls,
    )
    return AnthropicUpstream(client, provider, http)


def _bedrock_client(provider: ProviderSettings) -> _Client:
    importlib.import_module("boto3")
    # The package reads this description of AWS's with the first event it decodes, which would be
    # on the event loop.
    importlib.import_module("anthropic.lib.bedrock._stream_decoder").get_response_stream_shape()
    return anthropic.AsyncAnthropicBedrock(
        aws_region=provider.region,
        aws_profile=provider.profile,
        aws_access_key=provider.access_key,
        aws_secret_key=provider.secret_key,
        aws_session_token=provider.session_token,
        api_key=provider.api_key,
        base_url=provider.base_url,
        max_retries=0,
        timeout=_TIMEOUT,
    )


def _vertex_client(provider: ProviderSettings) -> _Client:
    importlib.import_module("google.auth")  # that it is missing would only show with a call
    return anthropic.AsyncAnthropicVertex(
        region=provider.region or "",
        project_id=provider.project or "",
        access_token=provider.access_token,
        base_url=provider.base_url,
        max_retries=0,
        timeout=_TIMEOUT,
    )


_CLIENTS: dict[str, Callable[[ProviderSettings], _Client]] = {
    "bedrock": _bedrock_client,
    "vertex": _vertex_client,
}


class AnthropicUpstream:
    """The Messages API at Anthropic, in a cloud, or at any address that speaks it."""

    def __init__(
        self, client: _Client, provider: ProviderSettings, http: KeyedHttp | None = None
    ) -> None:
        """Take over a client of the package.

        Args:
            client: Knows the address and the credentials.
            provider: What it was made from.
            http: Makes the calls that need nothing but a key.
        """
        self._client = client
        self._provider = provider
        self._http = http

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncIterator[AsyncIterator[str]]:
        """Make a call; see :class:`~chucky.server.model.upstream.Upstream`."""
        headers = {"anthropic-beta": ",".join(request.betas)} if request.betas else {}
        if self._http is not None:
            async with self._http.stream(request, headers) as chunks:
                yield _events(chunks)
            return
        with _own_errors(), self._own_credential_errors():
            # `messages.create` would warn about models that are retired some day, which is the
            # model table's business here, and convert a request that is in its final form.
            stream = await self._client.post(
                "/v1/messages",
                cast_to=object,
                body={**request.fields, "stream": True},
                options={"headers": headers},
                stream=True,
                stream_cls=anthropic.AsyncStream[object],
            )
            async with stream:
                # Bedrock's stream is binary; only the package's own iteration decodes it.
                is_binary = self._provider.kind == "bedrock"
                chunks = stream.response.aiter_bytes()
                yield _decoded_events(stream) if is_binary else _events(chunks)

    async def count_tokens(self, request: ModelRequest) -> int | None:
        """Count the input; see :class:`~chucky.server.model.upstream.Upstream`."""
        if self._provider.kind == "bedrock":
            return None  # there is no such call at Bedrock
        body = {name: value for name, value in request.fields.items() if name in _COUNTED_FIELDS}
        with _own_errors(), self._own_credential_errors():
            counted = await self._client.post(
                "/v1/messages/count_tokens", cast_to=object, body=body
            )
        tokens = counted.get("input_tokens") if isinstance(counted, dict) else None
        return tokens if isinstance(tokens, int) else None

    async def close(self) -> None:
        """Let go of connections."""
        if self._http is not None:
            await self._http.close()
        await self._client.close()

    @contextmanager
    def _own_credential_errors(self) -> Iterator[None]:
        """Turn what the packages of the clouds raise while they look for credentials."""
        try:
            yield
        except (anthropic.AnthropicError, httpx2.HTTPError, ChuckyError):
            raise
        except Exception as error:
            # They have dozens of classes without a common base. What they say is for the log.
            logger.warning("provider %s: %s: %s", self._provider.name, type(error).__name__, error)
            raise UpstreamError(
                f"The credentials of the provider {self._provider.name!r} cannot be used: the "
                f"server's operator checks [providers.{self._provider.name}]; the log says more.",
                reason="provider_credentials",
                is_free=True,
            ) from None


async def _decoded_events(stream: anthropic.AsyncStream[object]) -> AsyncIterator[str]:
    async for event in stream:
        yield with_whole_characters(json.dumps(event))


async def _events(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """The events as text: parsed by whoever needs it, and relayed as they are."""
    has_begun = False
    async for name, data in server_sent_events(chunks):
        if name == "error":
            error = stream_error(read_or_none(data))
            error.is_free = not has_begun
            raise error
        has_begun = True
        if name != "ping":
            yield with_whole_characters(data)


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except anthropic.APIStatusError as error:
        # In the middle of a stream the status is that of its beginning.
        if error.status_code < 400:
            raise stream_error(error.body) from error
        retry_after = error.response.headers.get("retry-after")
        raise status_error(error.status_code, error.body, retry_after) from error
    except (anthropic.APITimeoutError, httpx2.TimeoutException) as error:
        cause = error.__cause__ if isinstance(error, anthropic.APITimeoutError) else error
        raise late(is_free=isinstance(cause, httpx2.ConnectTimeout | httpx2.PoolTimeout)) from error
    except (anthropic.APIConnectionError, httpx2.RequestError) as error:
        cause = error.__cause__ if isinstance(error, anthropic.APIConnectionError) else error
        raise unreachable(is_free=isinstance(cause, httpx2.ConnectError)) from error
    except anthropic.AnthropicError as error:
        raise UpstreamError(
            f"The model call could not be made: {error}", reason="model_call_invalid", is_free=True
        ) from error
