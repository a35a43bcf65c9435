"""The address of a PostgreSQL database, whose password nobody gets to see by accident."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

_SCHEMES: Final = ("postgresql://", "postgres://")
_PATTERN: Final = re.compile(
    r"""(?P<scheme>postgres(?:ql)?://)
    (?:(?P<user>[^:@/?\s]*)(?::(?P<password>[^@/?\s]*))?@)?
    (?P<rest>[^@/?\s]*(?:/[^/?\s]*)?)
    (?:\?(?P<query>[^@\s]*))?""",
    re.VERBOSE,
)
_BROKEN_ESCAPE: Final = re.compile("%(?![0-9A-Fa-f]{2})")
_SECRET_PARAMETERS: Final = ("password", "sslpassword")


def is_postgres_url(text: str) -> bool:
    """Tell whether a text is meant to be the address of a PostgreSQL database."""
    return text.lower().startswith(_SCHEMES)


@dataclass(frozen=True)
class PostgresUrl:
    """The address of a PostgreSQL database, ``postgresql://user@host:port/database?options``.

    ``str`` and ``repr`` show it without its password.

    Attributes:
        secret_url: The whole address. Left out of ``repr``.

    Raises:
        ValueError: It is none. The sentence does not repeat it, for the sake of the password.
    """

    secret_url: str = field(repr=False)

    def __post_init__(self) -> None:
        if not _PATTERN.fullmatch(self.secret_url) or _BROKEN_ESCAPE.search(self.secret_url):
            raise ValueError(
                "must be an address like postgresql://user@host:5432/database, with special "
                "characters in its user and password written as %40 and the like"
            )

    @property
    def has_password(self) -> bool:
        """Whether a password is part of it."""
        match = self._match()
        return bool(match["password"]) or not all(map(_is_public, _parameters(match)))

    def __str__(self) -> str:
        match = self._match()
        user = "" if match["user"] is None else f"{match['user']}@"
        query = "&".join(filter(_is_public, _parameters(match)))
        return f"{match['scheme']}{user}{match['rest']}{'?' if query else ''}{query}"

    def __repr__(self) -> str:
        return f"PostgresUrl({str(self)!r})"

    def _match(self) -> re.Match[str]:
        match = _PATTERN.fullmatch(self.secret_url)
        assert match
        return match


def _parameters(match: re.Match[str]) -> list[str]:
    return (match["query"] or "").split("&")


def _is_public(parameter: str) -> bool:
    return unquote(parameter.partition("=")[0]).lower() not in _SECRET_PARAMETERS
