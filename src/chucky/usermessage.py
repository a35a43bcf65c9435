"""A message of the user: what it may be, and its frame."""

from __future__ import annotations

import uuid
from typing import Any

from chucky import wire
from chucky.errors import ValidationError
from chucky.options import check_text

Content = str | list[dict[str, Any]]


def user_frame(message: object, session_id: str) -> str:
    """Make the frame of a user message, which gets a name of its own.

    Raises:
        ValidationError: The message cannot be sent; the sentence says why.
    """
    _check_content(message)
    content: Any = message
    try:
        return wire.user_frame(content, uuid=str(uuid.uuid4()), session_id=session_id)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(
            f"A content block cannot be sent as JSON ({error}); binary data travels as base64."
        ) from None


def _check_content(message: object) -> None:
    if isinstance(message, str):
        check_text("The message", message)
        if not message.strip():
            raise ValidationError("The message is empty; send some text.")
        return
    if not isinstance(message, list) or not message:
        raise ValidationError(
            "The message must be text or a non-empty list of content blocks, not "
            f"{type(message).__name__}."
        )
    for block in message:
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str) or kind not in wire.CONTENT_BLOCK_TYPES:
            kinds = ", ".join(sorted(wire.CONTENT_BLOCK_TYPES))
            raise ValidationError(f"A content block must have one of the types {kinds}.")
        if kind == "text":
            check_text("The text of a content block", block.get("text"))


def check_size(frame: str, max_bytes: int) -> None:
    """Refuse a message that the server would not take.

    Raises:
        ValidationError: It is too large; the sentence says by how much.
    """
    if len(frame) > max_bytes:
        raise ValidationError(
            f"The message has {len(frame)} bytes, and the server takes {max_bytes}; send less at "
            "once."
        )
