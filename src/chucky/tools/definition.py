"""What a tool is, and how one is made from a function."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeVar

from chucky.errors import ValidationError
from chucky.tools.arguments import check_arguments, plan_arguments
from chucky.tools.binding import ArgumentPlan, BoundCall
from chucky.tools.problems import ArgumentsError, check_object
from chucky.tools.schemas import check_schema
from chucky.tools.signature import Function

DEFAULT_TIMEOUT_SECONDS = 300.0

_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

T = TypeVar("T")

ToolHandler: TypeAlias = Callable[[dict[str, Any]], Any]
"""Takes the input object of a call; returns the result, or an awaitable of it."""


class InputSchema(TypedDict, total=False):
    """The JSON Schema of a tool's input, as far as most tools need it.

    Attributes:
        type: Always ``"object"``.
        properties: The schema of each parameter.
        required: The parameters that must be given.
        additionalProperties: Whether, or as what, other parameters are allowed.
    """

    type: Literal["object"]
    properties: dict[str, Any]
    required: list[str]
    additionalProperties: bool | dict[str, Any]


class FunctionHandler:
    """The handler of a tool made by :func:`tool`: takes the input object, calls the function.

    Awaiting it validates the input, runs the function where it is awaited (a plain function
    too, in no other thread) and returns what the function returned, unchanged. That is how
    unit tests of tools call it.

    Args:
        tool_name: The tool's name, for error messages.
        function: The decorated function.
        plan: How it gets its arguments.
    """

    def __init__(self, tool_name: str, function: Function, plan: ArgumentPlan) -> None:
        self.tool_name = tool_name
        self.function = function
        self.plan = plan

    async def __call__(self, arguments: dict[str, Any] | None = None) -> Any:
        """Call the function with an input object.

        Raises:
            ValidationError: The input is wrong.
        """
        try:
            positional, keywords = self.bind(arguments)
        except ArgumentsError as error:
            raise ValidationError(error.sentence(self.tool_name)) from None
        value = self.function(*positional, **keywords)
        return await value if inspect.isawaitable(value) else value

    def bind(self, arguments: object) -> BoundCall:
        """Validate an input and return the function's arguments.

        Raises:
            ArgumentsError: The input is wrong.
        """
        return self.plan.bind(check_object(arguments))

    def __repr__(self) -> str:
        return f"<handler of tool {self.tool_name!r}: {self.function!r}>"


@dataclass
class Tool:
    """Something the model can ask this process to do.

    Made by :func:`tool`, or directly with a handler that takes the whole input object. A tool
    made by the decorator can be called like the function it was made from.

    Attributes:
        name: What the model calls it; up to 64 letters, digits, ``_`` and ``-``.
        description: What it does, for the model.
        input_schema: JSON Schema of its input, of type ``object``.
        handler: Takes the input object.
        execute_in: Where it runs; always ``"client"``.
        timeout_seconds: How long one call may take.

    Raises:
        ValidationError: One of them is wrong.
    """

    name: str
    description: str
    input_schema: Mapping[str, Any]
    handler: ToolHandler
    execute_in: Literal["client"] = "client"
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        check_naming(self.name, self.description)
        if not callable(self.handler):
            raise ValidationError(
                f"The handler of tool {self.name!r} must be callable, not {self.handler!r}."
            )
        if self.execute_in != "client":
            raise ValidationError(
                f"Tool {self.name!r} must be executed in 'client', not {self.execute_in!r}."
            )
        _check_timeout(self.timeout_seconds, self.name)
        planned = isinstance(self.handler, FunctionHandler) and self.handler.plan.input_schema
        if planned is not self.input_schema:  # a schema made or checked by the plan is right
            check_schema(self.input_schema, self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function the tool was made from, with its own arguments and result."""
        handler = self.handler
        function = handler.function if isinstance(handler, FunctionHandler) else handler
        return function(*args, **kwargs)

    def bind(self, arguments: object) -> tuple[Function, BoundCall]:
        """Validate an input and return the function to call and its arguments.

        Raises:
            ArgumentsError: The input is wrong.
        """
        handler = self.handler
        if isinstance(handler, FunctionHandler):
            return handler.function, handler.bind(arguments)
        checked = check_object(arguments)
        check_arguments(checked, self.input_schema)
        return handler, ((checked,), {})


