"""``chucky offline``: run the offline model alone, for any client of the Messages API."""

from __future__ import annotations

from typing import Annotated

import typer

from chucky.errors import ValidationError


def offline(
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT", min=0, max=65_535, help="Port to listen on; 0 takes a free one."
        ),
    ] = 8788,
) -> None:
    """Run the offline model alone: a Messages API that needs no key and no network."""
    from chucky.cli.process import run_until_signal
    from chucky.offline import app

    def ready(bound_port: int) -> None:
        address = f"[{host}]" if ":" in host else host
        # print(flush=True): whoever started it in a pipe waits for this line.
        print(f"Offline model at http://{address}:{bound_port}", flush=True)  # noqa: T201

    try:
        exit_code = run_until_signal(app.serve(host, port, ready=ready))
    except OSError as error:
        raise ValidationError(
            f"The offline model cannot listen on {host}:{port} ({error.strerror or error}); choose "
            f"another port with --port, or 0 for a free one."
        ) from error
    raise typer.Exit(exit_code)
