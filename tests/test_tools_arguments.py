"""Tools on the client side: what of an input reaches the handler, and how.

``defect NN`` in a docstring names the defect of the published package that the test would find.
"""

import asyncio
import dataclasses
import enum
import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Required, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from chucky.errors import ValidationError
from chucky.tools import Tool, ToolResult, call_tool, tool

WAIT_SECONDS = 10.0


class Address(BaseModel):
    """Where someone lives."""

    street: str
    number: int = Field(ge=1, description="House number")


class Person(BaseModel):
    name: str
    addresses: list[Address] = []


class Node(BaseModel):
    value: int
    children: list["Node"] = []


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 2.0


class Row(TypedDict):
    id: int
    note: NotRequired[str]
    colour: "NotRequired[Colour]"


class PartialRow(TypedDict, total=False):
    id: Required[int]
    inner: Row


class Pair(NamedTuple):
    left: int
    right: str


def text_of(result: ToolResult) -> str:
    assert [item["type"] for item in result.content] == ["text"]
    text = result.content[0]["text"]
    assert isinstance(text, str)
    return text


async def call(function: Callable[..., Any], arguments: object, **options: Any) -> ToolResult:
    async with asyncio.timeout(WAIT_SECONDS):
        return await call_tool(tool("probe", "A probe", **options)(function), arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"b": "x"}, "parameter 'a' is missing, expected integer"),
        ({"a": "five"}, "parameter 'a' should be a valid integer"),
        ({"a": None}, "parameter 'a' should be a valid integer, got null"),
        (
            {"a": 1, "zz": 2},
            "'zz' is not a parameter of this tool, which takes 'a', 'b' and 'home'",
        ),
        ({"a": 1, "home": {"number": 1}}, "parameter 'home.street' is missing, expected string"),
        ({"a": 1, "home": {"street": "s", "number": 0}}, "parameter 'home.number' should be great"),
        ([], "the input should be an object, got []"),
        ("a", "the input should be an object, got 'a'"),
        ({1: 2}, "the name of every parameter should be text, got 1"),
        (None, "parameter 'a' is missing"),
    ],
)
async def test_wrong_arguments_never_reach_the_handler(arguments: object, sentence: str) -> None:
    """defect 30"""
    calls: list[int] = []

    def handler(a: int, b: str = "", home: Address | None = None) -> None:
        calls.append(a)

    result = await call(handler, arguments)
    assert result.is_error
    assert text_of(result).startswith("Invalid arguments for tool 'probe': ")
    assert sentence in text_of(result)
    assert "http" not in text_of(result)
    assert calls == []


async def test_null_is_an_empty_input() -> None:
    """defect 30"""
    assert text_of(await call(lambda: "ran", None)) == "ran"
    assert "takes no parameters" in text_of(await call(lambda: "ran", {"a": 1}))


async def test_every_fault_is_named_and_a_flood_of_them_is_cut() -> None:
    def two(a: int, b: int) -> None: ...
    def many(numbers: list[int]) -> None: ...

    assert "parameter 'a' is missing" in text_of(await call(two, {"c": 1}))
    assert "parameter 'b' is missing" in text_of(await call(two, {"c": 1}))
    text = text_of(await call(many, {"numbers": ["x" * 1000] * 1000}))
    assert "parameter 'numbers[0]' should be a valid integer" in text
    assert "992 more" in text
    assert len(text) < 3000


async def test_the_branches_of_a_union_are_one_fault() -> None:
    def handler(a: int | list[str]) -> None: ...

    text = text_of(await call(handler, {"a": None}))
    assert text.count("'a'") == 1
    assert "valid integer or be a valid list, got null" in text


async def test_a_validator_of_the_developer_speaks_to_the_model() -> None:
    def even(number: int) -> int:
        if number % 2:
            raise ValueError("must be even")
        return number

    def broken(number: int) -> int:
        raise KeyError(number)

    def handler(a: Annotated[int, AfterValidator(even)]) -> int:
        return a

    def unlucky(a: Annotated[int, AfterValidator(broken)]) -> int:
        return a

    assert "parameter 'a': must be even, got 3" in text_of(await call(handler, {"a": 3}))
    assert text_of(await call(handler, {"a": 4})) == "4"
    assert text_of(await call(unlucky, {"a": 4})) == "Error: KeyError: 4"


