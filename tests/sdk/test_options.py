"""Every option, wherever it may be given: what the server is told, and what is refused before."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from chucky import (
    Chucky,
    ChuckyOptions,
    PromptOptions,
    ValidationError,
    create_mcp_server,
    tool,
)
from chucky.options import ClientKeywords, SessionKeywords

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.sdk.conftest import ScriptedServer, StartServer

URL = "ws://127.0.0.1:1/ws"
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}


class Point(BaseModel):
    """A place."""

    x: int


@tool("look", "Looks")
async def look() -> str:
    return "seen"


POINT_SCHEMA = {
    "type": "object",
    "description": "A place.",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
}
# What is given, and what of init's payload it becomes.
SHARED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"model": "opus"}, {"model": "opus"}),
    ({"system_prompt": "Be brief."}, {"systemPrompt": "Be brief."}),
    ({"max_turns": 3}, {"maxTurns": 3}),
    ({"allowed_tools": ("Read",)}, {"allowedTools": ["Read"]}),
    ({"disallowed_tools": ["Bash"]}, {"disallowedTools": ["Bash"]}),
    ({"include_partial_messages": True}, {"includePartialMessages": True}),
    ({"max_budget_usd": 0.5}, {"maxBudgetUsd": 0.5}),
    ({"max_budget_usd": Decimal("0.25")}, {"maxBudgetUsd": 0.25}),
    ({"max_budget_usd": 2}, {"maxBudgetUsd": 2}),
    ({"max_thinking_tokens": 0}, {"maxThinkingTokens": 0}),
    ({"max_thinking_tokens": 4000}, {"maxThinkingTokens": 4000}),
    ({"fallback_model": "haiku"}, {"fallbackModel": "haiku"}),
    ({"permission_mode": "plan"}, {"permissionMode": "plan"}),
    (
        {"permission_mode": "bypassPermissions"},
        {"permissionMode": "bypassPermissions", "allowDangerouslySkipPermissions": True},
    ),
    (
        {"agents": {"critic": {"description": "Finds faults", "prompt": "Find faults."}}},
        {"agents": {"critic": {"description": "Finds faults", "prompt": "Find faults."}}},
    ),
    ({"env": {"LANG": "C", "EMPTY": ""}}, {"env": {"LANG": "C", "EMPTY": ""}}),
    ({"setting_sources": ["project", "local"]}, {"settingSources": ["project", "local"]}),
    ({"vessel": "my box"}, {"vessel": "my box"}),
    ({"betas": ["context-1m"]}, {"betas": ["context-1m"]}),
    ({"output_format": SCHEMA}, {"outputFormat": {"type": "json_schema", "schema": SCHEMA}}),
    (
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
        {"outputFormat": {"type": "json_schema", "schema": SCHEMA}},
    ),
    ({"output_format": Point}, {"outputFormat": {"type": "json_schema", "schema": POINT_SCHEMA}}),
    (
        {"mcp_servers": {"docs": {"url": "https://example.com/mcp"}}},
        {"mcpServers": [{"name": "docs", "type": "http", "url": "https://example.com/mcp"}]},
    ),
    (
        {"mcp_servers": [{"name": "d", "type": "sse", "url": "http://h/s", "headers": {"X": "y"}}]},
        {
            "mcpServers": [
                {"name": "d", "type": "sse", "url": "http://h/s", "headers": {"X": "y"}},
            ]
        },
    ),
    (
        {"mcp_servers": {"fs": {"command": "mcp-fs", "args": ["."], "env": {"A": "b"}}}},
        {
            "mcpServers": [
                {
                    "name": "fs",
                    "type": "stdio",
                    "command": "mcp-fs",
                    "args": ["."],
                    "env": {"A": "b"},
                }
            ]
        },
    ),
]
OF_A_SESSION: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"resume": "an-id"}, {"resume": "an-id", "sessionId": "an-id"}),
    (
        {"resume": "an-id", "fork_session": True},
        {"resume": "an-id", "sessionId": "an-id", "forkSession": True},
    ),
]


def init_sent_to(server: ScriptedServer) -> dict[str, Any]:
    """The options of the only session, without those that every session has."""
    [peer] = server.peers
    payload = dict(peer.received[0]["payload"])
    del payload["capabilities"]
    return payload


async def ask(client: Chucky, way: str, options: dict[str, Any]) -> None:
    """Open a session and have one message answered, in one of the ways there are."""
    if way == "prompt":
        await client.prompt("Hello", **options)
    elif way == "stream":
        _ = [event async for event in client.stream("Hello", **options)]
    elif way == "stream options":
        given = PromptOptions(**options)
        _ = [event async for event in client.stream("Hello", options=given)]
    else:
        async with client.create_session(**options) as session:
            await session.send("Hello")
            _ = [message async for message in session.stream()]


@pytest.mark.parametrize("way", ["prompt", "stream", "stream options", "session"])
@pytest.mark.parametrize(("given", "sent"), [*SHARED, *OF_A_SESSION])
async def test_an_option_reaches_the_server_from_every_call(
    scripted_server: StartServer, way: str, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    server = await scripted_server(lambda peer: peer.serve())
    async with server.client() as client:
        await ask(client, way, given)
    assert init_sent_to(server) == {"model": client.options.model, **sent}


@pytest.mark.parametrize(("given", "sent"), SHARED)
async def test_an_option_of_the_client_reaches_the_server_for_every_session(
    scripted_server: StartServer, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    server = await scripted_server(lambda peer: peer.serve())
    async with server.client(**given) as client:
        await client.prompt("Hello")
    assert init_sent_to(server) == {"model": client.options.model, **sent}


async def test_what_a_session_is_given_takes_the_place_of_the_clients(
    scripted_server: StartServer,
) -> None:
    server = await scripted_server(lambda peer: peer.serve())
    theirs = {"A": "client", "B": "client"}
    shop = create_mcp_server("shop", [look])
    async with server.client(
        env=theirs, betas=["one"], mcp_servers=[shop], include_partial_messages=True
    ) as client:
        await client.prompt(
            "Hello",
            env={"A": "session"},
            mcp_servers={"docs": {"url": "https://example.com"}},
            include_partial_messages=False,
        )
    init = init_sent_to(server)
    assert init["env"] == {"A": "session"}
    assert init["betas"] == ["one"]
    assert [each["name"] for each in init["mcpServers"]] == ["docs"]
    assert "includePartialMessages" not in init


async def test_tools_of_a_session_travel_beside_all_kinds_of_servers(
    scripted_server: StartServer,
) -> None:
    server = await scripted_server(lambda peer: peer.serve())

    @tool("count", "Counts")
    async def count() -> int:
        return 1

    servers: Any = [
        {"name": "docs", "url": "https://example.com"},
        create_mcp_server("shop", [look]),
    ]
    async with server.client(mcp_servers=servers) as client:
        await client.prompt("Hello", tools=[count])
    names = [each["name"] for each in init_sent_to(server)["mcpServers"]]
    assert names == ["shop", "inline-tools", "docs"]


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fallback_model": ""}, "fallback_model must not be empty"),
        ({"fallback_model": 5}, "fallback_model must be a string, not int"),
        ({"max_thinking_tokens": -1}, "max_thinking_tokens must be a whole number from 0, not -1"),
        ({"max_thinking_tokens": True}, "max_thinking_tokens must be a whole number"),
        ({"max_budget_usd": 0}, "max_budget_usd must be more than 0 dollars, not 0"),
        ({"max_budget_usd": -0.5}, "max_budget_usd must be more than 0 dollars, not -0.5"),
        ({"max_budget_usd": "1"}, "max_budget_usd must be more than 0 dollars, not '1'"),
        ({"max_budget_usd": True}, "max_budget_usd must be more than 0 dollars"),
        ({"max_budget_usd": float("nan")}, "max_budget_usd must be more than 0 dollars"),
        ({"max_budget_usd": float("inf")}, "max_budget_usd must be more than 0 dollars"),
        ({"max_budget_usd": 10**400}, "max_budget_usd must be more than 0 dollars"),
        ({"max_budget_usd": Decimal("sNaN")}, "max_budget_usd must be more than 0 dollars"),
        ({"include_partial_messages": 1}, "include_partial_messages must be True or False, not 1"),
        ({"permission_mode": "yolo"}, "permission_mode must be one of default, .* not 'yolo'"),
        ({"permission_mode": ["plan"]}, "permission_mode must be one of"),
        ({"agents": ["critic"]}, "agents must be a dict of agents by name, not list"),
        ({"agents": {"": {}}}, "Each name in agents must not be empty"),
        ({"agents": {"critic": "Find faults"}}, "The agent 'critic' must be a dict .* not str"),
        ({"agents": {"critic": {"x": object()}}}, "The agent 'critic' cannot be sent as JSON"),
        ({"env": ["A=b"]}, "env must be a dict of strings by name, not list"),
        ({"env": {"A": 1}}, "'A' in env must be a string, not int"),
        ({"env": {"": "b"}}, "Each name in env must not be empty"),
        ({"env": {1: "b"}}, "Each name in env must be a string, not int"),
        ({"setting_sources": "project"}, "setting_sources must be a list of names, not str"),
        ({"setting_sources": ["home"]}, "setting_sources may name user, project, local, not 'home"),
        ({"vessel": ""}, "vessel must not be empty"),
        ({"vessel": 5}, "vessel must be a string"),
        ({"betas": "one"}, "betas must be a list of names, not str"),
        ({"betas": [1]}, "Each name in betas must be a string"),
        ({"allowed_tools": "Read"}, "allowed_tools must be a list of tool names, not str"),
        ({"output_format": "json"}, "output_format must be a JSON Schema dict or a pydantic class"),
        ({"output_format": Point(x=1)}, "output_format must be a JSON Schema dict or a pydantic"),
        ({"output_format": dict}, "output_format must be a JSON Schema dict or a pydantic class"),
        (
            {"output_format": {"type": "json_schema"}},
            "The schema of output_format must be a dict, not NoneType",
        ),
        (
            {"output_format": {"type": "object", "properties": {"x": {"type": "whole"}}}},
            r"output_format is not a valid JSON Schema at \$.properties.x",
        ),
        ({"output_format": {"default": object()}}, "output_format cannot be sent as JSON"),
    ],
)
async def test_a_wrong_option_is_named_wherever_it_is_given(
    options: dict[str, Any], words: str
) -> None:
    client = Chucky("a-token", url=URL)
    with pytest.raises(ValidationError, match=words) as caught:
        Chucky("a-token", url=URL, **options)
    assert str(caught.value).endswith(".")
    for way in ("prompt", "stream", "stream options", "session"):
        with pytest.raises(ValidationError, match=words):
            await ask(client, way, options)


def test_a_class_without_a_schema_is_refused_as_the_form_of_an_answer() -> None:
    class Callback(BaseModel):
        call: Callable[[], None]

    with pytest.raises(ValidationError, match="output_format Callback has no JSON Schema: "):
        Chucky("a-token", url=URL, output_format=Callback)


def test_the_values_of_env_are_in_no_sentence_and_in_no_repr() -> None:
    env: Any = {"KEY": b"tell-nobody"}
    with pytest.raises(ValidationError) as caught:
        Chucky("a-token", url=URL, env=env)
    assert "tell-nobody" not in str(caught.value)
    hidden = {"env": {"KEY": "tell-nobody"}, "mcp_servers": {"a": {"url": "http://tell-nobody"}}}
    assert "tell-nobody" not in repr(PromptOptions(**hidden))  # type: ignore[arg-type]
    assert "tell-nobody" not in repr(ChuckyOptions(URL, "tell-nobody", **hidden))  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["resume", "fork_session"])
def test_what_is_about_one_conversation_is_refused_for_a_client(option: str) -> None:
    given: Any = {option: "an-id"}
    with pytest.raises(ValidationError, match=f"^{option} is about one conversation: give it to "):
        Chucky("a-token", url=URL, **given)


async def test_an_option_that_does_not_exist_is_a_type_error() -> None:
    unknown: Any = {"max_turn": 3}
    client = Chucky("a-token", url=URL)
    with pytest.raises(TypeError, match="max_turn"):
        Chucky("a-token", url=URL, **unknown)
    for way in ("prompt", "stream", "stream options", "session"):
        with pytest.raises(TypeError, match="max_turn"):
            await ask(client, way, unknown)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({}, "The MCP server 'a' must have either a url or a command"),
        ({"url": "http://h", "command": "c"}, "must have either a url or a command"),
        ({"type": "sdk", "instance": 1}, "must have either a url or a command"),
        ({"url": "h"}, "The url of the MCP server 'a' must begin with http:// or https://"),
        ({"url": "ws://h/x"}, "must begin with http:// or https://, not be 'ws://h/x'"),
        ({"url": "http://[h"}, "The url of the MCP server 'a' is malformed"),
        ({"url": 5}, "The url of the MCP server 'a' must be a string, not int"),
        (
            {"url": "http://h", "type": "stdio"},
            "type of the MCP server 'a' must be 'http' or 'sse'",
        ),
        ({"url": "http://h", "header": {}}, "has a url, so it may have type, url, headers, not"),
        ({"url": "http://h", "headers": []}, "The headers of the MCP server 'a' must be a dict of"),
        ({"url": "http://h", "headers": {"X": 1}}, "'X' in The headers of the MCP server 'a' must"),
        ({"command": ""}, "The command of the MCP server 'a' must not be empty"),
        ({"command": "c", "args": "x"}, "The args of the MCP server 'a' must be a list"),
        (
            {"command": "c", "type": "http"},
            "type of the MCP server 'a' must be 'stdio', not 'http'",
        ),
        ({"command": "c", "env": None}, "The env of the MCP server 'a' must be a dict of strings"),
    ],
)
def test_a_wrong_mcp_server_is_named(server: Any, words: str) -> None:
    named: Any = [{"name": "a", **server}]
    client = Chucky("a-token", url=URL, mcp_servers={"a": server})
    with pytest.raises(ValidationError, match=words):
        client.create_session()
    with pytest.raises(ValidationError, match=words):
        Chucky("a-token", url=URL).create_session(mcp_servers=named)


def test_mcp_servers_need_names_that_differ() -> None:
    client = Chucky("a-token", url=URL)
    nameless: Any = [{"url": "http://h"}]
    with pytest.raises(ValidationError, match="The name of each of mcp_servers that is a dict"):
        client.create_session(mcp_servers=nameless)
    twice: Any = [{"name": "a", "url": "http://h"}, create_mcp_server("a", [look])]
    with pytest.raises(ValidationError, match="Two servers are called 'a'"):
        client.create_session(mcp_servers=twice)


def test_the_url_of_an_mcp_server_is_shown_without_its_secrets() -> None:
    servers: Any = {"a": {"url": "ftp://me:tell-nobody@h/?key=tell-nobody"}}
    with pytest.raises(ValidationError) as caught:
        Chucky("a-token", url=URL).create_session(mcp_servers=servers)
    assert "tell-nobody" not in str(caught.value)


# ---- a server that cannot --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wire_name"),
    [
        ({"vessel": "box"}, "vessel"),
        ({"agents": {"critic": {"prompt": "Find faults."}}}, "agents"),
        ({"setting_sources": ["project"]}, "settingSources"),
    ],
)
async def test_a_server_refuses_what_it_cannot_honour_by_a_result(
    server: Server, options: dict[str, Any], wire_name: str
) -> None:
    async with Chucky(server.token("options"), url=server.url) as client:
        result = await client.prompt("Hello", **options)
    assert result.subtype == "error"
    assert result.error.code == "VALIDATION_ERROR"
    assert repr(wire_name) in result.result


# ---- the lists of options --------------------------------------------------------------------


def test_type_checkers_know_exactly_the_options_there_are() -> None:
    of_calls = {each.name for each in fields(PromptOptions)}
    of_clients = {each.name for each in fields(ChuckyOptions)}
    on_page = {"model", "system_prompt", "max_turns"}
    of_connections = {"url", "token", "timeout", "keepalive_interval", "turn_timeout"}
    assert set(SessionKeywords.__annotations__) == of_calls - on_page - {"tools"}
    assert set(ClientKeywords.__annotations__) == of_clients - on_page - of_connections


def test_a_keyword_has_one_type_wherever_it_is_declared() -> None:
    declared = {name: str(hint) for name, hint in SessionKeywords.__annotations__.items()}
    for cls in (ChuckyOptions, PromptOptions):
        for each in fields(cls):
            if each.name in declared:
                hint = declared[each.name]
                assert str(each.type) in hint, each.name
    assert typing.is_typeddict(SessionKeywords)
