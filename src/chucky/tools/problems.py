"""What is wrong with the arguments of a call, in words a model can act on.

Both validators (pydantic for schemas made from types, jsonschema for schemas given as a dict)
end up in the same sentences: which parameter, what was expected, what came instead.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jsonschema
    import pydantic

# A call with more faults than these is described by the first of them.
_MOST_PROBLEMS = 8

_MISSING_KINDS = frozenset({"missing", "missing_argument", "missing_keyword_only_argument"})
_EXTRA_KINDS = frozenset({"extra_forbidden", "unexpected_keyword_argument"})

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 3

_Path = tuple[str | int, ...]


class ArgumentsError(Exception):
    """The arguments of a call are wrong.

    Args:
        problems: One clause for each fault, each naming its parameter.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("; ".join(self.problems))

    def sentence(self, tool_name: str) -> str:
        """Say everything in one sentence that names the tool."""
        shown = self.problems[:_MOST_PROBLEMS]
        left = len(self.problems) - len(shown)
        more = f"; and {left} more" if left else ""
        return f"Invalid arguments for tool {tool_name!r}: {'; '.join(shown)}{more}."


def check_object(arguments: object) -> dict[str, Any]:
    """Return the arguments as a new dict; null counts as no arguments.

    Raises:
        ArgumentsError: They are not an object with text keys.
    """
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise ArgumentsError([f"the input should be an object, got {show(arguments)}"])
    for key in arguments:
        if not isinstance(key, str):
            raise ArgumentsError([f"the name of every parameter should be text, got {show(key)}"])
    return dict(arguments)


