"""JSON Schemas: made from pydantic models, checked when a tool is defined, and applied."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from chucky.errors import ValidationError

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from pydantic import BaseModel
    from pydantic.json_schema import GenerateJsonSchema


def model_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Write the JSON Schema of what a model accepts, complete and without noise."""
    schema = model.model_json_schema(schema_generator=_quiet_generator())
    definitions = schema.get("$defs", {})
    reference = schema.pop("$ref", None)
    if reference is not None:
        # A model that refers to itself is written as a reference to a definition, but the
        # schema of a tool must be an object at the top.
        schema = {**definitions[reference.removeprefix("#/$defs/")], **schema}
    schema.pop("title", None)
    order = ("type", "description", "properties", "required", "additionalProperties", "$defs")
    rank = {key: index for index, key in enumerate(order)}
    return dict(sorted(schema.items(), key=lambda item: rank.get(item[0], len(order))))


@functools.cache
def _quiet_generator() -> type[GenerateJsonSchema]:
    from pydantic.json_schema import GenerateJsonSchema

    class QuietGenerator(GenerateJsonSchema):
        """Leaves out what is no use to a model, and warnings that are no use to a developer."""

        def field_title_should_be_set(self, schema: Any) -> bool:
            # "name" is not made clearer by the title "Name", and every title costs tokens.
            return False

        def emit_warning(self, kind: Any, detail: str) -> None:
            # A default JSON cannot hold is left out of the schema; the handler still has it.
            return

    return QuietGenerator


def first_sentence(error: Exception) -> str:
    """Shorten an error of pydantic to its first sentence; the rest is advice and addresses."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0].rstrip(".") + "."


def check_object_schema(schema: object, tool_name: str) -> dict[str, Any]:
    """Check that a schema describes an object and can be sent; return it.

    Raises:
        ValidationError: It does not, or cannot.
    """
    if not isinstance(schema, dict):
        raise ValidationError(
            f"The schema of tool {tool_name!r} must be a dict, not {type(schema).__name__}."
        )
    if schema.get("type") != "object":
        raise ValidationError(
            f"The schema of tool {tool_name!r} must be a JSON Schema of an object, that is have "
            f'"type": "object"; its type is {schema.get("type")!r}.'
        )
    try:
        json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(
            f"The schema of tool {tool_name!r} cannot be sent as JSON: {error}."
        ) from error
    return schema


def check_schema(schema: object, tool_name: str) -> None:
    """Check a schema somebody wrote: an object's, valid, and complete in itself.

    Raises:
        ValidationError: It is not; the message says where.
    """
    checked = check_object_schema(schema, tool_name)
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(checked)
    except SchemaError as error:
        raise ValidationError(
            f"The schema of tool {tool_name!r} is not a valid JSON Schema at "
            f"{error.json_path}: {error.message}."
        ) from error
    _check_references(checked, tool_name)


def _check_references(schema: dict[str, Any], tool_name: str) -> None:
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resource: Resource[Any] = Resource.from_contents(schema, default_specification=DRAFT202012)
    registry: Registry[Any] = Registry()
    resolver = registry.resolver_with_root(resource)
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ValidationError(
                f"The schema of tool {tool_name!r} refers to {reference!r}, which it does not "
                "contain."
            ) from error


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def schema_validator(schema: Mapping[str, Any]) -> Draft202012Validator:
    """Return a validator that never goes to the network for a reference."""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    registry: Registry[Any] = Registry()
    return Draft202012Validator(schema, registry=registry)
