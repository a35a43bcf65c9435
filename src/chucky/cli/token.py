"""``chucky token``: make a token for one user from a project's key in the database."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

import typer

from chucky.cli.options import ConfigOption, DbOption, amount, load_settings
from chucky.errors import ValidationError
from chucky.server.projects import Project, ProjectKey
from chucky.server.settings import Settings
from chucky.server.store import open_store
from chucky.tokens import Window, create_budget, create_token


def token(
    user: Annotated[
        str, typer.Option("--user", metavar="ID", help="Who the user is.", show_default=False)
    ],
    ai_dollars: Annotated[
        Decimal,
        typer.Option(
            "--ai-dollars",
            parser=amount,
            metavar="USD",
            help="What the models may cost per window.",
            show_default=False,
        ),
    ],
    compute_hours: Annotated[
        Decimal,
        typer.Option(
            "--compute-hours",
            parser=amount,
            metavar="HOURS",
            help="How long turns may run per window.",
            show_default=False,
        ),
    ],
    window: Annotated[
        Window, typer.Option("--window", help="How often the budget starts again.")
    ] = "day",
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            metavar="PROJECT",
            help="Name or id of the project; `default` by default.",
            show_default=False,
        ),
    ] = None,
    expires_in: Annotated[
        int, typer.Option("--expires-in", min=1, metavar="SECONDS", help="How long it is good.")
    ] = 3600,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="The only model the user may ask for; may be repeated.", metavar="MODEL"
        ),
    ] = None,
    max_turns: Annotated[
        int | None,
        typer.Option("--max-turns", metavar="N", min=1, help="The most model calls per message."),
    ] = None,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Make a token for a user and print it, alone on the last line."""
    permissions: dict[str, object] = {}
    if model:
        permissions["allowedModels"] = model
    if max_turns is not None:
        permissions["maxTurns"] = max_turns
    budget = create_budget(ai_dollars, compute_hours, window)
    found, key = signing_key(load_settings(config, db=db), project)
    typer.echo(
        create_token(
            user,
            found.project_id,
            key.secret,
            budget,
            expires_in,
            permissions=permissions or None,
        )
    )


def signing_key(settings: Settings, name_or_id: str | None) -> tuple[Project, ProjectKey]:
    """Return a project and the key to sign its tokens with, its newest.

    Args:
        settings: Where the database is; it must exist.
        name_or_id: The project; ``None`` is the default project, made if there is none.

    Raises:
        ValidationError: There is no database or project, or its tokens would be refused.
    """
    store = open_store(settings, create=False)
    try:
        if name_or_id is None:
            project = store.ensure_default_project()
        else:
            project = store.find_project(name_or_id)
    finally:
        store.close()
    if project.disabled:
        raise ValidationError(
            f"The project {project.name!r} is disabled, so its tokens are refused; enable it with "
            f"`chucky projects enable {project.name}`."
        )
    if not project.keys:
        raise ValidationError(
            f"The project {project.name!r} has no live key; make one with "
            f"`chucky projects rotate-key {project.name}`."
        )
    return project, project.keys[0]
