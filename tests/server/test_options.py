"""Every option of a session, said by the client, by the token, and limited by token and policy."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chucky import ValidationError, create_budget, create_token
from chucky.server.policy import read_policy
from chucky.server.store import Store

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"
WAIT_SECONDS = 20
REFUSALS = (
    "model_not_permitted",
    "option_invalid",
    "option_locked",
    "option_unsupported",
    "session_not_found",
)
BETA = "interleaved-thinking-2025-05-14"


def tools(*names: str) -> list[dict[str, Any]]:
    """A server of client tools with these names."""
    definitions = [
        {"name": name, "description": "d", "inputSchema": {}, "executeIn": "client"}
        for name in names
    ]
    return [{"name": "s", "tools": definitions}]


def schema(name: str) -> dict[str, Any]:
    """An output format with one property."""
    properties = {name: {"type": "integer"}}
    return {"type": "json_schema", "schema": {"type": "object", "properties": properties}}


@dataclass
class Seen:
    """What became of a session's options: what the model was asked, and what was said of it."""

    request: dict[str, Any]
    headers: dict[str, str]
    streamed: bool
    result: dict[str, Any]

    @property
    def tool_names(self) -> list[str]:
        return [each["name"].rpartition("__")[2] for each in self.request.get("tools", [])]

    @property
    def schema_names(self) -> list[str]:
        config = self.request.get("output_config")
        return list(config["format"]["schema"]["properties"]) if config else []

    @property
    def session_budget_micros(self) -> int:
        [limit] = [each["limit"] for each in self.result["budgets"] if each["scope"] == "session"]
        return int(limit)

    @property
    def calls(self) -> int:
        return int(self.result["num_turns"])


@dataclass
class Option:
    """One option, and what is seen of it.

    Attributes:
        value: What the client says.
        other: What the token's sdkConfig says instead.
        seen: What shows of it in the request to the model or in what the client is told.
        of_client, of_token: What `seen` gives when the client, or the token, has said it.
        permission: Entries of the token's permissions that limit it, with what is then seen.
        policy: Entries of the project's policy that limit it, with what is then seen.
        refused: The reason by which it is refused, whoever says it.
        ignored: Whether it is listed as having no effect.
        more: Options that have to be there for it to show.
    """

    value: Any
    other: Any = None
    seen: Callable[[Seen], Any] | None = None
    of_client: Any = None
    of_token: Any = None
    permission: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    policy: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    refused: str | None = None
    ignored: bool = False
    more: dict[str, Any] = field(default_factory=dict)


SONNET, HAIKU, OPUS = "claude-sonnet-5-5", "claude-haiku-4-5-20251001", "claude-opus-5-5"

