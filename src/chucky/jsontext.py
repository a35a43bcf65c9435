"""JSON text: reading what a stranger wrote, so that nothing can blow up on it later; writing.

``json.loads`` alone lets in what cannot be written, stored or walked again: NaN, infinities
(``1e999``), halves of surrogate pairs, nesting as deep as the stack.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 100

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(text: str | bytes, *, max_depth: int = MAX_DEPTH, unique_names: bool = False) -> Any:
    """Read a JSON text that may have been written to do harm.

    Args:
        text: The text; bytes must be UTF-8.
        max_depth: How many levels of lists and objects there may be.
        unique_names: Whether a name may occur only once in an object.

    Returns:
        The value: without NaN and infinities, every string encodable in UTF-8, and flat enough
        for code that walks it to recurse.

    Raises:
        ValueError: It is not such a text; the message says why and quotes nothing of it.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique if unique_names else None,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        # Without its cause: the decoder's error carries the whole text it was reading.
        raise ValueError(f"{error.msg}, at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {max_depth} levels") from None
    if text.count("[") + text.count("{") > max_depth:
        _check_depth(value, max_depth)
    if _ESCAPED_SURROGATE.search(text):
        _check_surrogates(value)
    return value


def write_json(value: Any) -> str:
    """Write a value as compact JSON text.

    Raises:
        TypeError, ValueError: The value is not JSON.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def with_whole_characters(text: str) -> str:
    """JSON text in which U+FFFD stands for each half of a surrogate pair, which no text can hold.

    What is no JSON is returned as it is.
    """
    if "\\u" not in text or not _ESCAPED_SURROGATE.search(text):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    written = write_json(value)
    whole = written.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text if whole == written else whole


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return entries


def _check_depth(value: Any, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise ValueError(f"nested deeper than {max_depth} levels")


def _children(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, dict | list)]


def _check_surrogates(value: Any) -> None:
    # Pairs are fine: the parser has joined them. A half is what cannot be written as UTF-8.
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a string holds half of a surrogate pair") from None
