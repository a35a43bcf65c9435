"""Deltas that are recognised without parsing say what parsing would say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chucky.server.engines.reply import Reply
from chucky.server.model.events import Event
from chucky.server.model.upstream import UpstreamError

KEYS = st.sampled_from(["text", "thinking"])
# Lone surrogates can be escaped in JSON, and so can come from a provider.
ANY_TEXT = st.text(
    st.characters(exclude_categories=()) | st.sampled_from('"\\/\n\t\0\x7f\u2028é🙂')
)
SPACES = st.text(" ", max_size=12)


def delta_event(piece: str, key: str = "text", block: int = 0) -> dict[str, Any]:
    return {
        "type": "content_block_delta",
        "index": block,
        "delta": {"type": f"{key}_delta", key: piece},
    }


@given(ANY_TEXT, KEYS, st.integers(0, 10**9), SPACES, st.booleans(), st.booleans())
def test_a_delta_says_what_its_json_says(
    piece: str, key: str, block: int, padding: str, is_ascii: bool, is_compact: bool
) -> None:
    separators = (",", ":") if is_compact else (", ", ": ")
    fields = delta_event(piece, key, block)
    text = json.dumps(fields, ensure_ascii=is_ascii, separators=separators)
    event = Event(f"{text[:-1]}{padding}}}")
    if block < 10**9:
        assert event.delta == (block, key, piece)
    assert event.fields == fields


# What may stand in a string, and what looks as if it might.
_FRAGMENTS = [
    "a",
    '"',
    "\\",
    "\\\\",
    "\\u",
    "\\u00e9",
    "\\uD83D\\uDE00",
    "\\x",
    "\n",
    "\0",
    "}",
    " ",
]


@given(st.lists(st.sampled_from(_FRAGMENTS), max_size=8).map("".join))
def test_what_is_not_json_is_not_recognised(inside: str) -> None:
    event = Event(json.dumps(delta_event("@")).replace("@", inside))
    try:
        fields = json.loads(event.text)
    except ValueError:
        assert event.delta is None
        with pytest.raises(UpstreamError, match="not JSON"):
            assert event.fields
    else:
        if event.delta is not None:
            assert fields == delta_event(event.delta.piece)


@pytest.mark.parametrize(
    "fields",
    [
        {**delta_event("x"), "type": "content_block_start"},
        {**delta_event("x"), "index": -1},
        {**delta_event("x"), "index": 1.0},
        {**delta_event("x"), "index": True},
        {**delta_event("x"), "more": 1},
        {**delta_event("x"), "delta": {"type": "text_delta", "thinking": "x"}},
        {**delta_event("x"), "delta": {"type": "text_delta", "text": None}},
        {**delta_event("x"), "delta": {"type": "text_delta", "text": "x", "more": 1}},
        {"type": "message_stop"},
    ],
)
def test_anything_else_is_parsed(fields: dict[str, Any]) -> None:
    event = Event(json.dumps(fields))
    assert event.delta is None
    assert event.fields == fields


def test_a_leading_zero_is_no_number() -> None:
    assert Event(json.dumps(delta_event("x", block=7)).replace("7", "07")).delta is None


@given(st.lists(st.tuples(KEYS, ANY_TEXT, st.booleans()), max_size=8))
def test_a_reply_is_the_same_by_either_way(deltas: list[tuple[str, str, bool]]) -> None:
    reply = Reply()
    for index, key in enumerate(["text", "thinking"]):
        start = {"type": "content_block_start", "index": index, "content_block": {"type": key}}
        reply.feed(Event(json.dumps(start)))
    for key, piece, is_usual in deltas:
        fields = delta_event(piece, key, ["text", "thinking"].index(key))
        event = Event(json.dumps(fields, indent=None if is_usual else 1))
        assert (event.delta is not None) is is_usual
        reply.feed(event)
        assert reply.blocks  # looking at it in the middle changes nothing
    said = {key: "".join(p for k, p, _ in deltas if k == key) for key in ("text", "thinking")}
    assert {str(b["type"]): b.get(str(b["type"]), "") for b in reply.blocks} == said
