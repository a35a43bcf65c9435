"""What a client and a session are asked to be, and how that is said in ``init``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from chucky.errors import ValidationError
from chucky.wire import CAPABILITIES

if TYPE_CHECKING:
    from chucky.tools import McpSdkServerConfig, McpServer, Tool

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
    token: TokenSource = field(repr=False)
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
        if not isinstance(self.token, str) and not callable(self.token):
            raise ValidationError(
                "The token must be a string or a function that returns one, not "
                f"{type(self.token).__name__}."
            )
        _check_seconds("timeout", self.timeout)
        _check_seconds("keepalive_interval", self.keepalive_interval)
        if self.turn_timeout is not None:
            _check_seconds("turn_timeout", self.turn_timeout)
        _check_model_options(self.model, self.system_prompt, self.max_turns)
        _check_names("allowed_tools", self.allowed_tools)
        _check_names("disallowed_tools", self.disallowed_tools)


@dataclass
class PromptOptions:
    """What one prompt or session wants different from its client; None keeps the client's."""

    model: str | None = None
    system_prompt: str | None = None
    max_turns: int | None = None
    tools: list[Tool] | None = None
    include_partial_messages: bool | None = None

    def check(self) -> None:
        """Refuse what cannot work, before anything is connected.

        Raises:
            ValidationError: The sentence names the option.
        """
        _check_model_options(self.model, self.system_prompt, self.max_turns)


def without_secrets(url: str) -> str:
    """The address as it may appear in messages: neither a query nor credentials."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def check_text(name: str, text: object) -> None:
    """Refuse what is no string, or one that cannot be sent.

    Args:
        name: What the text is, for the sentence.
        text: What was given.

    Raises:
        ValidationError: The sentence names it.
    """
    if not isinstance(text, str):
        raise ValidationError(f"{name} must be a string, not {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"{name} contains half of a surrogate pair at position {error.start}, which is not "
            "text."
        ) from None


def _check_url(url: object) -> None:
    if not isinstance(url, str):
        raise ValidationError(f"The url must be a string, not {type(url).__name__}.")
    try:
        parts = urlsplit(url)
        is_complete = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is no number
        raise ValidationError("The url is not one: its host or port is malformed.") from None
    if not is_complete:
        raise ValidationError(
            "The url must look like ws://host:port/ws or wss://host/ws, not "
            f"{without_secrets(url)!r}."
        )
    if parts.fragment or "@" in parts.netloc:
        raise ValidationError(
            f"The url of {parts.hostname} must have neither a user nor a '#': the token alone "
            "says who you are."
        )


def _check_seconds(name: str, seconds: object) -> None:
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not seconds > 0:  # type: ignore[operator]
        raise ValidationError(f"{name} must be more than 0 seconds, not {seconds!r}.")


def _check_model_options(model: object, system_prompt: object, max_turns: object) -> None:
    if model is not None:
        check_text("model", model)
    if model == "":
        raise ValidationError("model must not be empty; leave it out for the default.")
    if system_prompt is not None:
        check_text("system_prompt", system_prompt)
    is_count = isinstance(max_turns, int) and not isinstance(max_turns, bool) and max_turns >= 0
    if max_turns is not None and not is_count:
        raise ValidationError(f"max_turns must be a whole number from 0, not {max_turns!r}.")


def _check_names(option: str, names: object) -> None:
    if names is None:
        return
    if not isinstance(names, list | tuple):
        raise ValidationError(f"{option} must be a list of tool names, not {type(names).__name__}.")
    for name in names:
        check_text(f"Each name in {option}", name)


def session_servers(options: ChuckyOptions, wanted: PromptOptions) -> list[McpServer]:
    """Return the tool servers of a session: the client's, then the one for its own tools.

    A mapping's keys name its servers.

    Raises:
        ValidationError: Something in the lists is not a tool or a server of tools.
    """
    from chucky.tools import create_mcp_server

    servers = [
        create_mcp_server(server.name if name is None else name, server.tools, server.version)
        for name, server in _named_servers(options.mcp_servers)
    ]
    if wanted.tools is not None and not isinstance(wanted.tools, list | tuple):
        raise ValidationError(
            f"tools must be a list of tools, not {type(wanted.tools).__name__}; write tools=[…]."
        )
    if wanted.tools:
        servers.append(create_mcp_server(INLINE_SERVER_NAME, wanted.tools))
    return servers


def _named_servers(
    given: McpServers | None,
) -> list[tuple[str | None, McpServer | McpSdkServerConfig]]:
    from chucky.tools import McpSdkServerConfig, McpServer

    if isinstance(given, Mapping):
        named: list[tuple[Any, Any]] = list(given.items())
    elif isinstance(given, list | tuple) or given is None:
        named = [(None, server) for server in given or ()]
    else:
        raise ValidationError(
            "mcp_servers must be a list of servers, or a dict of them by name, not "
            f"{type(given).__name__}."
        )
    for name, server in named:
        if not isinstance(server, McpServer | McpSdkServerConfig):
            raise ValidationError(
                "Each of mcp_servers must come from create_mcp_server or create_sdk_mcp_server, "
                f"not be a {type(server).__name__}."
            )
        if name is not None:
            check_text("Each key of mcp_servers", name)
    return named


def init_options(
    options: ChuckyOptions, wanted: PromptOptions, servers: Sequence[McpServer]
) -> dict[str, Any]:
    """Return the payload of ``init``: every option that was given, by its name on the wire."""
    from chucky.tools import tool_definition

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