OPTIONS: dict[str, Option] = {
    "model": Option(
        "sonnet",
        "haiku",
        lambda seen: seen.request["model"],
        SONNET,
        "claude-haiku-5-5",
        permission=[
            ({"model": "sonnet"}, SONNET),
            ({"allowedModels": [SONNET]}, SONNET),
            ({"model": ["haiku"]}, "model_not_permitted"),
            ({"allowedModels": []}, "model_not_permitted"),
        ],
        policy=[
            ({"models": ["sonnet", "haiku"]}, SONNET),
            ({"models": ["haiku"]}, "model_not_permitted"),
        ],
    ),
    "fallbackModel": Option(
        HAIKU,
        OPUS,
        lambda seen: seen.result["model"],
        HAIKU,
        OPUS,
        permission=[
            ({"model": ["sonnet", "claude-haiku-4-5"]}, "model_not_permitted"),
            ({"allowedModels": ["sonnet", HAIKU]}, HAIKU),
        ],
        policy=[
            ({"models": ["sonnet"]}, "model_not_permitted"),
        ],
        more={"model": "sonnet"},
    ),
    "systemPrompt": Option(
        "Be brief.",
        "Be kind.",
        lambda seen: seen.request["system"][0]["text"],
        "Be brief.",
        "Be kind.",
    ),
    "maxTurns": Option(
        3,
        2,
        lambda seen: seen.calls,
        3,
        2,
        permission=[({"maxTurns": 2}, 2), ({"maxTurnsPerSession": 9}, 3)],
        policy=[
            ({"maxTurns": 1}, 1),
            ({"maxTurns": 9}, 3),
        ],
    ),
    "maxThinkingTokens": Option(
        4_000,
        2_000,
        lambda seen: (seen.request.get("thinking") or {}).get("budget_tokens"),
        4_000,
        2_000,
        policy=[
            ({"maxThinkingTokens": 3_000}, 3_000),
            ({"maxThinkingTokens": 0}, None),
            ({"maxThinkingTokens": 9_000}, 4_000),
        ],
        more={"model": HAIKU},
    ),
    "outputFormat": Option(
        schema("mine"),
        schema("theirs"),
        lambda seen: seen.schema_names,
        ["mine"],
        ["theirs"],
    ),
    "betas": Option(
        [BETA],
        ["fine-grained-tool-streaming-2025-05-14"],
        lambda seen: seen.headers.get("anthropic-beta"),
        BETA,
        "fine-grained-tool-streaming-2025-05-14",
        policy=[
            ({"betas": [BETA, "unheard"]}, BETA),
            ({"betas": []}, "option_unsupported"),
        ],
    ),
    "mcpServers": Option(
        tools("add", "sub"),
        tools("mul"),
        lambda seen: seen.tool_names,
        ["add", "sub"],
        ["mul"],
        permission=[
            ({"tools": ["add"]}, ["add"]),
            ({"allowedTools": ["mcp__s__sub"]}, ["sub"]),
            ({"blockedTools": ["add"]}, ["sub"]),
            ({"tools": ["add"], "allowedTools": ["sub"]}, []),
        ],
        policy=[
            ({"allowedTools": ["add"]}, ["add"]),
            ({"allowedTools": ["mcp__s"], "blockedTools": ["sub"]}, ["add"]),
        ],
    ),
    "disallowedTools": Option(
        ["add"],
        ["sub"],
        lambda seen: seen.tool_names,
        ["sub", "mul"],
        ["add", "mul"],
        permission=[({"blockedTools": ["sub"]}, ["mul"]), ({"tools": ["add"]}, [])],
        policy=[
            ({"blockedTools": ["mul"]}, ["sub"]),
        ],
        more={"mcpServers": tools("add", "sub", "mul")},
    ),
    "includePartialMessages": Option(
        True,
        False,
        lambda seen: seen.streamed,
        True,
        False,
    ),
    "allowedTools": Option(["add"], ["sub"], ignored=True),
    "allowDangerouslySkipPermissions": Option(True, True, ignored=True),
    "env": Option({"A": "b"}, {"A": "c"}, ignored=True),
    "jobId": Option("j", "k", ignored=True),
    "permissionMode": Option("plan", "default", ignored=True),
    "tools": Option(["Bash"], ["Read"], refused="option_unsupported"),
    "agents": Option({"a": {}}, {"b": {}}, refused="option_unsupported"),
    "settingSources": Option(["project"], ["user"], refused="option_unsupported"),
    "vessel": Option("v", "w", refused="option_unsupported"),
    "continue": Option(True, True, refused="session_not_found"),
    "forkSession": Option(True, True, refused="option_invalid"),
    "maxBudgetUsd": Option(
        3,
        2.5,
        lambda seen: seen.session_budget_micros,
        3_000_000,
        2_500_000,
        policy=[
            ({"maxBudgetUsd": 0.5}, 500_000),
            ({"maxBudgetUsd": 9}, 3_000_000),
        ],
    ),
    "resume": Option("r", "s", refused="session_not_found"),
    "resumeSessionAt": Option("r", "s", refused="option_invalid"),
    "sessionId": Option("r", "s", refused="session_not_found"),
}


@dataclass
class Case:
    """Who says what, and what is then seen, or the reason of the refusal."""

    label: str
    client: dict[str, Any]
    sdk_config: dict[str, Any]
    permissions: dict[str, Any]
    policy: dict[str, Any]
    expected: Any


