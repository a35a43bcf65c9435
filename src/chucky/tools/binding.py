"""How a validated input is handed to a handler: the plan every tool has, and passing by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from chucky.tools.problems import ArgumentsError, problems_from_pydantic, unknown_parameters

if TYPE_CHECKING:
    from pydantic import BaseModel

BoundCall = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments, ready for the handler."""

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class ArgumentPlan(Protocol):
    """How the input of one tool is checked and handed over."""

    @property
    def input_schema(self) -> dict[str, Any]:
        """The JSON Schema of the input."""

    def bind(self, arguments: dict[str, Any]) -> BoundCall:
        """Validate an input and return the handler's arguments.

        Raises:
            ArgumentsError: The input is wrong.
        """


@dataclass(frozen=True, slots=True)
class ByName:
    """Passes each value to the parameter of its name."""

    parameters: tuple[inspect.Parameter, ...]
    takes_any_name: bool

    @classmethod
    def of(cls, parameters: tuple[inspect.Parameter, ...]) -> ByName:
        """Bind to these parameters of a handler."""
        named = tuple(parameter for parameter in parameters if parameter.kind not in VARIADIC)
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        return cls(named, takes_any)

    def names(self) -> list[str]:
        """Return the names a value may come by."""
        return [parameter.name for parameter in self.parameters]

    def pass_on(self, values: Mapping[str, Any]) -> BoundCall:
        """Turn values by name into the arguments of a call.

        Raises:
            ArgumentsError: There is a value that no parameter takes.
        """
        names = self.names()
        unknown = [name for name in values if name not in names]
        if unknown and not self.takes_any_name:
            raise ArgumentsError(unknown_parameters(unknown, names))
        keywords = dict(values)
        positional = [
            keywords.pop(parameter.name, parameter.default)
            for parameter in self.parameters
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY
        ]
        return tuple(positional), keywords


def validated(
    model: type[BaseModel], arguments: dict[str, Any], schema: Mapping[str, Any]
) -> BaseModel:
    """Validate an input with a pydantic model.

    Raises:
        ArgumentsError: The input is wrong.
    """
    import pydantic

    try:
        return model.model_validate(arguments)
    except pydantic.ValidationError as error:
        raise ArgumentsError(problems_from_pydantic(error, arguments, schema)) from None
