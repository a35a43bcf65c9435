"""Delivering an answer over HTTP: whole or streamed, with delays, errors, dropped connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chucky.jsontext import write_json
from chucky.offline.errors import ApiError
from chucky.offline.events import DELTA, encode_event, stream_events
from chucky.offline.listener import DROP_CONNECTION
from chucky.offline.model import Performance
from chucky.offline.script import MAX_DELAY_MS

FLUSH_BYTES = 16_384
MAX_DROP_SECONDS = 5


def json_response(
    body: dict[str, Any],
    request_id: str,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> Response:
    """Make a JSON response that carries the request's id."""
    all_headers = {"request-id": request_id, **(headers or {})}
    return Response(write_json(body), status, all_headers, "application/json")


def error_response(error: ApiError, request_id: str) -> Response:
    """Make the response for an error, in the shape of the API."""
    headers = {}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = f"{error.retry_after_seconds:g}"
    return json_response(error.body(request_id), request_id, status=error.status, headers=headers)


class Delivery:
    """One answer on its way, as an ASGI application.

    Whatever it waits for ends at once when the client goes away.

    Args:
        performance: The answer, and how to deliver it.
        request_id: The id of the request.
        stream: As server-sent events.
    """

    def __init__(self, performance: Performance, request_id: str, *, stream: bool) -> None:
        self._performance = performance
        self._request_id = request_id
        self._stream = stream
        self._delay_left_ms = MAX_DELAY_MS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        work = self._deliver(scope, receive, send)
        if self._performance.delay_ms or self._performance.chunk_delay_ms:
            await _while_connected(receive, work)
        else:
            await work

    async def _deliver(self, scope: Scope, receive: Receive, send: Send) -> None:
        performance = self._performance
        await self._pause(performance.delay_ms)
        if performance.error and not (self._stream and performance.speaks_first):
            await error_response(performance.error, self._request_id)(scope, receive, send)
        elif self._stream:
            await self._send_stream(send)
        elif performance.cut_after_chunks is None:
            body = performance.reply.message()
            await json_response(body, self._request_id)(scope, receive, send)
        else:
            await self._begin(send, "application/json")
        if performance.cut_after_chunks is not None:
            await _drop_connection(receive, scope.get("state", {}).get(DROP_CONNECTION))

    async def _begin(self, send: Send, media_type: str) -> None:
        headers = {
            "content-type": media_type,
            "cache-control": "no-cache",
            "request-id": self._request_id,
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _send_stream(self, send: Send) -> None:
        await self._begin(send, "text/event-stream; charset=utf-8")
        buffer = bytearray()
        for item in self._frames():
            if isinstance(item, bytes):
                buffer += item
                if len(buffer) < FLUSH_BYTES:
                    continue
            await _send_part(send, buffer)
            if isinstance(item, int):
                await self._pause(item)
        await _send_part(send, buffer)
        if self._performance.cut_after_chunks is None:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _frames(self) -> Iterator[bytes | int]:
        """Yield what a stream consists of: encoded events, and pauses in milliseconds."""
        performance = self._performance
        cut = performance.cut_after_chunks
        deltas = 0
        for event in stream_events(performance.reply):
            kind = event["type"]
            closes = kind == "message_delta"
            if cut is not None and kind != "message_start" and (closes or deltas >= cut):
                return
            if closes and performance.error:
                yield encode_event(performance.error.body(self._request_id))
                return
            if kind == DELTA:
                if deltas and performance.chunk_delay_ms:
                    yield performance.chunk_delay_ms
                deltas += 1
            yield encode_event(event)

    async def _pause(self, delay_ms: int) -> None:
        # However many pauses a script has, their sum is limited like a single one.
        delay_ms = min(delay_ms, self._delay_left_ms)
        self._delay_left_ms -= delay_ms
        if delay_ms:
            await asyncio.sleep(delay_ms / 1_000)


async def _send_part(send: Send, buffer: bytearray) -> None:
    if buffer:
        await send({"type": "http.response.body", "body": bytes(buffer), "more_body": True})
        buffer.clear()


async def _drop_connection(receive: Receive, drop: Callable[[], None] | None) -> None:
    """Close the connection in the middle of a response.

    Under another server than our own there is no ``drop``; an application that returns without
    having finished its response makes any server close the connection, if with a complaint.
    """
    if drop is None:
        return
    drop()
    try:
        async with asyncio.timeout(MAX_DROP_SECONDS):
            await _disconnected(receive)
    except TimeoutError:
        pass  # the client reads so slowly that the close waits for it; uvicorn ends it now


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = {group.create_task(work), group.create_task(_disconnected(receive))}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
