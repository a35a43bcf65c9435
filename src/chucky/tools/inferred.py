"""The plan of a tool whose schema is the signature of its handler."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chucky.errors import ValidationError
from chucky.tools.binding import VARIADIC, ArgumentPlan, BoundCall, ByName, validated
from chucky.tools.problems import ArgumentsError, unknown_parameters
from chucky.tools.schemas import first_sentence, model_schema
from chucky.tools.signature import (
    Function,
    annotate,
    describe_parameters,
    resolve_annotation,
    split_annotated,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

_EMPTY = inspect.Parameter.empty


class _NoParameters:
    """The plan of a handler without parameters; needs no validator, so it imports none."""

    def __init__(self) -> None:
        self.input_schema: dict[str, Any] = {
            "type": "object",
            "properties": {},
            "additionalProperties": False,
        }

    def bind(self, arguments: dict[str, Any]) -> BoundCall:
        if arguments:
            raise ArgumentsError(unknown_parameters(arguments, []))
        return (), {}


@dataclass(frozen=True, slots=True)
class _Inferred:
    """The plan of a handler whose schema is its signature.

    The fields of the model are called ``p0``, ``p1``, … and carry the parameters' names as
    aliases: a parameter may be called ``schema``, ``self`` or ``_x``, a field may not.
    """

    input_schema: dict[str, Any]
    model: type[BaseModel]
    by_name: ByName
    # Fields left out of the call when the input has none, so that the handler's default applies.
    omissible: frozenset[str]

    def bind(self, arguments: dict[str, Any]) -> BoundCall:
        instance = validated(self.model, arguments, self.input_schema)
        values: dict[str, Any] = dict(instance.model_extra or {})
        names = self.by_name.names()
        shadowing = [name for name in values if name in names]
        if shadowing:  # the name of a parameter the model knows by an alias
            raise ArgumentsError(
                unknown_parameters(shadowing, list(self.input_schema["properties"]))
            )
        for index, name in enumerate(names):
            field = f"p{index}"
            if field in instance.model_fields_set or field not in self.omissible:
                values[name] = instance.__dict__[field]
        return self.by_name.pass_on(values)


def plan_from_signature(
    function: Function, parameters: tuple[inspect.Parameter, ...], tool_name: str
) -> ArgumentPlan:
    """Read the schema of a tool from its handler.

    Args:
        function: The handler.
        parameters: Its parameters.
        tool_name: For error messages.

    Raises:
        ValidationError: A parameter cannot be described, or cannot be passed by name.
    """
    if not parameters:
        return _NoParameters()
    hints = {
        parameter.name: resolve_annotation(function, parameter, tool_name)
        for parameter in parameters
    }
    _check_has_names(parameters, hints, tool_name)
    from pydantic.fields import FieldInfo

    by_name = ByName.of(parameters)
    descriptions = describe_parameters(function)
    definitions = {
        f"p{index}": _field_definition(parameter, hints[parameter.name], descriptions)
        for index, parameter in enumerate(by_name.parameters)
    }
    extra = next((hints[p.name] for p in parameters if p.kind in VARIADIC), None)
    try:
        model = _create_model(definitions, extra)
        schema = model_schema(model)
    except Exception as error:  # types bring code of their own into pydantic
        raise _cannot_describe(tool_name, hints, error) from error
    omissible = frozenset(
        f"p{index}"
        for index, parameter in enumerate(by_name.parameters)
        if parameter.default is not _EMPTY and not isinstance(parameter.default, FieldInfo)
    )
    return _Inferred(schema, model, by_name, omissible)


def _check_has_names(
    parameters: tuple[inspect.Parameter, ...], hints: Mapping[str, Any], tool_name: str
) -> None:
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            raise ValidationError(
                f"The handler of tool {tool_name!r} takes *{parameter.name}, but the arguments "
                "of a tool have names: use a parameter that is a list."
            )
        if typing.get_origin(hints[parameter.name]) is typing.Unpack:
            raise ValidationError(
                f"The handler of tool {tool_name!r} takes **{parameter.name} as a TypedDict: "
                "write its keys as parameters, so that each can be described."
            )


def _field_definition(
    parameter: inspect.Parameter, hint: Any, descriptions: Mapping[str, str]
) -> tuple[Any, Any]:
    from pydantic import Field

    base, metadata = split_annotated(hint)
    if parameter.default is None and base is not Any:
        base = typing.Union[base, None]  # noqa: UP007 - `|` is not defined for every type form
    # A plain text beside the type is its description, as in other tool libraries.
    notes = [Field(description=note) if isinstance(note, str) else note for note in metadata]
    # First, because what comes later wins: the docstring is the weakest source, and an alias
    # of the caller's own is the name the model sees.
    name = Field(alias=parameter.name, description=descriptions.get(parameter.name))
    default = ... if parameter.default is _EMPTY else parameter.default
    return annotate(base, name, *notes), default


def _create_model(definitions: Mapping[str, tuple[Any, Any]], extra: Any) -> type[BaseModel]:
    """Make the model of a signature; ``extra`` is the type of its ``**kwargs``, None without."""
    from pydantic import BaseModel, ConfigDict, create_model

    if extra is None:
        base = type("_Base", (BaseModel,), {"model_config": ConfigDict(extra="forbid")})
    else:
        namespace: dict[str, Any] = {"model_config": ConfigDict(extra="allow")}
        if extra is not Any:
            namespace["__annotations__"] = {"__pydantic_extra__": dict[str, extra]}
        base = type("_Base", (BaseModel,), namespace)
    fields: dict[str, Any] = dict(definitions)
    return create_model("Arguments", __base__=base, __module__=__name__, **fields)


def _cannot_describe(tool_name: str, hints: Mapping[str, Any], error: Exception) -> ValidationError:
    from pydantic import TypeAdapter

    for name, hint in hints.items():
        try:
            TypeAdapter(hint).json_schema()
        except Exception as reason:  # as above: the type's own code runs here
            return ValidationError(
                f"Parameter {name!r} of tool {tool_name!r} has a type JSON Schema cannot "
                f"describe: {first_sentence(reason)}"
            )
    return ValidationError(
        f"The parameters of tool {tool_name!r} cannot be described as JSON Schema: "
        f"{first_sentence(error)}"
    )
