"""Images, documents and resources on their way to the model."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from chucky import Chucky, ToolResult, tool

WAIT_SECONDS = 20
PIXEL = base64.b64encode(bytes(67)).decode()
PAGE = base64.b64encode(b"%PDF-1.7 and so on").decode()

IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": PIXEL},
}
PDF = {
    "type": "document",
    "source": {"type": "base64", "media_type": "application/pdf", "data": PAGE},
}
TITLED = {**PDF, "title": "The plan"}
PLAIN = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "All of it."},
}


async def test_images_and_documents_reach_the_model_as_they_were_sent(
    start_server: Any, start_provider: Any
) -> None:
    question = {"type": "text", "text": "What is this?"}
    content: list[dict[str, Any]] = [question, IMAGE, PDF, TITLED, PLAIN]
    async with (
        start_provider() as provider,
        start_server(upstream_url=provider.url) as server,
        Chucky(server.token(), server.url) as client,
        asyncio.timeout(WAIT_SECONDS),
    ):
        assert (await client.prompt(content)).subtype == "success"
    *sent, last = provider.requests[0]["messages"][0]["content"]
    last.pop("cache_control")
    assert [*sent, last] == content


@pytest.mark.parametrize(
    ("returned", "reaches"),
    [
        ({"type": "image", "data": PIXEL, "mimeType": "image/png"}, IMAGE),
        (
            {"type": "resource", "uri": "file:///a", "mimeType": "image/png", "blob": PIXEL},
            IMAGE,
        ),
        (
            {"type": "resource", "uri": "file:///a", "mimeType": "application/pdf", "blob": PAGE},
            PDF,
        ),
        (
            {"type": "resource", "uri": "file:///a", "mimeType": "text/plain", "text": "deep"},
            {"type": "text", "text": "deep"},
        ),
        (
            {"type": "resource", "uri": "file:///a", "mimeType": "audio/ogg", "blob": PAGE},
            {"type": "text", "text": "[resource file:///a, audio/ogg]"},
        ),
    ],
    ids=["image", "image as resource", "document as resource", "text as resource", "sound"],
)
async def test_what_a_tool_returns_reaches_the_model(
    start_server: Any,
    start_provider: Any,
    api: Any,
    returned: dict[str, Any],
    reaches: dict[str, Any],
) -> None:
    @tool("look", "Look at something")
    async def look() -> ToolResult:
        return ToolResult([returned])

    use = {"type": "tool_use", "id": "t1", "name": "mcp__inline-tools__look", "input": {}}
    calls = api.message(*api.block(use), stop_reason="tool_use")
    async with (
        start_provider(calls, api.says("I see.")) as provider,
        start_server(upstream_url=provider.url) as server,
        Chucky(server.token(), server.url) as client,
        asyncio.timeout(WAIT_SECONDS),
    ):
        result = await client.prompt("Look!", tools=[look])
    assert result.result == "I see."
    (answer,) = provider.requests[1]["messages"][-1]["content"]
    assert answer["content"] == [reaches]
