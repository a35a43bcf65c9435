"""The offline model over HTTP: the paths, headers and errors of Anthropic's API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from chucky.jsontext import read_json
from chucky.listener import bind
from chucky.offline.catalog import describe_model, list_models
from chucky.offline.delivery import Delivery, error_response, json_response
from chucky.offline.errors import ApiError
from chucky.offline.listener import DroppingListener
from chucky.offline.model import OfflineModel
from chucky.offline.reply import new_id
from chucky.offline.request import parse_count_request, parse_messages_request

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_UPLOAD_SECONDS = 60


def create_app() -> Starlette:
    """Make the offline model's ASGI application.

    Each application remembers for itself which steps of scripts have failed.
    """
    model = OfflineModel()

    async def create_message(request: Request) -> Delivery:
        betas = ",".join(request.headers.getlist("anthropic-beta"))
        wanted = parse_messages_request(await _read_body(request), betas=betas)
        return Delivery(model.answer(wanted), new_id("req"), stream=wanted.stream)

    async def count_tokens(request: Request) -> Response:
        wanted = parse_count_request(await _read_body(request))
        return json_response({"input_tokens": model.count_tokens(wanted)}, new_id("req"))

    app = Starlette(
        routes=[
            Route("/v1/messages", create_message, methods=["POST"]),
            Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
            Route("/v1/models", _list_models, methods=["GET"]),
            Route("/v1/models/{model_id}", _get_model, methods=["GET"]),
            Route("/healthz", _say_healthy, methods=["GET"]),
            # Clients knock here before they begin, the Claude CLI at the last.
            Route("/", _say_healthy, methods=["GET"]),
            Route("/api/hello", _say_healthy, methods=["GET"]),
        ],
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_error,
            Exception: _answer_fault,
        },
    )
    app.router.redirect_slashes = False
    return app


async def serve(host: str, port: int, *, ready: Callable[[int], None] | None = None) -> None:
    """Run the offline model until cancelled.

    It leaves the signals of the process alone, so it can run beside another server in one event
    loop. When it is cancelled, open responses end and all connections are closed before it
    returns.

    Args:
        host: The name or address to listen on.
        port: The port, 0 for a free one.
        ready: Called with the port once connections are accepted.

    Raises:
        OSError: The address cannot be used; the message says which and why.
    """
    with await bind(host, port) as listening:
        bound_port: int = listening.getsockname()[1]

        def report() -> None:
            if ready is not None:
                ready(bound_port)

        await DroppingListener(create_app(), report).run_on(listening)


async def _list_models(request: Request) -> Response:
    return json_response(list_models(request.query_params), new_id("req"))


async def _get_model(request: Request) -> Response:
    return json_response(describe_model(request.path_params["model_id"]), new_id("req"))


async def _say_healthy(request: Request) -> Response:
    return json_response({"status": "ok", "model": "chucky-offline"}, new_id("req"))


async def _read_body(request: Request) -> Any:
    body = bytearray()
    try:
        async with asyncio.timeout(MAX_UPLOAD_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise ApiError(
                        f"Request exceeds the maximum size of {MAX_BODY_BYTES} bytes.", status=413
                    )
    except TimeoutError:
        raise ApiError(
            f"The request's body did not arrive within {MAX_UPLOAD_SECONDS} seconds.", status=408
        ) from None
    except ClientDisconnect:
        raise ApiError("The client closed the connection.", status=499) from None
    try:
        return read_json(bytes(body))
    except ValueError as error:
        raise ApiError(f"The request body is not valid JSON: {error}") from None


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, new_id("req"))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(ApiError(error.detail, status=error.status_code), new_id("req"))


async def _answer_fault(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this answer, so that the server logs it.
    return error_response(ApiError("Internal server error", status=500), new_id("req"))
