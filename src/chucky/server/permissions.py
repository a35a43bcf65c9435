"""What a session may at most: said by a token, or by the policy of a project.

Both say it in lists of names and in numbers, and both are read here. Where several of them say
something, all hold: a name must be in every list, and the smallest number counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from chucky import tokenform

# The names that the SDKs of the different languages have for the same permission.
_MODEL_ENTRIES = ("model", "models", "allowedModels")
_TOOL_ENTRIES = ("tools", "allowedTools")
_BLOCKED_TOOL_ENTRIES = ("blockedTools",)
_TURN_ENTRIES = ("maxTurns", "maxTurnsPerSession")

# What a token may say. `models` is the policy's name: no SDK writes it into tokens.
TOKEN_ENTRIES = frozenset(
    (*_MODEL_ENTRIES, *_TOOL_ENTRIES, *_BLOCKED_TOOL_ENTRIES, *_TURN_ENTRIES)
) - {"models"}


@dataclass(frozen=True, slots=True)
class Permissions:
    """Limits, whichever names they were said by.

    Attributes:
        models: The only models allowed; None for any.
        allowed_tools: The only tools allowed; None for any.
        blocked_tools: Tools that are refused in any case.
        max_turns: How often the model may be called to answer one message; None for no limit.
    """

    models: frozenset[str] | None = None
    allowed_tools: frozenset[str] | None = None
    blocked_tools: frozenset[str] = frozenset()
    max_turns: int | None = None


def read_permissions(entries: Mapping[str, Any], known: Collection[str]) -> Permissions:
    """Read permissions.

    Args:
        entries: What is said, by its names.
        known: The names that may occur.

    Raises:
        ValueError: An entry is unknown or wrong; the text names it and completes a sentence.
    """
    for name in entries:
        if name not in known:
            raise ValueError(f"has the unknown entry {name[:64]!r}")
    blocked_tools = _names(entries, _BLOCKED_TOOL_ENTRIES)
    return Permissions(
        models=_names(entries, _MODEL_ENTRIES),
        allowed_tools=_names(entries, _TOOL_ENTRIES),
        blocked_tools=blocked_tools if blocked_tools is not None else frozenset(),
        max_turns=min(
            (whole_number(entries, name, 1) for name in _TURN_ENTRIES if name in entries),
            default=None,
        ),
    )


def _names(entries: Mapping[str, Any], spellings: Iterable[str]) -> frozenset[str] | None:
    allowed: frozenset[str] | None = None
    for spelling in spellings:
        if spelling in entries:
            given = name_set(entries, spelling)
            allowed = given if allowed is None else allowed & given
    return allowed


def name_set(entries: Mapping[str, Any], name: str) -> frozenset[str]:
    """Read a list of names.

    Raises:
        ValueError: It is none; the text names the entry.
    """
    value = entries[name]
    # `model` is one name where the others are lists.
    names = [value] if name == "model" and isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(each, str) and each for each in names):
        raise ValueError(f".{name} must be a list of names")
    return frozenset(names)


def whole_number(entries: Mapping[str, Any], name: str, least: int) -> int:
    """Read a number.

    Raises:
        ValueError: It is not a whole number, or too small; the text names the entry.
    """
    value = entries[name]
    # Not isinstance: True is an int too.
    if type(value) is not int or not least <= value <= tokenform.MAX_AMOUNT:
        raise ValueError(f".{name} must be a whole number, at least {least}")
    return value
