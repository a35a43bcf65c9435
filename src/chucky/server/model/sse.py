"""Server-sent events out of the bytes of an HTTP body.

The decoder of the ``anthropic`` package does the same at many times the cost for each event, and a
server that relays tens of thousands of them a second would spend more on it than on all the rest.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import AsyncIterable, AsyncIterator, Iterator


async def server_sent_events(chunks: AsyncIterable[bytes]) -> AsyncIterator[tuple[str, str]]:
    """Yield name and data of each event that has both.

    Args:
        chunks: The body, cut anywhere.
    """
    decoder = _Decoder()
    async for chunk in chunks:
        for event in decoder.decode(chunk):
            yield event
    for event in decoder.decode(b"", final=True):
        yield event


class _Decoder:
    def __init__(self) -> None:
        # Lines may end with \n, \r or \r\n, and a chunk in the middle of that or of a character.
        self._text = io.IncrementalNewlineDecoder(
            codecs.getincrementaldecoder("utf-8-sig")("replace"), translate=True
        )
        self._unfinished: list[str] = []
        self._name = ""
        self._data: list[str] = []

    def decode(self, chunk: bytes, *, final: bool = False) -> Iterator[tuple[str, str]]:
        text = self._text.decode(chunk, final)
        self._unfinished.append(text)
        if "\n" not in text:
            return  # joined when it is whole: a line that grew would be copied with each chunk
        *lines, rest = "".join(self._unfinished).split("\n")
        self._unfinished = [rest]
        for line in lines:
            if not line:
                if self._name and (data := "\n".join(self._data)):
                    yield self._name, data
                self._name, self._data = "", []
                continue
            field, _, value = line.partition(":")
            if field == "data":
                self._data.append(value.removeprefix(" "))
            elif field == "event":
                self._name = value.removeprefix(" ")
