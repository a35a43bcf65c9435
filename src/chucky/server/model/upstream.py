"""Where model calls go, as the gate sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from chucky.errors import ChuckyError
from chucky.server.model.catalog import Model


class UpstreamError(ChuckyError):
    """A model call failed.

    Attributes:
        retryable: Whether the same call may succeed if it is made again.
        rejected: Whether the provider found the request itself wrong, so that sending the same
            conversation again would fail for ever.
        retry_after_seconds: How long the provider asked to wait, if it did.
        is_free: Whether the provider certainly charges nothing: it refused the call, or never got
            it.
    """

    default_code = "MODEL_ERROR"

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        retryable: bool = False,
        rejected: bool = False,
        retry_after_seconds: float | None = None,
        is_free: bool = False,
    ) -> None:
        super().__init__(message, reason=reason)
        self.retryable = retryable
        self.rejected = rejected
        self.retry_after_seconds = retry_after_seconds
        self.is_free = is_free


class Upstream(Protocol):
    """A provider that speaks the Messages API. It makes each call once: retrying is not its job."""

    def stream(
        self, request: Mapping[str, Any], betas: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Make a call; the context yields the stream's events, each as its JSON text.

        Args:
            request: The body of the Messages API, without ``stream``.
            betas: Names of the provider's beta features to switch on for this call.

        Raises:
            UpstreamError: On entering or while iterating.
        """
        ...

    async def count_tokens(self, request: Mapping[str, Any]) -> int | None:
        """How many tokens the input of a call has; None if this provider does not say.

        Args:
            request: The body of the Messages API, without ``stream``.

        Raises:
            UpstreamError: The provider could not be asked.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Upstreams(Protocol):
    """Knows which provider serves whom."""

    async def upstream_for(self, model: Model, project_id: str) -> Upstream:
        """Return the way to the provider that serves a model to a project.

        Raises:
            ChuckyError: There is none, or it cannot be used; the sentence says why.
        """
        ...
