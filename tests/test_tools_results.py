"""Tools on the client side: what becomes of what a handler returns or raises.

``defect NN`` in a docstring names the defect of the published package that the test would find.
"""

import asyncio
import base64
import dataclasses
import enum
import json
import math
import uuid
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from chucky.tools import ToolResult, call_tool, error_result, text_result, tool

WAIT_SECONDS = 10.0


class Address(BaseModel):
    """Where someone lives."""

    street: str
    number: int = Field(ge=1, description="House number")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 2.0


@dataclasses.dataclass
class AllDefaults:
    x: int = 1


def text_of(result: ToolResult) -> str:
    assert [item["type"] for item in result.content] == ["text"]
    text = result.content[0]["text"]
    assert isinstance(text, str)
    return text


async def call(function: Callable[..., Any], arguments: object, **options: Any) -> ToolResult:
    async with asyncio.timeout(WAIT_SECONDS):
        return await call_tool(tool("probe", "A probe", **options)(function), arguments)


async def returned(value: object) -> ToolResult:
    async def handler() -> object:
        return value

    return await call(handler, {})


PIXEL = base64.b64encode(b"not really a picture").decode()


@dataclasses.dataclass
class Report:
    title: str
    day: date
    points: list[Point]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        (None, "null"),
        (5, "5"),
        (2.5, "2.5"),
        (True, "true"),
        ({"a": [1, None, "é"]}, '{"a": [1, null, "é"]}'),
        ({"content": "not a result"}, '{"content": "not a result"}'),
        ({"content": [], "title": "mine"}, '{"content": [], "title": "mine"}'),
        ([1, "x"], '[1, "x"]'),
        ((1, 2), "[1, 2]"),
        (Address(street="s", number=1), '{"street": "s", "number": 1}'),
        ([Address(street="s", number=1)], '[{"street": "s", "number": 1}]'),
        (
            Report("t", date(2026, 1, 2), [Point(1)]),
            '{"title": "t", "day": "2026-01-02", "points": [{"x": 1, "y": 2.0}]}',
        ),
        (Colour.RED, '"red"'),
        ([Decimal("1.10"), uuid.UUID(int=0), PurePosixPath("/a")], None),
        ("file-\udce9", "file-\ufffd"),
    ],
)
async def test_a_handler_may_return_any_json_value(value: object, text: str | None) -> None:
    """defect 1"""
    if text is None:
        text = '["1.10", "00000000-0000-0000-0000-000000000000", "/a"]'
    assert await returned(value) == text_result(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (text_result("x"), text_result("x")),
        (error_result("x"), error_result("x")),
        (ToolResult(content=[]), ToolResult(content=[])),
        ({"content": [{"type": "text", "text": "x"}]}, text_result("x")),
        ({"content": [{"type": "text", "text": "x"}], "isError": True}, error_result("x")),
        ({"content": [{"type": "text", "text": "x"}], "is_error": True}, error_result("x")),
        ({"content": [{"type": "text", "text": "x"}], "isError": False}, text_result("x")),
        (
            {"content": [{"type": "image", "data": PIXEL, "mimeType": "image/png"}]},
            ToolResult([{"type": "image", "data": PIXEL, "mimeType": "image/png"}]),
        ),
        (
            ToolResult(
                [{"type": "resource", "uri": "file:///a", "blob": PIXEL, "_meta": {"a": 1}}]
            ),
            ToolResult(
                [{"type": "resource", "uri": "file:///a", "blob": PIXEL, "_meta": {"a": 1}}]
            ),
        ),
    ],
)
async def test_a_result_is_taken_as_it_is(value: object, expected: ToolResult) -> None:
    """defect 1"""
    assert await returned(value) == expected


