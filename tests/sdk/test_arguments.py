"""Whatever can be given wrongly is refused at once, in one sentence that names it."""

from __future__ import annotations

from typing import Any

import pytest

from chucky import (
    Chucky,
    ChuckyOptions,
    PromptOptions,
    Session,
    ValidationError,
    create_mcp_server,
    tool,
)

URL = "ws://127.0.0.1:1/ws"


@tool("look", "Looks")
async def look() -> str:
    return "seen"


def make(**options: Any) -> Chucky:
    return Chucky(**{"token": "a-token", "url": URL, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"token": None}, "No token: pass token=… to Chucky, or set CHUCKY_TOKEN"),
        ({"token": ""}, "No token"),
        ({"token": 5}, "The token must be a string or a function that returns one, not int"),
        ({"token": b"abc"}, "The token must be a string or a function"),
        ({"url": 5}, "The url must be a string, not int"),
        ({"url": "http://localhost/ws"}, "must look like ws://host:port/ws .* not 'http://local"),
        ({"url": "localhost:8787"}, "must look like"),
        ({"url": "ws://"}, "must look like"),
        ({"url": "ws:///ws"}, "must look like"),
        ({"url": "ws://localhost:port/ws"}, "host or port is malformed"),
        ({"url": "ws://localhost:99999/ws"}, "host or port is malformed"),
        ({"url": "ws://localhost:0/ws"}, "must look like"),
        ({"url": "ws://[::1/ws"}, "host or port is malformed"),
        ({"url": "ws://me:pw@localhost/ws"}, "url of localhost must have neither a user"),
        ({"url": "ws://localhost/ws#top"}, "neither a user nor a '#'"),
        ({"timeout": 0}, "timeout must be more than 0 seconds, not 0"),
        ({"timeout": -1}, "timeout must be more than 0 seconds, not -1"),
        ({"timeout": float("nan")}, "timeout must be more than 0 seconds, not nan"),
        ({"timeout": "30"}, "timeout must be more than 0 seconds, not '30'"),
        ({"timeout": None}, "timeout must be more than 0 seconds, not None"),
        ({"timeout": True}, "timeout must be more than 0 seconds, not True"),
        ({"keepalive_interval": 0}, "keepalive_interval must be more than 0 seconds"),
        ({"keepalive_interval": None}, "keepalive_interval must be more than 0 seconds"),
        ({"turn_timeout": 0}, "turn_timeout must be more than 0 seconds, not 0"),
        ({"turn_timeout": "1"}, "turn_timeout must be more than 0 seconds"),
        ({"model": 5}, "model must be a string, not int"),
        ({"model": ""}, "model must not be empty"),
        ({"system_prompt": ["x"]}, "system_prompt must be a string, not list"),
        ({"system_prompt": "\ud83d"}, "system_prompt contains half of a surrogate pair"),
        ({"max_turns": -1}, "max_turns must be a whole number from 0, not -1"),
        ({"max_turns": 1.5}, "max_turns must be a whole number from 0, not 1.5"),
        ({"max_turns": "3"}, "max_turns must be a whole number from 0, not '3'"),
        ({"max_turns": True}, "max_turns must be a whole number from 0, not True"),
        ({"allowed_tools": "Read"}, "allowed_tools must be a list of tool names, not str"),
        ({"disallowed_tools": [5]}, "Each name in disallowed_tools must be a string, not int"),
    ],
)
def test_a_wrong_option_of_the_client_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        make(**options)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "url", ["http://h/ws?token=tell-nobody", "ftp://x:tell-nobody@h/", "ws://tell-nobody@h/ws"]
)
def test_a_wrong_url_is_shown_without_its_secrets(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make(url=url)
    assert "tell-nobody" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": 5}, "model must be a string"),
        ({"model": ""}, "model must not be empty"),
        ({"system_prompt": 5}, "system_prompt must be a string"),
        ({"max_turns": -1}, "max_turns must be a whole number"),
        ({"tools": look}, r"tools must be a list of tools, not Tool; write tools=\[…\]"),
        ({"tools": "look"}, "tools must be a list of tools, not str"),
        ({"tools": [print]}, "which is not a tool; make it one with @tool"),
        ({"tools": [look, look]}, "Two tools are called 'look'"),
    ],
)
async def test_a_wrong_argument_of_a_call_is_named_everywhere(
    options: dict[str, Any], words: str
) -> None:
    client = make()
    with pytest.raises(ValidationError, match=words):
        client.create_session(**options)
    with pytest.raises(ValidationError, match=words):
        await client.prompt("Hello", **options)
    with pytest.raises(ValidationError, match=words):
        await anext(client.stream("Hello", **options))
    with pytest.raises(ValidationError, match=words):
        await anext(client.stream("Hello", options=PromptOptions(**options)))
    with pytest.raises(ValidationError, match=words):
        Session(ChuckyOptions(url=URL, token="a-token"), PromptOptions(**options))


@pytest.mark.parametrize(
    ("servers", "words"),
    [
        (create_mcp_server("a", [look]), "mcp_servers must be a list .* not McpServer"),
        ("a", "mcp_servers must be a list of servers, or a dict of them by name, not str"),
        ([look], "Each of mcp_servers must come from create_mcp_server .* not be a Tool"),
        ({"a": [look]}, "Each of mcp_servers must come from .* not be a list"),
        ({5: create_mcp_server("a", [look])}, "Each key of mcp_servers must be a string"),
        ({"": create_mcp_server("a", [look])}, "name of a server"),
        ({"a b": create_mcp_server("a", [])}, "name of a server"),
        ([create_mcp_server("a", []), create_mcp_server("a", [])], "Two servers are called 'a'"),
        ([create_mcp_server("a", [look]), create_mcp_server("b", [look])], "Two tools are called"),
        ([create_mcp_server("inline-tools", [])], "Two servers are called 'inline-tools'"),
    ],
)
def test_wrong_servers_of_tools_are_named(servers: Any, words: str) -> None:
    client = make(mcp_servers=servers)

    @tool("another", "Another")
    async def another() -> str:
        return ""

    with pytest.raises(ValidationError, match=words):
        client.create_session(tools=[another])


@pytest.mark.parametrize("options", [{"model": "opus"}, "opus", 5])
async def test_options_of_stream_that_are_none_are_refused(options: Any) -> None:
    with pytest.raises(ValidationError, match=r"options must be PromptOptions\(…\), not a "):
        await anext(make().stream("Hello", options=options))


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 1},
        {"timeout": float("inf")},
        {"turn_timeout": None},
        {"max_turns": 0},
        {"system_prompt": ""},
        {"allowed_tools": []},
        {"allowed_tools": ("Read",)},
        {"mcp_servers": {}},
        {"mcp_servers": []},
        {"url": "wss://example.com:443/a/b?c=d"},
        {"url": "ws://[::1]:8787/ws"},
        {"token": lambda: "a-token"},
    ],
)
def test_what_is_unusual_but_right_is_taken(options: dict[str, Any]) -> None:
    make(**options).create_session(tools=None)
