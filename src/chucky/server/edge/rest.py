"""HTTP beside the WebSocket: requests in, answers out; what they mean is decided elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from chucky.errors import AuthenticationError, ChuckyError
from chucky.server.auth import Identity

_UNAUTHORIZED = 401
_UNAVAILABLE = 503


class RestEdge:
    """Serves requests that carry the same tokens as sockets, as ``Authorization: Bearer``."""

    def __init__(
        self,
        *,
        authenticate: Callable[[str], Awaitable[Identity]],
        usage: Callable[[Identity], Awaitable[dict[str, Any]]],
    ) -> None:
        """Make the edge.

        Args:
            authenticate: Judges a token; raises AuthenticationError.
            usage: Says what a user has spent and has left.
        """
        self._authenticate = authenticate
        self._usage = usage

    @property
    def routes(self) -> list[Route]:
        """The addresses it serves."""
        return [Route("/usage", self._get_usage)]

    async def _get_usage(self, request: Request) -> Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            identity = await self._authenticate(token.strip() if scheme.lower() == "bearer" else "")
            return JSONResponse(await self._usage(identity), headers={"cache-control": "no-store"})
        except AuthenticationError as error:
            return _refusal(error, _UNAUTHORIZED)
        except ChuckyError as error:
            return _refusal(error, _UNAVAILABLE)


def _refusal(error: ChuckyError, status: int) -> Response:
    headers = {"www-authenticate": "Bearer"} if status == _UNAUTHORIZED else {}
    body = {"error": error.reason or error.code, "code": error.code, "message": str(error)}
    return JSONResponse(body, status, headers)
