"""JSON schemas from strangers: what is supported of them, and reading them without surprises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError

from chucky.jsontext import write_json

Schema: TypeAlias = dict[str, Any] | bool

MAX_SCHEMA_CHARACTERS = 100_000
MAX_PROPERTY_NAMES = 1_000

# Left out because they make the work unbounded (patterns), or cannot be filled by going forward.
UNSUPPORTED = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "if",
        "not",
        "pattern",
        "patternProperties",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)


class SchemaUnsupported(ValueError):  # noqa: N818 - it says what the schema is
    """No value can be made for a schema: it is malformed, too complex, or contradicts itself."""


def check_schema(schema: dict[str, Any]) -> None:
    """Make sure that a schema has the form the draft 2020-12 wants.

    Raises:
        SchemaUnsupported: It has not, or it is too large.
    """
    if len(write_json(schema)) > MAX_SCHEMA_CHARACTERS:
        raise SchemaUnsupported(f"it has more than {MAX_SCHEMA_CHARACTERS} characters")
    try:
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(formats=()))
    except SchemaError as error:
        place = "/".join(str(part) for part in error.absolute_path)[:200] or "its root"
        raise SchemaUnsupported(f"it is not valid at {place}") from None


def resolve(root: Schema, schema: Schema) -> Schema:
    """Follow a ``$ref`` once; a schema without one is returned as it is.

    References go to ``#``, ``#/$defs/NAME`` and ``#/definitions/NAME`` only: that is what
    generators write, these places are checked with the schema, and nothing is ever fetched.

    Raises:
        SchemaUnsupported: The reference goes elsewhere, or nowhere.
    """
    if isinstance(schema, bool) or "$ref" not in schema:
        return schema
    target = _referred(root, schema["$ref"])
    siblings = {key: value for key, value in schema.items() if key != "$ref"}
    if isinstance(target, bool) or not siblings:
        return target
    return {"allOf": [target, siblings]} if _constrains(siblings) else target


def kinds(schema: Schema) -> tuple[str, ...]:
    """The types a schema names, or else the type its other keywords speak of."""
    if isinstance(schema, bool):
        return ()
    named = schema.get("type")
    if isinstance(named, str):
        return (named,)
    if isinstance(named, list):
        return tuple(named)
    for keyword, kind in _KIND_BY_KEYWORD:
        if keyword in schema:
            return (kind,)
    return ()


def property_names(schema: Schema) -> list[str]:
    """All property names in a schema, a bounded number of them."""
    names: list[str] = []
    for name in _property_names(schema):
        names.append(name)
        if len(names) >= MAX_PROPERTY_NAMES:
            break
    return names


_KIND_BY_KEYWORD = (
    ("properties", "object"),
    ("required", "object"),
    ("items", "array"),
    ("prefixItems", "array"),
    ("minItems", "array"),
    ("minimum", "number"),
    ("maximum", "number"),
    ("minLength", "string"),
    ("maxLength", "string"),
    ("format", "string"),
    ("pattern", "string"),
)
_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "deprecated", "$comment"})


def _constrains(siblings: dict[str, Any]) -> bool:
    return not set(siblings) <= _ANNOTATIONS | {"$defs", "definitions", "$schema", "$id"}


def _referred(root: Schema, reference: str) -> Schema:
    if reference == "#":
        return root
    for place in ("$defs", "definitions"):
        prefix = f"#/{place}/"
        if reference.startswith(prefix) and isinstance(root, dict):
            name = reference[len(prefix) :].replace("~1", "/").replace("~0", "~")
            if name in root.get(place, {}):
                target: Schema = root[place][name]
                return target
    raise SchemaUnsupported(f"the reference {reference[:100]!r} leads nowhere in it")


def _property_names(value: Any) -> Iterator[str]:
    # Recursive: what comes in by HTTP is at most 100 levels deep.
    if isinstance(value, dict):
        properties = value.get("properties")
        if isinstance(properties, dict):
            yield from properties
        for inner in value.values():
            yield from _property_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _property_names(inner)
