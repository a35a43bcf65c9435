"""The content blocks of a user's message, as they may go to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chucky.errors import ValidationError
from chucky.server.engines.base import Content

IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
DOCUMENT_TYPES = frozenset({"application/pdf"})
_LONGEST_TITLE = 500


def checked_content(content: Content) -> Content:
    """Rebuild a message's content from the fields that are known, and from no others.

    What a client adds would be paid with the operator's key (cache marks), fetched by the
    provider (urls, files), or make every later request of the session fail.

    Raises:
        ValidationError: There is no content, or a block is not one that may be sent.
    """
    if not content or (isinstance(content, str) and not content.strip()):
        raise ValidationError("The message is empty; send some text.", reason="empty_message")
    if isinstance(content, str):
        return content
    return [_block(index, block) for index, block in enumerate(content)]


def _block(index: int, block: Mapping[str, Any]) -> dict[str, Any]:
    match block:
        case {"type": "text", "text": str(text)} if text.strip():
            return {"type": "text", "text": text}
        case {"type": "image", "source": dict(source)}:
            return {"type": "image", "source": _source(index, source, IMAGE_TYPES)}
        case {"type": "document", "source": dict(source)}:
            return {"type": "document", "source": _document(index, source), **_title(block)}
    raise _refused(index, "text must not be empty, and images and documents need a source")


def _document(index: int, source: Mapping[str, Any]) -> dict[str, Any]:
    match source:
        case {"type": "text", "media_type": "text/plain", "data": str(text)} if text.strip():
            return {"type": "text", "media_type": "text/plain", "data": text}
    return _source(index, source, DOCUMENT_TYPES)


def _title(block: Mapping[str, Any]) -> dict[str, str]:
    title = block.get("title")
    return {"title": title[:_LONGEST_TITLE]} if isinstance(title, str) and title.strip() else {}


def _source(index: int, source: Mapping[str, Any], types: frozenset[str]) -> dict[str, Any]:
    match source:
        case {"type": "base64", "media_type": str(kind), "data": str(data)} if kind in types:
            return {"type": "base64", "media_type": kind, "data": data}
    raise _refused(
        index, f"its source must be base64 data of the type {' or '.join(sorted(types))}"
    )


def _refused(index: int, why: str) -> ValidationError:
    return ValidationError(
        f"Block {index + 1} of the message cannot be used: {why}.", reason="content_invalid"
    )
