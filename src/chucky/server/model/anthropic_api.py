"""Model calls through the ``anthropic`` package; the only module that imports it."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from typing import Any

import anthropic
import httpx2  # the HTTP client of the anthropic package

from chucky.errors import ChuckyError
from chucky.jsontext import write_json
from chucky.server.model.providers import ANTHROPIC_URL, ProviderSettings
from chucky.server.model.sse import server_sent_events
from chucky.server.model.upstream import UpstreamError

logger = logging.getLogger("chucky.server")

# The time between two events may be long while a model thinks; the API sends pings meanwhile.
_TIMEOUT = httpx2.Timeout(connect=10.0, read=120.0, write=60.0, pool=60.0)

_LONGEST_QUOTE = 500

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

# The API's error types, for errors that come in the middle of a stream and so without a status.
_STATUS_BY_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
    # Bedrock's.
    "modelTimeoutException": 408,
    "serviceUnavailableException": 503,
    "throttlingException": 429,
    "validationException": 400,
}

# HTTP status -> (reason, what it means to the reader). Other 4xx are rejections, 5xx are faults.
_MEANING_BY_STATUS = {
    401: ("provider_key_refused", "The model provider refused this server's key"),
    402: ("provider_billing", "The model provider reports a billing problem of this server's key"),
    403: ("provider_forbidden", "This server's key may not make this model call"),
    404: ("model_not_found", "The model provider does not know what was asked for"),
    408: ("model_timeout", "The model took too long"),
    409: ("model_conflict", "The model provider reports a conflict"),
    413: ("request_too_large", "The conversation is too large for the model"),
    429: ("model_rate_limited", "The model provider limits this server's rate"),
    529: ("model_overloaded", "The model is overloaded"),
}
# How the API's 400 begins when a request does not fit the model's window: it has no type of its
# own.
_SAID_OF_LONG_PROMPTS = ("prompt is too long", "input length and `max_tokens` exceed")
_RETRYABLE_STATUS = frozenset({408, 409, 429})
_REJECTING_STATUS = frozenset({400, 413, 422})


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
    http = anthropic.DefaultAsyncHttpxClient(timeout=_TIMEOUT)
    client = anthropic.AsyncAnthropic(
        # Servers of other vendors mostly want no key, but the header must be there.
        api_key=provider.api_key or "none",
        base_url=provider.base_url or ANTHROPIC_URL,
        max_retries=0,
        timeout=_TIMEOUT,
        http_client=http,
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
        self, client: _Client, provider: ProviderSettings, http: httpx2.AsyncClient | None = None
    ) -> None:
        """Take over a client of the package.

        Args:
            client: Knows the address and the credentials.
            provider: What it was made from.
            http: The client's own HTTP client, if calls need nothing but a key and so can be made
                without the package, which takes half as much time again for each.
        """
        self._client = client
        self._provider = provider
        self._http = http

    @asynccontextmanager
    async def stream(
        self, request: Mapping[str, Any], betas: Sequence[str] = ()
    ) -> AsyncIterator[AsyncIterator[str]]:
        """Make a call; see :class:`~chucky.server.model.upstream.Upstream`."""
        body = {**request, "stream": True}
        headers = {"anthropic-beta": ",".join(betas)} if betas else {}
        with _own_errors(), self._own_credential_errors():
            if self._http is not None:
                async with self._call(self._http, body, headers) as response:
                    yield _events(response)
                return
            # `messages.create` would warn about models that are retired some day, which is the
            # model table's business here, and convert a request that is in its final form.
            stream = await self._client.post(
                "/v1/messages",
                cast_to=object,
                body=body,
                options={"headers": headers},
                stream=True,
                stream_cls=anthropic.AsyncStream[object],
            )
            async with stream:
                # Bedrock's stream is binary; only the package's own iteration decodes it.
                is_binary = self._provider.kind == "bedrock"
                yield _decoded_events(stream) if is_binary else _events(stream.response)

    @asynccontextmanager
    async def _call(
        self, http: httpx2.AsyncClient, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AsyncIterator[httpx2.Response]:
        url = self._client.base_url.join("v1/messages")
        async with http.stream(
            "POST", url, json=body, headers={**self._default_headers, **headers}
        ) as response:
            if not response.is_success:
                await response.aread()
                raise _status_error(response, _read_or_none(response.text))
            yield response

    @cached_property
    def _default_headers(self) -> dict[str, str]:
        named = self._client.default_headers.items()
        return {name: value for name, value in named if isinstance(value, str)}

    async def count_tokens(self, request: Mapping[str, Any]) -> int | None:
        """Count the input; see :class:`~chucky.server.model.upstream.Upstream`."""
        if self._provider.kind == "bedrock":
            return None  # there is no such call at Bedrock
        body = {name: request[name] for name in _COUNTED_FIELDS if name in request}
        with _own_errors(), self._own_credential_errors():
            counted = await self._client.post(
                "/v1/messages/count_tokens", cast_to=object, body=body
            )
        tokens = counted.get("input_tokens") if isinstance(counted, dict) else None
        return tokens if isinstance(tokens, int) else None

    async def close(self) -> None:
        """Let go of connections."""
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
    with _own_errors():
        async for event in stream:
            yield write_json(event)


async def _events(response: httpx2.Response) -> AsyncIterator[str]:
    """The events as text: parsed by whoever needs it, and relayed as they are."""
    has_begun = False
    with _own_errors():
        async for name, data in server_sent_events(response.aiter_bytes()):
            if name == "error":
                error = _stream_error(_read_or_none(data))
                error.is_free = not has_begun
                raise error
            has_begun = True
            if name != "ping":
                yield data


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except anthropic.APIStatusError as error:
        # In the middle of a stream the status is that of its beginning.
        in_stream = error.status_code < 400
        if in_stream:
            raise _stream_error(error.body) from error
        raise _status_error(error.response, error.body) from error
    except (anthropic.APITimeoutError, httpx2.TimeoutException) as error:
        cause = error.__cause__ if isinstance(error, anthropic.APITimeoutError) else error
        raise UpstreamError(
            "The model did not answer in time.",
            reason="model_timeout",
            retryable=True,
            is_free=isinstance(cause, httpx2.ConnectTimeout | httpx2.PoolTimeout),
        ) from error
    except (anthropic.APIConnectionError, httpx2.RequestError) as error:
        cause = error.__cause__ if isinstance(error, anthropic.APIConnectionError) else error
        raise UpstreamError(
            "The connection to the model failed.",
            reason="model_unreachable",
            retryable=True,
            is_free=isinstance(cause, httpx2.ConnectError),
        ) from error
    except anthropic.AnthropicError as error:
        raise UpstreamError(
            f"The model call could not be made: {error}", reason="model_call_invalid", is_free=True
        ) from error


def _status_error(response: httpx2.Response, body: object) -> UpstreamError:
    refusal = _error(
        response.status_code,
        _quote(body) or f"HTTP {response.status_code}",
        _seconds(response.headers.get("retry-after")),
    )
    refusal.is_free = (
        True  # https://platform.claude.com/docs/en/api/errors: only answers are billed
    )
    return refusal


def _stream_error(body: object) -> UpstreamError:
    inner = body.get("error") if isinstance(body, dict) else None
    kind = inner.get("type") if isinstance(inner, dict) else None
    return _error(_STATUS_BY_TYPE.get(str(kind), 500), _quote(body) or "no details given", None)


def _read_or_none(data: str) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _error(status: int, said: str, retry_after_seconds: float | None) -> UpstreamError:
    if status == 400 and said.startswith(_SAID_OF_LONG_PROMPTS):
        default = (
            "context_window_exceeded",
            "The conversation does not fit the model's context; send less at once, have tools "
            "return less, or start a new session",
        )
    elif status >= 500:
        default = ("model_error", "The model provider had an internal error")
    else:
        default = ("model_rejected_request", "The model provider rejected the request")
    reason, meaning = _MEANING_BY_STATUS.get(status, default)
    # What a provider says about a refused key is for the operator and not for end users.
    detail = "" if status in (401, 402, 403) else f": {said[:_LONGEST_QUOTE]}"
    return UpstreamError(
        f"{meaning}{detail.rstrip('.')}.",
        reason=reason,
        retryable=status in _RETRYABLE_STATUS or status >= 500,
        rejected=status in _REJECTING_STATUS,
        retry_after_seconds=retry_after_seconds,
    )


def _quote(body: object) -> str:
    """The provider's own sentence out of an error body."""
    inner = body.get("error") if isinstance(body, dict) else None
    said = inner.get("message") if isinstance(inner, dict) else None
    return said if isinstance(said, str) else ""


def _seconds(header: str | None) -> float | None:
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < 3600 else None
