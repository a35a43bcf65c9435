"""What a handler's signature says: its parameters, their types and their descriptions.

Types are resolved one parameter at a time, so that an annotation that cannot be resolved is
reported by name, and a return annotation (which no tool needs) never stands in the way.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

from chucky.errors import ValidationError

Function = Callable[..., Any]


def read_parameters(function: object, tool_name: str) -> tuple[inspect.Parameter, ...]:
    """List the parameters of a handler, in order.

    Raises:
        ValidationError: It is not a function a tool can be made of.
    """
    if not callable(function) or inspect.isclass(function):
        raise ValidationError(
            f"Tool {tool_name!r} must be made from a function, not from {function!r}."
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ValidationError(
            f"The handler of tool {tool_name!r} is a generator; it must return its result, "
            "not yield it."
        )
    try:
        parameters = tuple(inspect.signature(function).parameters.values())
    except (TypeError, ValueError, NameError) as error:
        raise ValidationError(
            f"The signature of the handler of tool {tool_name!r} cannot be read ({error}); "
            "wrap it in a function of your own."
        ) from error
    if parameters and _is_method_in_its_class(function, parameters[0]):
        raise ValidationError(
            f"Tool {tool_name!r} is made from a method that is not bound to an object; make the "
            f"tool from the object: tool({tool_name!r}, ...)(obj.method)."
        )
    return parameters


def _is_method_in_its_class(function: Function, first: inspect.Parameter) -> bool:
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]
    return (
        first.name in ("self", "cls")
        and first.annotation is inspect.Parameter.empty
        and bool(owner)
        and not owner.endswith("<locals>")
    )


# ---- annotations ---------------------------------------------------------------------------


def resolve_annotation(function: Function, parameter: inspect.Parameter, tool_name: str) -> Any:
    """Return the type of a parameter with every name in it looked up; ``Any`` if it has none.

    Names in string annotations are looked for in the function's closure, in the functions and
    classes it is being defined in, and in its module.

    Raises:
        ValidationError: A name in the annotation is not known, or it is not a type.
    """
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    source = _definition(function)
    # `get_type_hints` reads these two attributes and takes the namespaces from its arguments.
    bearer = types.SimpleNamespace(
        __annotations__={parameter.name: parameter.annotation},
        __type_params__=getattr(source, "__type_params__", ()),
    )
    try:
        hints = typing.get_type_hints(
            bearer, getattr(source, "__globals__", {}), _local_names(source), include_extras=True
        )
    except Exception as error:  # an annotation is code: evaluating it may raise anything
        raise ValidationError(
            f"The type of parameter {parameter.name!r} of tool {tool_name!r} cannot be resolved: "
            f"{parameter.annotation!r} ({error}); use a type that can be found from the module "
            "of the function, or give the tool a schema."
        ) from error
    return _with_modern_typed_dicts(hints[parameter.name], ())


def _definition(function: Any) -> Any:
    """Find the function whose namespace the annotations were written in."""
    while not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif inspect.isfunction(type(function).__call__):
            function = type(function).__call__
        else:
            break
    return function


def _local_names(function: Any) -> dict[str, Any]:
    if not inspect.isfunction(function):
        return {}
    return _enclosing_names(function) | _closure_names(function)


def _closure_names(function: types.FunctionType) -> dict[str, Any]:
    names = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            continue  # assigned only later
    return names


def _enclosing_names(function: types.FunctionType) -> dict[str, Any]:
    # A name used in nothing but a string annotation is not in the closure. While the function
    # is being defined, the functions and classes around it are still running, though: they are
    # the frames of the same module whose qualified names lead to this one.
    scopes = []
    frame = inspect.currentframe()
    while frame is not None:
        prefix = f"{frame.f_code.co_qualname}."
        if frame.f_globals is function.__globals__ and function.__qualname__.startswith(prefix):
            scopes.append(dict(frame.f_locals))
        frame = frame.f_back
    names: dict[str, Any] = {}
    for scope in reversed(scopes):  # the innermost last: its names win
        names.update(scope)
    return names


def _with_modern_typed_dicts(annotation: Any, seen: tuple[Any, ...]) -> Any:
    """Replace each ``typing.TypedDict`` by its twin of ``typing_extensions``, wherever it stands.

    Before Python 3.12 a ``typing.TypedDict`` does not keep enough about itself for pydantic,
    which therefore refuses it; from 3.12 on there is nothing to do.
    """
    if sys.version_info >= (3, 12):
        return annotation
    if typing.is_typeddict(annotation):
        return annotation if annotation in seen else _modern_typed_dict(annotation, seen)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None or origin is typing.Literal:
        return annotation
    if origin is Annotated:
        arguments = arguments[:1]
    replaced = tuple(_with_modern_typed_dicts(argument, seen) for argument in arguments)
    if all(new is old for new, old in zip(replaced, arguments, strict=True)):
        return annotation
    if origin is Annotated:
        return annotate(replaced[0], *annotation.__metadata__)
    if origin is types.UnionType:
        origin = typing.Union
    return origin[replaced if len(replaced) > 1 else replaced[0]]


def _modern_typed_dict(annotation: Any, seen: tuple[Any, ...]) -> Any:
    if type(annotation).__module__ != "typing":
        return annotation
    import typing_extensions

    fields: dict[str, Any] = {}
    hints = typing.get_type_hints(annotation, include_extras=True)
    for key, hint in hints.items():
        qualifier: Any = typing.get_origin(hint)
        bare = hint
        if qualifier in (typing.Required, typing.NotRequired):
            (bare,) = typing.get_args(hint)
        else:
            # Only now, because the class does not see a qualifier in a string annotation.
            required = key in annotation.__required_keys__
            qualifier = typing.Required if required else typing.NotRequired
        fields[key] = qualifier[_with_modern_typed_dicts(bare, (*seen, annotation))]
    make_typed_dict: Any = typing_extensions.TypedDict
    twin = make_typed_dict(annotation.__name__, fields)
    twin.__module__ = annotation.__module__
    twin.__doc__ = annotation.__doc__
    return twin


def annotate(base: Any, *metadata: Any) -> Any:
    """Build ``Annotated[base, *metadata]`` from values."""
    annotated: Any = Annotated
    return annotated[(base, *metadata)] if metadata else base


def split_annotated(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Take ``Annotated[base, *metadata]`` apart; anything else has no metadata."""
    if typing.get_origin(annotation) is Annotated:
        return annotation.__origin__, annotation.__metadata__
    return annotation, ()


# ---- descriptions --------------------------------------------------------------------------


def describe_parameters(function: Function) -> dict[str, str]:
    """Read what the docstring says of each parameter: Google, NumPy or reST style."""
    docstring = inspect.getdoc(_definition(function))
    if not docstring:
        return {}
    import docstring_parser

    try:
        parsed = docstring_parser.parse(docstring)
    except Exception:
        # Prose may look like a broken field list, on which the parser fails in several ways
        # (IndexError for one); a tool whose parameters are not described still works.
        return {}
    descriptions: dict[str, str] = {}
    for parameter in parsed.params:
        text = " ".join((parameter.description or "").split())
        for name in parameter.arg_name.split(","):  # NumPy style: "x, y : int"
            if text:
                descriptions.setdefault(name.strip(), text)
    return descriptions
