"""The model table: names, aliases, succession, and what the operator may change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import pytest
from anthropic.resources.messages.messages import DEPRECATED_MODELS

from chucky.errors import ChuckyError, ValidationError
from chucky.server.model.catalog import FAMILY_ALIASES, Catalog, Model

DEFAULT = "claude-sonnet-4-5-20250929"
BEFORE = date(2026, 11, 29)
RETIREMENT = date(2026, 11, 30)

NEW_MODEL: dict[str, Any] = {
    "family": "sonnet",
    "released": date(2026, 11, 20),
    "context_tokens": 1_000_000,
    "max_output_tokens": 128_000,
}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load()


def faults_of(overrides: Mapping[str, Any]) -> str:
    """What the table says is wrong with these overrides."""
    with pytest.raises(ValidationError) as caught:
        Catalog.load(overrides)
    assert caught.value.reason == "invalid_models"
    for fault in caught.value.details["faults"]:
        assert fault in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "id_"),
    [
        (DEFAULT, DEFAULT),
        ("claude-sonnet-4-5", DEFAULT),
        ("claude-opus-4-5", "claude-opus-4-5-20251101"),
        ("claude-haiku-4-5", "claude-haiku-4-5-20251001"),
        ("claude-opus-5-5", "claude-opus-5-5"),
        ("claude-fable-5-2", "claude-fable-5-2"),
        ("sonnet", "claude-sonnet-5-5"),
        ("opus", "claude-opus-5-5"),
        ("haiku", "claude-haiku-5-5"),
    ],
)
def test_a_name_finds_its_model(catalog: Catalog, name: str, id_: str) -> None:
    found = catalog.resolve(name, BEFORE)
    assert found.requested == name
    assert found.model is catalog.models[id_]
    assert found.notice is None
    assert found.names == ((name,) if name == id_ else (name, id_))


@pytest.mark.parametrize(
    "name",
    [
        "claude-sonnet-4-5-bogus",
        "claude-sonnet-4-5-2025092",
        "claude-sonnet-4-5-20250929 ",
        "claude-sonnet",
        "Sonnet",
        "fable",
        "gpt-5",
        "",
        "claude-" * 100_000,
    ],
)
def test_a_name_that_only_resembles_a_model_is_refused(catalog: Catalog, name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        catalog.resolve(name, BEFORE)
    assert caught.value.reason == "unknown_model"
    assert len(caught.value.message) < 400


def test_an_unknown_name_is_answered_with_close_matches_of_the_table(catalog: Catalog) -> None:
    with pytest.raises(ValidationError) as caught:
        catalog.resolve("claude-sonnet-4-5-bogus", BEFORE)
    matches = caught.value.details["matches"]
    assert "claude-sonnet-4-5" in matches
    assert "'claude-sonnet-4-5-bogus'" in caught.value.message
    for match in matches:
        assert repr(match) in caught.value.message
        assert catalog.resolve(match, BEFORE).requested == match
    assert isinstance(caught.value, ChuckyError)


def test_a_name_like_nothing_is_answered_with_the_family_aliases(catalog: Catalog) -> None:
    with pytest.raises(ValidationError, match="'sonnet', 'opus' or 'haiku'"):
        catalog.resolve("qwertz", BEFORE)


def test_a_model_answers_itself_until_the_day_before_it_retires(catalog: Catalog) -> None:
    found = catalog.resolve(DEFAULT, BEFORE)
    assert (found.model.id, found.notice) == (DEFAULT, None)


@pytest.mark.parametrize("name", [DEFAULT, "claude-sonnet-4-5"])
def test_from_the_day_of_retirement_the_successor_answers_and_says_so(
    catalog: Catalog, name: str
) -> None:
    found = catalog.resolve(name, RETIREMENT)
    assert found.model.id == "claude-sonnet-5-5"
    assert found.names == tuple(dict.fromkeys((name, DEFAULT, "claude-sonnet-5-5")))
    assert found.notice == (
        f"The model {DEFAULT!r} was retired by its vendor on 2026-11-30; "
        "'claude-sonnet-5-5' answers instead."
    )


def test_without_succession_a_retired_model_is_refused_by_naming_its_successor(
    catalog: Catalog,
) -> None:
    assert catalog.resolve(DEFAULT, BEFORE, succession=False).model.id == DEFAULT
    with pytest.raises(ValidationError, match="'claude-sonnet-5-5'") as caught:
        catalog.resolve(DEFAULT, RETIREMENT, succession=False)
    assert caught.value.reason == "model_retired"
    assert DEFAULT in caught.value.message


def test_a_chain_of_successors_is_followed_to_the_first_that_still_answers() -> None:
    catalog = Catalog.load(
        {
            "claude-sonnet-4-6": {
                "retires": date(2027, 3, 1),
                "successor": "claude-sonnet-5",
            },
            "claude-sonnet-5": {"retires": date(2027, 9, 1), "successor": "claude-sonnet-5-5"},
        }
    )
    answers = {
        today: catalog.resolve("claude-3-5-sonnet-20241022", today).model.id
        for today in (date(2027, 2, 28), date(2027, 3, 1), date(2027, 9, 1))
    }
    assert list(answers.values()) == ["claude-sonnet-4-6", "claude-sonnet-5", "claude-sonnet-5-5"]
    last = catalog.resolve("claude-3-5-sonnet-20241022", date(2027, 9, 1))
    assert last.names == ("claude-3-5-sonnet-20241022", "claude-sonnet-5-5")


def test_a_family_alias_means_the_newest_model_that_is_out_and_not_retired() -> None:
    catalog = Catalog.load(
        {
            "claude-sonnet-6": {**NEW_MODEL, "released": date(2026, 12, 5)},
            "claude-sonnet-5-5": {"retires": date(2026, 12, 1), "successor": "claude-sonnet-5"},
        }
    )
    by_day = [
        catalog.resolve("sonnet", date(2026, 11, 30)),
        catalog.resolve("sonnet", date(2026, 12, 1)),
        catalog.resolve("sonnet", date(2026, 12, 5)),
    ]
    assert [found.model.id for found in by_day] == [
        "claude-sonnet-5-5",
        "claude-sonnet-5",
        "claude-sonnet-6",
    ]
    assert [found.notice for found in by_day] == [None] * 3


def test_the_operator_can_pin_a_family_alias() -> None:
    catalog = Catalog.load({"claude-opus-4-6": {"aliases": ["opus"]}})
    assert catalog.resolve("opus", BEFORE).model.id == "claude-opus-4-6"


def test_an_override_changes_only_the_fields_it_names(catalog: Catalog) -> None:
    changed = Catalog.load({"claude-opus-5-5": {"max_output_tokens": 8_000}})
    before, after = catalog.models["claude-opus-5-5"], changed.models["claude-opus-5-5"]
    assert after.max_output_tokens == 8_000
    assert (after.context_tokens, after.price) == (before.context_tokens, before.price)
    assert Catalog.load().models["claude-opus-5-5"].max_output_tokens == 128_000


def test_an_override_can_add_a_model() -> None:
    catalog = Catalog.load({"my-model": {**NEW_MODEL, "family": "mine", "aliases": ["mine"]}})
    assert catalog.resolve("mine", BEFORE).model == Model(
        id="my-model",
        family="mine",
        released=date(2026, 11, 20),
        context_tokens=1_000_000,
        max_output_tokens=128_000,
        aliases=("mine",),
    )


def test_the_operator_can_move_a_retirement() -> None:
    catalog = Catalog.load({DEFAULT: {"retires": date(2027, 1, 15)}})
    assert catalog.resolve(DEFAULT, date(2027, 1, 14)).model.id == DEFAULT


def test_all_faults_of_a_table_are_reported_at_once() -> None:
    message = faults_of(
        {
            "claude-opus-5-5": {"max_output_tokens": "many", "colour": "blue"},
            "my-model": {"family": "mine"},
            "broken": 3,
            "claude-opus-5": {"successor": "claude-opus-9"},
        }
    )
    for part in (
        "max_output_tokens = 'many', which must be a whole number above zero",
        "unknown field 'colour'",
        'models."my-model" lacks released, context_tokens, max_output_tokens',
        'models."broken" must be a table',
        "'claude-opus-9', which is no model",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("family", ""),
        ("family", "two words"),
        ("family", 3),
        ("released", "2026-11-30"),
        ("released", datetime(2026, 11, 30, 12, 0)),  # noqa: DTZ001 - as TOML gives it
        ("context_tokens", 0),
        ("context_tokens", True),
        ("context_tokens", 1e6),
        ("max_output_tokens", -1),
        ("aliases", "mine"),
        ("aliases", ["mine", 3]),
        ("price", 3),
        ("retires", "never"),
        ("successor", ["claude-opus-5-5"]),
        ("thinking", "maybe"),
        ("thinking", ["budget"]),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(field: str, value: object) -> None:
    message = faults_of({"claude-opus-4-8": {"successor": "claude-opus-5-5", field: value}})
    assert f'models."claude-opus-4-8" has {field} = ' in message


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ({"claude-opus-5": {"retires": date(2027, 8, 1)}}, "retires but names no successor"),
        ({"claude-opus-5": {"successor": "claude-opus-5"}}, "is its own successor"),
        (
            {
                "claude-opus-5": {"retires": date(2027, 8, 1), "successor": "claude-opus-4-8"},
                "claude-opus-4-8": {"retires": date(2027, 8, 1), "successor": "claude-opus-5"},
            },
            "is its own successor",
        ),
        ({"claude-opus-5": {"aliases": ["claude-opus-4-8"]}}, "also the id of a model"),
        ({"claude-opus-5": {"aliases": ["claude-opus-4-5"]}}, "also an alias of"),
        ({"two words": NEW_MODEL}, "cannot be the id of a model"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(
    overrides: Mapping[str, Any], fault: str
) -> None:
    assert fault in faults_of(overrides)


def test_a_setting_that_is_no_table_at_all_is_refused() -> None:
    bad: Any = ["claude-opus-5"]
    assert "tables by model id" in faults_of(bad)


def test_every_name_of_the_shipped_table_is_unique_and_resolves(catalog: Catalog) -> None:
    names = [*catalog.models, *(a for m in catalog.models.values() for a in m.aliases)]
    names += FAMILY_ALIASES
    assert len(names) == len(set(names))
    for name in names:
        answering = catalog.resolve(name, date(2030, 1, 1)).model
        assert not answering.is_retired(date(2030, 1, 1))


def test_every_answer_fits_into_the_context_of_its_model(catalog: Catalog) -> None:
    assert all(m.max_output_tokens < m.context_tokens for m in catalog.models.values())


def test_retirement_dates_agree_with_the_vendors_own_package(catalog: Catalog) -> None:
    ours = {
        name: model.retires
        for model in catalog.models.values()
        for name in (model.id, *model.aliases)
        if name in DEPRECATED_MODELS
    }
    assert ours == {name: _day(DEPRECATED_MODELS[name]) for name in ours}
    assert len(ours) > 5


def _day(words: str) -> date:
    """The day of words such as "November 30th, 2026"."""
    plain = re.sub(r"(\d)(st|nd|rd|th)", r"\1", words)
    return datetime.strptime(plain, "%B %d, %Y").date()  # noqa: DTZ007 - only the day
