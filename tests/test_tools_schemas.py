"""Tools on the client side: the JSON Schema a signature or a model class stands for.

``defect NN`` in a docstring names the defect of the published package that the test would find.
"""

import asyncio
import dataclasses
import enum
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Optional,
    Required,
    TypedDict,
    Union,
    Unpack,
)

import pytest
from pydantic import BaseModel, Field

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


def text_of(result: ToolResult) -> str:
    assert [item["type"] for item in result.content] == ["text"]
    text = result.content[0]["text"]
    assert isinstance(text, str)
    return text


def schema_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    return tool("probe", "A probe")(function).input_schema


def property_of(annotation: Any) -> Any:
    """Infer the schema of one parameter of the given type."""

    def handler(value: Any) -> None: ...

    handler.__annotations__["value"] = annotation
    return schema_of(handler)["properties"]["value"]


async def call(function: Callable[..., Any], arguments: object, **options: Any) -> ToolResult:
    async with asyncio.timeout(WAIT_SECONDS):
        return await call_tool(tool("probe", "A probe", **options)(function), arguments)


NULLABLE_STRING = {"anyOf": [{"type": "string"}, {"type": "null"}]}
STRINGS = {"type": "array", "items": {"type": "string"}}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (str, {"type": "string"}),
        (bool, {"type": "boolean"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (
            list[list[str]],
            {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
        ),
        (str | None, NULLABLE_STRING),
        (Optional[str], NULLABLE_STRING),  # noqa: UP045 - the old spelling must work too
        (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
        (Union[None, list[str]], {"anyOf": [STRINGS, {"type": "null"}]}),  # noqa: UP007
        (Literal[1, 2], {"enum": [1, 2], "type": "integer"}),
        (Literal["a", "b"], {"enum": ["a", "b"], "type": "string"}),
        (datetime, {"type": "string", "format": "date-time"}),
        (uuid.UUID, {"type": "string", "format": "uuid"}),
        (Any, {}),
        (Annotated[str, "The name"], {"type": "string", "description": "The name"}),
        (
            Annotated[int, Field(ge=1, le=9, description="How many")],
            {"type": "integer", "minimum": 1, "maximum": 9, "description": "How many"},
        ),
        (
            Annotated[str | None, Field(max_length=3)],
            {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
        ),
    ],
)
def test_every_type_keeps_its_meaning_in_the_schema(annotation: Any, expected: Any) -> None:
    """defect 25"""
    assert property_of(annotation) == expected


def test_a_parameter_without_a_type_may_be_anything() -> None:
    """defect 25"""

    def handler(anything, other=5):  # type: ignore[no-untyped-def]
        return anything, other

    schema = schema_of(handler)
    assert schema["properties"] == {"anything": {}, "other": {"default": 5}}
    assert schema["required"] == ["anything"]


def test_positional_var_arguments_are_refused_and_keyword_ones_open_the_schema() -> None:
    """defect 25"""

    def positional(*values: int) -> None: ...
    def keyword(a: int, **more: Any) -> None: ...
    def typed(**more: int) -> None: ...
    def unpacked(**more: Unpack[PartialRow]) -> None: ...

    with pytest.raises(ValidationError, match=r"takes \*values"):
        schema_of(positional)
    assert schema_of(keyword)["additionalProperties"] is True
    assert list(schema_of(keyword)["properties"]) == ["a"]
    assert schema_of(keyword)["required"] == ["a"]
    assert schema_of(typed)["additionalProperties"] == {"type": "integer"}
    with pytest.raises(ValidationError, match=r"takes \*\*more as a TypedDict"):
        schema_of(unpacked)


ADDRESS_SCHEMA = {
    "type": "object",
    "title": "Address",
    "description": "Where someone lives.",
    "properties": {
        "street": {"type": "string"},
        "number": {"type": "integer", "minimum": 1, "description": "House number"},
    },
    "required": ["street", "number"],
}


def test_nested_models_are_complete_in_an_inferred_schema() -> None:
    """defect 26"""

    def handler(people: list[Person], home: Address) -> None: ...

    schema = schema_of(handler)
    assert schema["properties"] == {
        "people": {"type": "array", "items": {"$ref": "#/$defs/Person"}},
        "home": {"$ref": "#/$defs/Address"},
    }
    assert schema["$defs"]["Address"] == ADDRESS_SCHEMA
    assert schema["$defs"]["Person"]["properties"]["addresses"]["items"] == {
        "$ref": "#/$defs/Address"
    }


def test_nested_models_are_complete_in_the_schema_of_a_model_class() -> None:
    """defect 26"""
    made = tool("t", "d", schema=Person)(lambda args: None)
    assert made.input_schema == {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "addresses": {"type": "array", "items": {"$ref": "#/$defs/Address"}, "default": []},
        },
        "required": ["name"],
        "$defs": {"Address": ADDRESS_SCHEMA},
    }


def test_required_is_absent_when_nothing_is_required() -> None:
    """defect 26"""

    class Options(BaseModel):
        limit: int = 5

    def handler(limit: int = 5) -> None: ...

    assert "required" not in tool("t", "d", schema=Options)(lambda args: None).input_schema
    assert "required" not in schema_of(handler)
    assert "required" not in schema_of(lambda: None)


def test_a_model_that_refers_to_itself_is_an_object_at_the_top() -> None:
    """defect 26"""
    schema = tool("t", "d", schema=Node)(lambda args: None).input_schema
    assert schema["type"] == "object"
    assert schema["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
    assert "Node" in schema["$defs"]


def test_dataclasses_typed_dicts_and_enums_are_described() -> None:
    def handler(point: Point, row: list[PartialRow], colour: Colour = Colour.RED) -> None: ...

    schema = schema_of(handler)
    definitions = schema["$defs"]
    assert definitions["Point"]["required"] == ["x"]
    assert definitions["PartialRow"]["required"] == ["id"]
    assert definitions["PartialRow"]["properties"]["inner"] == {"$ref": "#/$defs/Row"}
    assert definitions["Row"]["required"] == ["id"]
    assert definitions["Row"]["properties"]["colour"] == {"$ref": "#/$defs/Colour"}
    assert definitions["Colour"]["enum"] == ["red", "blue"]
    assert schema["properties"]["colour"] == {"$ref": "#/$defs/Colour", "default": "red"}


def test_defaults_are_shown_where_json_has_them_and_make_a_parameter_optional() -> None:
    marker = object()

    def handler(
        a: int,
        b: int = 3,
        c: str | None = None,
        d: Any = marker,
        e: str = None,  # type: ignore[assignment]  # noqa: RUF013
        f: int = Field(default=7, ge=1, description="From the field"),
    ) -> None: ...

    schema = schema_of(handler)
    assert schema["required"] == ["a"]
    assert schema["properties"] == {
        "a": {"type": "integer"},
        "b": {"type": "integer", "default": 3},
        "c": {**NULLABLE_STRING, "default": None},
        "d": {},
        "e": {**NULLABLE_STRING, "default": None},
        "f": {"type": "integer", "default": 7, "minimum": 1, "description": "From the field"},
    }


def test_optional_without_a_default_is_required() -> None:
    def handler(a: str | None) -> None: ...

    assert schema_of(handler)["required"] == ["a"]


def _google(na: str, name: str, count: int = 1, plain: str = "") -> None:
    """Do it.

    Args:
        name (str): The whole name,
            on two lines.
        na: Not available.
        count (int): How often: at least once.

    Returns:
        Nothing.
    """


def _numpy(na: str, name: str, count: int = 1, plain: str = "") -> None:
    """Do it.

    Parameters
    ----------
    name : str
        The whole name,
        on two lines.
    na : str
        Not available.
    count : int, optional
        How often: at least once.
    """


def _rest(na: str, name: str, count: int = 1, plain: str = "") -> None:
    """Do it.

    :param str name: The whole name,
        on two lines.
    :param na: Not available.
    :param count: How often: at least once.
    """


@pytest.mark.parametrize("function", [_google, _numpy, _rest])
def test_each_parameter_gets_its_own_description_from_the_docstring(
    function: Callable[..., Any],
) -> None:
    """defect 27: a name that begins like another one, and types in parentheses."""
    properties = schema_of(function)["properties"]
    assert {name: part.get("description") for name, part in properties.items()} == {
        "na": "Not available.",
        "name": "The whole name, on two lines.",
        "count": "How often: at least once.",
        "plain": None,
    }


def test_parameters_described_together_all_get_the_description() -> None:
    def handler(x: int, y: int) -> None:
        """Do it.

        Parameters
        ----------
        x, y : int
            A coordinate.
        """

    properties = schema_of(handler)["properties"]
    assert [properties[name]["description"] for name in "xy"] == ["A coordinate."] * 2


def test_a_description_beside_the_type_wins_over_the_docstring() -> None:
    def handler(
        a: Annotated[str, "From the text"],
        b: Annotated[str, Field(description="From the field")],
        c: str,
    ) -> None:
        """Do it.

        Args:
            a: From the docstring.
            b: From the docstring.
            c: From the docstring.
        """

    properties = schema_of(handler)["properties"]
    assert [properties[name]["description"] for name in "abc"] == [
        "From the text",
        "From the field",
        "From the docstring.",
    ]


def test_a_docstring_that_is_not_what_it_looks_like_costs_only_the_descriptions() -> None:
    def handler(a: str) -> None:
        """::    ::"""

    assert schema_of(handler)["properties"] == {"a": {"type": "string"}}


@pytest.mark.parametrize("name", ["data", "input", "args", "kwargs"])
async def test_a_single_parameter_of_any_name_is_an_ordinary_parameter(name: str) -> None:
    """defect 28"""
    namespace: dict[str, Any] = {}
    exec(f"async def handler({name}: str) -> str: return {name}", namespace)
    handler = namespace["handler"]
    assert list(schema_of(handler)["properties"]) == [name]
    assert text_of(await call(handler, {name: "the value"})) == "the value"


async def test_a_parameter_may_have_any_name_python_allows() -> None:
    def outer() -> Callable[..., Any]:
        def handler(self, schema: str, _x: int, model_config: int, p0: int, json: int) -> object:  # type: ignore[no-untyped-def]
            return [self, schema, _x, model_config, p0, json]

        return handler

    arguments = {"self": 1, "schema": "s", "_x": 2, "model_config": 3, "p0": 4, "json": 5}
    assert list(schema_of(outer())["properties"]) == list(arguments)
    assert json.loads(text_of(await call(outer(), arguments))) == [1, "s", 2, 3, 4, 5]


async def test_an_alias_is_the_name_the_model_sees() -> None:
    async def handler(from_: Annotated[int, Field(alias="from")], **more: int) -> object:
        return [from_, more]

    schema = schema_of(handler)
    assert (list(schema["properties"]), schema["required"]) == (["from"], ["from"])
    assert text_of(await call(handler, {"from": 1, "to": 2})) == '[1, {"to": 2}]'
    assert "'from_' is not a parameter" in text_of(await call(handler, {"from": 1, "from_": 2}))


async def test_annotations_in_quotes_are_looked_up_where_the_function_is_defined() -> None:
    class Local(BaseModel):
        a: int

    def define() -> Callable[..., Any]:
        class Inner(BaseModel):
            b: int

        @tool("t", "d")
        def handler(local: "Local", inner: "list[Inner]", mine: "Address | None" = None) -> object:
            return [local.a, inner[0].b, mine]

        return handler

    made = define()
    assert isinstance(made, Tool)
    assert sorted(made.input_schema["$defs"]) == ["Address", "Inner", "Local"]
    arguments = {"local": {"a": 1}, "inner": [{"b": 2}]}
    assert text_of(await call_tool(made, arguments)) == "[1, 2, null]"


def test_the_innermost_scope_says_what_a_name_in_quotes_means() -> None:
    class Local(BaseModel):
        outer: int

    def define() -> Mapping[str, Any]:
        class Local(BaseModel):
            inner: int

        def handler(local: "Local") -> None: ...

        return schema_of(handler)["$defs"]["Local"]["properties"]  # type: ignore[no-any-return]

    def define_without() -> Mapping[str, Any]:
        def handler(local: "Local") -> None: ...

        return schema_of(handler)["$defs"]["Local"]["properties"]  # type: ignore[no-any-return]

    assert list(define()) == ["inner"]
    assert list(define_without()) == ["outer"]


def test_annotations_in_quotes_are_looked_up_in_the_closure_when_the_scope_is_gone() -> None:
    def define() -> Callable[..., Any]:
        class Inner(BaseModel):
            b: int

        def handler(inner: "Inner") -> object:
            return Inner(b=inner.b)

        return handler

    assert list(schema_of(define())["$defs"]) == ["Inner"]


def test_a_return_annotation_that_cannot_be_resolved_does_not_matter() -> None:
    def handler(a: int) -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821
        return a

    assert schema_of(handler)["required"] == ["a"]


class _Opaque:
    pass


def test_types_that_cannot_be_resolved_or_described_are_refused_by_name() -> None:
    def unknown(good: int, bad: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def opaque(good: int, bad: _Opaque) -> None: ...
    def function(good: int, bad: list[Callable[[], int]]) -> None: ...

    with pytest.raises(ValidationError, match=r"parameter 'bad' of tool 'probe'.*'Nowhere'"):
        schema_of(unknown)
    for handler in (opaque, function):
        with pytest.raises(ValidationError, match="'bad' of tool 'probe'") as caught:
            schema_of(handler)
        assert "http" not in str(caught.value)
        assert "arbitrary_types_allowed" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_tool_without_parameters_has_a_closed_empty_schema() -> None:
    assert schema_of(lambda: None) == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


def _modules_after(code: str) -> set[str]:
    """Run code in a fresh interpreter; return which of the heavy modules it has loaded."""
    heavy = ("pydantic", "pydantic_core", "jsonschema", "referencing", "docstring_parser")
    script = f"import sys\n{code}\nprint(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_tools_and_a_tool_without_parameters_load_no_validator() -> None:
    without_parameters = """
import asyncio
from chucky.tools import *
@tool("t", "d")
async def t():
    '''Docstring.'''
    return {"a": [1, None]}
create_sdk_mcp_server("s", tools=[t])
result = asyncio.run(call_tool(t, {}))
assert not result.is_error, result
"""
    with_parameters = """
from chucky.tools import *
@tool("t", "d")
async def t(a: int): ...
"""
    assert _modules_after("import chucky.tools") == set()
    assert _modules_after(without_parameters) == set()
    assert _modules_after(with_parameters) == {"pydantic", "pydantic_core"}
