"""The servers of tools of a session: those in this process, and MCP servers somewhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Required, TypedDict
from urllib.parse import urlsplit

from chucky.errors import ValidationError
from chucky.options import check_name, check_names, check_text, check_texts, without_secrets
from chucky.tools import (
    McpSdkServerConfig,
    McpServer,
    Tool,
    collect_tools,
    create_mcp_server,
    tool_definition,
)

# The server that the tools given to a call or session travel in; public clients name it so.
INLINE_SERVER_NAME = "inline-tools"


class McpCommand(TypedDict, total=False):
    """An MCP server that the other side starts in its sandbox and talks to by its pipes."""

    name: str
    type: Literal["stdio"]
    command: Required[str]
    args: Sequence[str]
    env: Mapping[str, str]


class McpAddress(TypedDict, total=False):
    """An MCP server that the other side reaches by a url; ``type`` is ``http`` if left out."""

    name: str
    type: Literal["http", "sse"]
    url: Required[str]
    headers: Mapping[str, str]


AnyMcpServer = McpServer | McpSdkServerConfig | McpCommand | McpAddress
McpServers = Mapping[str, AnyMcpServer] | Sequence[AnyMcpServer]


@dataclass(frozen=True, slots=True)
class ToolServers:
    """The servers of tools of one session.

    Attributes:
        tools: The tools of this process by their bare names.
        definitions: All servers, in the form of the option ``mcpServers``.
    """

    tools: dict[str, Tool]
    definitions: list[dict[str, Any]]

    @classmethod
    def of(cls, servers: object, tools: object) -> ToolServers:
        """Gather ``mcp_servers`` and, in a server of their own, ``tools``.

        A mapping's keys name its servers.

        Raises:
            ValidationError: Something in them is not a tool or a server, or two have one name.
        """
        named = _named_servers(servers)
        own = [_renamed(server, name) for name, server in named if not isinstance(server, Mapping)]
        if tools is not None and not isinstance(tools, list | tuple):
            raise ValidationError(
                f"tools must be a list of tools, not {type(tools).__name__}; write tools=[…]."
            )
        if tools:
            own.append(create_mcp_server(INLINE_SERVER_NAME, tools))
        collected = collect_tools(own)
        elsewhere = [_elsewhere(name, each) for name, each in named if isinstance(each, Mapping)]
        definitions = [*map(_definition, own), *elsewhere]
        _check_names_differ(definitions)
        return cls(collected, definitions)


def _named_servers(given: object) -> list[tuple[str | None, AnyMcpServer]]:
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
        if not isinstance(server, McpServer | McpSdkServerConfig | Mapping):
            raise ValidationError(
                "Each of mcp_servers must come from create_mcp_server or create_sdk_mcp_server, "
                f"or be a dict with a url or a command, not be a {type(server).__name__}."
            )
        if name is not None:
            check_text("Each key of mcp_servers", name)
    return named


def _renamed(server: McpServer | McpSdkServerConfig, name: str | None) -> McpServer:
    return create_mcp_server(server.name if name is None else name, server.tools, server.version)


def _definition(server: McpServer) -> dict[str, Any]:
    return {
        "name": server.name,
        "version": server.version,
        "tools": [tool_definition(tool) for tool in server.tools],
    }


def _elsewhere(key: str | None, server: Mapping[str, Any]) -> dict[str, Any]:
    """Check a server that is not in this process, and return its definition."""
    name = server.get("name") if key is None else key
    check_name("The name of each of mcp_servers that is a dict", name)
    what = f"The MCP server {name!r}"
    if ("url" in server) == ("command" in server):
        raise ValidationError(f"{what} must have either a url or a command.")
    kind = "url" if "url" in server else "command"
    checks = _CHECKS[kind]
    given = {field: value for field, value in server.items() if field != "name"}
    for field, value in given.items():
        if field not in checks:
            raise ValidationError(
                f"{what} has a {kind}, so it may have {', '.join(checks)}, not {field!r:.80}."
            )
        checks[field](f"The {field} of the MCP server {name!r}", value)
    plain = {
        field: dict(value) if isinstance(value, Mapping) else value
        for field, value in given.items()
    }
    return {"name": name, "type": _DEFAULT_TYPES[kind], **plain}


def _check_address(what: str, url: object) -> None:
    check_text(what, url)
    try:
        parts = urlsplit(str(url))
        is_complete = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # brackets that do not match
        raise ValidationError(f"{what} is malformed.") from None
    if not is_complete:
        shown = without_secrets(str(url))
        raise ValidationError(f"{what} must begin with http:// or https://, not be {shown!r:.80}.")


def _check_type_of_address(what: str, kind: object) -> None:
    if kind not in ("http", "sse"):
        raise ValidationError(f"{what} must be 'http' or 'sse', not {kind!r:.80}.")


def _check_type_of_command(what: str, kind: object) -> None:
    if kind != "stdio":
        raise ValidationError(f"{what} must be 'stdio', not {kind!r:.80}.")


_CHECKS = {
    "url": {"type": _check_type_of_address, "url": _check_address, "headers": check_texts},
    "command": {
        "type": _check_type_of_command,
        "command": check_name,
        "args": check_names,
        "env": check_texts,
    },
}
_DEFAULT_TYPES = {"url": "http", "command": "stdio"}


def _check_names_differ(definitions: Sequence[Mapping[str, Any]]) -> None:
    seen: set[str] = set()
    for definition in definitions:
        if definition["name"] in seen:
            raise ValidationError(
                f"Two servers are called {definition['name']!r}; the names of a session's servers "
                "must differ."
            )
        seen.add(definition["name"])
