"""Reading JSON from strangers: one sentence says what is wrong, and nothing can blow up later."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 100

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(data: bytes) -> Any:
    """Read a JSON text that may have been written to do harm.

    Args:
        data: The text, in UTF-8.

    Returns:
        The value: nested at most :data:`MAX_DEPTH` deep, so that code that walks it may recurse;
        without NaN and infinities; all strings encodable in UTF-8.

    Raises:
        ValueError: It is not such a text; the message says why.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite_float
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}, at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    if _ESCAPED_SURROGATE.search(data):
        _check_surrogates(value)
    return value


def write_json(value: Any) -> str:
    """Write a value as compact JSON text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [child for child in value.values() if isinstance(child, (dict, list))]
    if isinstance(value, list):
        return [child for child in value if isinstance(child, (dict, list))]
    return []


def _check_surrogates(value: Any) -> None:
    # Pairs are fine: the parser has joined them. A half is what cannot be written as UTF-8.
    try:
        write_json(value).encode()
    except UnicodeEncodeError:
        raise ValueError("a string holds half of a surrogate pair") from None
