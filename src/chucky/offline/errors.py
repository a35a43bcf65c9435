"""Errors in the shape the Messages API sends them."""

from __future__ import annotations

from typing import Any

_TYPE_BY_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_type(status: int) -> str:
    """Name the API's error type for an HTTP status, ``"api_error"`` where it has none."""
    return _TYPE_BY_STATUS.get(status, "api_error")


class ApiError(Exception):
    """A request ends with an error response.

    Attributes:
        status: The HTTP status.
        kind: The error type of the API, e.g. ``"invalid_request_error"``.
        message: The sentence for the caller.
        retry_after_seconds: Sent as the ``retry-after`` header if given.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind or error_type(status)
        self.message = message
        self.retry_after_seconds = retry_after_seconds

    def body(self, request_id: str) -> dict[str, Any]:
        """The response body, which is also the data of an ``error`` event in a stream."""
        error = {"type": self.kind, "message": self.message}
        return {"type": "error", "error": error, "request_id": request_id}