@dataclass
class SdkMcpTool(Generic[T]):
    """A tool as the Claude Agent SDK describes one; may stand wherever a :class:`Tool` may.

    Attributes:
        name: What the model calls it.
        description: What it does, for the model.
        input_schema: A JSON Schema dict, or a pydantic model class.
        handler: Takes the input: the object, or an instance of the class if its parameter is
            annotated with it.
    """

    name: str
    description: str
    input_schema: type[T] | dict[str, Any]
    handler: Callable[[T], Awaitable[dict[str, Any]]]


def tool(
    name: str,
    description: str,
    schema: type | Mapping[str, Any] | None = None,
    *,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
) -> Callable[[Function], Tool]:
    """Make a tool from a function.

    Without ``schema`` the function's signature is the schema: types and constraints as pydantic
    reads them, descriptions from ``Annotated`` or the docstring, and only parameters without a
    default are required. The function gets validated, converted keyword arguments.

    With ``schema``, the function gets the whole input as a dict if it has one parameter and the
    schema has no property of its name, else keyword arguments. For a pydantic class, a single
    parameter annotated with it gets the instance.

    The function may be async. A plain function runs in a thread of its own, so it may block;
    it must not touch the event loop.

    Example::

        @tool("greet", "Greet someone by name")
        async def greet(name: str, style: Literal["formal", "casual"] = "casual") -> str:
            return f"Good day, {name}." if style == "formal" else f"Hey {name}!"

    Args:
        name: What the model calls it; up to 64 letters, digits, ``_`` and ``-``.
        description: What it does, for the model.
        schema: A JSON Schema dict, a pydantic model class, or None to use the signature.
        timeout: How long one call may take, in seconds.

    Returns:
        A decorator that returns a :class:`Tool`.

    Raises:
        ValidationError: Something about the tool is wrong; raised where it is defined.
    """
    check_naming(name, description)

    def decorate(function: Function) -> Tool:
        plan = plan_arguments(function, schema, name)
        return Tool(
            name=name,
            description=description,
            input_schema=plan.input_schema,
            handler=FunctionHandler(name, function, plan),
            timeout_seconds=timeout,
        )

    return decorate


def tool_definition(tool: Tool) -> dict[str, Any]:
    """Describe a tool the way it travels to the server."""
    return {
        "name": tool.name,
        "description": tool.description,
        "inputSchema": tool.input_schema,
        "executeIn": "client",
    }


def check_naming(name: object, description: object) -> None:
    """Check the name and the description of a tool.

    Raises:
        ValidationError: One of them is wrong.
    """
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise ValidationError(
            f"The name of a tool must be 1 to 64 letters, digits, '_' or '-', not {name!r}."
        )
    if name.startswith("mcp__"):
        raise ValidationError(
            f"The name of tool {name!r} must not start with 'mcp__': the model sees it with "
            "such a prefix of its server already."
        )
    if not isinstance(description, str) or not description.strip():
        raise ValidationError(
            f"The description of tool {name!r} must be a text that is not empty, "
            f"not {description!r}."
        )


def _check_timeout(timeout_seconds: object, tool_name: str) -> None:
    is_number = isinstance(timeout_seconds, int | float) and not isinstance(timeout_seconds, bool)
    if not is_number or not 0 < timeout_seconds < math.inf:  # type: ignore[operator]
        raise ValidationError(
            f"The timeout of tool {tool_name!r} must be a number of seconds above 0, "
            f"not {timeout_seconds!r}."
        )
