"""The SDKs of the other generation (TypeScript, Go, PHP), as they behave frame by frame.

Each is played from its recorded transcripts: what it opens the socket with, what it sends and in
which order, and what it cannot survive. Every frame that comes back is checked for all that is
fatal to one of them, whichever is being played.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chucky.tokens import create_budget, create_token

if TYPE_CHECKING:
    from tests.conftest import Server

WAIT_SECONDS = 15
START_SECONDS = 30

ACTIONS = {"ready", "session_info"}
MESSAGES = {"system", "assistant", "user", "result", "stream_event"}
SUBTYPES = {"success", "error_max_turns", "error_during_execution"}
INTEGERS = ("duration_ms", "duration_api_ms", "num_turns")
USAGE = {
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
}

ADD = {
    "name": "add",
    "description": "Add numbers",
    "inputSchema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
    },
    "executeIn": "client",
}


# --- what is fatal to one of them -------------------------------------------------------------


def check(frame: dict[str, Any]) -> None:
    """Fail on what one of the three SDKs would hang on, drop, or die of."""
    assert frame["type"] in MESSAGES | {"control", "tool_call", "pong"}, (
        "nothing wrapped or unknown"
    )
    if frame["type"] in MESSAGES:
        assert "payload" not in frame
        for name in ("uuid", "session_id"):
            assert isinstance(frame[name], str)
            assert frame[name]
    if more := _CHECKS.get(frame["type"]):
        more(frame)


def _check_control(frame: dict[str, Any]) -> None:
    assert frame["payload"]["action"] in ACTIONS


def _check_system(frame: dict[str, Any]) -> None:
    assert frame["subtype"] == "init"
    assert isinstance(frame["tools"], list)
    assert isinstance(frame["mcp_servers"], list)
    for name in ("cwd", "model", "permissionMode"):
        assert isinstance(frame[name], str)


def _check_assistant(frame: dict[str, Any]) -> None:
    assert frame["parent_tool_use_id"] is None
    assert frame["message"]["role"] == "assistant"
    content = frame["message"]["content"]
    assert isinstance(content, list)
    assert content
    for block in content:
        assert block["type"] in {"text", "thinking", "tool_use"}
        if block["type"] == "tool_use":
            assert isinstance(block["input"], dict)


def _check_user(frame: dict[str, Any]) -> None:
    assert frame["parent_tool_use_id"] is None
    assert frame["message"]["role"] == "user"
    assert isinstance(frame["message"]["content"], list)


def _check_result(frame: dict[str, Any]) -> None:
    assert frame["subtype"] in SUBTYPES
    assert frame["is_error"] is (frame["subtype"] != "success")
    assert isinstance(frame["result"], str)
    for name in INTEGERS:
        assert type(frame[name]) is int
    assert type(frame["total_cost_usd"]) in (int, float)
    assert set(frame["usage"]) == USAGE
    assert all(type(count) is int for count in frame["usage"].values())
    if frame["is_error"]:
        assert frame["errors"]
        assert all(isinstance(error, str) for error in frame["errors"])


def _check_tool_call(frame: dict[str, Any]) -> None:
    call = frame["payload"]
    assert isinstance(call["callId"], str)
    assert isinstance(call["input"], dict)
    assert not call["toolName"].startswith("mcp__")


_CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "control": _check_control,
    "system": _check_system,
    "assistant": _check_assistant,
    "user": _check_user,
    "result": _check_result,
    "tool_call": _check_tool_call,
}


# --- the three SDKs ---------------------------------------------------------------------------


@dataclass
class Sdk:
    """One SDK on one socket. The subclasses say how they differ."""

    socket: ClientConnection
    session_id: str = ""
    first: bool = True
    received: list[dict[str, Any]] = field(default_factory=list)

    query: ClassVar[dict[str, str]] = {}
    origin: ClassVar[str | None] = None
    empty: ClassVar[Any] = {}

    # --- frames

    async def send(self, frame: dict[str, Any]) -> None:
        await self.socket.send(json.dumps(frame))

    async def receive_unchecked(self) -> dict[str, Any]:
        """Wait for the next frame, whatever it is."""
        async with asyncio.timeout(WAIT_SECONDS):
            frame = json.loads(await self.socket.recv())
        assert isinstance(frame, dict)
        return frame

    async def receive(self) -> dict[str, Any]:
        """Wait for the next frame; the very first has to be `ready`."""
        frame = await self.receive_unchecked()
        check(frame)
        if self.first:
            assert frame == {"type": "control", "payload": {"action": "ready"}}
            self.first = False
        self.received.append(frame)
        self.learn(frame)
        return frame

    async def until(self, kind: str) -> dict[str, Any]:
        """Receive up to the first frame of a type, and return that one."""
        while True:
            frame = await self.receive()
            if frame["type"] == kind:
                return frame

    # --- what an application does

    async def start(self, **options: Any) -> None:
        """Send `init` at once and wait for the first frame, as all three do."""
        await self.send({"type": "init", "payload": self.options(options)})
        await self.receive()

    async def ask(self, text: str | list[dict[str, Any]]) -> None:
        """Send a user message."""
        await self.send(self.user(text))

    async def result(self) -> dict[str, Any]:
        """Wait for the result of the turn, and see that nothing follows it."""
        result = await self.until("result")
        await self.send({"type": "ping", "payload": {"timestamp": 1_767_225_600_000}})
        assert (await self.receive())["type"] == "pong"
        return result

    async def close(self) -> None:
        """Say goodbye, then close the socket."""
        await self.send({"type": "control", "payload": self.goodbye()})
        await self.socket.close(1000, "Client disconnect")

    # --- how they differ

    def options(self, options: dict[str, Any]) -> Any:
        return options or self.empty

    def user(self, content: str | list[dict[str, Any]]) -> dict[str, Any]:
        message = {"role": "user", "content": content}
        return {
            "type": "user",
            "uuid": str(uuid.uuid4()),
            "session_id": self.session_id or "unknown",
            "message": message,
            "parent_tool_use_id": None,
        }

    def learn(self, frame: dict[str, Any]) -> None:
        """Take the session's id from a frame, if this SDK does."""

    def goodbye(self) -> dict[str, Any]:
        return {"action": "close"}

    def tool(self, name: str) -> dict[str, Any]:
        return {**ADD, "name": name}

    def tool_result(self, text: str, *, is_error: bool = False) -> Any:
        return {"content": [{"type": "text", "text": text}], "isError": is_error}

    async def answer(self, call: dict[str, Any], text: str, *, is_error: bool = False) -> None:
        """Answer a tool call."""
        reply = {
            "callId": call["payload"]["callId"],
            "result": self.tool_result(text, is_error=is_error),
        }
        await self.send({"type": "tool_result", "payload": reply})


