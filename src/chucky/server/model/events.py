"""The events of a model's stream, parsed only as far as somebody needs them."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from chucky.server.model.upstream import UpstreamError

# A delta of text or thinking as the API writes it: nearly all events of a stream are one. The API
# pads some with spaces before the last brace. What a string holds is captured as it is written.
_DELTA = re.compile(
    r'\{"type": ?"content_block_delta", ?"index": ?(0|[1-9][0-9]{0,8}), ?'
    r'"delta": ?\{"type": ?"(text|thinking)_delta", ?"\2": ?'
    r'"([^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)" *\} *\}'
)


class Delta(NamedTuple):
    """A piece of text or thinking.

    Attributes:
        block: The index of the message's block it belongs to.
        key: The key of the block it adds to: ``text`` or ``thinking``.
        piece: What it adds.
    """

    block: int
    key: str
    piece: str


class Event:
    """One event.

    Attributes:
        text: Its JSON text as it came, for relaying it untouched.
        delta: What it adds, if it is seen at a glance to be a delta of text or thinking. None
            says nothing: the ``fields`` tell what the event is.
    """

    __slots__ = ("_fields", "delta", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.delta = _delta(text)
        self._fields: dict[str, Any] | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The event, parsed.

        Raises:
            UpstreamError: It is not a JSON object.
        """
        if self._fields is None:
            self._fields = _parse(self.text)
        return self._fields


def _delta(text: str) -> Delta | None:
    found = _DELTA.fullmatch(text)
    if found is None:
        return None
    block, key, piece = found.groups()
    if "\\" in piece:
        try:
            piece = json.loads(f'"{piece}"')
        except ValueError:
            return None  # no escape of JSON's
    return Delta(int(block), key, piece)


def _parse(text: str) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise UpstreamError(
            "The model's stream had an event that is not JSON.", reason="model_stream_malformed"
        )
    return event
