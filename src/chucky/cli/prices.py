"""``chucky prices``: what models cost, and who says so."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from chucky.cli.options import ConfigOption, JsonOption, load_settings
from chucky.errors import ValidationError

if TYPE_CHECKING:
    from chucky.server.model.pricing import Price, Rate

_NANOS_PER_DOLLAR = 1_000_000_000
_KINDS = {
    "input": "Input",
    "output": "Output",
    "cache_write_5m": "Cache write 5 min",
    "cache_write_1h": "Cache write 1 h",
    "cache_read": "Cache read",
}


def prices(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Show today's price of every model, in dollars per million tokens.

    Prices set in chucky.toml are marked. A model without a price is refused.
    """
    from chucky.server.model.catalog import Catalog
    from chucky.server.model.pricing import PriceTable

    settings = load_settings(config)
    now = datetime.now(UTC)
    catalog = Catalog.load(settings.models)
    table = PriceTable(catalog, settings.prices)
    found: dict[str, Price | None] = {}
    for model in catalog.models.values():
        try:
            found[model.id] = table.price_of(model, now)
        except ValidationError:
            found[model.id] = None
    if as_json:
        listed = [_as_entry(model_id, price) for model_id, price in found.items()]
        typer.echo(json.dumps({"date": now.date().isoformat(), "prices": listed}))
        return
    _print(found, now, table.source)


def _as_entry(model_id: str, price: Price | None) -> dict[str, object]:
    """A price as JSON: rates in nano-dollars per million tokens, as the ledger keeps them."""
    return {"model": model_id, "source": None} if price is None else price.as_dict()


def _print(found: dict[str, Price | None], now: datetime, source: str) -> None:
    from chucky.cli.tables import Table

    table = Table("Model", *_KINDS.values(), "Set by")
    for model_id, price in found.items():
        if price is None:
            table.add(model_id, *["–"] * len(_KINDS), "nobody: refused")
            continue
        rates: list[Rate] = [getattr(price, kind) for kind in _KINDS]
        set_by = "operator" if price.source == "operator" else ""
        table.add(model_id, *(_dollars(rate.base) for rate in rates), set_by)
        for start in sorted({start for rate in rates for start, _ in rate.tiers}):
            steps = (_dollars(rate.for_prompt(start + 1)) for rate in rates)
            table.add(f"  prompts over {start:,} tokens", *steps, "")
    table.show()
    typer.echo(f"Dollars per million tokens on {now.date()}, from {source}.")
    typer.echo("Those set by the operator are from chucky.toml.")


def _dollars(nanos: int) -> str:
    whole, fraction = divmod(nanos, _NANOS_PER_DOLLAR)
    return f"{whole}.{f'{fraction:09d}'.rstrip('0').ljust(2, '0')}"
