"""Groups of tools, and the names the model knows them by.

The model sees a tool as ``mcp__<server>__<tool>``; a call comes back with the bare tool name.
Two rules follow. Bare names are one flat space over all servers of a session: the same name
twice is refused, because a call could not say which is meant. And the long name must say by
itself where the server's name ends: a server's name has no ``__`` in it and no ``_`` at its
end, so the first ``__`` after the prefix is the border (a tool's name may contain ``__``). The
Messages API allows 128 characters in all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chucky.errors import ValidationError
from chucky.tools.definition import SdkMcpTool, Tool, tool

_SERVER_NAME = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_NAME = 128


@dataclass
class McpServer:
    """Tools under one name.

    Attributes:
        name: The server's name; letters, digits, ``-`` and single ``_``.
        tools: The tools; a :class:`SdkMcpTool` among them becomes a :class:`Tool`.
        version: The version it states.

    Raises:
        ValidationError: The name cannot be used, or a tool's name occurs twice.
    """

    name: str
    tools: list[Tool]
    version: str = "1.0.0"

    def __post_init__(self) -> None:
        _check_version(self.version, self.name)
        self.tools = _as_tools(self.name, self.tools)
        _add_tools({}, self.name, self.tools)


@dataclass
class McpSdkServerConfig:
    """What :func:`create_sdk_mcp_server` returns; may stand wherever an :class:`McpServer` may.

    Attributes:
        type: Always ``"sdk"``.
        name: The server's name.
        instance: The :class:`McpServer`.
    """

    type: Literal["sdk"] = "sdk"
    name: str = ""
    instance: Any = None

    @property
    def tools(self) -> list[Tool]:
        """The server's tools.

        Raises:
            ValidationError: ``instance`` is not an :class:`McpServer`.
        """
        return self._server().tools

    @property
    def version(self) -> str:
        """The server's version.

        Raises:
            ValidationError: ``instance`` is not an :class:`McpServer`.
        """
        return self._server().version

    def _server(self) -> McpServer:
        if isinstance(self.instance, McpServer):
            return self.instance
        raise ValidationError(
            f"The instance of server {self.name!r} is of type {type(self.instance).__name__!r}, "
            "not a McpServer; make the server with create_sdk_mcp_server(name, tools=[...])."
        )


def create_mcp_server(
    name: str, tools: Sequence[Tool | SdkMcpTool[Any]], version: str = "1.0.0"
) -> McpServer:
    """Group tools under a name.

    Args:
        name: The server's name; letters, digits, ``-`` and single ``_``.
        tools: The tools.
        version: The version it states.

    Raises:
        ValidationError: The name cannot be used, or a tool's name occurs twice.
    """
    return McpServer(name=name, tools=_as_tools(name, tools), version=version)


def create_sdk_mcp_server(
    name: str, version: str = "1.0.0", tools: Sequence[Tool | SdkMcpTool[Any]] | None = None
) -> McpSdkServerConfig:
    """Group tools under a name, with the signature the Claude Agent SDK has for it.

    Args:
        name: The server's name; letters, digits, ``-`` and single ``_``.
        version: The version it states.
        tools: The tools.

    Raises:
        ValidationError: The name cannot be used, or a tool's name occurs twice.
    """
    server = create_mcp_server(name, tools or [], version)
    return McpSdkServerConfig(type="sdk", name=name, instance=server)


AnyServer = McpServer | McpSdkServerConfig


def collect_tools(servers: Iterable[AnyServer] | Mapping[str, AnyServer]) -> dict[str, Tool]:
    """Gather the tools of several servers by their bare names.

    Args:
        servers: The servers; in a mapping, each key is the name the model knows its server by.

    Raises:
        ValidationError: Two tools have one name (the message says where both are), two servers
            have one name, or a name cannot be used.
    """
    named: Iterable[tuple[str, AnyServer]]
    if isinstance(servers, Mapping):
        named = servers.items()
    else:
        named = ((_checked_server(server).name, server) for server in servers)
    seen: set[str] = set()
    places: dict[str, _Place] = {}
    for name, server in named:
        if name in seen:
            raise ValidationError(
                f"Two servers are called {name!r}; the names of a session's servers must differ."
            )
        seen.add(name)
        _add_tools(places, name, _as_tools(name, _checked_server(server).tools))
    return {name: place.tool for name, place in places.items()}


def _checked_server(server: object) -> AnyServer:
    if isinstance(server, McpServer | McpSdkServerConfig):
        return server
    raise ValidationError(
        f"A server of tools must come from create_mcp_server or create_sdk_mcp_server, "
        f"not be of type {type(server).__name__!r}."
    )


@dataclass(frozen=True, slots=True)
class _Place:
    tool: Tool
    server_name: str
    position: int

    def __str__(self) -> str:
        return f"tool number {self.position} of server {self.server_name!r}"


def _add_tools(places: dict[str, _Place], server_name: str, tools: Iterable[Tool]) -> None:
    _check_server_name(server_name)
    for position, added in enumerate(tools, start=1):
        long_name = f"mcp__{server_name}__{added.name}"
        if len(long_name) > _LONGEST_NAME:
            raise ValidationError(
                f"The names of server {server_name!r} and tool {added.name!r} are too long "
                f"together: {long_name!r} has {len(long_name)} characters, "
                f"{_LONGEST_NAME} are allowed."
            )
        place = _Place(added, server_name, position)
        earlier = places.setdefault(added.name, place)
        if earlier is not place:
            raise ValidationError(
                f"Two tools are called {added.name!r}: {earlier} and {place}; the names of all "
                "tools of a session must differ."
            )


def _check_server_name(name: object) -> None:
    if not isinstance(name, str) or not _SERVER_NAME.fullmatch(name):
        raise ValidationError(
            f"The name of a server must be letters, digits, '-' or '_', not {name!r}."
        )
    if "__" in name or name.endswith("_"):
        raise ValidationError(
            f"The name of server {name!r} must not contain '__' or end with '_', because the "
            "model sees its tools as mcp__<server>__<tool>."
        )


def _check_version(version: object, server_name: str) -> None:
    if not isinstance(version, str) or not version:
        raise ValidationError(
            f"The version of server {server_name!r} must be a text such as '1.0.0', "
            f"not {version!r}."
        )


def _as_tools(server_name: str, tools: Iterable[object]) -> list[Tool]:
    return [_as_tool(server_name, item) for item in tools]


def _as_tool(server_name: str, item: object) -> Tool:
    if isinstance(item, Tool):
        return item
    if not isinstance(item, SdkMcpTool):
        raise ValidationError(
            f"Server {server_name!r} holds {item!r}, which is not a tool; make it one with @tool."
        )
    if isinstance(item.input_schema, dict):
        return Tool(item.name, item.description, item.input_schema, item.handler)
    return tool(item.name, item.description, item.input_schema)(item.handler)