def cases(name: str, option: Option) -> list[Case]:
    """Everything that is said about one option."""
    client, token = {**option.more, name: option.value}, {name: option.other}
    of_token = option.refused or option.of_token
    found = [
        Case("client", client, {}, {}, {}, option.refused or option.of_client),
        Case("token", option.more, token, {}, {}, of_token),
        Case("the token's value replaces the client's", client, token, {}, {}, of_token),
    ]
    for permissions, seen in option.permission:
        found.append(Case(f"permissions {permissions}", client, {}, permissions, {}, seen))
    for policy, seen in option.policy:
        found.append(Case(f"policy {policy}", client, {}, {}, policy, seen))
    if name != "model":
        locked = {"locked": [name]}
        found.append(Case("locked", client, {}, {}, locked, "option_locked"))
        # What clients may not say is the application's to say.
        found.append(Case("locked, of the token", option.more, token, {}, locked, of_token))
    return found


def projects(path: Path, policies: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """A database with a project for each policy: their ids and keys."""
    with closing(Store.open(path)) as store:
        made = []
        for number, policy in enumerate(policies):
            project, key = store.create_project(f"project-{number}")
            if policy:
                store.set_policy(project, json.dumps(policy))
            made.append((project.project_id, key.secret))
    return made


def provider_of(name: str, api: Any) -> Callable[[dict[str, Any]], Any]:
    """What the model answers, so that an option shows."""
    use = {"type": "tool_use", "id": "t", "name": "nothing", "input": {}}
    calling = api.message(*api.block(use), stop_reason="tool_use")
    overloaded = (529, {"type": "error", "error": {"type": "overloaded_error", "message": "x"}})

    def answer(request: dict[str, Any]) -> Any:
        if name == "fallbackModel" and request["model"] == SONNET:
            return overloaded
        return calling if name == "maxTurns" else api.says("{}")

    return answer


@pytest.mark.parametrize("name", OPTIONS)
async def test_an_option(
    start_server: Any, start_provider: Any, api: Any, dial: Any, tmp_path: Path, name: str
) -> None:
    option = OPTIONS[name]
    said = cases(name, option)
    policies = [case.policy for case in said]
    made = await asyncio.to_thread(projects, tmp_path / "chucky.db", policies)
    async with (
        start_provider(provider_of(name, api)) as provider,
        start_server(upstream_url=provider.url, model_attempts=1) as server,
    ):
        for case, (project_id, secret) in zip(said, made, strict=True):
            asked = len(provider.requests)
            token = create_token(
                "u",
                project_id,
                secret,
                create_budget(1_000, 100),
                permissions=case.permissions or None,
                sdk_config=case.sdk_config or None,
            )
            async with dial(server.url, token=token) as raw, asyncio.timeout(WAIT_SECONDS):
                init = {**case.client, "capabilities": ["result_details"]}
                await raw.send(type="init", payload=init)
                await raw.ask("Go")
                frames = await raw.receive_until("result")
            reason = frames[-1].get("error", {}).get("reason")
            if case.expected in REFUSALS:
                assert reason == case.expected, case.label
                assert len(provider.requests) == asked, case.label
            else:
                assert reason in (None, "max_turns_reached"), case.label
                assert what_is_seen(name, option, frames, provider) == case.expected, case.label


def what_is_seen(name: str, option: Option, frames: list[dict[str, Any]], provider: Any) -> Any:
    """What shows of an option once a turn has ended."""
    payloads = [frame["payload"] for frame in frames if frame["type"] == "control"]
    info = next(payload["data"] for payload in payloads if payload["action"] == "session_info")
    assert (name in info["ignored"]) is option.ignored
    if option.seen is None:
        return None
    streamed = any(frame["type"] == "stream_event" for frame in frames)
    return option.seen(Seen(provider.requests[-1], provider.headers[-1], streamed, frames[-1]))


async def test_a_running_server_follows_a_policy_and_keeps_to_one_it_cannot_read(
    start_server: Any, dial: Any
) -> None:
    async with start_server() as server, asyncio.timeout(WAIT_SECONDS):

        async def reason() -> str | None:
            async with dial(server.url, token=server.token()) as raw:
                payload = {"systemPrompt": "Be brief.", "capabilities": ["result_details"]}
                await raw.send(type="init", payload=payload)
                await raw.ask("hi")
                result = await raw.result()
            return str(result["error"]["reason"]) if result["is_error"] else None

        assert await reason() is None
        policy = json.dumps({"locked": ["systemPrompt"]})
        await asyncio.to_thread(server.store.set_policy, server.project_id, policy)
        while await reason() != "option_locked":
            pass
        # As a newer version may leave it behind; this one cannot know what it forbids.
        await asyncio.to_thread(leave_behind, server.store, '{"novel": true}')
        while await reason() != "policy_damaged":
            pass
        await asyncio.to_thread(server.store.set_policy, server.project_id, None)
        while await reason() is not None:
            pass


def leave_behind(store: Store, policy: str) -> None:
    """Write a policy without looking at it."""
    with store.database.writing() as connection:
        connection.execute("UPDATE projects SET policy = ?", (policy,))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "Expecting value"),
        ("[]", "object"),
        ('{"novel": 1}', "'novel'"),
        ('{"models": "sonnet"}', ".models"),
        ('{"maxTurns": 0}', ".maxTurns"),
        ('{"maxTurns": true}', ".maxTurns"),
        ('{"maxThinkingTokens": -1}', ".maxThinkingTokens"),
        ('{"betas": [1]}', ".betas"),
        ('{"locked": ["novel"]}', "'novel'"),
        ('{"locked": ["model"]}', "'models'"),
        ('{"maxTurns": 1, "maxTurns": 2}', "twice"),
    ],
)
def test_a_wrong_policy_is_refused_by_name(text: str, word: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(word)) as caught:
        read_policy(text)
    assert caught.value.reason == "policy_invalid"


