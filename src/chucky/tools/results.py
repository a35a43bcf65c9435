"""What a tool gives back: :class:`ToolResult`, and how a handler's return value becomes one."""

from __future__ import annotations

import binascii
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_MAY_RETURN = (
    "a handler may return a ToolResult, a str, None, a bool, a finite number, a list, a dict, "
    "a dataclass or a pydantic model"
)

# With exactly these keys (`content` among them) a dict is a result; with any other key beside
# them it is a value of the caller's own that happens to have a `content`.
_RESULT_KEYS = frozenset({"content", "isError", "is_error", "structuredContent", "_meta"})


@dataclass
class ToolResult:
    """The result of one tool call.

    Attributes:
        content: The items the model sees, in order: ``{"type": "text", "text": str}``,
            ``{"type": "image", "data": <base64>, "mimeType": str}`` or
            ``{"type": "resource", "uri": str, "mimeType"?: str, "text"?: str, "blob"?: <base64>}``.
        is_error: Whether the call failed; the model then reads the content as the reason.
    """

    content: list[dict[str, Any]]
    is_error: bool = False


def text_result(text: str) -> ToolResult:
    """Make a result of one text."""
    return ToolResult(content=[{"type": "text", "text": text}])


def error_result(message: str) -> ToolResult:
    """Make a result that tells the model that, and why, the call failed."""
    return ToolResult(content=[{"type": "text", "text": message}], is_error=True)


class _UnusableError(Exception):
    """A return value, or a part of it, cannot be sent; the text says what and why."""


def as_tool_result(value: object, tool_name: str) -> ToolResult:
    """Turn whatever a handler returned into a result that can be sent.

    A :class:`ToolResult` and a dict of its shape are checked and taken; a str becomes one text;
    everything else becomes its JSON text. What JSON cannot hold becomes an error result that
    names the type and what handlers may return.

    Args:
        value: What the handler returned.
        tool_name: The tool's name, for the sentence when the value cannot be used.
    """
    try:
        return _converted(value)
    except _UnusableError as problem:
        return error_result(f"Error: tool {tool_name!r} {problem}.")


def _converted(value: object) -> ToolResult:
    if isinstance(value, ToolResult):
        return _checked_result(value.content, value.is_error)
    if isinstance(value, dict) and _is_result_shaped(value):
        return _checked_result(value["content"], value.get("isError", value.get("is_error")))
    if isinstance(value, str):
        return text_result(encodable(str.__str__(value)))
    return text_result(encodable(_json_text(value)))


def _is_result_shaped(value: dict[Any, Any]) -> bool:
    return isinstance(value.get("content"), list) and value.keys() <= _RESULT_KEYS


def _checked_result(content: object, is_error: object) -> ToolResult:
    if not isinstance(content, list):
        raise _UnusableError(
            f"returned a result whose content is of type {_type_name(content)!r}, not a list"
        )
    if is_error is not None and not isinstance(is_error, bool):
        raise _UnusableError(
            f"returned a result whose is_error is of type {_type_name(is_error)!r}, not a bool"
        )
    items = [_checked_item(index, item) for index, item in enumerate(content)]
    return ToolResult(content=items, is_error=bool(is_error))


# ---- content items -------------------------------------------------------------------------


def _checked_item(index: int, item: object) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise _malformed(index, f"it is of type {_type_name(item)!r}, not a dict")
    kind = item.get("type")
    fields = _ITEM_FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise _malformed(index, "its type must be 'text', 'image' or 'resource'")
    checked: dict[str, Any] = {}
    for key, field_value in item.items():
        check = fields.get(key)
        if check is None:
            checked[key] = _checked_extra(index, key, field_value)
            continue
        problem = check(field_value)
        if problem:
            raise _malformed(index, f"the {key!r} of {kind!r} {problem}")
        checked[key] = encodable(field_value)
    for key in _ITEM_REQUIRED[str(kind)]:
        if key not in checked:
            raise _malformed(index, f"{kind!r} needs {key!r}")
    return checked


def _checked_extra(index: int, key: object, value: object) -> object:
    """Let a field the protocol does not name (``annotations``, ``_meta``) pass if it can."""
    try:
        json.dumps({key: value}, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _malformed(index, f"{key!r} cannot be sent as JSON ({error})") from None
    return value


def _malformed(index: int, reason: str) -> _UnusableError:
    return _UnusableError(f"returned a malformed content item (number {index + 1}): {reason}")


def _need_text(value: object) -> str:
    return "" if isinstance(value, str) else f"must be a str, not {_type_name(value)}"


def _need_filled_text(value: object) -> str:
    return _need_text(value) or ("" if value else "must not be empty")


def _need_image_type(value: object) -> str:
    if isinstance(value, str) and value.startswith("image/") and len(value) > len("image/"):
        return ""
    return "must be the media type of an image, such as 'image/png'"


def _need_base64(value: object) -> str:
    problem = _need_filled_text(value)
    if problem or not isinstance(value, str):
        return problem
    try:
        binascii.a2b_base64(value, strict_mode=True)
    except ValueError:  # binascii.Error is one; so is a character beyond ASCII
        return "must be base64 (the bare data, not a data: URL)"
    return ""


_Check = Callable[[object], str]

_ITEM_FIELDS: Mapping[str, Mapping[str, _Check]] = {
    "text": {"type": _need_text, "text": _need_text},
    "image": {"type": _need_text, "data": _need_base64, "mimeType": _need_image_type},
    "resource": {
        "type": _need_text,
        "uri": _need_filled_text,
        "mimeType": _need_text,
        "text": _need_text,
        "blob": _need_base64,
    },
}
_ITEM_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "image": ("data", "mimeType"),
    "resource": ("uri",),
}


# ---- JSON ----------------------------------------------------------------------------------


def _json_text(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except RecursionError:
        reason = "it is nested too deeply"
    except Exception as error:  # a serializer of the caller's own may raise anything
        reason = str(error) or type(error).__name__
        if isinstance(error, ValueError) and reason.startswith("Out of range float"):
            reason = "NaN and infinity have no JSON form"
    raise _UnusableError(
        f"returned a value of type {_type_name(value)!r} that JSON cannot hold: {reason}; "
        f"{_MAY_RETURN}"
    )


def _plain(value: object) -> object:
    """Give the JSON form of a value the JSON encoder does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for module_name, class_name, convert in _CONVERSIONS:
        # Only a module that is loaded can have made the value; none is imported to find out.
        module = sys.modules.get(module_name)
        if module is not None and isinstance(value, getattr(module, class_name)):
            return convert(value)
    raise TypeError(f"there is no JSON form of type {_type_name(value)!r}")


_CONVERSIONS: tuple[tuple[str, str, Callable[[Any], object]], ...] = (
    ("pydantic", "BaseModel", lambda model: model.model_dump(mode="json")),
    ("enum", "Enum", lambda member: member.value),
    ("datetime", "date", lambda day: day.isoformat()),  # a datetime is a date
    ("datetime", "time", lambda time: time.isoformat()),
    ("uuid", "UUID", str),
    ("decimal", "Decimal", str),  # as text, because a float would lose digits
    ("pathlib", "PurePath", str),
)


def encodable(text: str) -> str:
    """Replace lone surrogates (undecodable file names have them): UTF-8 cannot carry them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _type_name(value: object) -> str:
    return type(value).__qualname__
