"""The tool calls of a session that wait for the client's answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from chucky import wire
from chucky.server.engines.base import ToolOutcome, ToolSpec
from chucky.server.sessions.content import DOCUMENT_TYPES, IMAGE_TYPES

logger = logging.getLogger("chucky.server")


_CLIENT_GONE = "The application is no longer connected, so this tool cannot be run."


class ToolCalls:
    """Sends calls to the client and matches the answers to them."""

    def __init__(
        self, send: Callable[[wire.ToolCall], Awaitable[None]], *, timeout_seconds: float
    ) -> None:
        """Prepare for calls.

        Args:
            send: Sends a call to the client.
            timeout_seconds: How long the client may take to answer one.
        """
        self._send = send
        self._timeout_seconds = timeout_seconds
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._open: dict[str, wire.ToolCall] = {}
        self._is_abandoned = False

    async def call(self, call_id: str, tool: ToolSpec, arguments: dict[str, Any]) -> ToolOutcome:
        """Have the client run a tool and wait for its answer, for the time it is given."""
        if self._is_abandoned:
            return _error(_CLIENT_GONE)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = answer
        self._open[call_id] = wire.ToolCall(call_id, tool.name, arguments)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._send(self._open[call_id])
                return outcome_from_client(await answer)
        except TimeoutError:
            return _error(
                f"The tool {tool.name!r} did not answer within {self._timeout_seconds:g} s."
            )
        finally:
            del self._waiting[call_id], self._open[call_id]

    async def send_again(self) -> None:
        """Send every call that is open to a client that came back; it runs none a second time."""
        self._is_abandoned = False
        for call_id, call in list(self._open.items()):
            if call_id in self._open:  # none that was answered meanwhile
                await self._send(call)

    def abandon(self) -> None:
        """Answer every call for a client that stays away, so that the model can go on."""
        self._is_abandoned = True
        for answer in self._waiting.values():
            if not answer.done():
                gone = {"content": [{"type": "text", "text": _CLIENT_GONE}], "isError": True}
                answer.set_result(gone)

    def deliver(self, reply: wire.ToolReply) -> None:
        """Hand in an answer; one that nobody waits for (any more) is logged and dropped."""
        answer = self._waiting.get(reply.call_id)
        if answer is None or answer.done():
            logger.info("ignored the result of a tool call that is not open: %.64r", reply.call_id)
            return
        answer.set_result(reply.result)


def outcome_from_client(result: Any) -> ToolOutcome:
    """Make content for the model out of whatever a client's tool returned.

    Clients return ``{"content": [...], "isError"?: bool}``, but some pass on what the handler
    returned: a bare string, null, any JSON.
    """
    if not isinstance(result, dict) or not isinstance(result.get("content"), list):
        return ToolOutcome([_text(result)])
    is_error = result.get("isError") is True or result.get("is_error") is True
    blocks = [_block(item) for item in result["content"]]
    return ToolOutcome(blocks or [{"type": "text", "text": "(no output)"}], is_error)


def _block(item: Any) -> dict[str, Any]:
    match item:
        case {"type": "text", "text": str(text)}:
            return _text(text)
        case {"type": "image", "data": str(data), "mimeType": str(kind)} if kind in IMAGE_TYPES:
            return _base64("image", kind, data)
        case {"type": "resource"}:
            return _resource(item)
    return _text(item)


def _resource(item: dict[str, Any]) -> dict[str, Any]:
    # Either {"uri", "text"} itself or, as MCP has it, one level deeper.
    inner = item["resource"] if isinstance(item.get("resource"), dict) else item
    match inner:
        case {"text": str(text)}:
            return _text(text)
        case {"blob": str(data), "mimeType": str(kind)} if kind in IMAGE_TYPES:
            return _base64("image", kind, data)
        case {"blob": str(data), "mimeType": str(kind)} if kind in DOCUMENT_TYPES:
            return _base64("document", kind, data)
    return _text(f"[resource {inner.get('uri')}, {inner.get('mimeType', 'of unknown type')}]")


def _base64(block_type: str, media_type: str, data: str) -> dict[str, Any]:
    source = {"type": "base64", "media_type": media_type, "data": data}
    return {"type": block_type, "source": source}


def _text(value: Any) -> dict[str, Any]:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # The API refuses text blocks that are empty or blank.
    return {"type": "text", "text": text if text.strip() else "(no output)"}


def _error(text: str) -> ToolOutcome:
    return ToolOutcome([{"type": "text", "text": text}], is_error=True)
