"""``chucky serve``: run the server."""

from __future__ import annotations

import asyncio
import logging
import shlex
from pathlib import Path
from typing import Annotated

import typer

from chucky.cli.options import ConfigOption, DbOption, load_settings
from chucky.server.settings import Settings


def serve(
    host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Address to listen on. [default: 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Port to listen on; 0 takes a free one. [default: 8787]"),
    ] = None,
    db: DbOption = None,
    upstream_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the Messages API is, if not at Anthropic."),
    ] = None,
    allow_remote: Annotated[
        bool | None,
        typer.Option(
            "--allow-remote", help="Listen beyond this machine without TLS, behind a proxy."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate chain, PEM.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of the certificate, PEM.")
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(metavar="LEVEL", help="debug, info, warning or error. [default: info]"),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Run the server until it is stopped; running turns may then end, for drain_seconds.

    SIGHUP has it read its settings again; docs/settings.md says which of them change at once.
    Without a provider key (ANTHROPIC_API_KEY) and an upstream URL, the offline model answers.
    """
    given = {
        "host": host,
        "port": port,
        "db": db,
        "upstream_url": upstream_url,
        "allow_remote": allow_remote,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "log_level": log_level,
    }
    settings = load_settings(config, **given)
    from chucky.cli.process import run_until_signal
    from chucky.server import app
    from chucky.server.reloading import Reloading

    _log_to_stderr(settings.log_level)

    def read_again() -> Settings:
        settings = load_settings(config, **given)
        logging.getLogger("chucky").setLevel(settings.log_level.upper())
        return settings

    def announce(url: str, project_id: str, model_notice: str | None) -> None:
        for line in _announcement(settings, url, project_id, model_notice):
            # print(flush=True): whoever started the server in a pipe waits for these lines.
            print(line, flush=True)  # noqa: T201

    reloading = Reloading(asyncio.Event(), read_again)
    serving = app.serve(settings, announce, reloading=reloading)
    raise typer.Exit(run_until_signal(serving, on_hangup=reloading.asked.set))


def _announcement(
    settings: Settings, url: str, project_id: str, model_notice: str | None
) -> list[str]:
    command = "chucky token --user alice --ai-dollars 1 --compute-hours 1 --window day --db"
    return [
        f"Listening on {url}",
        f"Project id: {project_id}",
        "Make a token for a user:",
        f"  {command} {shlex.quote(str(settings.db))}",
        *([model_notice] if model_notice else []),
    ]


def _log_to_stderr(level: str) -> None:
    """Log what this package says; of others only what is amiss.

    The libraries below log request lines and headers at their lower levels, and those carry
    tokens and keys.
    """
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("chucky").setLevel(level.upper())