async def test_arguments_arrive_converted_to_their_types() -> None:
    seen: list[object] = []

    def handler(
        home: Address,
        when: datetime,
        colour: Colour,
        point: Point,
        row: Row,
        pair: Pair,
        tags: set[str],
        count: int,
    ) -> None:
        seen.extend([home, when, colour, point, row, pair, tags, count])

    arguments = {
        "home": {"street": "s", "number": 1},
        "when": "2026-01-02T03:04:05Z",
        "colour": "blue",
        "point": {"x": 1},
        "row": {"id": 1, "colour": "red"},
        "pair": [1, "r"],
        "tags": ["a", "a"],
        "count": "5",
    }
    assert not (await call(handler, arguments)).is_error
    assert seen == [
        Address(street="s", number=1),
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        Colour.BLUE,
        Point(1),
        {"id": 1, "colour": Colour.RED},
        Pair(1, "r"),
        {"a"},
        5,
    ]


async def test_a_default_reaches_the_handler_as_the_object_it_is() -> None:
    marker = object()
    shared: list[int] = []

    def handler(
        a: Any = marker, b: int = Field(default=7), *, c: Any = marker, d: list[int] = shared
    ) -> bool:
        return a is marker and c is marker and d is shared and b == 7

    assert text_of(await call(handler, {})) == "true"
    assert text_of(await call(handler, {"a": None})) == "false"


async def test_positional_only_parameters_and_var_keywords_are_filled() -> None:
    def handler(a: int, b: int = 2, /, c: int = 3, *, d: int = 4, **more: int) -> object:
        return [a, b, c, d, more]

    assert text_of(await call(handler, {"a": 1, "d": 9})) == "[1, 2, 3, 9, {}]"
    assert text_of(await call(handler, {"a": 1, "b": 5, "x": 6})) == '[1, 5, 3, 4, {"x": 6}]'
    assert "'x'" in text_of(await call(handler, {"a": 1, "x": "six"}))


DICT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "when": {"type": "string", "format": "date"},
        "kind": {"enum": ["x", "y"]},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "parameter 'name' is missing, expected string"),
        ({"name": 5}, "parameter 'name' should be string, got 5"),
        ({"name": "abcdef"}, "parameter 'name' should satisfy maxLength 5, got 'abcdef'"),
        ({"name": "a", "kind": "z"}, "parameter 'kind' should be one of 'x', 'y', got 'z'"),
        ({"name": "a", "limit": "no"}, "parameter 'limit' should be integer or null, got 'no'"),
        ({"name": "a", "more": 1}, "'more' is not a parameter of this tool, which takes 'name'"),
    ],
)
async def test_a_dict_schema_is_enforced_before_the_handler_runs(
    arguments: object, sentence: str
) -> None:
    """defect 30"""

    def handler(args: dict[str, Any]) -> str:
        raise AssertionError

    result = await call(handler, arguments, schema=DICT_SCHEMA)
    assert result.is_error
    assert sentence in text_of(result)


async def test_values_of_a_dict_schema_are_passed_unchanged() -> None:
    async def whole(anything: dict[str, Any]) -> object:
        return anything

    async def by_name(name: str, when: str = "never", kind: Any = "z", limit: Any = 3) -> object:
        return [name, when, kind, limit]

    async def some(name: str, **others: Any) -> object:
        return [name, others]

    async def keyword_only(*, everything: Mapping[str, Any]) -> object:
        return everything

    arguments = {"name": "a", "when": "2026-01-02"}
    for function, expected in (
        (whole, arguments),
        (keyword_only, arguments),
        (by_name, ["a", "2026-01-02", "z", 3]),
        (some, ["a", {"when": "2026-01-02"}]),
    ):
        result = await call(function, arguments, schema=DICT_SCHEMA)
        assert json.loads(text_of(result)) == expected


async def test_a_single_parameter_named_like_a_property_gets_that_property() -> None:
    """defect 28"""
    schema = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    assert text_of(await call(lambda data: data, {"data": "x"}, schema=schema)) == "x"
    assert text_of(await call(lambda args: args, {"data": "x"}, schema=schema)) == '{"data": "x"}'
    extra = await call(lambda data: data, {"data": "x", "more": 1}, schema=schema)
    assert "'more' is not a parameter" in text_of(extra)


