"""Server-sent events are read as the ``anthropic`` package reads them, however they are cut."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

from anthropic._streaming import SSEDecoder
from hypothesis import given
from hypothesis import strategies as st

from chucky.server.model.sse import server_sent_events

NAMES = ["event: message_start", "event:error", "event", "event: "]
DATA = ['data: {"a": "é 🙂 \u2028 \x85 \x0b"}', "data:  two spaces", "data:a: b", "data", "data: "]
OTHERS = [": a comment", "id: 7", "retry: 10", "nonsense", " data: indented", ""]
# Mostly whole events, sometimes with a line missing, twice, or in the wrong place.
EVENTS = st.tuples(st.sampled_from(NAMES), st.sampled_from(DATA), st.just("")) | st.lists(
    st.sampled_from([*NAMES, *DATA, *OTHERS])
)
LINES = st.lists(EVENTS, max_size=8).map(itertools.chain.from_iterable)
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])
STREAMS = st.tuples(LINES, st.lists(LINE_ENDS, min_size=1, max_size=3)).map(
    lambda given: "".join(map("".join, zip(given[0], itertools.cycle(given[1])))).encode()
)
Events = list[tuple[str, str]]


async def chunked(body: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for start, end in itertools.pairwise(edges):
        yield body[start:end]


async def ours(body: bytes, cuts: list[int]) -> Events:
    return [event async for event in server_sent_events(chunked(body, cuts))]


async def theirs(body: bytes) -> Events:
    # It makes events also of a name alone and of data alone.
    found = [event async for event in SSEDecoder().aiter_bytes(chunked(body, []))]
    return [(event.event, event.data) for event in found if event.event and event.data]


@given(STREAMS, st.lists(st.integers(0, 2_000), max_size=40))
async def test_events_are_those_of_the_package(body: bytes, cuts: list[int]) -> None:
    assert await ours(body, cuts) == await theirs(body)


async def test_every_cut_of_a_stream_reads_the_same() -> None:
    body = "event: a\r\ndata: é\r\ndata: 🙂\r\n\r\nevent: b\rdata: 2\r\rdata: nameless\n\n".encode()
    for cut in range(len(body) + 1):
        assert await ours(body, [cut]) == [("a", "é\n🙂"), ("b", "2")]


async def test_an_event_without_its_empty_line_is_none() -> None:
    assert await ours(b"event: a\ndata: 1\n\nevent: b\ndata: 2\n", []) == [("a", "1")]


async def test_a_mark_of_the_encoding_and_broken_characters_do_no_harm() -> None:
    body = b"\xef\xbb\xbfevent: a\ndata: \xff1\n\n"
    assert await ours(body, [1, 2]) == [("a", "\ufffd1")]
