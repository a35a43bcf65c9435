"""``chucky verify``: count the ledger again and say what does not add up."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from chucky.cli.options import ConfigOption, DbOption, JsonOption, load_settings
from chucky.server.store import open_reader

if TYPE_CHECKING:
    from chucky.server.ledger.audit import Problem


def verify(as_json: JsonOption = False, db: DbOption = None, config: ConfigOption = None) -> None:
    """Count every balance again from the entries, also while servers run.

    Exits with 1 if something does not add up, and names the rows.
    """
    from chucky.server.ledger.audit import audit

    settings = load_settings(config, db=db)
    problems: list[Problem] = []
    found = 0
    with closing(open_reader(settings)) as reader, reader.snapshot() as ledger:
        for problem in audit(ledger):
            found += 1
            if as_json:
                problems.append(problem)
            else:
                typer.echo(f"{problem.row}: {problem.sentence}")
        counts = ledger.counts()
    if as_json:
        listed = [asdict(problem) for problem in problems]
        typer.echo(json.dumps({"ok": not found, **counts._asdict(), "problems": listed}))
    else:
        verdict = f"{found:,} problems in" if found else "All adds up:"
        typer.echo(
            f"{verdict} {counts.entries:,} entries, {counts.reservations:,} open reservations, "
            f"{counts.accounts:,} accounts, {counts.windows:,} windows."
        )
    raise typer.Exit(1 if found else 0)
