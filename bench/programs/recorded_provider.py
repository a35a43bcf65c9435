"""A provider that costs next to nothing: plays a recorded stream of the Messages API.

``recorded_provider --events N --chunk-bytes B``: answers every request with the same stream of N
deltas, written as fast as the socket takes it; a chunk of the HTTP body has B bytes, or with 0 one
event. With ``--pace-ms P`` it sends one event each P ms instead, and the text of a delta is the
moment it was sent, in nanoseconds of the clock that all processes of a machine share.

It is no model: it reads nothing of a request but its length. The offline model would be what limits
a benchmark of streaming, for it composes every event.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

_WORDS = ("The ", "quick ", "brown ", "fox ", "jumps ", "over ", "the ", "lazy ", "dog", ". ")
_WRITE_BYTES = 65_536
_PHASES = 50
_REQUEST_SECONDS = 30
_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\n"
    b"request-id: req_recorded\r\n"
    b"transfer-encoding: chunked\r\n"
    b"\r\n"
)
_END = b"0\r\n\r\n"


class RecordedProvider:
    """The provider.

    Args:
        events: How many deltas a stream has.
        chunk_bytes: The size of an HTTP chunk; 0 for one event in each.
        pace_ms: Milliseconds between two events; 0 for as fast as possible.
    """

    def __init__(self, events: int, chunk_bytes: int, pace_ms: float) -> None:
        self._events = events
        self._pace_seconds = pace_ms / 1000
        deltas = [encode(delta(_WORDS[number % len(_WORDS)])) for number in range(events)]
        stream = [*opening(), *deltas, *closing(events)]
        self._body = b"".join(map(_chunk, _pieces(stream, chunk_bytes))) + _END
        self._phases = itertools.cycle(range(_PHASES))

    async def serve(self) -> None:
        """Listen on a free port, say which, and serve until cancelled."""
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0, backlog=2048)
        host, port = server.sockets[0].getsockname()
        print(f"Listening on http://{host}:{port}", flush=True)
        async with server:
            await server.serve_forever()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _take_request(reader):
                writer.write(_HEAD)
                if self._pace_seconds:
                    await self._play_paced(writer)
                else:
                    await self._play(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.transport.abort()

    async def _play(self, writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(self._body), _WRITE_BYTES):
            writer.write(self._body[start : start + _WRITE_BYTES])
            await writer.drain()

    async def _play_paced(self, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        # The streams of many users do not tick together.
        due = loop.time() + self._pace_seconds * next(self._phases) / _PHASES
        for event in opening():
            writer.write(_chunk(event))
        for _ in range(self._events):
            due += self._pace_seconds
            await asyncio.sleep(due - loop.time())
            writer.write(_chunk(encode(delta(str(time.monotonic_ns())))))
            await writer.drain()
        for event in closing(self._events):
            writer.write(_chunk(event))
        writer.write(_END)


def opening() -> list[bytes]:
    """The events before the deltas."""
    usage = {
        "input_tokens": 25,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 1,
    }
    message: dict[str, Any] = {
        "id": "msg_recorded",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    block = {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    return [
        encode({"type": "message_start", "message": message}),
        encode(block),
        encode({"type": "ping"}),
    ]


def delta(text: str) -> dict[str, Any]:
    """One delta of text."""
    return {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": text},
    }


def closing(output_tokens: int) -> list[bytes]:
    """The events after the deltas."""
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    last = {"type": "message_delta", "delta": stop, "usage": {"output_tokens": output_tokens}}
    return [
        encode({"type": "content_block_stop", "index": 0}),
        encode(last),
        encode({"type": "message_stop"}),
    ]


def encode(event: dict[str, Any]) -> bytes:
    """An event as the API writes it."""
    return f"event: {event['type']}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n".encode()


def _pieces(stream: Iterable[bytes], chunk_bytes: int) -> Iterator[bytes]:
    if not chunk_bytes:
        yield from stream
        return
    whole = b"".join(stream)
    for start in range(0, len(whole), chunk_bytes):
        yield whole[start : start + chunk_bytes]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _take_request(reader: asyncio.StreamReader) -> bool:
    """Read a request to its end; False when the client has no more."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return False
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            async with asyncio.timeout(_REQUEST_SECONDS):
                await reader.readexactly(int(value))
    return True


def main() -> None:
    """Run until told to stop."""
    parser = argparse.ArgumentParser(description="Plays a recorded stream of the Messages API.")
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--chunk-bytes", type=int, default=16_384)
    parser.add_argument("--pace-ms", type=float, default=0.0)
    given = parser.parse_args()
    provider = RecordedProvider(given.events, given.chunk_bytes, given.pace_ms)
    asyncio.run(provider.serve())


if __name__ == "__main__":
    main()
