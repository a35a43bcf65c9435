"""The model table the server owns: exact ids, aliases, limits, retirement and successor.

The table is shipped as ``catalog.toml`` next to this module; the operator changes fields or adds
models with tables of the same form in ``chucky.toml``. A name is looked up by equality only, an
exact id or one of its aliases: nothing here matches by prefix, so a name nobody knows is refused
instead of being taken for (and priced as) something similar.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from chucky.errors import ValidationError

Thinking = Literal["none", "adaptive", "budget"]
ThinkingOff = Literal["disabled", "between_tools", "never"]

#: The provider of models whose table does not name one.
DEFAULT_PROVIDER = "anthropic"

#: Families whose bare name is an alias of their newest model.
FAMILY_ALIASES = ("sonnet", "opus", "haiku")


@dataclass(frozen=True, slots=True)
class Model:
    """One row of the table.

    Attributes:
        id: The exact id that is sent upstream.
        family: ``sonnet``, ``opus``, ``haiku``, ``fable``, …
        released: The day of its launch; the newest of a family answers to the family's name.
        context_tokens: The most tokens of prompt and answer together.
        max_output_tokens: The largest ``max_tokens`` of one call.
        aliases: Other exact names of this model.
        price: The id of its entry in genai-prices (compared for equality), or None when only
            the operator can price it.
        retires: The first day on which the vendor no longer answers, if it is known.
        successor: The id of the model that answers from that day on.
        thinking: ``"adaptive"`` (the model decides how much), ``"budget"`` (only with
            ``budget_tokens``) or ``"none"``.
        thinking_off: How a model that thinks unasked is kept from it: ``"disabled"``,
            ``"between_tools"`` (the least it can do), or ``"never"``.
        provider: Who serves it: a name of :class:`~chucky.server.model.providers.Providers`.
        provider_model: What its provider calls it; None for its id.
    """

    id: str
    family: str
    released: date
    context_tokens: int
    max_output_tokens: int
    aliases: tuple[str, ...] = ()
    price: str | None = None
    retires: date | None = None
    successor: str | None = None
    thinking: Thinking = "none"
    thinking_off: ThinkingOff = "disabled"
    provider: str = DEFAULT_PROVIDER
    provider_model: str | None = None

    def is_retired(self, today: date) -> bool:
        """Whether the vendor no longer answers on this day."""
        return self.retires is not None and today >= self.retires


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a requested model name stands for on a given day.

    Attributes:
        requested: The name as it was asked for.
        model: The model that really answers.
        names: Every name that permissions are matched against, without repetition: the requested
            one, the exact id it is an alias of, and the id of the model that answers.
        notice: A sentence for the log and the client when a successor answers, else None.
    """

    requested: str
    model: Model
    names: tuple[str, ...]
    notice: str | None = None


class Catalog:
    """The table, and the rules by which a name finds its model. Built by :meth:`load`.

    Attributes:
        models: Every model by its exact id, read-only.
    """

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models: Mapping[str, Model] = MappingProxyType(dict(models))
        self._by_alias = {alias: model for model in models.values() for alias in model.aliases}

    @classmethod
    def load(cls, overrides: Mapping[str, Any] | None = None) -> Catalog:
        """Read the shipped table and lay the operator's changes over it.

        Args:
            overrides: The ``[models."<id>"]`` tables of ``chucky.toml``: fields by model id. A
                known id has the given fields replaced, an unknown one becomes a new model.

        Raises:
            ValidationError: The resulting table is wrong. All faults are in the message, and one
                by one in ``details["faults"]``.
        """
        tables = _shipped_tables()
        faults = _lay_over(tables, {} if overrides is None else overrides)
        models = {id_: _read_model(id_, fields, faults) for id_, fields in tables.items()}
        valid = {id_: model for id_, model in models.items() if model is not None}
        faults += [*_alias_faults(valid, tables), *_successor_faults(valid, tables)]
        if faults:
            raise ValidationError(
                f"The model table is not valid: {'; '.join(faults)}.",
                reason="invalid_models",
                details={"faults": faults},
            )
        return cls(valid)

    def resolve(self, name: str, today: date, *, succession: bool = True) -> Resolution:
        """Find the model that answers to a name.

        Args:
            name: An exact id, an alias, or the bare name of a family.
            today: The day to judge retirement by, in UTC.
            succession: Whether a successor may answer for a retired model.

        Raises:
            ValidationError: Nothing has this name, or the model is retired and ``succession`` is
                off; the message names what to ask for instead.
        """
        named = self._named(name, today)
        if not named.is_retired(today):
            return Resolution(name, named, _distinct(name, named.id))
        answering = self._living_successor(named, today)
        if not succession:
            raise ValidationError(
                f"The model {named.id!r} was retired by its vendor on {named.retires}: "
                f"ask for {answering.id!r} instead.",
                reason="model_retired",
                details={"model": named.id, "successor": answering.id},
            )
        return Resolution(
            name,
            answering,
            _distinct(name, named.id, answering.id),
            f"The model {named.id!r} was retired by its vendor on {named.retires}; "
            f"{answering.id!r} answers instead.",
        )

    def _named(self, name: str, today: date) -> Model:
        model = self.models.get(name) or self._by_alias.get(name)
        if model is None and name in FAMILY_ALIASES:
            model = self._newest(name, today)
        if model is None:
            raise self._unknown(name)
        return model

    def _newest(self, family: str, today: date) -> Model | None:
        """The newest model of a family; a retired or future one only when there is no other."""
        members = [model for model in self.models.values() if model.family == family]
        current = [m for m in members if m.released <= today and not m.is_retired(today)]
        # The id decides between models of one day, so that the answer never depends on order.
        return max(current or members, key=lambda m: (m.released, m.id), default=None)

    def _living_successor(self, model: Model, today: date) -> Model:
        # Ends: load() refused tables with a gap or a circle in a chain of successors.
        while model.is_retired(today) and model.successor is not None:
            model = self.models[model.successor]
        return model

    def _unknown(self, name: str) -> ValidationError:
        known = (*self.models, *self._by_alias, *FAMILY_ALIASES)
        close = difflib.get_close_matches(name, known, n=3)
        hint = (
            f"did you mean {_either(close)}?"
            if close
            else f"ask for {_either(FAMILY_ALIASES)}, or for an exact id of the model table."
        )
        return ValidationError(
            f"There is no model {name!r:.120}: {hint}",
            reason="unknown_model",
            details={"matches": close},
        )


