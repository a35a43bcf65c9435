"""``chucky migrate``: bring the schema of the database up to date, or see what it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from chucky.cli.options import ConfigOption, DbOption, load_settings
from chucky.server.store import missing_migrations, open_store


def migrate(
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Change nothing; exit with 1 and name the migrations that are missing."
        ),
    ] = False,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Bring the database up to date; `chucky serve` does the same when it starts."""
    settings = load_settings(config, db=db)
    if check:
        missing = [each.name for each in missing_migrations(settings.db)]
        _print("Missing", missing, str(settings.db))
        raise typer.Exit(1 if missing else 0)
    store = open_store(settings)
    store.close()
    _print("Applied", store.database.applied, str(settings.db))


def _print(news: str, names: Sequence[str], db: str) -> None:
    for name in names:
        typer.echo(f"{news}: {name}")
    if not names:
        typer.echo(f"The database {db!r} is up to date.")
