"""Answers that are JSON of a given schema: asking for them, and checking what came.

The API itself keeps a model to a schema, as far as it knows the schema's language
(https://platform.claude.com/docs/en/build-with-claude/structured-outputs). A schema that says
more than it can express is put into words instead. Either way the answer is checked here against
the whole schema.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from chucky.errors import ChuckyError, ValidationError
from chucky.jsontext import read_json, write_json
from chucky.server.schemas import SchemaError, find_faults

# How many faults of an answer the model and the application are told.
_MOST_FAULTS = 10

_KEPT = frozenset({"type", "enum", "const", "$ref", "description", "title", "required"})
_SUBSCHEMAS = frozenset({"properties", "$defs"})
_ALTERNATIVES = {"anyOf": "anyOf", "oneOf": "anyOf", "allOf": "allOf"}
_SAYING_WHAT = frozenset({"type", "enum", "const", "$ref", *_ALTERNATIVES})
_SAYING_NOTHING = frozenset({"$id", "$schema", "additionalProperties", "default", "examples"})
_FORMATS = frozenset(
    {
        "date-time",
        "time",
        "date",
        "duration",
        "email",
        "hostname",
        "uri",
        "ipv4",
        "ipv6",
        "uuid",
    }
)
# What these say about the shape of a value would be lost if they were left out.
_INEXPRESSIBLE = frozenset(
    {
        "$dynamicRef",
        "additionalItems",
        "contains",
        "dependentSchemas",
        "else",
        "if",
        "not",
        "patternProperties",
        "prefixItems",
        "propertyNames",
        "then",
        "unevaluatedProperties",
    }
)
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.S)


class NonConformingError(ChuckyError):
    """An answer is not JSON, or not of the schema.

    Attributes:
        faults: What is wrong with it, in words for the model.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__(
            "The model's answer does not conform to the schema of output_format, also not after "
            f"a second attempt: {'; '.join(faults)}. Simplify the schema, or ask more plainly.",
            code="STRUCTURED_OUTPUT",
            reason="structured_output_invalid",
            details={"faults": faults},
        )
        self.faults = faults

    def as_message(self) -> str:
        """What the model is told, so that it can do better."""
        listed = "\n".join(f"- {fault}" for fault in self.faults)
        return (
            "Your answer does not conform to the JSON schema that was asked for:\n"
            f"{listed}\nAnswer again, with the corrected JSON value and nothing else."
        )


class OutputSchema:
    """A schema that final answers must conform to."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Take a schema that values may be checked against."""
        self._schema = dict(schema)
        self._native = native_schema(self._schema)

    @property
    def param(self) -> dict[str, Any] | None:
        """The ``output_config`` field of a request; None where the API cannot express it."""
        if self._native is None:
            return None
        return {"format": {"type": "json_schema", "schema": self._native}}

    @property
    def instruction(self) -> str | None:
        """What the system prompt says in place of :attr:`param`."""
        if self._native is not None:
            return None
        return (
            "Your final answer must be one JSON value that conforms to this JSON schema, without "
            f"anything before or after it:\n{write_json(self._schema)}"
        )

    async def read(self, answer: str) -> Any:
        """Return the value of an answer.

        Raises:
            NonConformingError: It is not JSON, or not of this schema.
        """
        # A large answer and a schema with many branches take their time.
        return await asyncio.to_thread(self._read, answer)

    def _read(self, answer: str) -> Any:
        fenced = _FENCED.fullmatch(answer)
        try:
            value = read_json(fenced[1] if fenced else answer)
        except ValueError as error:
            raise NonConformingError([f"it is not JSON alone ({error})"]) from None
        try:
            faults = find_faults(self._schema, value, most=_MOST_FAULTS)
        except SchemaError as error:
            raise ValidationError(
                f"The schema of output_format {error}; simplify it.", reason="option_invalid"
            ) from None
        if faults:
            raise NonConformingError(faults)
        return value


def native_schema(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema in the part of JSON Schema that the API can keep a model to.

    Limits on numbers, lengths and the like are not in it; they are said in the description, where
    the model reads them. None if the shape of a value itself cannot be expressed.
    """
    try:
        return None if _is_recursive(schema) else _native(schema)
    except _Inexpressible:
        return None


class _Inexpressible(Exception):  # noqa: N818 - never leaves this module
    pass


def _native(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, Mapping) or _is_too_open(schema):
        raise _Inexpressible
    kept: dict[str, Any] = {}
    unsaid: list[str] = []
    for key, value in schema.items():
        if key in _SUBSCHEMAS:
            kept[key] = {name: _native(each) for name, each in value.items()}
        elif key in _ALTERNATIVES:
            kept[_ALTERNATIVES[key]] = [_native(each) for each in value]
        elif key == "items":
            kept[key] = _native(value)
        elif key in _KEPT or (key == "format" and value in _FORMATS):
            kept[key] = value
        elif key not in _SAYING_NOTHING:
            unsaid.append(f"{key}: {write_json(value)}")
    if "properties" in kept:
        kept["additionalProperties"] = False
    if unsaid:
        kept["description"] = f"{kept.get('description', '')} ({', '.join(unsaid)})".strip()
    return kept


def _is_too_open(schema: Mapping[str, Any]) -> bool:
    """Whether a value may have a shape that only the full language can describe."""
    kind = schema.get("type")
    return (
        not _INEXPRESSIBLE.isdisjoint(schema)
        or _SAYING_WHAT.isdisjoint(schema)
        or isinstance(kind, list)
        or schema.get("additionalProperties") not in (None, False, True)
        or (kind == "object" and not schema.get("properties"))
        or (kind == "array" and "items" not in schema)
        or not str(schema.get("$ref", "#/$defs/")).startswith("#/$defs/")
    )


def _is_recursive(schema: Mapping[str, Any]) -> bool:
    """Whether a definition leads back to itself."""
    definitions = schema.get("$defs") or {}
    graph = {name: set(_references(each)) for name, each in definitions.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        ref = schema.get("$ref")
        if isinstance(ref, str):
            yield ref.removeprefix("#/$defs/")
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for each in schema:
            yield from _references(each)
