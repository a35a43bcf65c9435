"""The tools a client offers, and which of them a session gets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from chucky.server.admission.values import invalid, names, unsupported
from chucky.server.engines.base import ToolSpec
from chucky.server.permissions import Permissions
from chucky.server.schemas import SchemaError, check_schema

MAX_TOOLS = 256
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOT_IN_TOOL_NAMES = re.compile(r"[^A-Za-z0-9_-]")
# The API's limit for the name the model sees.
_LONGEST_VISIBLE_NAME = 128


def tool_servers(given: Any) -> dict[str, list[Any]]:
    """The tool definitions by server, of a list of servers or a map of them.

    Raises:
        ValidationError: The servers are malformed, or of a kind that cannot be served.
    """
    if given is None or given == [] or given == {}:
        return {}
    if isinstance(given, dict):
        given = [{"name": name, **_object(one, "mcpServers")} for name, one in given.items()]
    if not isinstance(given, list):
        raise invalid("The option 'mcpServers' must be a list of servers.")
    servers: dict[str, list[Any]] = {}
    for server in given:
        name = _object(server, "mcpServers").get("name")
        if not isinstance(name, str) or not name:
            raise invalid("Every server in 'mcpServers' needs a name.")
        if name in servers:
            raise invalid(f"Two servers in 'mcpServers' are named {name!r}; names must differ.")
        servers[name] = _server_tools(name, server)
    return servers


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"Every entry of {where!r} must be an object, not {value!r:.40}.")
    return value


def _server_tools(name: str, server: Mapping[str, Any]) -> list[Any]:
    if server.get("command"):
        raise unsupported(
            f"The MCP server {name!r} is a command; commands run only in the sandbox of the "
            "engine 'claude_code', and this server answers with the engine 'messages'."
        )
    if server.get("url"):
        raise unsupported(
            f"The MCP server {name!r} is remote; this version of the server connects to none. "
            "Define the tools in the client instead."
        )
    tools = server.get("tools")
    if not isinstance(tools, list):
        raise invalid(f"The MCP server {name!r} must have a list of 'tools'.")
    return tools


def granted_tools(
    servers: Mapping[str, list[Any]],
    options: Mapping[str, Any],
    permissions: Iterable[Permissions],
) -> Iterator[ToolSpec]:
    """The tools that all permissions allow and nobody blocks.

    Raises:
        ValidationError: A definition is wrong, or two tools have the same name.
    """
    blocked = {*names(options, "disallowedTools")}.union(*(p.blocked_tools for p in permissions))
    allowed = [p.allowed_tools for p in permissions if p.allowed_tools is not None]
    for server, spec in _defined_tools(servers):
        matches = _matcher(server, spec)
        if not any(map(matches, blocked)) and all(any(map(matches, each)) for each in allowed):
            yield spec


def _defined_tools(servers: Mapping[str, list[Any]]) -> list[tuple[str, ToolSpec]]:
    owners: dict[str, str] = {}
    defined = []
    for server, definitions in servers.items():
        for definition in definitions:
            spec = _tool(server, definition)
            if spec.name in owners:
                raise invalid(
                    f"Two tools are named {spec.name!r} (in {owners[spec.name]!r} and "
                    f"{server!r}); names must differ."
                )
            owners[spec.name] = server
            defined.append((server, spec))
    if len(defined) > MAX_TOOLS:
        raise invalid(f"{len(defined)} tools were defined; at most {MAX_TOOLS} are possible.")
    return defined


def _matcher(server: str, tool: ToolSpec) -> Callable[[str], bool]:
    """Whether a name in an allow or block list means this tool."""
    prefix = tool.visible_name.removesuffix(f"__{tool.name}")
    meanings = {"*", tool.name, tool.visible_name, prefix, f"{prefix}__*", f"mcp__{server}"}
    return meanings.__contains__


def _tool(server: str, definition: Any) -> ToolSpec:
    fields = _object(definition, "tools")
    name, description = fields.get("name"), fields.get("description")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise invalid(
            f"The tool name {name!r:.80} is not allowed: use 1 to 64 letters, digits, '_' or '-'."
        )
    if not isinstance(description, str):
        raise invalid(f"The tool {name!r} needs a description.")
    if fields.get("executeIn") not in ("client", "browser"):
        raise unsupported(
            f"The tool {name!r} has no handler in the client (executeIn "
            f"{fields.get('executeIn')!r:.40}), and this server runs no tools of its own."
        )
    visible_name = f"mcp__{_NOT_IN_TOOL_NAMES.sub('_', server)}__{name}"
    if len(visible_name) > _LONGEST_VISIBLE_NAME:
        raise invalid(
            f"The names of the MCP server {server!r:.80} and its tool {name!r} are too long "
            f"together: {visible_name!r} has more than {_LONGEST_VISIBLE_NAME} characters."
        )
    return ToolSpec(name, visible_name, description, _schema(name, fields.get("inputSchema")))


def _schema(tool: str, given: Any) -> dict[str, Any]:
    # PHP writes an empty map as [], some schemas say `"required": null`.
    if given is None or given == []:
        given = {}
    if not isinstance(given, dict) or given.get("type", "object") != "object":
        raise invalid(f"The inputSchema of the tool {tool!r} must be a schema of type object.")
    schema = {"type": "object", "properties": {}, **given}
    if schema["properties"] in ([], None):
        schema["properties"] = {}
    if schema.get("required", ()) is None:
        del schema["required"]
    try:
        check_schema(schema)
    except SchemaError as error:
        raise invalid(f"The inputSchema of the tool {tool!r} {error}.") from None
    return schema
