"""``output_format``: the form an answer must have, and what is made of the answer.

Neither pydantic nor jsonschema is imported before somebody gives a class or a schema.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from chucky.errors import ValidationError
from chucky.messages import Message, PromptResult

if TYPE_CHECKING:
    from pydantic import BaseModel

OutputFormatSource = Mapping[str, Any] | type["BaseModel"]
"""A JSON Schema, alone or as ``{"type": "json_schema", "schema": …}``, or a pydantic class."""

# How many faults of an answer are told.
_MOST_FAULTS = 10


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The form an answer must have.

    Attributes:
        schema: The JSON Schema of the answer.
        model: The pydantic class whose instance the application gets; None for the plain value.
    """

    schema: Mapping[str, Any]
    model: type[BaseModel] | None = None

    @classmethod
    def of(cls, given: object) -> OutputFormat:
        """Read what was given as ``output_format``.

        Raises:
            ValidationError: It is neither a valid JSON Schema nor a pydantic class.
        """
        if _is_model_class(given):
            return cls(_schema_of_model(given), given)
        if not isinstance(given, Mapping):
            raise ValidationError(
                f"output_format must be a JSON Schema dict or a pydantic class, not {given!r:.80}."
            )
        schema = given.get("schema") if given.get("type") == "json_schema" else given
        return cls(_checked_schema(schema))

    def to_wire(self) -> dict[str, Any]:
        """Return it in the form of the option ``outputFormat``."""
        return {"type": "json_schema", "schema": dict(self.schema)}

    def read(self, result: PromptResult) -> PromptResult:
        """Return a result with an instance of the class as its ``structured_output``.

        Where the class refuses the value, the turn has failed: its validators may ask for more
        than the schema, by which the server judged, can say.
        """
        value = result.get("structured_output")
        if self.model is None or value is None:
            return result
        try:
            # As JSON, because that is what it was: a strict model takes a date from text then.
            instance = self.model.model_validate_json(json.dumps(value))
        except Exception as error:  # a validator is the application's code and may raise anything
            return _refused(result, self.model, value, error)
        result["structured_output"] = instance
        return result


def _is_model_class(given: object) -> TypeGuard[type[BaseModel]]:
    pydantic = sys.modules.get("pydantic")  # whoever has such a class has imported it
    return (
        pydantic is not None and isinstance(given, type) and issubclass(given, pydantic.BaseModel)
    )


def _schema_of_model(model: type[BaseModel]) -> dict[str, Any]:
    from chucky.tools.schemas import first_sentence, model_schema

    try:
        return model_schema(model)
    except Exception as error:  # pydantic has several for types it cannot describe
        raise ValidationError(
            f"output_format {model.__name__} has no JSON Schema: {first_sentence(error)}"
        ) from error


def _checked_schema(schema: object) -> Mapping[str, Any]:
    from jsonschema import Draft202012Validator, SchemaError

    if not isinstance(schema, Mapping):
        raise ValidationError(
            f"The schema of output_format must be a dict, not {type(schema).__name__}."
        )
    try:
        json.dumps(dict(schema), allow_nan=False)
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValidationError(
            f"output_format is not a valid JSON Schema at {error.json_path}: {error.message:.200}."
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"output_format cannot be sent as JSON: {error}.") from None
    return schema


def _refused(
    result: PromptResult, model: type[BaseModel], value: Any, error: Exception
) -> PromptResult:
    faults = _faults(error)
    sentence = f"{model.__name__} refuses the answer: {'; '.join(faults)}."
    failure = Message(
        code="STRUCTURED_OUTPUT",
        reason="structured_output_refused",
        subtype=result.get("subtype"),
        message=sentence,
        faults=faults,
    )
    result.update(
        subtype="error", is_error=True, result=sentence, error=failure, structured_output=value
    )
    return result


def _faults(error: Exception) -> list[str]:
    import pydantic

    if not isinstance(error, pydantic.ValidationError):
        return [f"its validation raised {type(error).__name__}: {error}"]
    details = error.errors(include_url=False, include_input=False, include_context=False)
    return [f"{_path(each['loc'])}: {each['msg']}" for each in details[:_MOST_FAULTS]]


def _path(location: tuple[int | str, ...]) -> str:
    """Write a place in a value as the server does: ``$.lines[2].sku``."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "$" + "".join(steps)
