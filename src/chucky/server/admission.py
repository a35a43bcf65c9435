"""What a session may do: its token, what the client asks for, and what this server has.

A pure decision: nothing here does I/O or looks at a clock. Precedence: the token's ``sdkConfig``
replaces the client's options, then the token's ``permissions`` limit what is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from chucky.errors import ChuckyError, ValidationError
from chucky.options import DEFAULT_MODEL
from chucky.server.auth import Identity, Permissions
from chucky.server.engines.base import ToolSpec
from chucky.server.model.catalog import Catalog, Model, Resolution

# Options that would change what the engine `messages` does and that it cannot honour. Naming one
# is refused: answering as if it had not been said would be wrong in a way nobody sees.
_NEEDS_CLAUDE_CODE = {
    "agents": "sub-agents",
    "vessel": "a persistent sandbox",
    "settingSources": "settings files",
}
_NOT_IN_THIS_VERSION = (
    "continue",
    "forkSession",
    "maxBudgetUsd",
    "resume",
    "resumeSessionAt",
    "sessionId",
)
# Options without a meaning here; the session goes on without them and says so.
_IGNORED = (
    "allowDangerouslySkipPermissions",
    "allowedTools",
    "env",
    "jobId",
    "permissionMode",
)

MAX_TOOLS = 256
MAX_SYSTEM_PROMPT_CHARACTERS = 1_000_000
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOT_IN_TOOL_NAMES = re.compile(r"[^A-Za-z0-9_-]")
# The API's limit for the name the model sees.
_LONGEST_VISIBLE_NAME = 128


@dataclass(frozen=True, slots=True)
class Grant:
    """What a session was granted.

    Attributes:
        model: The model that really answers.
        system_prompt: The system prompt; None for none.
        tools: The client's tools the model may call.
        server_names: The tool servers these came from.
        max_turns: How often the model may be called per message; None for no limit of theirs.
        include_partial_messages: Whether the client wants partial messages.
        fallback_model: What answers when the model is overloaded; None for nothing.
        max_thinking_tokens: How much the model may think before it answers; 0 for not at all,
            None for what it does unasked.
        output_schema: JSON Schema the final answer must conform to; None for free text.
        betas: Beta features of the provider to switch on.
        ignored: Options the client named that have no effect here.
        notices: Sentences for people: a successor answers, the offline model answers.
    """

    model: Model
    system_prompt: str | None
    tools: tuple[ToolSpec, ...]
    server_names: tuple[str, ...]
    max_turns: int | None
    include_partial_messages: bool
    ignored: tuple[str, ...]
    notices: tuple[str, ...]
    fallback_model: Model | None = None
    max_thinking_tokens: int | None = None
    output_schema: Mapping[str, Any] | None = None
    betas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator decided for all sessions.

    Attributes:
        catalog: The models there are.
        succession: Whether a retired model's successor answers in its place.
        notices: Sentences every session is told.
    """

    catalog: Catalog
    succession: bool = True
    notices: tuple[str, ...] = ()


def admit(
    identity: Identity, requested: Mapping[str, Any], policy: Policy, today: date
) -> Grant | ChuckyError:
    """Decide what a session may do.

    Args:
        identity: Who asks, with what the token says.
        requested: The options of ``init``, by their names on the wire.
        policy: What the operator decided.
        today: The day, for retired models.

    Returns:
        The grant, or the error that says what is wrong and what to do.
    """
    try:
        return _admit(identity, requested, policy, today)
    except ChuckyError as error:
        return error


def _admit(identity: Identity, requested: Mapping[str, Any], policy: Policy, today: date) -> Grant:
    options = {**requested, **identity.sdk_config}
    ignored = _check_supported(options)
    resolution = _model(options, identity.permissions, policy, today)
    servers = _tool_servers(options.get("mcpServers"))
    system_prompt, preset = _system_prompt(options.get("systemPrompt"))
    tools = tuple(_granted_tools(servers, options, identity.permissions))
    notices = [resolution.notice] if resolution.notice else []
    return Grant(
        model=resolution.model,
        system_prompt=system_prompt,
        tools=tools,
        server_names=tuple(servers),
        max_turns=_max_turns(options, identity.permissions),
        include_partial_messages=_flag(options, "includePartialMessages"),
        ignored=(*ignored, *preset),
        notices=(*notices, *policy.notices),
        fallback_model=_fallback(options, identity.permissions, policy, today),
        max_thinking_tokens=options.get("maxThinkingTokens"),
        output_schema=(options.get("outputFormat") or {}).get("schema"),
        betas=tuple(options.get("betas") or ()),
    )


