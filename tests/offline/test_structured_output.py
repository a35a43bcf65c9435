"""Answers that conform to a JSON schema, filled from the message where it says something."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx2
import jsonschema
import pytest
from anthropic import AsyncAnthropic
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from chucky.offline.instances import build_instance
from chucky.offline.schemas import SchemaUnsupported

MODEL = "claude-sonnet-5-5"


class Person(BaseModel):
    name: str
    age: int
    email: str | None


class Team(BaseModel):
    lead: Person
    others: list[Person]
    size: int


def conforms(value: Any, schema: Any) -> bool:
    checker = jsonschema.FormatChecker()
    return bool(jsonschema.Draft202012Validator(schema, format_checker=checker).is_valid(value))


async def answer(http: httpx2.AsyncClient, text: str, schema: Any, **more: Any) -> httpx2.Response:
    return await http.post(
        "/v1/messages",
        json={
            "model": MODEL,
            "max_tokens": 1_000,
            "messages": [{"role": "user", "content": text}],
            "output_config": {"format": {"type": "json_schema", "schema": schema}},
            **more,
        },
    )


async def test_the_client_parses_the_answer_into_a_class(client: AsyncAnthropic) -> None:
    message = await client.messages.parse(
        model=MODEL,
        max_tokens=1_000,
        messages=[{"role": "user", "content": "Alice is 30 years old."}],
        output_format=Person,
    )

    assert message.stop_reason == "end_turn"
    assert message.parsed_output == Person(name="Alice", age=30, email=None)


async def test_references_between_classes_are_followed(client: AsyncAnthropic) -> None:
    message = await client.messages.parse(
        model=MODEL,
        max_tokens=1_000,
        messages=[{"role": "user", "content": "Make a team"}],
        output_format=Team,
    )

    assert message.parsed_output is not None
    assert message.parsed_output.others == []


@pytest.mark.parametrize("field", ["output_config", "output_format"])
async def test_both_places_for_the_schema_are_read(http: httpx2.AsyncClient, field: str) -> None:
    schema = {"type": "object", "properties": {"capital": {"type": "string"}}}
    wanted: Any = {"type": "json_schema", "schema": {**schema, "required": ["capital"]}}
    fields = {"output_config": {"format": wanted}, "output_format": wanted}

    response = await answer(
        http,
        "What is the capital of France?",
        None,
        **{"output_config": None, field: fields[field]},
    )

    (block,) = response.json()["content"]
    assert json.loads(block["text"]) == {"capital": "The capital of France is Paris."}


async def test_a_tool_is_called_before_the_answer_is_given_in_form(
    http: httpx2.AsyncClient,
) -> None:
    schema = {"type": "object", "properties": {"time": {"type": "string"}}, "required": ["time"]}
    offered = [{"name": "get_time", "input_schema": {"type": "object"}}]
    asked = {"role": "user", "content": "What time is it?"}

    called = (await answer(http, "What time is it?", schema, tools=offered)).json()["content"]
    told = await answer(
        http,
        "",
        schema,
        tools=offered,
        messages=[
            asked,
            {"role": "assistant", "content": called},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": called[0]["id"], "content": "noon"}
                ],
            },
        ],
    )

    assert called[0]["type"] == "tool_use"
    assert conforms(json.loads(told.json()["content"][0]["text"]), schema)


async def test_the_tool_of_the_cli_for_structured_output_is_called(
    client: AsyncAnthropic,
) -> None:
    asked: Any = {
        "model": MODEL,
        "max_tokens": 1_000,
        "tools": [
            {
                "name": "StructuredOutput",
                "description": "Return the final answer",
                "input_schema": Person.model_json_schema(),
            }
        ],
    }
    prompt: Any = {"role": "user", "content": "name: Alice, age: 30"}

    called = await client.messages.create(**asked, messages=[prompt])

    (use,) = called.content
    assert use.type == "tool_use"
    assert use.input == {"name": "Alice", "age": 30, "email": None}
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "ok"}
    told = await client.messages.create(
        **asked,
        messages=[
            prompt,
            {"role": "assistant", "content": list(called.content)},
            {"role": "user", "content": [result]},
        ],
    )
    assert [block.type for block in told.content] == ["text"]


STRING = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer"}, 0),
        ({"type": "number", "exclusiveMinimum": 5, "maximum": 5.5}, 5.25),
        ({"type": "integer", "minimum": 10, "multipleOf": 7}, 14),
        ({"type": "integer", "maximum": -3}, -3),
        ({"type": "number", "minimum": -2.5}, 0),
        ({"const": {"a": 1}}, {"a": 1}),
        ({"enum": ["b", "a"]}, "b"),
        ({"type": "integer", "enum": ["b", 3]}, 3),
        ({"type": ["string", "null"]}, None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
        ({"oneOf": [{"type": "integer", "minimum": 3}, STRING]}, 3),
        ({"type": "array", "items": {"type": "boolean"}}, []),
        (
            {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 2, "uniqueItems": True},
            [1, 2],
        ),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": False, "minItems": 1}, [1]),
        ({"type": "object", "properties": {"a": STRING}}, {}),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, {}),
        (
            {
                "type": "object",
                "properties": {"a": {"oneOf": [{"$ref": "#"}, STRING]}},
                "required": ["a"],
            },
            {"a": "hello"},
        ),
        ({"type": "object", "required": ["a"], "additionalProperties": {"const": 1}}, {"a": 1}),
        ({"type": "object", "properties": {"a": {"const": 1}}, "minProperties": 1}, {"a": 1}),
        (
            {
                "allOf": [
                    {"type": "object", "properties": {"a": {"type": "integer"}}},
                    {"properties": {"a": {"minimum": 4}}, "required": ["a"]},
                ]
            },
            {"a": 4},
        ),
        ({"type": "string", "format": "date"}, "1970-01-01"),
        ({"type": "string", "minLength": 3, "maxLength": 3}, "hel"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"const": 5}}}, 5),
        ({"$ref": "#/definitions/a", "definitions": {"a": {"const": 5}}}, 5),
        (
            {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
                "required": ["next"],
            },
            {"next": None},
        ),
    ],
)
def test_the_smallest_value_is_built(schema: dict[str, Any], value: Any) -> None:
    built = build_instance(schema, "", "hello")

    assert built == value
    assert conforms(built, schema)


@pytest.mark.parametrize("name", ["date", "date-time", "email", "ipv4", "ipv6", "uuid", "uri"])
def test_formats_are_kept(name: str) -> None:
    schema = {"type": "string", "format": name}

    assert conforms(build_instance(schema, "", "hello"), schema)


def test_formats_are_found_in_the_message() -> None:
    text = "On 2026-01-02 at 10:30 write to bob@example.org about https://example.org/a?b=1."
    formats = {"day": "date", "to": "email", "page": "uri"}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: {**STRING, "format": each} for name, each in formats.items()},
        "required": list(formats),
    }

    assert build_instance(schema, text, "hello") == {
        "day": "2026-01-02",
        "to": "bob@example.org",
        "page": "https://example.org/a?b=1",
    }


DOUBLING: dict[str, Any] = {
    "$defs": {
        **{f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)},
        "a40": {},
    },
}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 4}, "no number was found"),
        ({"type": "string", "pattern": "(a+)+$"}, "'pattern' is not supported"),
        ({"type": "object", "not": {}}, "'not' is not supported"),
        ({"$ref": "https://example.com/schema"}, "leads nowhere"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "never ends"),
        ({"allOf": [{"$ref": "#"}]}, "never ends"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "allows no value"),
        ({"type": "word"}, "not valid at type"),
        ({"type": "object", "properties": 5}, "not valid at properties"),
        ({"type": "string", "minLength": 10**9}, "too long a string"),
        ({"type": "array", "minItems": 10**9}, "too many items"),
        ({"type": "object", "minProperties": 10**9}, "too many properties"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "no value was found"),
        ({"oneOf": [STRING, {"type": "string", "maxLength": 100}]}, "no alternative"),
        ({"enum": ["x" * 100_000]}, "more than 100000 characters"),
        ({**DOUBLING, "$ref": "#/$defs/a0"}, "too complex"),
        ({**DOUBLING, "oneOf": [STRING, {"$ref": "#/$defs/a0"}]}, "too complex"),
    ],
)
async def test_a_schema_that_cannot_be_answered_to_is_refused(
    http: httpx2.AsyncClient, schema: dict[str, Any], says: str
) -> None:
    response = await answer(http, "Hello", schema)

    assert response.status_code == 400
    assert "output_config.format.schema" in response.json()["error"]["message"]
    assert says in response.json()["error"]["message"]


async def test_a_format_without_a_schema_is_refused(client: AsyncAnthropic) -> None:
    wanted: Any = {"format": {"type": "json_schema"}}
    with pytest.raises(anthropic.BadRequestError, match=r"output_config\.format\.schema"):
        await client.messages.create(
            model=MODEL,
            max_tokens=9,
            messages=[{"role": "user", "content": "Hello"}],
            output_config=wanted,
        )


# --- any schema -----------------------------------------------------------------------------------

NAMES = st.sampled_from(["name", "city", "count", "tags", "when"])
LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["string", "boolean", "null"])}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={
            "minimum": st.integers(-9, 9),
            "exclusiveMaximum": st.integers(-9, 9),
            "multipleOf": st.sampled_from([1, 2, 7, 0.5]),
        },
    ),
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={
            "minLength": st.integers(0, 9),
            "maxLength": st.integers(0, 9),
            "format": st.sampled_from(["date", "email", "uuid", "x"]),
        },
    ),
    st.fixed_dictionaries({"enum": st.lists(st.sampled_from(["a", 1, True, None]), min_size=1)}),
    st.fixed_dictionaries({"const": st.sampled_from(["a", 1, None, [1], {"a": 1}])}),
    st.just({"$ref": "#/$defs/leaf"}),
    st.just({}),
)


def _branches(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner},
            optional={"minItems": st.integers(0, 3), "uniqueItems": st.booleans()},
        ),
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=4)},
            optional={
                "required": st.lists(NAMES, unique=True),
                "additionalProperties": st.booleans(),
                "minProperties": st.integers(0, 3),
            },
        ),
        *(
            st.fixed_dictionaries({keyword: st.lists(inner, min_size=1, max_size=3)})
            for keyword in ("anyOf", "oneOf", "allOf")
        ),
    )


SCHEMAS = st.recursive(LEAVES, _branches, max_leaves=8)
TEXTS = st.sampled_from(
    ["", "Alice is 30 in Paris", "name: Bob, count=4, tags: a, b", '"quoted" 1 2.5 -3 a 2026-01-02']
)


@given(schema=SCHEMAS, text=TEXTS)
def test_what_is_built_conforms_or_is_refused(schema: dict[str, Any], text: str) -> None:
    schema = {**schema, "$defs": {"leaf": {"type": "integer", "minimum": 1}}}
    try:
        value = build_instance(schema, text, "A sentence.")
    except SchemaUnsupported:
        return

    assert conforms(value, schema)
    json.dumps(value, allow_nan=False)
