"""Building values that conform to a JSON schema, filled from a message where it says something."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from chucky.jsontext import write_json
from chucky.offline.conformity import conforms
from chucky.offline.schemas import (
    UNSUPPORTED,
    Schema,
    SchemaUnsupported,
    check_schema,
    kinds,
    property_names,
    resolve,
)
from chucky.offline.values import MISSING, ValueFinder

MAX_STEPS = 2_000
MAX_LEVELS = 30
MAX_ITEMS = 1_000
MAX_STRING = 10_000
MAX_NUMBER = 10**300
HALF = Fraction(1, 2)

_LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")

_FORMATS = {
    "date": "1970-01-01",
    "date-time": "1970-01-01T00:00:00Z",
    "duration": "PT0S",
    "email": "user@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "time": "00:00:00Z",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def build_instance(schema: dict[str, Any], text: str, sentence: str) -> Any:
    """Build the smallest value that conforms to a schema, with what a message says in it.

    Args:
        schema: The JSON schema (draft 2020-12).
        text: The message.
        sentence: The value of the first string place that nothing is said about.

    Returns:
        A JSON value that conforms to the schema.

    Raises:
        SchemaUnsupported: There is none, or none that is found with reasonable work.
    """
    check_schema(schema)
    filled = _Builder(schema, ValueFinder(text, property_names(schema), schema), sentence)
    for builder in (filled, _Builder(schema, None, "")):
        try:
            value = builder.build(schema)
        except SchemaUnsupported:
            if builder is filled:
                continue
            raise
        if conforms(schema, value):
            return value
    raise SchemaUnsupported("no value was found that conforms to it")


def find_arguments(schema: dict[str, Any], text: str) -> dict[str, Any] | None:
    """Find arguments for a tool in a message.

    Args:
        schema: The tool's input schema.
        text: The message.

    Returns:
        The arguments, or ``None`` if a required one cannot be found sensibly.
    """
    try:
        check_schema(schema)
        finder = ValueFinder(text, property_names(schema), schema)
        arguments = _find_arguments(schema, finder)
        # What is passed over, the tool checks itself.
        if arguments is not None and conforms(schema, arguments, passed_over=UNSUPPORTED):
            return arguments
    except SchemaUnsupported:
        pass  # a tool that cannot be understood is one whose arguments cannot be found
    return None


def _find_arguments(schema: dict[str, Any], finder: ValueFinder) -> dict[str, Any] | None:
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    found = {name: finder.evident(name, each) for name, each in properties.items()}
    for name in required:
        if found.get(name, MISSING) is MISSING:
            found[name] = finder.likely(name, properties.get(name, True))
    sentences = 0
    for name in required:
        if found[name] is MISSING:
            value = _last_resort(name, properties.get(name, True), finder)
            sentences += value is finder.text
            if value is MISSING or sentences > 1:
                return None
            found[name] = value
    return {name: value for name, value in found.items() if value is not MISSING}


def _last_resort(name: str, schema: Schema, finder: ValueFinder) -> Any:
    for keyword in ("const", "default"):
        if isinstance(schema, dict) and keyword in schema:
            return schema[keyword]
    if "null" in kinds(schema):
        return None
    return finder.text if finder.text and finder.takes_sentence(name, schema) else MISSING


class _Builder:
    def __init__(self, root: Schema, finder: ValueFinder | None, sentence: str) -> None:
        self._root = root
        self._finder = finder
        self._sentence = sentence
        self._steps_left = MAX_STEPS

    def build(self, schema: Schema, name: str = "", level: int = 0) -> Any:
        self._steps_left -= 1
        if self._steps_left < 0 or level > MAX_LEVELS:
            raise SchemaUnsupported("it is too complex, or it never ends")
        if schema is False:
            raise SchemaUnsupported("it allows no value at one place")
        if schema is True:
            return None
        if "$ref" in schema:
            return self.build(resolve(self._root, schema), name, level + 1)
        for keyword in UNSUPPORTED & set(schema):
            raise SchemaUnsupported(f"the keyword {keyword!r} is not supported offline")
        if "allOf" in schema:
            return self.build(self._joined(schema), name, level + 1)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._alternative(schema, keyword, name, level)
        return self._plain(schema, name, level)

    def _alternative(self, schema: dict[str, Any], keyword: str, name: str, level: int) -> Any:
        common = {key: value for key, value in schema.items() if key != keyword}
        if {"type": "null"} in schema[keyword]:
            found = self._found(name, schema)
            return None if found is MISSING else found
        reason = SchemaUnsupported(f"no alternative of {keyword!r} can be built")
        # References last: they may lead back here.
        for option in sorted(schema[keyword], key=lambda each: "$ref" in write_json(each)):
            try:
                joined = {"allOf": [common, option]} if common else option
                value = self.build(joined, name, level + 1)
                if conforms(self._root, value, schema):
                    return value
            except SchemaUnsupported as refusal:
                reason = refusal
        raise reason

    def _joined(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Join all parts of an ``allOf``; where they contradict each other the check will tell."""
        joined = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            self._steps_left -= 1
            resolved = self._resolved(part)
            if resolved is False:
                raise SchemaUnsupported("it allows no value at one place")
            if isinstance(resolved, dict):
                for key, value in resolved.items():
                    join = _JOINS.get(key) if key in joined else None
                    joined[key] = join(joined[key], value) if join else value
        return joined

    def _resolved(self, schema: Schema) -> Schema:
        for _ in range(MAX_LEVELS):
            if isinstance(schema, bool) or "$ref" not in schema:
                return schema
            schema = resolve(self._root, schema)
        raise SchemaUnsupported("its references never end")

    def _plain(self, schema: dict[str, Any], name: str, level: int) -> Any:
        if "const" in schema:
            return schema["const"]
        found = self._found(name, schema)
        if found is not MISSING:
            return found
        if "enum" in schema:
            return self._first_allowed(schema)
        wanted = kinds(schema)
        kind = "null" if "null" in wanted else next(iter(wanted), "null")
        match kind:
            case "object":
                return self._object(schema, level)
            case "array":
                return self._array(schema, name, level)
            case "string":
                return self._string(schema)
            case "integer" | "number":
                return self._number(schema, whole=kind == "integer")
            case "boolean":
                return False
            case _:
                return None

    def _found(self, name: str, schema: dict[str, Any]) -> Any:
        if self._finder is None or not name or "object" in kinds(schema):
            return MISSING
        value = self._finder.evident(name, schema)
        return self._finder.likely(name, schema) if value is MISSING else value

    def _first_allowed(self, schema: dict[str, Any]) -> Any:
        rest = {key: value for key, value in schema.items() if key != "enum"}
        for value in schema["enum"]:
            if conforms(self._root, value, rest):
                return value
        raise SchemaUnsupported("no value of an 'enum' conforms to the rest of it")

    def _object(self, schema: dict[str, Any], level: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        value: dict[str, Any] = {}
        for name, each in properties.items():
            if name in required:
                value[name] = self.build(each, name, level + 1)
            elif self._finder is not None:
                evident = self._finder.evident(name, each)
                if evident is not MISSING:
                    value[name] = evident
        other = schema.get("additionalProperties", True)
        for name in required:
            if name not in value:
                value[name] = self.build(other, name, level + 1)
        self._fill_up(value, schema, level)
        return value

    def _fill_up(self, value: dict[str, Any], schema: dict[str, Any], level: int) -> None:
        least = schema.get("minProperties", 0)
        if least > MAX_ITEMS:
            raise SchemaUnsupported("it wants too many properties")
        optional = [name for name in schema.get("properties", {}) if name not in value]
        extra = (f"property{number}" for number in range(1, MAX_ITEMS + 1))
        names = iter([*optional, *extra])
        known = schema.get("properties", {})
        while len(value) < least:
            name = next(names)
            value[name] = self.build(
                known.get(name, schema.get("additionalProperties", True)), name, level + 1
            )

    def _array(self, schema: dict[str, Any], name: str, level: int) -> list[Any]:
        least = schema.get("minItems", 0)
        if least > MAX_ITEMS:
            raise SchemaUnsupported("it wants too many items")
        first = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        value: list[Any] = []
        for index in range(int(least)):
            each = first[index] if index < len(first) else rest
            item = self.build(each, name, level + 1)
            if schema.get("uniqueItems") and item in value:
                item = self._another(each, value)
            value.append(item)
        return value

    def _another(self, schema: Schema, taken: list[Any]) -> Any:
        """Find an item that is not in an array yet, by counting or by going through an enum."""
        schema = resolve(self._root, schema)
        options = schema.get("enum", []) if isinstance(schema, dict) else []
        count = len(taken)
        for item in [*options, count, f"item {count}", float(count) + 0.5, True, {"n": count}]:
            if item not in taken and conforms(self._root, item, schema):
                return item
        raise SchemaUnsupported("no more unique items can be made for an array")

    def _string(self, schema: dict[str, Any]) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        least, most = schema.get("minLength", 0), schema.get("maxLength", MAX_STRING)
        if least > MAX_STRING:
            raise SchemaUnsupported("it wants too long a string")
        text, self._sentence = self._sentence, ""
        return text[: int(min(most, MAX_STRING))].ljust(int(least), "-")

    def _number(self, schema: dict[str, Any], *, whole: bool) -> int | float:
        """Find the number nearest to 0 that the limits allow."""
        step = Fraction(repr(schema.get("multipleOf", 1)))
        if whole:
            step = Fraction(step.numerator)
        limits = [Fraction(repr(schema[each])) for each in _LIMITS if each in schema]
        candidates = {Fraction(0), *limits}
        for limit in limits:
            nearest = math.ceil(limit / step) * step
            candidates |= {nearest - step, nearest, nearest + step, limit + HALF, limit - HALF}
        if limits:
            candidates.add((min(limits) + max(limits)) / 2)
        for candidate in sorted(candidates, key=lambda each: (abs(each), each)):
            if abs(candidate) <= MAX_NUMBER and not (whole and candidate.denominator > 1):
                value = candidate.numerator if candidate.denominator == 1 else float(candidate)
                if conforms(self._root, value, schema):
                    return value
        raise SchemaUnsupported("no number was found within its limits")


def _joined_properties(left: Any, right: Any) -> Any:
    joined = dict(left)
    for name, schema in right.items():
        joined[name] = {"allOf": [joined[name], schema]} if name in joined else schema
    return joined


def _joined_types(left: Any, right: Any) -> list[str]:
    ours = [left] if isinstance(left, str) else left
    theirs = [right] if isinstance(right, str) else right
    both = [kind for kind in ours if kind in theirs]
    # An integer is a number, so that both together mean an integer.
    if "number" not in both and "integer" not in both:
        both += ["integer"] if {"integer", "number"} <= {*ours, *theirs} else []
    return both


_JOINS: dict[str, Any] = {
    "properties": _joined_properties,
    "required": lambda left, right: [*left, *(name for name in right if name not in left)],
    "allOf": lambda left, right: [*left, *right],
    "minimum": max,
    "exclusiveMinimum": max,
    "minLength": max,
    "minItems": max,
    "minProperties": max,
    "maximum": min,
    "exclusiveMaximum": min,
    "maxLength": min,
    "maxItems": min,
    "maxProperties": min,
    "enum": lambda left, right: [value for value in left if value in right],
    "type": _joined_types,
}