def _fallback(options: Any, permissions: Any, policy: Any, today: Any) -> Model | None:
    name = options.get("fallbackModel")
    return _model({"model": name}, permissions, policy, today).model if name else None


def _check_supported(options: Mapping[str, Any]) -> list[str]:
    """Refuse what would change the outcome; return the names of what has no effect."""
    for name, what in _NEEDS_CLAUDE_CODE.items():
        if options.get(name):
            raise _unsupported(
                f"The option {name!r} ({what}) needs the engine 'claude_code'; this server "
                "answers with the engine 'messages'. Leave it out."
            )
    for name in _NOT_IN_THIS_VERSION:
        if options.get(name) not in (None, False, [], ""):
            raise _unsupported(
                f"The option {name!r} is not supported by this version of the server. Leave it out."
            )
    return [*_built_in_tools(options.get("tools")), *(n for n in _IGNORED if options.get(n))]


def _built_in_tools(tools: Any) -> Iterator[str]:
    if not tools:
        return
    if isinstance(tools, dict | str):
        yield "tools"  # a preset of built-in tools; there are none here
        return
    raise _unsupported(
        f"The option 'tools' names built-in tools ({tools!r:.80}), which need the engine "
        "'claude_code'; this server answers with the engine 'messages'. Give tools of your own "
        "in 'mcpServers'."
    )


def _unsupported(sentence: str) -> ValidationError:
    return ValidationError(sentence, reason="option_unsupported")


def _invalid(sentence: str) -> ValidationError:
    return ValidationError(sentence, reason="option_invalid")


def _model(
    options: Mapping[str, Any], permissions: Permissions, policy: Policy, today: date
) -> Resolution:
    # Some tokens call it defaultModel: the application's choice, unless the client names one.
    name = options.get("model") or options.get("defaultModel") or DEFAULT_MODEL
    if not isinstance(name, str):
        raise _invalid(f"The option 'model' must be a name, not {name!r:.80}.")
    resolution = policy.catalog.resolve(name, today, succession=policy.succession)
    if permissions.models is not None and permissions.models.isdisjoint(resolution.names):
        raise ValidationError(
            f"The token does not permit the model {name!r}; it permits "
            f"{', '.join(sorted(permissions.models)) or 'none'}.",
            reason="model_not_permitted",
        )
    return resolution


def _system_prompt(given: Any) -> tuple[str | None, list[str]]:
    """The prompt, and what of the option has no effect here."""
    prompt: Any
    preset: list[str]
    if given is None or isinstance(given, str):
        prompt, preset = given, []
    elif isinstance(given, dict) and given.get("type") == "preset":
        # The preset's text belongs to the other engine; what is appended to it is the caller's.
        prompt, preset = given.get("append"), ["systemPrompt.preset"]
    else:
        raise _invalid("The option 'systemPrompt' must be text or a preset object.")
    if prompt is None:
        return None, preset
    if not isinstance(prompt, str) or len(prompt) > MAX_SYSTEM_PROMPT_CHARACTERS:
        raise _invalid(
            "The option 'systemPrompt' must be text of at most "
            f"{MAX_SYSTEM_PROMPT_CHARACTERS} characters."
        )
    return prompt if prompt.strip() else None, preset


def _max_turns(options: Mapping[str, Any], permissions: Permissions) -> int | None:
    asked = options.get("maxTurns")
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise _invalid(f"The option 'maxTurns' must be a whole number from 1, not {asked!r:.40}.")
    limits = [limit for limit in (asked, permissions.max_turns) if limit is not None]
    return min(limits, default=None)


def _flag(options: Mapping[str, Any], name: str) -> bool:
    value = options.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _invalid(f"The option {name!r} must be true or false, not {value!r:.40}.")


def _tool_servers(given: Any) -> dict[str, list[Any]]:
    """The tool definitions by server; a list of servers or a map of them is read."""
    if given is None or given == [] or given == {}:
        return {}
    if isinstance(given, dict):
        given = [{"name": name, **_object(one, "mcpServers")} for name, one in given.items()]
    if not isinstance(given, list):
        raise _invalid("The option 'mcpServers' must be a list of servers.")
    servers: dict[str, list[Any]] = {}
    for server in given:
        name = _object(server, "mcpServers").get("name")
        if not isinstance(name, str) or not name:
            raise _invalid("Every server in 'mcpServers' needs a name.")
        if name in servers:
            raise _invalid(f"Two servers in 'mcpServers' are named {name!r}; names must differ.")
        servers[name] = _server_tools(name, server)
    return servers


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(f"Every entry of {where!r} must be an object, not {value!r:.40}.")
    return value


