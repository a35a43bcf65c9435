"""All commands in one tree.

The modules of the commands import at their top only what is cheap; the server, the client and
everything that draws on them are imported by the command that needs them, so that ``chucky
token`` answers in a moment.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from chucky.cli import (
    budget,
    chat,
    migrate,
    offline,
    prices,
    projects,
    prompt,
    serve,
    sessions,
    token,
    usage,
    verify,
)
from chucky.errors import ChuckyError


class _Commands(TyperGroup):
    """Turns our errors, wherever they come from, into one line and the exit code 1."""

    # Any: typer hides the type of its context.
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ChuckyError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    name="chucky",
    no_args_is_help=True,
    add_completion=False,
    # Plain text: an error is one line wherever it comes from, and nothing wraps in a pipe.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from chucky import __version__

        typer.echo(f"chucky {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Claude agents as a service, that you own.

    Settings also come from CHUCKY_* variables and chucky.toml; docs/settings.md lists them.
    """


app.command("serve")(serve.serve)
app.add_typer(projects.app, name="projects")
app.add_typer(sessions.app, name="sessions")
app.command("migrate")(migrate.migrate)
app.command("token")(token.token)
app.command("prompt")(prompt.prompt)
app.command("chat")(chat.chat)
app.command("usage")(usage.usage)
app.add_typer(budget.app, name="budget")
app.command("prices")(prices.prices)
app.command("verify")(verify.verify)
app.command("offline")(offline.offline)
