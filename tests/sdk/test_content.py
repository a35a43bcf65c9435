"""What goes in and comes out beside text, from end to end: pictures, papers, thoughts, pieces."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from chucky import Chucky, ValidationError

if TYPE_CHECKING:
    from tests.conftest import Server

DATA = base64.b64encode(b"not looked at by the offline model").decode()


def block(kind: str, media_type: str, data: Any = DATA) -> dict[str, Any]:
    return {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": data}}


PLAIN = {"type": "text", "media_type": "text/plain", "data": "The code is 1234."}


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Chucky]:
    async with Chucky(server.token("content"), url=server.url) as made:
        yield made


@pytest.mark.parametrize(
    "attached",
    [
        block("image", "image/png"),
        block("image", "image/webp"),
        block("document", "application/pdf"),
        {**block("document", "application/pdf"), "title": "A paper"},
        {"type": "document", "source": PLAIN},
    ],
)
async def test_pictures_and_documents_reach_the_model(
    client: Chucky, attached: dict[str, Any]
) -> None:
    text = {"type": "text", "text": "What is 2 + 2?"}
    alone = await client.prompt([text])
    async with client.create_session() as session:
        await session.send([attached, text])
        result = [message async for message in session.stream()][-1]
    assert result.result == "2 + 2 = 4."
    # The offline model counts a picture or a paper as 1,600 tokens, and looks at no more.
    assert result.usage["input_tokens"] == alone.usage["input_tokens"] + 1600


async def test_a_picture_of_the_wrong_kind_is_a_failed_turn(client: Chucky) -> None:
    result = await client.prompt([block("image", "image/bmp")])
    assert result.error.reason == "content_invalid"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([block("image", "image/png", b"raw bytes")], "binary data travels as base64"),
        ([{"type": "video"}], "A content block must have one of the types document, image, text"),
        ([b"raw bytes"], "A content block must have one of the types"),
    ],
)
async def test_what_cannot_be_sent_is_refused_here(
    client: Chucky, content: Any, words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        await client.prompt(content)


async def test_pieces_come_when_asked_for(client: Chucky) -> None:
    steps = [{"text": ["Once ", "upon ", "a time."]}]
    asked = f"Go.\n```offline\n{json.dumps(steps)}\n```"
    plain = await client.prompt(asked)
    assert {message["type"] for message in plain.messages} == {"system", "assistant", "result"}
    full = await client.prompt(asked, include_partial_messages=True)
    pieces = [str(message) for message in full.messages if message["type"] == "stream_event"]
    assert [piece for piece in pieces if piece] == ["Once ", "upon ", "a time."]


@pytest.mark.parametrize(("tokens", "kinds"), [(2000, ["thinking", "text"]), (0, ["text"])])
async def test_thoughts_come_when_asked_for(client: Chucky, tokens: int, kinds: list[str]) -> None:
    result = await client.prompt("What is 2 + 2?", max_thinking_tokens=tokens)
    assert [each["type"] for each in blocks(result)] == kinds
    assert result.result == "2 + 2 = 4."


def blocks(result: Any) -> list[dict[str, Any]]:
    """The blocks of the assistant's messages."""
    said = [message for message in result.messages if message["type"] == "assistant"]
    return [each for message in said for each in message["message"]["content"]]