def test_a_handler_that_cannot_take_what_its_schema_promises_is_refused() -> None:
    def lacks(name: str, when: str = "") -> None: ...
    def needs(name: str, when: str, kind: str = "", limit: int = 0) -> None: ...
    def invents(name: str, other: int, **rest: Any) -> None: ...
    def mistyped(nmae: str) -> None: ...
    def nothing() -> None: ...

    for handler, sentence in (
        (lacks, "no parameter for 'kind'"),
        (needs, "needs 'when', which is optional in its schema"),
        (invents, "needs 'other', which is missing in its schema"),
        (mistyped, "takes 'nmae', which its schema does not have, as <class 'str'>"),
        (nothing, "no parameter for 'name'"),
    ):
        with pytest.raises(ValidationError, match=sentence):
            tool("t", "d", schema=DICT_SCHEMA)(handler)


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")

    to: Address
    day: date
    seats: int = 2
    kind: Literal["a", "b"] = Field(default="a", alias="tripKind")


TRIP = {"to": {"street": "s", "number": 1}, "day": "2026-01-02"}


async def test_a_model_class_is_handed_over_as_the_handler_wants_it() -> None:
    def instance(trip: Trip) -> object:
        return [trip.day.year, trip.to.street, trip.seats]

    def base(trip: BaseModel) -> object:
        return isinstance(trip, Trip)

    def quoted(trip: "Trip") -> object:
        return isinstance(trip, Trip)

    def whole(args):  # type: ignore[no-untyped-def]
        return [args["to"]["street"], args["day"].year, args["seats"], args["tripKind"]]

    def by_name(to: Address, day: date, seats: int, kind: str) -> object:
        return [to.street, day.year, seats, kind]

    def by_alias(to: Address, day: date, seats: int, **rest: Any) -> object:
        return [to.street, rest]

    for function, expected in (
        (instance, [2026, "s", 2]),
        (base, True),
        (quoted, True),
        (whole, ["s", 2026, 2, "a"]),
        (by_name, ["s", 2026, 2, "a"]),
        (by_alias, ["s", {"tripKind": "a"}]),
    ):
        assert json.loads(text_of(await call(function, TRIP, schema=Trip))) == expected


async def test_a_model_class_is_enforced_before_the_handler_runs() -> None:
    """defect 30"""

    def handler(args: dict[str, Any]) -> None:
        raise AssertionError

    text = text_of(await call(handler, {**TRIP, "to": {"street": 1}, "more": 1}, schema=Trip))
    assert "parameter 'to.street' should be a valid string, got 1" in text
    assert "parameter 'to.number' is missing" in text
    assert "'more' is not a parameter of this tool" in text


def test_a_handler_that_cannot_take_the_fields_of_its_model_is_refused() -> None:
    def lacks(to: Address, day: date) -> None: ...
    def other(person: Person) -> None: ...

    with pytest.raises(ValidationError, match="no parameter for 'seats'"):
        tool("t", "d", schema=Trip)(lacks)
    with pytest.raises(ValidationError, match="takes 'person', which its schema does not have"):
        tool("t", "d", schema=Trip)(other)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["a", "home", "rows", "when", "name", "limit", "kind", "zz"])
ARGUMENTS = VALUES | st.dictionaries(NAMES, VALUES, max_size=6)


async def _inferred(
    a: int = 0,
    home: Address | list[Colour] | None = None,
    rows: list[PartialRow] | dict[str, Pair] = [],  # noqa: B006
    when: datetime | Literal[1, "x"] = 1,
    **more: Annotated[str, Field(max_length=3)],
) -> object:
    return [a, home, rows, when, more]


async def _whole(everything: dict[str, Any]) -> object:
    return everything


PROBES = [
    tool("inferred", "From the signature")(_inferred),
    tool("dict", "From a dict", DICT_SCHEMA)(_whole),
    tool("model", "From a model", Trip)(_whole),
    tool("nodes", "From a model that refers to itself", Node)(_whole),
]


@given(probe=st.sampled_from(PROBES), arguments=ARGUMENTS)
def test_any_arguments_end_in_a_result_that_can_be_sent(probe: Tool, arguments: object) -> None:
    result = asyncio.run(call_tool(probe, arguments))
    assert isinstance(result, ToolResult)
    json.dumps(result.content, ensure_ascii=False, allow_nan=False).encode()
