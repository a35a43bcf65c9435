"""JSON Schema that a stranger wrote: whether it is valid, and whether a value conforms to it.

``jsonschema`` and ``regex`` are imported when they are needed: they take a tenth of a second to
load, and few sessions need them.

A schema may be written to do harm. So references lead nowhere but into the schema itself,
expressions are searched with a time limit, and the steps of a check are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from chucky.jsontext import write_json

MAX_CHARACTERS = 200_000
MAX_STEPS = 100_000
MAX_SEARCH_SECONDS = 0.2

_LONGEST_FAULT = 300


class SchemaError(ValueError):
    """A schema cannot be used; the text says why and completes a sentence."""


def check_schema(schema: Mapping[str, Any]) -> None:
    """Check that something is a JSON Schema (draft 2020-12).

    Raises:
        SchemaError: It is not.
    """
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise SchemaError(f"is not valid JSON Schema: {error.message:.200}") from None


def check_usable_for_values(schema: Mapping[str, Any]) -> None:
    """Check that values may be checked against a schema here.

    Raises:
        SchemaError: It is not valid, too large, or uses what could hold up the server.
    """
    if len(write_json(schema)) > MAX_CHARACTERS:
        raise SchemaError(f"has more than {MAX_CHARACTERS} characters of JSON")
    check_schema(schema)
    if any("patternProperties" in part for part in _objects_in(schema)):
        # Its expressions would be searched without a time limit.
        raise SchemaError("has 'patternProperties', which this server does not check")


def find_faults(schema: Mapping[str, Any], value: Any, *, most: int) -> list[str]:
    """Say where a value does not conform to a schema; blocks for as long as that takes.

    Args:
        schema: A schema that :func:`check_usable_for_values` accepted.
        value: The value.
        most: How many faults are looked for.

    Raises:
        SchemaError: The schema refers to what is not there or to itself without end, or the
            check takes too many steps or too long.
    """
    import referencing
    import regex

    validator = _counting_validator()(schema, registry=referencing.Registry())
    try:
        return [
            f"{error.json_path}: {error.message[:_LONGEST_FAULT]}"
            for error, _ in zip(validator.iter_errors(value), range(most), strict=False)
        ]
    except (RecursionError, TimeoutError):
        raise SchemaError("takes too long to check, or refers to itself without end") from None
    except regex.error as error:
        raise SchemaError(f"has a 'pattern' that is no expression ({error})") from None
    except referencing.exceptions.Unresolvable:
        raise SchemaError("refers to something that is not in it") from None


def _objects_in(value: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _counting_validator() -> Any:
    """A class of validators that count their steps together; made anew for each check."""
    import jsonschema

    steps = count()
    original = jsonschema.Draft202012Validator.VALIDATORS["$ref"]

    def follow(validator: Any, ref: Any, instance: Any, schema: Any) -> Iterator[Any]:
        # Only references can make a check longer than schema and value are.
        if next(steps) > MAX_STEPS:
            raise TimeoutError
        yield from original(validator, ref, instance, schema)

    return jsonschema.validators.extend(  # type: ignore[no-untyped-call]
        jsonschema.Draft202012Validator,
        {"$ref": follow, "pattern": _search},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )


def _search(validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    import jsonschema
    import regex

    # Without the limit one expression could hold up the whole server for ever.
    if validator.is_type(instance, "string") and not regex.search(
        pattern, instance, timeout=MAX_SEARCH_SECONDS
    ):
        yield jsonschema.ValidationError(f"{instance!r:.100} does not match {pattern!r:.100}")
