"""Where model calls go, as the gate sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from chucky.errors import ChuckyError
from chucky.jsontext import write_json
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


@dataclass(eq=False)
class ModelRequest:
    """What a model is asked.

    Attributes:
        fields: The body of the Messages API, without ``stream``.
        betas: Names of the provider's beta features to switch on for this call.
        is_unsent: Whether nothing of it has been sent yet, as far as an upstream knows that. What
            is interrupted then is free.
    """

    fields: Mapping[str, Any]
    betas: Sequence[str] = ()
    is_unsent: bool = False

    @cached_property
    def body(self) -> bytes:
        """The body as it is sent for a stream: JSON in UTF-8.

        It is written once, to be measured and to be sent: it has the whole conversation in it.
        """
        return write_json({**self.fields, "stream": True}).encode()


class Upstream(Protocol):
    """A provider that speaks the Messages API. It makes each call once: retrying is not its job."""

    def stream(self, request: ModelRequest) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Make a call; the context yields the stream's events, each as its JSON text.

        Raises:
            UpstreamError: On entering or while iterating.
        """
        ...

    async def count_tokens(self, request: ModelRequest) -> int | None:
        """How many tokens the input of a call has; None if this provider does not say.

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
