"""``chucky budget``: see how a user's budgets stand, and correct them, also while servers run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from chucky.cli.options import (
    ConfigOption,
    DbOption,
    JsonOption,
    ProjectOption,
    amount,
    load_settings,
    moment,
)
from chucky.errors import ValidationError
from chucky.server.ledger import corrections
from chucky.server.ledger.accounts import Holder, Meter, amount_text
from chucky.server.ledger.reports import BudgetLine, budget_lines
from chucky.server.ledger.rows import LedgerRows
from chucky.server.ledger.windows import iso_time, milliseconds
from chucky.server.settings import Settings
from chucky.server.store import open_ledger, open_reader, open_store
from chucky.tokenform import identifier_fault
from chucky.tokens import Window

_UNITS: dict[Meter, tuple[int, str]] = {
    "ai": (1_000_000_000, "nano-dollars"),
    "compute": (1_000, "milliseconds"),
}
_MOST = 10**15  # thousands of such corrections still fit an account in a database

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="See and correct what users have left, also while the server runs.",
)

_UserArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="USER", help="Id of the user.", show_default=False)
]
_NoteOption: TypeAlias = Annotated[
    str, typer.Option("--note", metavar="TEXT", help="Why; kept with the entry.")
]
_DollarsOption: TypeAlias = Annotated[
    Decimal | None,
    typer.Option(
        "--dollars", parser=amount, metavar="USD", help="How much money.", show_default=False
    ),
]


@dataclass(frozen=True)
class _User:
    """Whose budget a command is about, and where it is kept."""

    settings: Settings
    project_id: str
    project_name: str
    user_id: str

    @classmethod
    def find(cls, user_id: str, project: str, config: Path | None, db: str | None) -> _User:
        if fault := identifier_fault(user_id):
            raise ValidationError(f"The user id {fault}.")
        settings = load_settings(config, db=db)
        with closing(open_store(settings, create=False)) as store:
            found = store.find_project(project)
        return cls(settings, found.project_id, found.name, user_id)

    @property
    def holder(self) -> Holder:
        return Holder(self.project_id, self.user_id)

    @contextmanager
    def ledger(self) -> Iterator[LedgerRows]:
        with closing(open_ledger(self.settings)) as rows:
            yield rows

    def __str__(self) -> str:
        return f"the user {self.user_id!r} of the project {self.project_name}"


@app.command()
def show(
    user: _UserArgument,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Show what a user has spent in each kind of window, and what is reserved."""
    whose = _User.find(user, project, config, db)
    with closing(open_reader(whose.settings)) as reader, reader.snapshot() as ledger:
        lines = list(budget_lines(ledger, whose.project_id, whose.user_id))
    if as_json:
        typer.echo(json.dumps([_as_entry(line) for line in lines]))
    elif lines:
        _print(lines)
    else:
        typer.echo(f"Nothing was ever reserved for {whose}.")


@app.command()
def anchor(
    user: _UserArgument,
    window: Annotated[Window, typer.Argument(help="Kind of window.", show_default=False)],
    time: Annotated[
        datetime,
        typer.Argument(
            parser=moment, metavar="TIME", help="When one of them begins.", show_default=False
        ),
    ],
    project: ProjectOption = "default",
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Move where a user's windows of a kind begin; what was spent counts in the new ones."""
    whose = _User.find(user, project, config, db)
    if window == "lifetime":
        raise ValidationError("A lifetime has no beginning; name hour, day, week or month.")
    with whose.ledger() as rows:
        corrections.move_anchor(rows, whose.holder, window, milliseconds(time))
    typer.echo(f"Windows of a {window} begin at {iso_time(milliseconds(time))} for {whose}.")


@app.command()
def credit(
    user: _UserArgument,
    given: _DollarsOption = None,
    compute_seconds: Annotated[
        Decimal | None,
        typer.Option(
            "--compute-seconds",
            parser=amount,
            metavar="SECONDS",
            help="How much compute.",
            show_default=False,
        ),
    ] = None,
    note: _NoteOption = "",
    project: ProjectOption = "default",
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Give a user dollars or compute beyond the budget, in the windows that are now."""
    if (given is None) == (compute_seconds is None):
        raise ValidationError("Give one of --dollars and --compute-seconds.")
    meter: Meter = "compute" if given is None else "ai"
    value = _units(given if compute_seconds is None else compute_seconds, meter)
    whose = _User.find(user, project, config, db)
    with whose.ledger() as rows:
        corrections.give_credit(rows, whose.holder, meter, value, note)
    typer.echo(f"Gave {amount_text(meter, value)} to {whose}.")


@app.command()
def refund(
    user: _UserArgument,
    call: Annotated[
        str,
        typer.Option("--call", metavar="ID", help="Id of the charge, see `chucky usage --list`."),
    ],
    given: _DollarsOption = None,
    note: _NoteOption = "",
    project: ProjectOption = "default",
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Give back what is left of a charge, or so many dollars of it, in the windows that are now."""
    value = None if given is None else _units(given, "ai")
    whose = _User.find(user, project, config, db)
    with whose.ledger() as rows:
        meter, value = corrections.refund(
            rows, whose.holder, call, None if value is None else "ai", value, note
        )
    typer.echo(f"Gave {amount_text(meter, value)} back to {whose}.")


def _units(given: Decimal | None, meter: Meter) -> int:
    """An amount of an option in whole units of the meter, exactly."""
    unit, finest = _UNITS[meter]
    value = (given or Decimal(0)) * unit
    if not value.is_finite() or not 0 < value <= _MOST or value != int(value):
        raise ValidationError(
            f"The amount must be more than 0, at most {amount_text(meter, _MOST)}, and whole "
            f"{finest}."
        )
    return int(value)


def _print(lines: list[BudgetLine]) -> None:
    from chucky.cli.tables import Table

    table = Table("Window", "Meter", "Spent", "Reserved", "Limit of the last grant", "Resets at")
    for line in lines:
        spent, reserved = (amount_text(line.meter, each) for each in (line.spent, line.reserved))
        limit = "–" if line.limit is None else amount_text(line.meter, line.limit)
        ends = "never" if line.window.end_ms is None else iso_time(line.window.end_ms)
        table.add(line.window.kind, line.meter, spent, reserved, limit, ends)
    table.show()
    for kind, anchor_ms in {line.window.kind: line.anchor_ms for line in lines}.items():
        if anchor_ms is not None:
            typer.echo(f"Windows of a {kind} are anchored at {iso_time(anchor_ms)}.")


def _as_entry(line: BudgetLine) -> dict[str, object]:
    """A line as JSON; amounts in nano-dollars or milliseconds."""
    return {
        "meter": line.meter,
        "window": line.window.kind,
        "spent": line.spent,
        "reserved": line.reserved,
        "limit": line.limit,
        "anchor": None if line.anchor_ms is None else iso_time(line.anchor_ms),
        "resetsAt": None if line.window.end_ms is None else iso_time(line.window.end_ms),
    }
