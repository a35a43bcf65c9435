"""What a provider's refusals and faults mean, whichever way it was called."""

from __future__ import annotations

import json

from chucky.server.model.upstream import UpstreamError

_LONGEST_QUOTE = 500

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


def status_error(status: int, body: object, retry_after: str | None) -> UpstreamError:
    """The error for an answer that is not a stream.

    Args:
        status: The HTTP status.
        body: The body as read from JSON; anything else if it was none.
        retry_after: The header of that name.
    """
    refusal = _error(status, _quote(body) or f"HTTP {status}", _seconds(retry_after))
    # https://platform.claude.com/docs/en/api/errors: only answers are billed
    refusal.is_free = True
    return refusal


def stream_error(body: object) -> UpstreamError:
    """The error for one that came as an event of a stream."""
    inner = body.get("error") if isinstance(body, dict) else None
    kind = inner.get("type") if isinstance(inner, dict) else None
    return _error(_STATUS_BY_TYPE.get(str(kind), 500), _quote(body) or "no details given", None)


def late(*, is_free: bool) -> UpstreamError:
    """The error for a provider that did not answer in time."""
    return UpstreamError(
        "The model did not answer in time.",
        reason="model_timeout",
        retryable=True,
        is_free=is_free,
    )


def unreachable(*, is_free: bool) -> UpstreamError:
    """The error for a connection that could not be made, or broke."""
    return UpstreamError(
        "The connection to the model failed.",
        reason="model_unreachable",
        retryable=True,
        is_free=is_free,
    )


def read_or_none(text: str | bytes) -> object:
    """Read the JSON text of an error, which may be none."""
    try:
        return json.loads(text)
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
