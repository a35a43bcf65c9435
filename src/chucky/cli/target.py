"""Which server ``chucky prompt`` and ``chucky chat`` talk to, and with which token."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from chucky.cli.token import signing_key
from chucky.errors import ValidationError
from chucky.server.settings import Settings, is_loopback
from chucky.tokens import create_budget, create_token

USER_ID: Final = "cli-user"


def server_url(settings: Settings, url: str | None) -> str:
    """Return the address that was asked for, or that of the server with these settings.

    Raises:
        ValidationError: The port of that server cannot be known.
    """
    if url:
        return url
    if settings.port == 0:
        raise ValidationError(
            "The settings give the server any free port; name its address with --url."
        )
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    return f"{'wss' if settings.tls_cert else 'ws'}://{host}:{settings.port}/ws"


def user_token(settings: Settings, url: str, token: str | None, expires_in_seconds: int) -> str:
    """Return the token that was given, or make one of the default project's for this machine.

    Args:
        settings: Where the database is.
        url: The server's address.
        token: The token that was given.
        expires_in_seconds: How long a token made here is good.

    Raises:
        ValidationError: No token was given, and none can be made: the server is elsewhere, or
            there is no database.
    """
    if token:
        return token
    if not _is_local(settings, url):
        raise ValidationError(
            f"A token is needed for {url!r}: give one with CHUCKY_TOKEN or --token."
        )
    project, key = signing_key(settings, None)
    budget = create_budget(ai_dollars=1, compute_hours=1, window="day")
    return create_token(USER_ID, project.project_id, key.secret, budget, expires_in_seconds)


def _is_local(settings: Settings, url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return is_loopback(host) or host == settings.host