class TypeScript(Sdk):
    """Makes up a session id, sends no uuid, passes on whatever a handler returned."""

    def user(self, content: str | list[dict[str, Any]]) -> dict[str, Any]:
        frame = super().user(content)
        del frame["uuid"]
        frame["session_id"] = self.session_id or str(uuid.uuid4())
        return frame

    def learn(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "control":
            data = frame["payload"].get("data", {})
            self.session_id = data.get("sessionId", self.session_id)

    def tool_result(self, text: str, *, is_error: bool = False) -> Any:
        return super().tool_result(text, is_error=True) if is_error else text


class Go(Sdk):
    """Comes with ``type=prompt`` and an Origin, and leaves out what is false or empty."""

    query: ClassVar[dict[str, str]] = {"type": "prompt"}
    origin: ClassVar[str | None] = "https://app.chucky.cloud"

    def tool_result(self, text: str, *, is_error: bool = False) -> Any:
        result = super().tool_result(text, is_error=is_error)
        return result if is_error else {"content": result["content"]}


class Php(Sdk):
    """Writes every empty map as a list, and `close` with ``"data":null``."""

    empty: ClassVar[Any] = []

    def options(self, options: dict[str, Any]) -> Any:
        return {**options, "env": []} if options else []

    def goodbye(self) -> dict[str, Any]:
        return {"action": "close", "data": None}

    def tool(self, name: str) -> dict[str, Any]:
        return {**super().tool(name), "inputSchema": {"type": "object", "properties": []}}


SDKS = [TypeScript, Go, Php]
Open = Callable[[str, str], AbstractAsyncContextManager[Any]]


@pytest.fixture(params=SDKS, ids=lambda sdk: sdk.__name__)
def sdk(request: pytest.FixtureRequest) -> Open:
    """Open a socket the way one of the SDKs does: ``async with sdk(url, token) as client``."""
    kind: type[Sdk] = request.param

    @asynccontextmanager
    async def open_socket(url: str, token: str) -> AsyncIterator[Sdk]:
        target = f"{url}?{urlencode({'token': token, **kind.query})}"
        async with connect(
            target,
            origin=kind.origin,  # type: ignore[arg-type]
            compression=None,
            max_size=None,
        ) as socket:
            yield kind(socket)

    return open_socket


@pytest.fixture
def token(server: Server) -> str:
    return server.token("other-generation")


def servers(*tools: dict[str, Any], name: str = "calc") -> list[dict[str, Any]]:
    return [{"name": name, "version": "1.0.0", "tools": list(tools)}]


def tool_results(frame: dict[str, Any]) -> list[dict[str, Any]]:
    return [block for block in frame["message"]["content"] if block["type"] == "tool_result"]


# --- their transcripts ------------------------------------------------------------------------


async def test_a_turn_in_the_order_of_the_sdk(server: Server, sdk: Open, token: str) -> None:
    async with sdk(server.url, token) as client:
        await client.start()
        await client.ask("What is the capital of France?")
        result = await client.result()
        kinds = [frame["type"] for frame in client.received]
        ids = {frame["session_id"] for frame in client.received if "session_id" in frame}
        await client.close()
    assert kinds == ["control", "control", "system", "assistant", "result", "pong"]
    assert result["result"] == "The capital of France is Paris."
    assert len(ids) == 1


async def test_a_tool_runs_in_the_client_between_two_model_calls(
    server: Server, sdk: Open, token: str, script: Callable[..., str]
) -> None:
    async with sdk(server.url, token) as client:
        await client.start(mcpServers=servers(client.tool("add")))
        await client.ask(
            script(
                {"text": "Adding.", "tools": [{"name": "add", "input": {"a": 7}}]},
                {"text": "It is 22."},
            )
        )
        call = await client.until("tool_call")
        assert call["payload"]["toolName"] == "add"
        assert call["payload"]["input"] == {"a": 7}
        await client.answer(call, "22")
        result = await client.result()
        kinds = [frame["type"] for frame in client.received]
        (returned,) = (frame for frame in client.received if frame["type"] == "user")
    assert kinds[2:] == ["system", "assistant", "tool_call", "user", "assistant", "result", "pong"]
    (block,) = tool_results(returned)
    assert block["content"] == [{"type": "text", "text": "22"}]
    assert result["result"] == "It is 22."
    assert result["num_turns"] == 2


async def test_calls_answered_one_at_a_time_belong_to_their_calls(
    server: Server, sdk: Open, token: str, script: Callable[..., str]
) -> None:
    async with sdk(server.url, token) as client:
        await client.start(mcpServers=servers(client.tool("add")))
        calls = [{"name": "add", "input": {"a": n}} for n in (1, 2, 3)]
        await client.ask(script({"tools": calls}, {"text": "done"}))
        for _ in calls:
            call = await client.until("tool_call")
            await client.answer(call, f"got {call['payload']['input']['a']}")
        await client.result()
        (returned,) = (frame for frame in client.received if frame["type"] == "user")
    texts = [block["content"][0]["text"] for block in tool_results(returned)]
    assert texts == ["got 1", "got 2", "got 3"]


async def test_a_large_tool_result_comes_back_whole(
    server: Server, sdk: Open, token: str, script: Callable[..., str]
) -> None:
    text = "x" * 2_000_000  # more than clients of the wrapped form can take in one frame
    async with sdk(server.url, token) as client:
        await client.start(mcpServers=servers(client.tool("add")))
        await client.ask(script({"tools": [{"name": "add", "input": {"a": 1}}]}, {"text": "done"}))
        await client.answer(await client.until("tool_call"), text)
        (block,) = tool_results(await client.until("user"))
        assert block["content"] == [{"type": "text", "text": text}]
        assert (await client.result())["result"] == "done"


async def test_a_failed_handler_is_an_error_for_the_model_and_not_for_the_turn(
    server: Server, sdk: Open, token: str, script: Callable[..., str]
) -> None:
    async with sdk(server.url, token) as client:
        await client.start(mcpServers=servers(client.tool("add")))
        await client.ask(
            script({"tools": [{"name": "add", "input": {"a": 1}}]}, {"text": "so be it"})
        )
        call = await client.until("tool_call")
        await client.answer(call, "Tool execution error: no", is_error=True)
        (block,) = tool_results(await client.until("user"))
        assert block["is_error"] is True
        assert (await client.result())["result"] == "so be it"


async def test_several_turns_share_a_conversation_whatever_session_id_they_name(
    server: Server, sdk: Open, token: str
) -> None:
    async with sdk(server.url, token) as client:
        await client.start()
        await client.ask("Hello, I am Alice")
        first = await client.result()
        await client.ask("What is my name?")
        second = await client.result()
        inits = [frame for frame in client.received if frame["type"] == "system"]
    assert second["result"] == "Your name is Alice."
    assert second["session_id"] == first["session_id"]
    assert second["uuid"] != first["uuid"]
    assert len(inits) == 1


async def test_the_session_id_a_client_can_learn_is_that_of_its_messages(
    server: Server, sdk: Open, token: str
) -> None:
    async with sdk(server.url, token) as client:
        await client.start()
        await client.ask("What is 2 + 2?")
        result = await client.result()
    infos = [f["payload"]["data"] for f in client.received if "data" in f.get("payload", {})]
    assert [info["sessionId"] for info in infos] == [result["session_id"]]


async def test_content_blocks_are_answered_as_text_is(
    server: Server, sdk: Open, token: str
) -> None:
    async with sdk(server.url, token) as client:
        await client.start()
        await client.ask([{"type": "text", "text": "What is 2 + 2?"}])
        assert (await client.result())["result"] == "2 + 2 = 4."


async def test_partial_messages_are_flat_events_that_say_what_the_message_says(
    server: Server, sdk: Open, token: str
) -> None:
    async with sdk(server.url, token) as client:
        await client.start(includePartialMessages=True)
        await client.ask("What is calculus?")
        result = await client.result()
        events = [f["event"] for f in client.received if f["type"] == "stream_event"]
    texts = [event.get("delta", {}).get("text", "") for event in events]
    assert "".join(texts) == result["result"]
    assert "error" not in {event["type"] for event in events}


async def test_a_ping_is_answered_also_while_a_tool_is_awaited(
    server: Server, sdk: Open, token: str, script: Callable[..., str]
) -> None:
    async with sdk(server.url, token) as client:
        await client.start(mcpServers=servers(client.tool("add")))
        await client.ask(script({"tools": [{"name": "add", "input": {"a": 1}}]}, {"text": "done"}))
        call = await client.until("tool_call")
        await client.send({"type": "ping", "payload": {"timestamp": 1_767_225_600_001}})
        pong = await client.receive()
        assert pong == {"type": "pong", "payload": {"timestamp": 1_767_225_600_001}}
        await client.answer(call, "2")
        assert (await client.result())["result"] == "done"


async def test_extra_keys_are_tolerated_in_every_frame(
    server: Server, sdk: Open, token: str, script: Callable[..., str]
) -> None:
    extra = {"requestId": "r", "metadata": {"deep": [1, None]}, "capabilities": None}
    async with sdk(server.url, token) as client:
        tool = {**client.tool("add"), **extra}
        served = [{**server, **extra} for server in servers(tool)]
        await client.send({**extra, "type": "init", "payload": {**extra, "mcpServers": served}})
        await client.receive()
        user = client.user(
            script({"tools": [{"name": "add", "input": {"a": 1}}]}, {"text": "done"})
        )
        await client.send({**user, **extra, "message": {**user["message"], **extra}})
        call = await client.until("tool_call")
        await client.send({**extra, "type": "ping", "payload": {**extra, "timestamp": 5}})
        reply = {"callId": call["payload"]["callId"], "result": client.tool_result("2")}
        await client.send({**extra, "type": "tool_result", "payload": {**extra, **reply}})
        assert (await client.result())["result"] == "done"
        await client.send(
            {**extra, "type": "control", "payload": {**extra, "action": "end_input", "data": {}}}
        )
        await client.ask("What is 2 + 2?")
        assert (await client.result())["subtype"] == "success"


# --- their oddities ---------------------------------------------------------------------------

ODD_OPTIONS: dict[str, dict[str, Any]] = {
    "empty lists for maps": {"env": [], "agents": [], "mcpServers": [], "outputFormat": None},
    "nulls": {"systemPrompt": None, "tools": None, "maxTurns": None, "mcpServers": None},
    "empty names": {"sessionId": "", "jobId": "", "vessel": ""},
    "switched off": {"continue": False, "forkSession": False, "includePartialMessages": False},
    "everything allowed": {"allowedTools": ["*"], "disallowedTools": []},
    "presets": {
        "systemPrompt": {"type": "preset", "preset": "claude_code", "append": "Be brief."},
        "tools": {"type": "preset", "preset": "claude_code"},
    },
    "modes": {"permissionMode": "bypassPermissions", "allowDangerouslySkipPermissions": True},
    "an alias": {"model": "sonnet", "fallbackModel": "haiku"},
}


@pytest.mark.parametrize("odd", ODD_OPTIONS.values(), ids=ODD_OPTIONS)
async def test_options_as_the_sdks_write_them_are_accepted(
    server: Server, sdk: Open, token: str, odd: dict[str, Any]
) -> None:
    async with sdk(server.url, token) as client:
        await client.start(**odd)
        await client.ask("What is 2 + 2?")
        assert (await client.result())["subtype"] == "success"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": []},
        {"type": "object", "properties": [], "required": []},
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": None},
        {"type": "object"},
        [],
    ],
    ids=json.dumps,
)
async def test_schemas_as_the_sdks_write_them_are_accepted(
    server: Server, sdk: Open, token: str, script: Callable[..., str], schema: Any
) -> None:
    async with sdk(server.url, token) as client:
        tool = {**client.tool("add"), "inputSchema": schema}
        await client.start(mcpServers=servers(tool))
        await client.ask(script({"tools": [{"name": "add"}]}, {"text": "done"}))
        call = await client.until("tool_call")
        assert call["payload"]["input"] == {}
        await client.answer(call, "2")
        assert (await client.result())["result"] == "done"


