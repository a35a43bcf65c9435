"""What a client and a session are asked to be, and how that is said in ``init``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .errors import ValidationError
from .wire import CAPABILITIES

if TYPE_CHECKING:
    from .tools import McpSdkServerConfig, McpServer, Tool

DEFAULT_URL = "wss://conjure.chucky.cloud/ws"
DEFAULT_MODEL = "claude-sonnet-4-5-20250929"

# The server that the tools given to a call or session travel in; public clients name it so.
INLINE_SERVER_NAME = "inline-tools"

TokenSource = str | Callable[[], str | Awaitable[str]]
"""A token, or a function that returns one and is asked again for every connection."""

McpServers = (
    Mapping[str, "McpServer | McpSdkServerConfig"] | Sequence["McpServer | McpSdkServerConfig"]
)


@dataclass
class ChuckyOptions:
    """What all sessions of a client share. Times are in seconds."""

    url: str
    token: TokenSource
    model: str = DEFAULT_MODEL
    system_prompt: str | None = None
    max_turns: int | None = None
    allowed_tools: list[str] | None = None
    disallowed_tools: list[str] | None = None
    mcp_servers: McpServers | None = None
    timeout: float = 30.0
    keepalive_interval: float = 60.0
    turn_timeout: float | None = None
    include_partial_messages: bool = False

    def check(self) -> None:
        """Refuse what cannot work, before anything is connected.

        Raises:
            ValidationError: The sentence names the option.
        """
        _check_url(self.url)
        if not self.token:
            raise ValidationError(
                "No token: pass token=… to Chucky, or set CHUCKY_TOKEN. Tokens are made on your "
                "server with create_token, or with `chucky token`."
            )
        for name in ("timeout", "keepalive_interval", "turn_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds > 0:
                raise ValidationError(f"{name} must be more than 0 seconds, not {seconds!r}.")


@dataclass
class PromptOptions:
    """What one prompt or session wants different from its client; None keeps the client's."""

    model: str | None = None
    system_prompt: str | None = None
    max_turns: int | None = None
    tools: list[Tool] | None = None
    include_partial_messages: bool | None = None


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ValidationError(
            f"The url must look like ws://host:port/ws or wss://host/ws, not {url!r}."
        )


def session_servers(options: ChuckyOptions, wanted: PromptOptions) -> list[McpServer]:
    """Return the tool servers of a session: the client's, then the one for its own tools.

    A mapping's keys name its servers.

    Raises:
        ValidationError: Something in the lists is not a tool or a server of tools.
    """
    from .tools import create_mcp_server

    given = options.mcp_servers or {}
    named = given if isinstance(given, Mapping) else {server.name: server for server in given}
    if len(named) != len(given):
        raise ValidationError("Two MCP servers have the same name; names must differ.")
    servers = [
        create_mcp_server(name, server.tools, server.version) for name, server in named.items()
    ]
    if wanted.tools:
        servers.append(create_mcp_server(INLINE_SERVER_NAME, list(wanted.tools)))
    return servers


def init_options(
    options: ChuckyOptions, wanted: PromptOptions, servers: Sequence[McpServer]
) -> dict[str, Any]:
    """Return the payload of ``init``: every option that was given, by its name on the wire."""
    from .tools import tool_definition

    def chosen(name: str) -> Any:
        own = getattr(wanted, name)
        return getattr(options, name) if own is None else own

    payload = {
        "model": chosen("model"),
        "systemPrompt": chosen("system_prompt"),
        "maxTurns": chosen("max_turns"),
        "allowedTools": options.allowed_tools,
        "disallowedTools": options.disallowed_tools,
        "includePartialMessages": chosen("include_partial_messages") or None,
        "mcpServers": [
            {
                "name": server.name,
                "version": server.version,
                "tools": [tool_definition(tool) for tool in server.tools],
            }
            for server in servers
        ]
        or None,
        "capabilities": list(CAPABILITIES),
    }
    return {name: value for name, value in payload.items() if value is not None}
