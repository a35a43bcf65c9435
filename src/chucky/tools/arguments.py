"""From the input object of a call to the arguments of the handler.

A plan is made once, when the tool is defined: it knows the JSON Schema the model is shown, how
to validate an input against it, and how the handler wants it. Which plan a tool gets depends on
where its schema comes from:

==================  ==========================  =============================================
schema              validated by                the handler receives
==================  ==========================  =============================================
none (no params)    by hand, without imports    nothing
none (from types)   pydantic, with conversion   keyword arguments
a pydantic class    that class                  keyword arguments, the whole dict, or the
                                                instance if its one parameter is typed so
a JSON Schema dict  jsonschema                  keyword arguments or the whole dict, unchanged
==================  ==========================  =============================================

With a schema of its own, a handler gets the whole dict when it has exactly one parameter and
the schema has no property of that name.

Conversion follows pydantic's lax mode: ``"5"`` is accepted where an int is expected, because
models do write numbers that way and the handler still gets an int. ``Field(strict=True)`` on a
parameter turns that off.
"""

from __future__ import annotations

import inspect
import itertools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chucky.errors import ValidationError
from chucky.tools.binding import VARIADIC, ArgumentPlan, BoundCall, ByName, validated
from chucky.tools.inferred import plan_from_signature
from chucky.tools.problems import ArgumentsError, problems_from_jsonschema
from chucky.tools.schemas import (
    check_object_schema,
    check_schema,
    first_sentence,
    model_schema,
    schema_validator,
)
from chucky.tools.signature import Function, read_parameters, resolve_annotation, split_annotated

if TYPE_CHECKING:
    from pydantic import BaseModel

# A call with more faults than these is not searched for more.
_MOST_FAULTS = 20


def plan_arguments(function: Function, schema: object, tool_name: str) -> ArgumentPlan:
    """Decide how a handler gets its arguments.

    Args:
        function: The handler.
        schema: A JSON Schema dict, a pydantic model class, or None to read the signature.
        tool_name: For error messages.

    Raises:
        ValidationError: The schema, the signature, or the two together cannot work.
    """
    parameters = read_parameters(function, tool_name)
    if schema is None:
        return plan_from_signature(function, parameters, tool_name)
    if isinstance(schema, dict):
        return _plan_from_dict(function, parameters, schema, tool_name)
    if inspect.isclass(schema):
        from pydantic import BaseModel

        if issubclass(schema, BaseModel):
            return _plan_from_model(function, parameters, schema, tool_name)
    raise ValidationError(
        f"The schema of tool {tool_name!r} must be a JSON Schema dict or a pydantic model class, "
        f"not {schema!r}."
    )


# ---- with a schema of its own --------------------------------------------------------------

# What a handler gets for the validated input: the values by name, or all of them at once.
_Handover = Callable[[dict[str, Any]], BoundCall]


def _takes_whole(parameters: tuple[inspect.Parameter, ...]) -> Callable[[Any], BoundCall]:
    (parameter,) = parameters
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        return lambda whole: ((), {parameter.name: whole})
    return lambda whole: ((whole,), {})


def _is_single(parameters: tuple[inspect.Parameter, ...]) -> bool:
    return len(parameters) == 1 and parameters[0].kind not in VARIADIC


@dataclass(frozen=True, slots=True)
class _FromDict:
    """The plan of a handler with a JSON Schema: values are checked and passed unchanged."""

    input_schema: dict[str, Any]
    hand_over: _Handover

    def bind(self, arguments: dict[str, Any]) -> BoundCall:
        check_arguments(arguments, self.input_schema)
        return self.hand_over(arguments)


def check_arguments(arguments: dict[str, Any], schema: Mapping[str, Any]) -> None:
    """Validate an input against a JSON Schema.

    Raises:
        ArgumentsError: The input is wrong.
    """
    faults = itertools.islice(schema_validator(schema).iter_errors(arguments), _MOST_FAULTS)
    problems = [clause for fault in faults for clause in problems_from_jsonschema(fault, schema)]
    if problems:
        raise ArgumentsError(problems)


def _plan_from_dict(
    function: Function,
    parameters: tuple[inspect.Parameter, ...],
    schema: dict[str, Any],
    tool_name: str,
) -> ArgumentPlan:
    check_schema(schema, tool_name)
    properties = schema.get("properties", {})
    if _is_single(parameters) and parameters[0].name not in properties:
        _check_takes_dict(function, parameters[0], tool_name)
        return _FromDict(schema, _takes_whole(parameters))
    by_name = ByName.of(parameters)
    _check_promises(by_name, list(properties), schema.get("required", []), tool_name)
    return _FromDict(schema, by_name.pass_on)