async def test_a_message_sent_before_ready_is_read_is_answered(
    server: Server, sdk: Open, token: str
) -> None:
    async with sdk(server.url, token) as client:
        await client.send({"type": "init", "payload": client.options({})})
        await client.ask("What is 2 + 2?")
        assert (await client.result())["result"] == "2 + 2 = 4."


# --- failures ---------------------------------------------------------------------------------

BROKEN = {"status": 400, "type": "invalid_request_error", "message": "Broken."}
FAILURES: dict[str, tuple[dict[str, Any], list[dict[str, Any]] | None]] = {
    "an error of the model": ({}, [{"error": BROKEN}]),
    "an error after some text": (
        {"includePartialMessages": True},
        [{"text": ["a", "b", "c"], "cut_after_chunks": 1}],
    ),
    "a script that is none": ({}, [{"no such key": 1}]),
    "an unknown model": ({"model": "no-such-model"}, [{"text": "x"}]),
    "an empty message": ({}, None),
    "an option that cannot be honoured": ({"tools": ["Bash"]}, [{"text": "x"}]),
    "two tools of one name": (
        {"mcpServers": [{"name": n, "tools": [ADD]} for n in "ab"]},
        [{"text": "x"}],
    ),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_every_failure_is_one_result_that_all_survive(
    server: Server,
    sdk: Open,
    token: str,
    script: Callable[..., str],
    failure: tuple[dict[str, Any], list[dict[str, Any]] | None],
) -> None:
    options, steps = failure
    async with sdk(server.url, token) as client:
        await client.start(**options)
        for attempt in ("First.", "Second."):
            await client.ask("  " if steps is None else script(*steps, text=attempt))
            result = await client.result()
            assert result["subtype"] == "error_during_execution"
            assert result["errors"] == [result["result"]]
            assert result["result"].endswith(".")


async def test_too_many_turns_are_told_by_their_own_subtype(
    server: Server, sdk: Open, token: str, script: Callable[..., str]
) -> None:
    async with sdk(server.url, token) as client:
        await client.start(mcpServers=servers(client.tool("add")), maxTurns=1)
        await client.ask(script({"tools": [{"name": "add", "input": {"a": 1}}]}, {"text": "never"}))
        await client.answer(await client.until("tool_call"), "2")
        result = await client.result()
    assert result["subtype"] == "error_max_turns"
    assert result["num_turns"] == 1
    assert result["errors"] == [result["result"]]


async def test_a_turn_that_failed_leaves_the_session_usable(
    server: Server, sdk: Open, token: str, script: Callable[..., str]
) -> None:
    async with sdk(server.url, token) as client:
        await client.start()
        await client.ask("Hello, I am Alice")
        await client.result()
        await client.ask(script({"error": BROKEN}))
        assert (await client.result())["is_error"] is True
        await client.ask("What is my name?")
        assert (await client.result())["result"] == "Your name is Alice."


@pytest.mark.parametrize("where", ["server", None])
async def test_a_tool_without_a_handler_is_refused_and_never_called(
    server: Server, sdk: Open, token: str, where: str | None
) -> None:
    async with sdk(server.url, token) as client:
        tool = {**client.tool("add"), "executeIn": where}
        if where is None:
            del tool["executeIn"]
        await client.start(mcpServers=servers(tool))
        await client.ask("Please add 1 and 2.")
        result = await client.result()
        assert not [frame for frame in client.received if frame["type"] == "tool_call"]
    assert result["subtype"] == "error_during_execution"
    assert "'add'" in result["result"]
    assert "handler" in result["result"]


async def test_a_bad_token_is_told_by_the_first_frame_and_a_close(
    server: Server, sdk: Open
) -> None:
    async with sdk(server.url, "no.such.token") as client:
        try:
            await client.send({"type": "init", "payload": client.options({})})
        except ConnectionClosed:
            pass  # the server may have closed already; what it said is there all the same
        error = await client.receive_unchecked()
        with pytest.raises(ConnectionClosed):
            await client.receive_unchecked()
    assert error["type"] == "error"
    assert error["payload"]["code"] == "AUTHENTICATION_ERROR"
    assert isinstance(error["payload"]["message"], str)


# --- a server with short patience and one seat --------------------------------------------------


@dataclass(frozen=True)
class Narrow:
    """A server that waits half a second for a tool and lets a user have one session."""

    url: str
    project_id: str
    hmac_key: str = field(repr=False)

    def token(self, user: str) -> str:
        return create_token(
            user_id=user,
            project_id=self.project_id,
            secret=self.hmac_key,
            budget=create_budget(ai_dollars=1_000, compute_hours=100, window="day"),
        )


@pytest.fixture(scope="module")
def narrow(chucky_command: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Narrow]:
    directory = tmp_path_factory.mktemp("narrow")
    limits = {"CHUCKY_TOOL_TIMEOUT_SECONDS": "0.5", "CHUCKY_MAX_SESSIONS_PER_USER": "1"}
    db = ["--db", str(directory / "chucky.db")]
    with (
        (directory / "log").open("w") as log,
        subprocess.Popen(
            [chucky_command, "serve", "--port", "0", *db],
            cwd=directory,
            env={**os.environ, **limits},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout
            address = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
            assert address, (directory / "log").read_text()
            created = subprocess.run(
                [chucky_command, "projects", "create", "narrow", "--json", *db],
                cwd=directory,
                check=True,
                capture_output=True,
                timeout=START_SECONDS,
            )
            project = json.loads(created.stdout)
            yield Narrow(f"ws://{address[0]}/ws", project["projectId"], project["hmacKey"])
        finally:
            process.terminate()
            try:
                process.wait(START_SECONDS)
            finally:
                process.kill()


async def take_a_seat(sdk: Open, url: str, token: str) -> None:
    """Connect until the server has room; it learns of an end no later than its client."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            async with sdk(url, token) as client:
                frame = await client.receive_unchecked()
                if frame["type"] == "control":
                    return
                assert frame["payload"]["code"] == "CONCURRENCY_LIMIT"


async def test_a_tool_that_never_answers_is_an_error_for_the_model(
    narrow: Narrow, sdk: Open, script: Callable[..., str]
) -> None:
    token = narrow.token(str(uuid.uuid4()))  # the seat of the client before may not be free yet
    async with sdk(narrow.url, token) as client:
        await client.start(mcpServers=servers(client.tool("add")))
        calls = [{"name": "add", "input": {"a": n}} for n in (1, 2)]
        await client.ask(script({"tools": calls}, {"text": "went on"}))
        late = await client.until("tool_call")
        await client.answer(await client.until("tool_call"), "in time")
        blocks = tool_results(await client.until("user"))
        texts = sorted(block["content"][0]["text"] for block in blocks)
        assert texts == ["The tool 'add' did not answer within 0.5 s.", "in time"]
        assert sum(block.get("is_error", False) for block in blocks) == 1
        assert (await client.result())["result"] == "went on"

        await client.answer(late, "too late")
        await client.ask("What is 2 + 2?")
        assert (await client.result())["result"] == "2 + 2 = 4."


@pytest.mark.parametrize("how", ["close", "cut"])
@pytest.mark.parametrize("when", ["before a turn", "in a turn", "in a tool call", "after a turn"])
async def test_the_end_of_a_socket_frees_the_users_seat(
    narrow: Narrow, sdk: Open, script: Callable[..., str], when: str, how: str
) -> None:
    token = narrow.token(str(uuid.uuid4()))
    async with sdk(narrow.url, token) as client:
        await client.start(mcpServers=servers(client.tool("add")))
        if when == "in a turn":
            await client.ask(script({"text": "never", "delay_ms": 60_000}))
            await client.until("system")
        elif when == "in a tool call":
            await client.ask(script({"tools": [{"name": "add", "input": {"a": 1}}]}))
            await client.until("tool_call")
        elif when == "after a turn":
            await client.ask("What is 2 + 2?")
            await client.result()
        if how == "close":
            await client.close()
        else:
            client.socket.transport.abort()
    await take_a_seat(sdk, narrow.url, token)


async def test_a_second_session_is_refused_by_the_first_frame(narrow: Narrow, sdk: Open) -> None:
    token = narrow.token(str(uuid.uuid4()))
    async with sdk(narrow.url, token) as client:
        await client.start()
        async with sdk(narrow.url, token) as other:
            error = await other.receive_unchecked()
        assert error["type"] == "error"
        assert error["payload"]["code"] == "CONCURRENCY_LIMIT"
        assert isinstance(error["payload"]["message"], str)
        await client.ask("What is 2 + 2?")
        assert (await client.result())["subtype"] == "success"
