"""Whether a value conforms to a JSON schema, with a limit on the work a schema can cause.

A general validator follows references as often as the schema says, which a schema of a few lines
can make practically for ever. This one knows the keywords that :mod:`chucky.offline.instances` can
build for, refuses the others by name, and counts its steps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from jsonschema import FormatChecker

from chucky.offline.schemas import UNSUPPORTED, Schema, SchemaUnsupported, resolve

MAX_STEPS = 10_000
MAX_LEVELS = 60

_CHECKED_FORMATS = FormatChecker(("date", "email", "ipv4", "ipv6", "uuid"))
_TIME = r"\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:[Zz]|[+-]\d{2}:\d{2})"
_FORMAT_PATTERNS = {
    "date-time": re.compile(rf"\d{{4}}-\d{{2}}-\d{{2}}[Tt]{_TIME}"),
    "time": re.compile(_TIME),
    "uri": re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+"),
}


def conforms(
    root: Schema,
    value: Any,
    schema: Schema | None = None,
    *,
    passed_over: frozenset[str] = frozenset(),
) -> bool:
    """Tell whether a value conforms to a schema.

    Args:
        root: The whole schema, well-formed; references are looked up in it.
        value: A JSON value.
        schema: The part of ``root`` to check against; all of it if ``None``.
        passed_over: Keywords that are not supported, and not to be complained of.

    Raises:
        SchemaUnsupported: The schema uses a keyword that is not supported, or is too complex.
    """
    checker = _Checker(root, UNSUPPORTED - passed_over)
    return checker.conforms(value, root if schema is None else schema, 0)


def is_kind(value: Any, kind: str) -> bool:
    """Tell whether a JSON value is of a type of JSON schema."""
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return _is_number(value) and value == int(value)
        case "number":
            return _is_number(value)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case _:
            return isinstance(value, dict)


class _Checker:
    def __init__(self, root: Schema, refused: frozenset[str]) -> None:
        self._root = root
        self._refused = refused
        self._steps_left = MAX_STEPS

    def conforms(self, value: Any, schema: Schema, level: int) -> bool:
        self._steps_left -= 1
        if self._steps_left < 0 or level > MAX_LEVELS:
            raise SchemaUnsupported("it is too complex")
        if isinstance(schema, bool):
            return schema
        if "$ref" in schema:
            return self.conforms(value, resolve(self._root, schema), level + 1)
        for keyword, argument in schema.items():
            if keyword in self._refused:
                raise SchemaUnsupported(f"the keyword {keyword!r} is not supported offline")
            if isinstance(argument, list):
                self._steps_left -= len(argument) // 8
            if keyword in _SIMPLE and not _SIMPLE[keyword](value, argument):
                return False
        parts = (self._alternatives, self._in_array, self._in_object)
        return all(part(value, schema, level + 1) for part in parts)

    def _alternatives(self, value: Any, schema: dict[str, Any], level: int) -> bool:
        def fitting(keyword: str) -> Iterator[bool]:
            return (self.conforms(value, each, level) for each in schema[keyword])

        if "allOf" in schema and not all(fitting("allOf")):
            return False
        if "anyOf" in schema and not any(fitting("anyOf")):
            return False
        return "oneOf" not in schema or sum(fitting("oneOf")) == 1

    def _in_array(self, value: Any, schema: dict[str, Any], level: int) -> bool:
        if not isinstance(value, list):
            return True
        first = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        pairs = [(item, first[i] if i < len(first) else rest) for i, item in enumerate(value)]
        return all(self.conforms(item, each, level) for item, each in pairs)

    def _in_object(self, value: Any, schema: dict[str, Any], level: int) -> bool:
        if not isinstance(value, dict):
            return True
        known = schema.get("properties", {})
        other = schema.get("additionalProperties", True)
        return all(
            self.conforms(item, known.get(name, other), level) for name, item in value.items()
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same(left: Any, right: Any) -> bool:
    # In JSON 1 and 1.0 are one value, 1 and true are not.
    return isinstance(left, bool) is isinstance(right, bool) and bool(left == right)


def _is_of_type(value: Any, argument: Any) -> bool:
    allowed = [argument] if isinstance(argument, str) else argument
    return any(is_kind(value, kind) for kind in allowed)


def _has_no_twins(value: Any, argument: Any) -> bool:
    if not argument or not isinstance(value, list):
        return True
    return len({json.dumps(item, sort_keys=True) for item in value}) == len(value)


def _has_format(value: Any, name: Any) -> bool:
    if not isinstance(value, str):
        return True
    if name in _FORMAT_PATTERNS:
        return _FORMAT_PATTERNS[name].fullmatch(value) is not None
    return _CHECKED_FORMATS.conforms(value, name)


def _of_number(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda value, argument: not _is_number(value) or test(value, argument)


def _of_size(
    kind: type[str | list[Any] | dict[str, Any]], test: Callable[[int, Any], bool]
) -> Callable[[Any, Any], bool]:
    return lambda value, argument: not isinstance(value, kind) or test(len(value), argument)


_SIMPLE: dict[str, Callable[[Any, Any], bool]] = {
    "type": _is_of_type,
    "enum": lambda value, argument: any(_same(value, each) for each in argument),
    "const": _same,
    "format": _has_format,
    "minimum": _of_number(lambda value, least: value >= least),
    "maximum": _of_number(lambda value, most: value <= most),
    "exclusiveMinimum": _of_number(lambda value, least: value > least),
    "exclusiveMaximum": _of_number(lambda value, most: value < most),
    "multipleOf": _of_number(lambda value, step: Fraction(repr(value)) % Fraction(repr(step)) == 0),
    "minLength": _of_size(str, lambda size, least: size >= least),
    "maxLength": _of_size(str, lambda size, most: size <= most),
    "minItems": _of_size(list, lambda size, least: size >= least),
    "maxItems": _of_size(list, lambda size, most: size <= most),
    "uniqueItems": _has_no_twins,
    "minProperties": _of_size(dict, lambda size, least: size >= least),
    "maxProperties": _of_size(dict, lambda size, most: size <= most),
    "required": lambda value, names: (
        not isinstance(value, dict) or all(name in value for name in names)
    ),
}
