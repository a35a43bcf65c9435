"""Every exception the SDK raises, and the words errors travel by.

::

    RuntimeError
    └── ChuckyError                     code, reason, details
        ├── ChuckyConnectionError       CONNECTION_ERROR   also a ConnectionError
        ├── ChuckyTimeoutError          TIMEOUT            also a TimeoutError
        ├── AuthenticationError         AUTHENTICATION_ERROR
        ├── BudgetExceededError         BUDGET_EXCEEDED
        ├── ConcurrencyLimitError       CONCURRENCY_LIMIT
        ├── RateLimitError              RATE_LIMIT
        ├── SessionError                SESSION_ERROR
        ├── ToolExecutionError          TOOL_EXECUTION_ERROR
        ├── ValidationError             VALIDATION_ERROR   also a ValueError
        └── ProtocolError               PROTOCOL_ERROR

A failed *turn* is not an exception but a result message (see :mod:`chucky.messages`);
exceptions are for what kept a turn from having a result at all: wrong arguments, no
connection, a refused token, a time-out, a lost socket. Because every class is a
``RuntimeError``, ``except RuntimeError`` around a call catches all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class ChuckyError(RuntimeError):
    """Base of every error of this package.

    Attributes:
        code: The stable upper-case word to branch on, e.g. ``"AUTHENTICATION_ERROR"``.
        reason: A finer lower-case word where there is one, e.g. ``"token_expired"``.
        details: Whatever else the other side said about the error.
    """

    default_code: ClassVar[str] = "CHUCKY_ERROR"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        reason: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason
        self.details: dict[str, Any] = dict(details or {})


class ChuckyConnectionError(ChuckyError, ConnectionError):
    """The server cannot be reached, or the connection to it was lost.

    Attributes:
        session_id: The session whose connection it was, to be resumed; ``""`` if it has none yet.
        close_code: The code the connection was closed with; None if it just ended.
    """

    default_code = "CONNECTION_ERROR"
    session_id: str = ""
    close_code: int | None = None


class ChuckyTimeoutError(ChuckyError, TimeoutError):
    """Connecting, the handshake or a turn took longer than it may."""

    default_code = "TIMEOUT"


class AuthenticationError(ChuckyError):
    """The server refused the token: forged, expired, revoked, or of an unknown project."""

    default_code = "AUTHENTICATION_ERROR"


class BudgetExceededError(ChuckyError):
    """The user's or the developer's budget is used up."""

    default_code = "BUDGET_EXCEEDED"


class ConcurrencyLimitError(ChuckyError):
    """Too many sessions are open at once."""

    default_code = "CONCURRENCY_LIMIT"


class RateLimitError(ChuckyError):
    """Too many requests in too short a time."""

    default_code = "RATE_LIMIT"


class SessionError(ChuckyError):
    """The session cannot do what was asked in the state it is in."""

    default_code = "SESSION_ERROR"


class ToolExecutionError(ChuckyError):
    """A tool could not be run, or its result could not be used.

    Attributes:
        tool_name: The bare name of the tool.
    """

    default_code = "TOOL_EXECUTION_ERROR"

    def __init__(self, message: str, *, tool_name: str = "", **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.tool_name = tool_name


class ValidationError(ChuckyError, ValueError):
    """An argument, option or tool definition is wrong; the message says which and how."""

    default_code = "VALIDATION_ERROR"


class ProtocolError(ChuckyError):
    """The other side sent something the protocol does not allow."""

    default_code = "PROTOCOL_ERROR"


_CLASS_BY_CODE: dict[str, type[ChuckyError]] = {
    cls.default_code: cls
    for cls in (
        ChuckyConnectionError,
        ChuckyTimeoutError,
        AuthenticationError,
        BudgetExceededError,
        ConcurrencyLimitError,
        RateLimitError,
        SessionError,
        ToolExecutionError,
        ValidationError,
        ProtocolError,
    )
}

# The lower-case words (wire reasons) that the public system also uses where a code is expected.
CODE_BY_REASON: dict[str, str] = {
    "token_expired": "AUTHENTICATION_ERROR",
    "user_budget_exhausted": "BUDGET_EXCEEDED",
    "developer_budget_exhausted": "BUDGET_EXCEEDED",
    "concurrent_limit_reached": "CONCURRENCY_LIMIT",
}


def error_from_wire(payload: Mapping[str, Any]) -> ChuckyError:
    """Build the exception an ``error`` frame stands for.

    Args:
        payload: The frame's payload: ``message``, and optionally ``code`` and ``details``. The
            code may be the upper-case or the lower-case word; both are used in public.

    Returns:
        An instance of the class that has this code, :class:`ChuckyError` if none has.
    """
    word = payload.get("code")
    word = word if isinstance(word, str) and word else None
    details = payload.get("details")
    details = details if isinstance(details, Mapping) else {}
    code = CODE_BY_REASON.get(word, word) if word else None
    reason = word if word in CODE_BY_REASON else details.get("reason")
    message = payload.get("message")
    if not isinstance(message, str) or not message:
        message = f"The server reported an error without a message (code {code or 'unknown'})."
    cls = _CLASS_BY_CODE.get(code or "", ChuckyError)
    return cls(message, code=code, reason=reason, details=details)


# What a failed result means when the server sent nothing but the result's subtype.
CODE_BY_SUBTYPE: dict[str, str] = {
    "error_max_turns": "MAX_TURNS",
    "error_max_budget_usd": "BUDGET_EXCEEDED",
    "error_budget": "BUDGET_EXCEEDED",
    "error_concurrency": "CONCURRENCY_LIMIT",
    "error_authentication": "AUTHENTICATION_ERROR",
    "error_max_structured_output_retries": "STRUCTURED_OUTPUT",
}
