"""Schemas that were written to do harm."""

from __future__ import annotations

from typing import Any

import pytest

from chucky.server.schemas import SchemaError, check_usable_for_values, find_faults

# Each level refers to the next one twice: 2^60 steps.
BOMB: dict[str, Any] = {
    "$ref": "#/$defs/d0",
    "$defs": {
        f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(60)
    }
    | {"d60": {}},
}


@pytest.mark.parametrize(
    ("schema", "value", "word"),
    [
        (BOMB, 1, "too long"),
        ({"$ref": "#"}, 1, "without end"),
        ({"type": "string", "pattern": "^(a|a)*$"}, "a" * 60 + "b", "too long"),
        ({"$ref": "https://example.invalid/schema"}, 1, "not in it"),
        ({"$dynamicRef": "#nowhere"}, 1, "not in it"),
    ],
    ids=["doubling", "circle", "backtracking", "elsewhere", "nowhere"],
)
def test_a_check_comes_to_an_end(schema: dict[str, Any], value: Any, word: str) -> None:
    check_usable_for_values(schema)
    with pytest.raises(SchemaError, match=word):
        find_faults(schema, value, most=10)


def test_what_is_no_time_bomb_is_checked_to_its_end() -> None:
    tree: dict[str, Any] = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "name": {"pattern": "^n"}},
    }
    deep: dict[str, Any] = {"name": "wrong"}
    for _ in range(50):
        deep = {"next": deep}
    assert find_faults(tree, deep, most=10) == [
        f"${'.next' * 50}.name: 'wrong' does not match '^n'"
    ]


def test_only_so_many_faults_are_told() -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    assert len(find_faults(schema, ["x"] * 100, most=10)) == 10