@dataclass(frozen=True, slots=True)
class _FromModel:
    """The plan of a handler with a pydantic class of the caller's own."""

    input_schema: dict[str, Any]
    model: type[BaseModel]
    hand_over: Callable[[BaseModel], BoundCall]

    def bind(self, arguments: dict[str, Any]) -> BoundCall:
        return self.hand_over(validated(self.model, arguments, self.input_schema))


def _plan_from_model(
    function: Function,
    parameters: tuple[inspect.Parameter, ...],
    model: type[BaseModel],
    tool_name: str,
) -> ArgumentPlan:
    try:
        schema = model_schema(model)
    except Exception as error:  # the fields' types bring code of their own
        raise ValidationError(
            f"The schema of tool {tool_name!r}, {model.__name__}, cannot be written as JSON "
            f"Schema: {first_sentence(error)}"
        ) from error
    check_object_schema(schema, tool_name)
    if _is_single(parameters):
        hint = _known_hint(function, parameters[0])
        if inspect.isclass(hint) and _is_model_type(hint, model):
            return _FromModel(schema, model, _takes_whole(parameters))
    names = _names_by_field(model, parameters)
    if _is_single(parameters) and parameters[0].name not in names.values():
        _check_takes_dict(function, parameters[0], tool_name)
        whole = _takes_whole(parameters)
        return _FromModel(schema, model, lambda found: whole(found.model_dump(by_alias=True)))
    by_name = ByName.of(parameters)
    _check_promises(by_name, list(names.values()), list(names.values()), tool_name)

    def hand_over(found: BaseModel) -> BoundCall:
        values = {name: getattr(found, field) for field, name in names.items()}
        return by_name.pass_on({**(found.model_extra or {}), **values})

    return _FromModel(schema, model, hand_over)


def _is_model_type(hint: type, model: type[BaseModel]) -> bool:
    from pydantic import BaseModel

    return issubclass(hint, BaseModel) and issubclass(model, hint)


def _names_by_field(
    model: type[BaseModel], parameters: tuple[inspect.Parameter, ...]
) -> dict[str, str]:
    """Say by which name each field is passed: its own if the handler has it, else its alias."""
    known = {parameter.name for parameter in parameters}
    names = {}
    for field, info in model.model_fields.items():
        alias = info.validation_alias if isinstance(info.validation_alias, str) else field
        names[field] = field if field in known else alias
    return names


def _known_hint(function: Function, parameter: inspect.Parameter) -> Any:
    """Resolve an annotation that only helps to decide: what cannot be resolved is unknown."""
    try:
        hint = resolve_annotation(function, parameter, "")
    except ValidationError:
        return Any
    return split_annotated(hint)[0]


def _check_takes_dict(function: Function, parameter: inspect.Parameter, tool_name: str) -> None:
    hint = _known_hint(function, parameter)
    kind = typing.get_origin(hint) or hint
    try:
        fits = kind is Any or not inspect.isclass(kind) or issubclass(dict, kind)
    except TypeError:
        fits = True  # a TypedDict or a protocol: dicts are what they describe
    if not fits:
        raise ValidationError(
            f"The handler of tool {tool_name!r} takes {parameter.name!r}, which its schema does "
            f"not have, as {hint!r}: name a property of the schema, or take the whole input as a "
            "dict."
        )


def _check_promises(
    by_name: ByName, promised: list[str], always_given: list[str], tool_name: str
) -> None:
    """Check that a handler can be called with whatever its schema lets through."""
    names = by_name.names()
    unheard = [name for name in promised if name not in names]
    if unheard and not by_name.takes_any_name:
        raise ValidationError(
            f"The handler of tool {tool_name!r} has no parameter for {unheard[0]!r}, which its "
            "schema has."
        )
    for parameter in by_name.parameters:
        if parameter.default is not inspect.Parameter.empty or parameter.name in always_given:
            continue
        where = "optional in" if parameter.name in promised else "missing in"
        raise ValidationError(
            f"The handler of tool {tool_name!r} needs {parameter.name!r}, which is {where} its "
            "schema: give the parameter a default, or make the property required."
        )