def _server_tools(name: str, server: Mapping[str, Any]) -> list[Any]:
    if server.get("command"):
        raise _unsupported(
            f"The MCP server {name!r} is a command; commands run only in the sandbox of the "
            "engine 'claude_code', and this server answers with the engine 'messages'."
        )
    if server.get("url"):
        raise _unsupported(
            f"The MCP server {name!r} is remote; this version of the server connects to none. "
            "Define the tools in the client instead."
        )
    tools = server.get("tools")
    if not isinstance(tools, list):
        raise _invalid(f"The MCP server {name!r} must have a list of 'tools'.")
    return tools


def _granted_tools(
    servers: Mapping[str, list[Any]], options: Mapping[str, Any], permissions: Permissions
) -> Iterator[ToolSpec]:
    blocked = {*_names(options, "disallowedTools"), *permissions.blocked_tools}
    owners: dict[str, str] = {}
    for server, tools in servers.items():
        for definition in tools:
            spec = _tool(server, definition)
            if spec.name in owners:
                raise _invalid(
                    f"Two tools are named {spec.name!r} (in {owners[spec.name]!r} and "
                    f"{server!r}); names must differ."
                )
            owners[spec.name] = server
            matches = _matcher(server, spec)
            if any(map(matches, blocked)):
                continue
            if permissions.allowed_tools is None or any(map(matches, permissions.allowed_tools)):
                yield spec
    if len(owners) > MAX_TOOLS:
        raise _invalid(f"{len(owners)} tools were defined; at most {MAX_TOOLS} are possible.")


def _matcher(server: str, tool: ToolSpec) -> Callable[[str], bool]:
    """Whether a name in an allow or block list means this tool."""
    prefix = tool.visible_name.removesuffix(f"__{tool.name}")
    meanings = {"*", tool.name, tool.visible_name, prefix, f"{prefix}__*", f"mcp__{server}"}
    return meanings.__contains__


def _names(options: Mapping[str, Any], option: str) -> list[str]:
    names = options.get(option)
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _invalid(f"The option {option!r} must be a list of names.")
    return names


def _tool(server: str, definition: Any) -> ToolSpec:
    fields = _object(definition, "tools")
    name, description = fields.get("name"), fields.get("description")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise _invalid(
            f"The tool name {name!r:.80} is not allowed: use 1 to 64 letters, digits, '_' or '-'."
        )
    if not isinstance(description, str):
        raise _invalid(f"The tool {name!r} needs a description.")
    if fields.get("executeIn") not in ("client", "browser"):
        raise _unsupported(
            f"The tool {name!r} has no handler in the client (executeIn "
            f"{fields.get('executeIn')!r:.40}), and this server runs no tools of its own."
        )
    visible_name = f"mcp__{_NOT_IN_TOOL_NAMES.sub('_', server)}__{name}"
    if len(visible_name) > _LONGEST_VISIBLE_NAME:
        raise _invalid(
            f"The names of the MCP server {server!r:.80} and its tool {name!r} are too long "
            f"together: {visible_name!r} has more than {_LONGEST_VISIBLE_NAME} characters."
        )
    return ToolSpec(name, visible_name, description, _schema(name, fields.get("inputSchema")))


def _schema(tool: str, given: Any) -> dict[str, Any]:
    # PHP writes an empty map as [], some schemas say `"required": null`.
    if given is None or given == []:
        given = {}
    if not isinstance(given, dict) or given.get("type", "object") != "object":
        raise _invalid(f"The inputSchema of the tool {tool!r} must be a schema of type object.")
    schema = {"type": "object", "properties": {}, **given}
    if schema["properties"] in ([], None):
        schema["properties"] = {}
    if schema.get("required", ()) is None:
        del schema["required"]
    _check_schema(tool, schema)
    return schema


def _check_schema(tool: str, schema: dict[str, Any]) -> None:
    import jsonschema  # takes a tenth of a second to load, and few sessions have tools

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise _invalid(
            f"The inputSchema of the tool {tool!r} is not valid JSON Schema: {error.message:.200}."
        ) from None
