"""An answer as the sequence of server-sent events the API streams it in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chucky.jsontext import write_json
from chucky.offline.reply import Reply, ReplyBlock, Text, Thinking, ToolUse

DELTA = "content_block_delta"


def stream_events(reply: Reply) -> Iterator[dict[str, Any]]:
    """Yield the events of an answer in the API's order, ``message_start`` to ``message_stop``."""
    yield _message_start(reply)
    pinged = False
    for index, block in enumerate(reply.blocks):
        yield {"type": "content_block_start", "index": index, "content_block": _opening(block)}
        if not pinged:
            pinged = True
            yield {"type": "ping"}
        for delta in _deltas(block):
            yield {"type": DELTA, "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    if not pinged:
        yield {"type": "ping"}
    stop = {"stop_reason": reply.stop_reason, "stop_sequence": reply.stop_sequence}
    usage = reply.usage.as_dict()
    del usage["cache_creation"]  # only message_start breaks it down
    yield {"type": "message_delta", "delta": stop, "usage": usage}
    yield {"type": "message_stop"}


def encode_event(event: dict[str, Any]) -> bytes:
    """Encode one event for the wire: its type as the event's name, itself as the data."""
    return f"event: {event['type']}\ndata: {write_json(event)}\n\n".encode()


def _message_start(reply: Reply) -> dict[str, Any]:
    message = reply.message()
    message.update(content=[], stop_reason=None, stop_sequence=None)
    # At its start an answer has one token at most; the rest is told when they are all there.
    message["usage"]["output_tokens"] = min(1, reply.usage.output_tokens)
    return {"type": "message_start", "message": message}


def _opening(block: ReplyBlock) -> dict[str, Any]:
    match block:
        case Text():
            return {"type": "text", "text": ""}
        case Thinking():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case ToolUse():
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}


def _deltas(block: ReplyBlock) -> Iterator[dict[str, Any]]:
    match block:
        case Text():
            yield from ({"type": "text_delta", "text": chunk} for chunk in block.chunks)
        case Thinking():
            yield from ({"type": "thinking_delta", "thinking": chunk} for chunk in block.chunks)
            yield {"type": "signature_delta", "signature": block.signature}
        case ToolUse():
            chunks = block.chunks
            yield from ({"type": "input_json_delta", "partial_json": chunk} for chunk in chunks)