_CIRCLE: list[object] = []
_CIRCLE.append(_CIRCLE)
_DEEP: list[object] = []
for _ in range(100_000):
    _DEEP = [_DEEP]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({1, 2}, "'set'"),
        ({"a": {1}}, "'set'"),
        (object(), "'object'"),
        (Address, "type"),
        (AllDefaults, "'type'"),
        (b"x", "'bytes'"),
        (math.nan, "NaN"),
        ([math.inf], "infinity"),
        (Point(1, math.nan), "NaN"),
        ({(1, 2): 3}, "tuple"),
        ([10**5000], "'list'"),
        (_CIRCLE, "Circular"),
        (_DEEP, "too deeply"),
    ],
)
async def test_what_json_cannot_hold_is_an_error_that_names_the_type(
    value: object, sentence: str
) -> None:
    """defect 1"""
    result = await returned(value)
    assert result.is_error
    assert sentence in text_of(result)
    assert "a handler may return a ToolResult" in text_of(result)


@pytest.mark.parametrize(
    "content",
    [
        "text",
        ["text"],
        [{}],
        [{"type": "video", "data": PIXEL}],
        [{"type": "text"}],
        [{"type": "text", "text": None}],
        [{"type": "image", "data": PIXEL}],
        [{"type": "image", "data": "not base64!", "mimeType": "image/png"}],
        [{"type": "image", "data": f"{PIXEL}!", "mimeType": "image/png"}],
        [{"type": "image", "data": f"data:image/png;base64,{PIXEL}", "mimeType": "image/png"}],
        [{"type": "image", "data": PIXEL, "mimeType": "text/plain"}],
        [{"type": "image", "data": b"x", "mimeType": "image/png"}],
        [{"type": "resource"}],
        [{"type": "resource", "uri": ""}],
        [{"type": "resource", "uri": "a:b", "blob": "é"}],
        [{"type": "text", "text": "x", "annotations": {1, 2}}],
        [{"type": ["text"], "text": "x"}],
    ],
)
async def test_malformed_content_is_an_error(content: Any) -> None:
    """defect 1"""
    result = await returned(ToolResult(content=content))
    assert result.is_error
    assert text_of(result).startswith("Error: tool 'probe' returned a")
    json.dumps(result.content, allow_nan=False)


async def test_an_is_error_that_is_no_bool_is_an_error() -> None:
    odd: Any = "false"
    assert "is_error" in text_of(await returned(ToolResult([], is_error=odd)))


class _SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such city"), "Error: ValueError: no such city"),
        (KeyError("city"), "Error: KeyError: 'city'"),
        (RuntimeError(), "Error: RuntimeError"),
        (TimeoutError("upstream"), "Error: TimeoutError: upstream"),
        (_SpeechlessError(), "Error: _SpeechlessError"),
        (ValueError("file-\udce9"), "Error: ValueError: file-\ufffd"),
    ],
)
async def test_an_exception_in_a_handler_is_told_to_the_model(error: Exception, text: str) -> None:
    async def asynchronous() -> None:
        raise error

    def plain() -> None:
        raise error

    assert await call(asynchronous, {}) == error_result(text)
    assert await call(plain, {}) == error_result(text)


async def test_stop_iteration_in_a_plain_handler_is_told_to_the_model() -> None:
    def handler() -> object:
        return next(iter(()))

    assert "StopIteration" in text_of(await call(handler, {}))


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
async def test_what_is_no_ordinary_exception_is_not_swallowed(error: type[BaseException]) -> None:
    async def asynchronous() -> None:
        raise error

    def plain() -> None:
        raise error

    for handler in (asynchronous, plain):
        with pytest.raises(error):
            await call(handler, {})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ANYTHING = st.recursive(
    JSON_VALUES | st.binary() | st.dates() | st.decimals() | st.uuids() | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
        | st.fixed_dictionaries({"content": st.lists(inner, max_size=3)})
        | st.builds(ToolResult, st.lists(inner, max_size=3), st.booleans())
        | st.builds(
            ToolResult,
            st.lists(
                st.fixed_dictionaries(
                    {"type": st.sampled_from(["text", "image", "resource"])},
                    optional={"text": inner, "uri": inner, "data": inner, "mimeType": inner},
                ),
                max_size=2,
            ),
        )
    ),
    max_leaves=8,
)


@given(value=ANYTHING)
def test_any_return_value_ends_in_a_result_that_can_be_sent(value: object) -> None:
    result = asyncio.run(returned(value))
    assert isinstance(result, ToolResult)
    json.dumps(result.content, ensure_ascii=False, allow_nan=False).encode()