def unknown_parameters(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Describe arguments the tool does not have."""
    takes = f"which takes {_listed(known)}" if known else "which takes no parameters"
    return [f"{name!r} is not a parameter of this tool, {takes}" for name in names]


# ---- from pydantic -------------------------------------------------------------------------


def problems_from_pydantic(
    error: pydantic.ValidationError, arguments: Mapping[str, Any], schema: Mapping[str, Any]
) -> list[str]:
    """Describe the faults pydantic found.

    Args:
        error: What pydantic raised.
        arguments: What it looked at.
        schema: The JSON Schema of the arguments, to say what a missing one should be.
    """
    problems: list[str] = []
    faults: dict[_Path, list[str]] = {}
    inputs: dict[_Path, object] = {}
    for detail in error.errors(include_url=False, include_context=False):
        path = _path_into(arguments, detail["loc"], detail["type"] in _MISSING_KINDS)
        if detail["type"] in _MISSING_KINDS:
            problems.append(_missing(path, schema))
        elif detail["type"] in _EXTRA_KINDS:
            problems.extend(_extra(path, schema))
        else:
            faults.setdefault(path, []).append(_fault(detail["msg"]))
            inputs[path] = detail["input"]
    for path, texts in faults.items():
        problems.append(f"{_named(path)}{_alternatives(texts)}, got {show(inputs[path])}")
    return problems


def _path_into(arguments: object, location: Sequence[str | int], missing: bool) -> _Path:
    """Keep of a pydantic location what leads into the arguments.

    The rest names branches of a union, which mean nothing to the one who sent the arguments.
    """
    path: list[str | int] = []
    here: Any = arguments
    for step in location:
        if _leads_on(here, step):
            here = here[step]
            path.append(step)
    if missing:
        path.append(location[-1])
    return tuple(path)


def _leads_on(value: object, step: str | int) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list | tuple) and isinstance(step, int) and step < len(value)


def _fault(message: str) -> str:
    message = re.sub(r"^(Value error|Assertion failed), ", "", message)
    rewritten = re.sub(r"^\w+ should ", " should ", message)
    return rewritten if rewritten != message else f": {message}"


def _alternatives(texts: Sequence[str]) -> str:
    first, *others = dict.fromkeys(texts)
    return first + "".join(f" or {other.removeprefix(' should ').lstrip(': ')}" for other in others)


# ---- from jsonschema -----------------------------------------------------------------------


def problems_from_jsonschema(
    error: jsonschema.ValidationError, schema: Mapping[str, Any]
) -> list[str]:
    """Describe one fault jsonschema found, as one clause or, for several names, several."""
    path: _Path = tuple(error.absolute_path)
    instance: Any = error.instance
    if error.validator == "required":
        required: Any = error.validator_value
        absent = [name for name in required if name not in instance]
        return [_missing((*path, name), schema) for name in absent]
    if error.validator == "additionalProperties" and isinstance(error.schema, dict):
        names = _additional(instance, error.schema)
        return [clause for name in names for clause in _extra((*path, name), schema)]
    if error.validator in ("type", "enum", "const", "anyOf", "oneOf"):
        part = {error.validator: error.validator_value}
        expectation = f"be {_expected(part, schema, 0)}"
    else:
        expectation = f"satisfy {error.validator} {show(error.validator_value)}"
    return [f"{_named(path)} should {expectation}, got {show(instance)}"]


def _additional(instance: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    known = schema.get("properties", {})
    patterns = schema.get("patternProperties", {})
    return [
        name
        for name in instance
        if name not in known and not any(re.search(pattern, name) for pattern in patterns)
    ]


# ---- words ---------------------------------------------------------------------------------


def _missing(path: _Path, schema: Mapping[str, Any]) -> str:
    expected = _expected(_schema_at(schema, path), schema, 0)
    return f"{_named(path)} is missing, expected {expected}"


def _extra(path: _Path, schema: Mapping[str, Any]) -> list[str]:
    if len(path) == 1:
        return unknown_parameters([str(path[0])], list(schema.get("properties", {})))
    return [f"{_named(path)} is not allowed"]


def _named(path: _Path) -> str:
    if not path:
        return "the input"
    first, *others = path
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in others)
    return f"parameter {f'{first}{steps}'!r}"


def _listed(names: Sequence[str]) -> str:
    quoted = [repr(name) for name in names]
    return " and ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def show(value: object) -> str:
    """Show a value the way JSON writes it where that is short, and never at length."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _short.repr(value)


def _schema_at(schema: Any, path: _Path) -> Any:
    """Follow a path into a schema; where it is lost, anything may be expected."""
    here = schema
    for step in path:
        here = next(
            (found for part in _branches(here, schema) if (found := _step_into(part, step))), {}
        )
    return here


def _branches(part: Any, schema: Any) -> list[dict[str, Any]]:
    """List what a value may be: the schema itself, then the alternatives it offers."""
    whole = _dereferenced(part, schema)
    alternatives = [*whole.get("anyOf", ()), *whole.get("oneOf", ())]
    return [whole, *(_dereferenced(alternative, schema) for alternative in alternatives)]


def _step_into(part: Mapping[str, Any], step: str | int) -> Any:
    return part.get("items") if isinstance(step, int) else part.get("properties", {}).get(step)


def _dereferenced(part: Any, schema: Any) -> dict[str, Any]:
    reference = part.get("$ref", "") if isinstance(part, dict) else ""
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        part = schema.get("$defs", {}).get(reference.removeprefix("#/$defs/"), {})
    return part if isinstance(part, dict) else {}


def _expected(part: Any, schema: Mapping[str, Any], depth: int) -> str:
    """Say in a few words what a schema asks for."""
    part = _dereferenced(part, schema)
    if "const" in part:
        return show(part["const"])
    if isinstance(part.get("enum"), list):
        return f"one of {', '.join(show(value) for value in part['enum'][:20])}"
    for key in ("anyOf", "oneOf"):
        if isinstance(part.get(key), list) and depth < 3:
            words = [_expected(branch, schema, depth + 1) for branch in part[key]]
            return " or ".join(dict.fromkeys(words))
    kind = part.get("type", "any value")
    words = kind if isinstance(kind, list) else [kind]
    form = f" ({part['format']})" if "format" in part else ""
    return " or ".join(str(word) for word in words) + form
