"""``chucky usage``: what was spent, by whom, on what; and the charges to look at."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple

import typer

from chucky.cli.options import ConfigOption, DbOption, JsonOption, load_settings, moment
from chucky.errors import ValidationError
from chucky.server.ledger.accounts import Meter, amount_text, dollars
from chucky.server.ledger.reports import (
    ChargeLine,
    Doubt,
    Grouping,
    ReportRows,
    Selection,
    UsageLine,
)
from chucky.server.ledger.windows import iso_time, milliseconds
from chucky.server.settings import Settings
from chucky.server.store import open_reader, open_store

_Form = Literal["json", "csv", "table"]

_SPAN = re.compile(r"(\d{1,6})([hdw])")
_SPAN_HOURS = {"h": 1, "d": 24, "w": 168}
_NOTHING = "Nothing was spent that this selects."
_HEADINGS = (
    "Project",
    "Calls",
    "Input",
    "Output",
    "Cache write 5 min",
    "Cache write 1 h",
    "Cache read",
    "AI",
    "Compute",
    "of it estimated",
    "of it excess",
    "Credited",
)


def _since(text: str) -> datetime:
    if match := _SPAN.fullmatch(text):
        return datetime.now(UTC) - timedelta(hours=int(match[1]) * _SPAN_HOURS[match[2]])
    return moment(text)


def usage(
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="ID", help="Only this user.", show_default=False),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option("--project", metavar="PROJECT", help="Only this project.", show_default=False),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            "--since",
            parser=_since,
            metavar="TIME",
            help="Only from a date or time on, or the last hours, days or weeks: 12h, 7d, 4w.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[Grouping, typer.Option("--by", help="What is summed up.")] = "user",
    listed: Annotated[
        Doubt | None,
        typer.Option(
            "--list",
            help="List single charges and their ids instead: those that were estimated, those "
            "above what was reserved, or those with something that has no price.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Show what was spent: model calls, tokens, compute, and what of it was estimated.

    Amounts in JSON and CSV are whole nano-dollars and milliseconds.
    """
    if as_json and as_csv:
        raise ValidationError("Give either --json or --csv, not both.")
    form: _Form = "json" if as_json else "csv" if as_csv else "table"
    settings = load_settings(config, db=db)
    names = _project_names(settings, project)
    selection = Selection(
        project_id=None if project is None else next(iter(names)),
        user_id=user,
        since_ms=None if since is None else milliseconds(since),
    )
    with closing(open_reader(settings)) as reader, reader.snapshot() as ledger:
        if listed is None:
            _show_usage(ledger, selection, by, names, form)
        else:
            _show_charges(ledger, selection, listed, names, form)


def _project_names(settings: Settings, project: str | None) -> dict[str, str]:
    """The names of all projects by id, or of the one that is asked for."""
    with closing(open_store(settings, create=False)) as store:
        found = store.list_projects() if project is None else (store.find_project(project),)
    return {each.project_id: each.name for each in found}


def _show_usage(
    ledger: ReportRows, selection: Selection, by: Grouping, names: dict[str, str], form: _Form
) -> None:
    lines = ledger.usage(selection, by)
    if form != "table":
        _print_data(lines, UsageLine, {"group": by}, names, form)
        return
    from chucky.cli.tables import Table

    table = Table(by.capitalize(), *_HEADINGS)
    for line in lines:
        table.add(line.group or "–", names.get(line.project_id, line.project_id), *_cells(line))
    if not table.count:
        typer.echo(_NOTHING)
        return
    table.show()


def _cells(line: UsageLine) -> Iterable[str]:
    yield f"{line.calls:,}"
    for tokens in line[3:8]:
        yield f"{tokens:,}"
    yield dollars(line.ai_nanos)
    yield amount_text("compute", line.compute_ms)
    yield _share(line.estimated, dollars(line.estimated_nanos))
    yield _share(line.excess, dollars(line.excess_nanos))
    credited: dict[Meter, int] = {"ai": line.credited_nanos, "compute": line.credited_ms}
    texts = [amount_text(meter, amount) for meter, amount in credited.items() if amount]
    yield " + ".join(texts) or "–"


def _share(count: int, sum_text: str) -> str:
    return f"{sum_text} ({count:,})" if count else "–"


def _show_charges(
    ledger: ReportRows, selection: Selection, doubt: Doubt, names: dict[str, str], form: _Form
) -> None:
    lines = ledger.charges(selection, doubt)
    if form != "table":
        _print_data(lines, ChargeLine, {}, names, form)
        return
    from chucky.cli.tables import Table

    table = Table("Call id", "Time", "Project", "User", "Model", "Charged", "Reserved", "Refunded")
    notes = []
    for line in lines:
        amounts = [
            amount_text(line.meter, each) for each in (line.amount, line.reserved, line.refunded)
        ]
        table.add(
            line.call_id,
            iso_time(line.at_ms),
            names.get(line.project_id, line.project_id),
            line.user_id,
            line.model or line.meter,
            *amounts,
        )
        notes += [f"{line.call_id}: {line.unpriced}"] if line.unpriced else []
    if not table.count:
        typer.echo(_NOTHING)
        return
    table.show()
    for note in notes:
        typer.echo(f"No price is known for what the provider reported of {note}")


def _print_data(
    lines: Iterable[Any],
    kind: type[NamedTuple],
    renamed: dict[str, str],
    names: dict[str, str],
    form: _Form,
) -> None:
    """Print lines as they are, with the project's name beside its id."""
    fields = [renamed.get(name, name) for name in kind._fields]
    headings = ["project", *map(_camel, fields)]
    rows = ((names.get(line.project_id, ""), *line) for line in lines)
    if form == "csv":
        from chucky.cli.tables import print_csv

        print_csv(headings, rows)
    else:
        typer.echo(json.dumps([dict(zip(headings, row, strict=True)) for row in rows]))


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))