def output(schema: Any) -> dict[str, Any]:
    """The option outputFormat."""
    return {"outputFormat": {"type": "json_schema", "schema": schema}}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"fallbackModel": 7}, "'fallbackModel'"),
        ({"fallbackModel": "claude-bogus"}, "claude-bogus"),
        ({"maxThinkingTokens": -1}, "'maxThinkingTokens'"),
        ({"maxThinkingTokens": True}, "'maxThinkingTokens'"),
        ({"maxThinkingTokens": 1.5}, "'maxThinkingTokens'"),
        ({"outputFormat": "json"}, "'outputFormat'"),
        ({"outputFormat": {"type": "json_schema"}}, "'outputFormat'"),
        (output({"type": 7}), "'outputFormat'"),
        (output({"patternProperties": {}}), "patternProperties"),
        (output({"type": "string", "pattern": "("}), "regex"),
        (output({"description": "x" * 200_001}), "200000"),
        ({"betas": "one"}, "'betas'"),
        ({"betas": ["context-1m-2025-08-07"]}, "allowed_betas"),
        ({"permissionMode": "yolo"}, "'permissionMode'"),
    ],
)
async def test_a_wrong_value_is_refused_by_name(
    server: Any, dial: Any, options: dict[str, Any], word: str
) -> None:
    async with dial(server.url, token=server.token()) as raw:
        await raw.send(type="init", payload={**options, "capabilities": ["result_details"]})
        await raw.ask("hi")
        result = await raw.result()
    assert result["error"]["code"] == "VALIDATION_ERROR"
    assert word in result["result"]


@pytest.mark.parametrize(
    ("model", "tokens", "word"),
    [
        ("claude-sonnet-5-5", 4_000, "decides itself"),
        ("claude-sonnet-5-5", 0, "altogether"),
        ("claude-opus-5-5", 0, "altogether"),
        ("claude-sonnet-5", 0, None),
        (HAIKU, 4_000, None),
    ],
)
async def test_what_a_number_of_thinking_tokens_cannot_do_is_said(
    server: Any, dial: Any, model: str, tokens: int, word: str | None
) -> None:
    async with dial(server.url, token=server.token()) as raw:
        await raw.receive()
        await raw.send(type="init", payload={"model": model, "maxThinkingTokens": tokens})
        notices = (await raw.receive())["payload"]["data"]["notices"]
    own = [notice for notice in notices if "offline" not in notice]
    assert [word in notice for notice in own if word] == ([True] if word else own)


def test_the_table_has_every_option_of_the_protocol() -> None:
    section = PROTOCOL.read_text().partition("\n## Options of a session\n")[2].partition("\n###")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    words = {"capabilities", "command", "url", "executeIn", "default", "acceptEdits", "plan"}
    policies = {"budgets", *(name for name in documented if name.startswith("max"))}
    documented -= words | {"dontAsk", "bypassPermissions"} | (policies - set(OPTIONS))
    assert documented == set(OPTIONS)
