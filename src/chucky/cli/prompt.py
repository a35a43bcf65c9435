"""``chucky prompt``: one message, one answer."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from chucky.cli.options import (
    ConfigOption,
    DbOption,
    JsonOption,
    MaxTurnsOption,
    ModelOption,
    SystemPromptOption,
    TokenOption,
    UrlOption,
    load_settings,
)
from chucky.errors import ValidationError

if TYPE_CHECKING:
    from chucky.messages import PromptResult

_TOKEN_SECONDS = 3600


def prompt(
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT", help="The message; - reads it from standard input.", show_default=False
        ),
    ],
    url: UrlOption = None,
    token: TokenOption = None,
    model: ModelOption = None,
    system_prompt: SystemPromptOption = None,
    max_turns: MaxTurnsOption = None,
    as_json: JsonOption = False,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Send one message and print the answer."""
    import asyncio

    from chucky import Chucky
    from chucky.cli.target import server_url, user_token
    from chucky.cli.terminal import printable

    settings = load_settings(config, db=db)
    address = server_url(settings, url)
    bearer = user_token(settings, address, token, _TOKEN_SECONDS)
    message = _standard_input() if text == "-" else text

    async def ask() -> PromptResult:
        async with Chucky(bearer, url=address) as client:
            return await client.prompt(
                message, model=model, system_prompt=system_prompt, max_turns=max_turns
            )

    result = asyncio.run(ask())
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
    if result.get("subtype") == "error":
        typer.echo(f"Error: {printable(str(result))}", err=True)
        raise typer.Exit(1)
    if not as_json:
        typer.echo(printable(str(result)) if sys.stdout.isatty() else str(result))


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValidationError(
            f"Standard input is not UTF-8 text (byte {error.start + 1}); convert it first."
        ) from None
