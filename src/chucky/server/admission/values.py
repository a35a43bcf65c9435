"""Reading single options, and the sentences by which they are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chucky.errors import ValidationError


def unsupported(sentence: str) -> ValidationError:
    """The refusal of an option that cannot be honoured here."""
    return ValidationError(sentence, reason="option_unsupported")


def invalid(sentence: str) -> ValidationError:
    """The refusal of an option whose value is wrong."""
    return ValidationError(sentence, reason="option_invalid")


def is_given(value: Any) -> bool:
    """Whether an option counts as given: clients send empty values for what they leave out."""
    return value not in (None, False, "") and value not in ([], {})


def flag(options: Mapping[str, Any], name: str) -> bool:
    """Read a truth value; False if it is left out.

    Raises:
        ValidationError: It is none.
    """
    value = options.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise invalid(f"The option {name!r} must be true or false, not {value!r:.40}.")


def count(options: Mapping[str, Any], name: str, least: int) -> int | None:
    """Read a whole number; None if it is left out.

    Raises:
        ValidationError: It is none, or too small.
    """
    value = options.get(name)
    # Not isinstance: True is an int too.
    if value is None or (type(value) is int and value >= least):
        return value
    raise invalid(f"The option {name!r} must be a whole number from {least}, not {value!r:.40}.")


def names(options: Mapping[str, Any], name: str) -> list[str]:
    """Read a list of names; empty if it is left out.

    Raises:
        ValidationError: It is none.
    """
    value = options.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise invalid(f"The option {name!r} must be a list of names.")
    return value