class _Rule(NamedTuple):
    """What a field of a model must be, in code and in words."""

    holds: Callable[[Any], bool]
    wanted: str


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not any(map(str.isspace, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_date(value: Any) -> bool:
    return isinstance(value, date) and not isinstance(value, datetime)


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_name, value))


_NAME = "a name without spaces, in quotes"
_COUNT = "a whole number above zero"
_DATE = "a date such as 2026-11-30, without quotes"

_RULES: dict[str, _Rule] = {
    "family": _Rule(_is_name, _NAME),
    "released": _Rule(_is_date, _DATE),
    "context_tokens": _Rule(_is_count, _COUNT),
    "max_output_tokens": _Rule(_is_count, _COUNT),
    "aliases": _Rule(_is_names, "a list of names without spaces"),
    "price": _Rule(_is_name, _NAME),
    "retires": _Rule(_is_date, _DATE),
    "successor": _Rule(_is_name, _NAME),
    "thinking": _Rule(
        lambda value: isinstance(value, str) and value in get_args(Thinking),
        '"none", "adaptive" or "budget"',
    ),
    "thinking_off": _Rule(
        lambda value: isinstance(value, str) and value in get_args(ThinkingOff),
        '"disabled", "between_tools" or "never"',
    ),
    "provider": _Rule(_is_name, _NAME),
    "provider_model": _Rule(_is_name, _NAME),
}
_REQUIRED = ("family", "released", "context_tokens", "max_output_tokens")


def _shipped_tables() -> dict[str, dict[str, Any]]:
    text = resources.files("chucky.server.model").joinpath("catalog.toml").read_text("utf-8")
    tables: dict[str, dict[str, Any]] = tomllib.loads(text)["models"]
    return tables


def _lay_over(tables: dict[str, dict[str, Any]], overrides: Any) -> list[str]:
    """Merge the operator's fields into ``tables``; returns what could not be merged."""
    if not isinstance(overrides, Mapping):
        return ["models must be tables by model id"]
    faults = []
    for id_, fields in overrides.items():
        if not _is_name(id_):
            faults.append(f"{id_!r:.60} cannot be the id of a model")
        elif not isinstance(fields, Mapping):
            faults.append(f'models."{id_}" must be a table of fields')
        else:
            tables[id_] = {**tables.get(id_, {}), **fields}
    return faults


def _read_model(id_: str, fields: Mapping[str, Any], faults: list[str]) -> Model | None:
    """Build one model, or None after adding to ``faults`` what is wrong with its fields."""
    found = [*_field_faults(fields)]
    if "retires" in fields and "successor" not in fields:
        found.append("retires but names no successor")
    if found:
        faults += [f'models."{id_}" {fault}' for fault in found]
        return None
    values = dict(fields)
    return Model(id=id_, aliases=tuple(values.pop("aliases", ())), **values)


def _field_faults(fields: Mapping[str, Any]) -> Iterable[str]:
    for name, value in fields.items():
        rule = _RULES.get(name)
        if rule is None:
            yield f"has an unknown field {name!r:.60} (there are {', '.join(_RULES)})"
        elif not rule.holds(value):
            yield f"has {name} = {value!r:.60}, which must be {rule.wanted}"
    missing = [name for name in _REQUIRED if name not in fields]
    if missing:
        yield f"lacks {', '.join(missing)}"


def _alias_faults(models: Mapping[str, Model], ids: Iterable[str]) -> Iterable[str]:
    owners = dict.fromkeys(ids, "the id of a model")
    for model in models.values():
        for alias in model.aliases:
            if alias in owners:
                yield f'models."{model.id}" has the alias {alias!r}, which is also {owners[alias]}'
            owners[alias] = f"an alias of {model.id!r}"


def _successor_faults(models: Mapping[str, Model], ids: Iterable[str]) -> Iterable[str]:
    known = frozenset(ids)
    for model in models.values():
        if model.successor is not None and model.successor not in known:
            yield f'models."{model.id}" names the successor {model.successor!r}, which is no model'
        elif _leads_back(model, models):
            yield f'models."{model.id}" is its own successor, directly or through others'


def _leads_back(start: Model, models: Mapping[str, Model]) -> bool:
    """Whether following successors from a model comes back to it."""
    seen: set[str] = set()
    following = start.successor
    while following is not None and following not in seen:
        if following == start.id:
            return True
        seen.add(following)
        model = models.get(following)
        following = model.successor if model else None
    return False


def _distinct(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _either(names: Iterable[str]) -> str:
    *others, last = [repr(name) for name in names]
    return f"{', '.join(others)} or {last}" if others else last
