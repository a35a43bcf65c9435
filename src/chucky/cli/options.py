"""Options that several commands have, and the settings they lead to."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from chucky.errors import ValidationError
from chucky.server.postgres_url import PostgresUrl
from chucky.server.settings import Settings
from chucky.tokenform import read_instant

DbOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--db",
        metavar="DATABASE",
        help="Database: a file, or a postgresql:// address without its password.",
        show_default=False,
    ),
]
ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings file; ./chucky.toml if there is one.",
        show_default=False,
    ),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
ProjectOption: TypeAlias = Annotated[
    str,
    typer.Option("--project", metavar="PROJECT", help="Name or id of the project."),
]
UrlOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        envvar="CHUCKY_URL",
        help="Address of the server; the local one by default.",
        show_default=False,
    ),
]
TokenOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        envvar="CHUCKY_TOKEN",
        help="The user's token; for a local server one is made from the database.",
        show_default=False,
    ),
]
ModelOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="Model, by its name or an alias.", show_default=False
    ),
]
SystemPromptOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--system-prompt", metavar="TEXT", help="System prompt.", show_default=False),
]
MaxTurnsOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--max-turns",
        metavar="N",
        min=1,
        help="How often the model may be called for one message.",
        show_default=False,
    ),
]


def amount(text: str) -> Decimal:
    """Read an amount of an option, exactly as it is written."""
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise typer.BadParameter(f"{text!r} is not a number") from error


def moment(text: str) -> datetime:
    """Read a date or time of an option; without an offset it is of UTC."""
    instant = read_instant(text)
    if instant is None:
        raise typer.BadParameter(f"{text!r} is no date or time like 2026-01-31 or 2026-01-31T08:00")
    return instant


def load_settings(config: Path | None, **arguments: Any) -> Settings:
    """Read the settings; the arguments are options of the command, ``None`` if not given.

    Raises:
        ValidationError: Some are wrong; all faults are in the message. Or an option has a
            password in it, which other users of the machine can read.
    """
    settings = Settings.load(arguments, config=config)
    if arguments.get("db") and isinstance(settings.db, PostgresUrl) and settings.db.has_password:
        raise ValidationError(
            "Other users of this machine can read the password in --db; leave it out there, and "
            "give it with PGPASSWORD or in ~/.pgpass, or the whole address with CHUCKY_DB."
        )
    return settings
