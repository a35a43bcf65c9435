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
project_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The same for what all users of a project together may spend, as its policy says.",
)
app.add_typer(project_app, name="project")

_UserArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="USER", help="Id of the user.", show_default=False)
]
_ProjectArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="PROJECT", help="Name or id of the project.", show_default=False)
]
_WindowArgument: TypeAlias = Annotated[
    Window, typer.Argument(help="Kind of window.", show_default=False)
]
_TimeArgument: TypeAlias = Annotated[
    datetime,
    typer.Argument(
        parser=moment, metavar="TIME", help="When one of them begins.", show_default=False
    ),
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
_SecondsOption: TypeAlias = Annotated[
    Decimal | None,
    typer.Option(
        "--compute-seconds",
        parser=amount,
        metavar="SECONDS",
        help="How much compute.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class _Holder:
    """Whose budget a command is about, a user's or with ``''`` a project's, and where it is."""

    settings: Settings
    project_id: str
    project_name: str
    user_id: str

    @classmethod
    def user(cls, user_id: str, project: str, config: Path | None, db: str | None) -> _Holder:
        if fault := identifier_fault(user_id):
            raise ValidationError(f"The user id {fault}.")
        return cls._find(user_id, project, config, db)

    @classmethod
    def project(cls, project: str, config: Path | None, db: str | None) -> _Holder:
        return cls._find("", project, config, db)

    @classmethod
    def _find(cls, user_id: str, project: str, config: Path | None, db: str | None) -> _Holder:
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
        whose = f"the project {self.project_name}"
        return f"the user {self.user_id!r} of {whose}" if self.user_id else whose


@app.command()
def show(
    user: _UserArgument,
    session: Annotated[
        str,
        typer.Option(
            "--session",
            metavar="ID",
            help="What this session has spent, and its own budget if it has one.",
            show_default=False,
        ),
    ] = "",
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Show what a user has spent in each kind of window, and what is reserved."""
    _show(_Holder.user(user, project, config, db), session, as_json=as_json)


@project_app.command("show")
def show_project(
    project: _ProjectArgument,
    as_json: JsonOption = False,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Show what a project has spent in each kind of window, and what is reserved."""
    _show(_Holder.project(project, config, db), "", as_json=as_json)


@app.command()
def anchor(
    user: _UserArgument,
    window: _WindowArgument,
    time: _TimeArgument,
    project: ProjectOption = "default",
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Move where a user's windows of a kind begin; what was spent counts in the new ones."""
    _move_anchor(_Holder.user(user, project, config, db), window, time)


@project_app.command("anchor")
def anchor_project(
    project: _ProjectArgument,
    window: _WindowArgument,
    time: _TimeArgument,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Move where a project's windows of a kind begin; what was spent counts in the new ones."""
    _move_anchor(_Holder.project(project, config, db), window, time)


@app.command()
def credit(
    user: _UserArgument,
    given: _DollarsOption = None,
    compute_seconds: _SecondsOption = None,
    note: _NoteOption = "",
    project: ProjectOption = "default",
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Give a user dollars or compute beyond the budget, in the windows that are now.

    The budgets of the project have them too.
    """
    meter, value = _given(given, compute_seconds)
    _credit(_Holder.user(user, project, config, db), meter, value, note)


@project_app.command("credit")
def credit_project(
    project: _ProjectArgument,
    given: _DollarsOption = None,
    compute_seconds: _SecondsOption = None,
    note: _NoteOption = "",
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Give a project dollars or compute beyond its budgets, in the windows that are now.

    No user gets more by it than the user's own budget says.
    """
    meter, value = _given(given, compute_seconds)
    _credit(_Holder.project(project, config, db), meter, value, note)


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
    """Give back what is left of a charge, or so many dollars of it, in the windows that are now.

    The budgets of its session and project have it back too.
    """
    value = None if given is None else _units(given, "ai")
    whose = _Holder.user(user, project, config, db)
    with whose.ledger() as rows:
        meter, value = corrections.refund(
            rows, whose.holder, call, None if value is None else "ai", value, note
        )
    typer.echo(f"Gave {amount_text(meter, value)} back to {whose}.")


def _show(whose: _Holder, session_id: str, *, as_json: bool) -> None:
    with closing(open_reader(whose.settings)) as reader, reader.snapshot() as ledger:
        lines = list(budget_lines(ledger, whose.project_id, whose.user_id, session_id))
    if as_json:
        typer.echo(json.dumps([_as_entry(line) for line in lines]))
    elif lines:
        _print(lines)
    elif session_id:
        typer.echo(f"Nothing was ever reserved in the session {session_id!r} of {whose}.")
    elif whose.user_id:
        typer.echo(f"Nothing was ever reserved for {whose}.")
    else:
        typer.echo(f"Nothing was ever reserved under a budget of {whose}.")


def _move_anchor(whose: _Holder, window: Window, time: datetime) -> None:
    if window == "lifetime":
        raise ValidationError("A lifetime has no beginning; name hour, day, week or month.")
    with whose.ledger() as rows:
        corrections.move_anchor(rows, whose.holder, window, milliseconds(time))
    typer.echo(f"Windows of a {window} begin at {iso_time(milliseconds(time))} for {whose}.")


def _credit(whose: _Holder, meter: Meter, value: int, note: str) -> None:
    with whose.ledger() as rows:
        corrections.give_credit(rows, whose.holder, meter, value, note)
    typer.echo(f"Gave {amount_text(meter, value)} to {whose}.")


def _given(dollars: Decimal | None, compute_seconds: Decimal | None) -> tuple[Meter, int]:
    """The meter and the amount that two options say, of which one must be given."""
    if (dollars is None) == (compute_seconds is None):
        raise ValidationError("Give one of --dollars and --compute-seconds.")
    if dollars is not None:
        return "ai", _units(dollars, "ai")
    return "compute", _units(compute_seconds, "compute")


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
