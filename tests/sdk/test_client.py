"""The client: how it is made, what it sends for its options, tokens, events and logs."""

from __future__ import annotations

import asyncio
import io
import logging
import secrets
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from chucky import (
    AuthenticationError,
    Chucky,
    ChuckyConnectionError,
    ChuckyTimeoutError,
    PromptOptions,
    PromptResult,
    StreamEvent,
    ValidationError,
    tool,
)
from chucky.options import DEFAULT_MODEL, DEFAULT_URL

if TYPE_CHECKING:
    from tests.sdk.conftest import Frame, Peer, ScriptedServer, StartServer, StartTcp

URL = "ws://127.0.0.1:1/ws"

# ---- making one ------------------------------------------------------------------------------


def test_the_order_of_the_page_is_token_then_url() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = Chucky("a-token", URL, "opus", "Be brief.", 3, 4.0, 5.0)
    options = client.options
    assert (options.token, options.url, options.model) == ("a-token", URL, "opus")
    assert (options.system_prompt, options.max_turns) == ("Be brief.", 3)
    assert (options.timeout, options.keepalive_interval) == (4.0, 5.0)


def test_only_the_token_is_needed() -> None:
    options = Chucky("a-token").options
    assert (options.url, options.model) == (DEFAULT_URL, DEFAULT_MODEL)
    assert (options.timeout, options.keepalive_interval) == (30.0, 60.0)
    assert (options.system_prompt, options.max_turns, options.turn_timeout) == (None, None, None)


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [((URL, "a-token"), {}), ((URL,), {"token": "a-token"}), ((URL,), {})],
)
def test_the_order_of_0_2_0_works_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], keywords: dict[str, str]
) -> None:
    monkeypatch.setenv("CHUCKY_TOKEN", "a-token" if "a-token" not in arguments else "another")
    make: Any = Chucky
    with pytest.warns(DeprecationWarning, match=r"write Chucky\(token, url=…\)") as caught:
        client = make(*arguments, model="opus", **keywords)
    assert (client.options.token, client.options.url) == ("a-token", URL)
    assert client.options.model == "opus"
    assert caught[0].filename == __file__


def test_two_urls_are_one_too_many() -> None:
    make: Any = Chucky
    with (
        pytest.warns(DeprecationWarning, match=r"version 0\.2\.0"),
        pytest.raises(TypeError, match="'url'"),
    ):
        make(URL, "a-token", url=URL)


def test_the_environment_says_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHUCKY_TOKEN", "from-outside")
    monkeypatch.setenv("CHUCKY_URL", "ws://outside/ws")
    options = Chucky().options
    assert (options.token, options.url) == ("from-outside", "ws://outside/ws")
    options = Chucky("mine", URL).options
    assert (options.token, options.url) == ("mine", URL)
    assert Chucky(url=URL).options.url == URL


def test_the_token_is_not_part_of_what_options_look_like() -> None:
    token = secrets.token_hex(16)
    assert token not in repr(Chucky(token).options)


async def test_a_client_as_context_manager_is_the_client(scripted_server: StartServer) -> None:
    server = await scripted_server(lambda peer: peer.serve())
    made = server.client()
    async with made as client:
        assert client is made
        session = client.create_session()
        async with session as entered:
            assert entered is session
            await session.send("Hello")
    await server.end()


# ---- options on the wire ---------------------------------------------------------------------


def init_sent_to(server: ScriptedServer) -> Frame:
    [peer] = server.peers
    payload = peer.received[0]["payload"]
    assert isinstance(payload, dict)
    return payload


@tool("look", "Looks")
async def look() -> str:
    return "seen"


@pytest.mark.parametrize("call", ["prompt", "stream", "stream options", "session"])
async def test_arguments_of_a_call_win_over_the_clients(
    scripted_server: StartServer, call: str
) -> None:
    server = await scripted_server(lambda peer: peer.serve())
    own: dict[str, Any] = {
        "model": "opus",
        "system_prompt": "Mine.",
        "max_turns": 2,
        "tools": [look],
    }
    async with server.client(model="haiku", system_prompt="Theirs.", max_turns=9) as client:
        if call == "prompt":
            await client.prompt("Hello", **own)
        elif call == "stream":
            _ = [event async for event in client.stream("Hello", **own)]
        elif call == "stream options":
            options = PromptOptions(**own)
            _ = [event async for event in client.stream("Hello", options=options)]
        else:
            async with client.create_session(**own) as session:
                await session.send("Hello")
                _ = [message async for message in session.stream()]
    init = init_sent_to(server)
    assert (init["model"], init["systemPrompt"], init["maxTurns"]) == ("opus", "Mine.", 2)
    assert [t["name"] for t in init["mcpServers"][0]["tools"]] == ["look"]


async def test_a_keyword_of_stream_wins_over_its_options(scripted_server: StartServer) -> None:
    server = await scripted_server(lambda peer: peer.serve())
    options = PromptOptions(model="opus", system_prompt="Kept.", include_partial_messages=True)
    async with server.client() as client:
        events = client.stream(
            "Hello", model="haiku", include_partial_messages=False, options=options
        )
        _ = [event async for event in events]
    init = init_sent_to(server)
    assert (init["model"], init["systemPrompt"]) == ("haiku", "Kept.")
    assert "includePartialMessages" not in init


async def test_what_was_not_given_is_not_sent(scripted_server: StartServer) -> None:
    server = await scripted_server(lambda peer: peer.serve())
    async with server.client() as client:
        await client.prompt("Hello")
    assert set(init_sent_to(server)) == {"model", "capabilities"}


# ---- tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_token_function_is_asked_for_every_connection(
    scripted_server: StartServer, is_async: bool
) -> None:
    given: list[str] = []

    def next_token() -> str:
        given.append(f"token-{len(given)}")
        return given[-1] + "\n"  # as a file would have it

    async def next_token_later() -> str:
        return next_token()

    server = await scripted_server(lambda peer: peer.serve())
    async with server.client(token=next_token_later if is_async else next_token) as client:
        assert given == []
        await client.prompt("Hello")
        async with client.create_session() as session:
            for _ in range(2):
                await session.send("Hello")
                _ = [m async for m in session.stream()]
    assert given == ["token-0", "token-1"]
    sent = [peer.headers["Authorization"] for peer in server.peers]
    assert sent == ["Bearer token-0", "Bearer token-1"]


@pytest.mark.parametrize("value", [None, "", "  ", 5, "two words", "línea", "a\nb"])
async def test_a_token_that_cannot_be_one_is_refused_and_not_shown(value: Any) -> None:
    client = Chucky(lambda: value, url=URL)
    with pytest.raises(ValidationError, match=r"^The token ") as caught:
        await client.prompt("Hello")
    assert "words" not in str(caught.value)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "ws_proxy"])
async def test_a_proxy_of_the_environment_is_used(
    tcp_server: StartTcp, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    asked = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        await writer.drain()

    address = (await tcp_server(refuse)).removeprefix("ws://").removesuffix("/ws")
    monkeypatch.setenv(variable, f"http://{address}")
    with pytest.raises(ChuckyConnectionError):
        await Chucky("a-token", url="ws://chucky.invalid/ws").prompt("Hello")
    assert asked == [b"CONNECT chucky.invalid:80 HTTP/1.1\r\n"]


async def test_a_proxy_that_cannot_be_one_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    password = secrets.token_hex(8)
    monkeypatch.setenv("http_proxy", f"http://user:{password}@127.0.0.1:1/path")
    with pytest.raises(ChuckyConnectionError, match="proxy") as caught:
        await Chucky("a-token", url="ws://chucky.invalid/ws").prompt("Hello")
    assert password not in str(caught.value)
    assert caught.value.__suppress_context__


async def test_an_exception_of_a_token_function_comes_out_as_it_is() -> None:
    def refuse() -> str:
        raise LookupError("nobody is logged in")

    async def time_out() -> str:
        raise TimeoutError("the identity provider is slow")

    with pytest.raises(LookupError, match="nobody is logged in"):
        await Chucky(refuse, url=URL).prompt("Hello")
    with pytest.raises(TimeoutError, match="identity provider"):
        await Chucky(time_out, url=URL).prompt("Hello")


async def test_a_token_function_that_never_returns_is_given_up() -> None:
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    with pytest.raises(ChuckyTimeoutError, match=r"token function .* within 0\.05 s"):
        await Chucky(never, url=URL, timeout=0.05).prompt("Hello")


# ---- events ----------------------------------------------------------------------------------


async def test_events_come_in_the_order_of_the_page(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        use = {"type": "tool_use", "id": "t1", "name": "mcp__inline-tools__look", "input": {}}
        native = {"type": "tool_use", "id": "t2", "name": "Read", "input": {"path": "x"}}
        broken = {"type": "tool_use", "id": "t3", "name": 5}
        await peer.send(
            peer.system(),
            peer.delta("Let"),
            peer.assistant("Let me look.", use, native, broken),
            peer.result("Seen.", session_id="the-id"),
        )
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        events = [event async for event in client.stream("Look")]
    assert all(isinstance(event, StreamEvent) for event in events)
    assert [(event.type, event.name) for event in events] == [
        ("message", None),
        ("delta", None),
        ("message", None),
        ("tool_use", "look"),
        ("tool_use", "Read"),
        ("result", None),
        ("done", None),
    ]
    assert [str(event.data) for event in events if event.type == "message"] == ["", "Let me look."]
    assert events[4].data["input"] == {"path": "x"}
    assert events[-1].data == {"sessionId": "the-id"}


async def test_a_result_is_a_dictionary_and_an_object(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn("Paris.")
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        result = await client.prompt("What is the capital of France?")
    assert isinstance(result, PromptResult)
    assert result.result == result["result"] == result.get("result") == str(result) == "Paris."
    assert result.total_cost_usd == result.get("total_cost_usd", 0) == 0.0012
    assert [message["type"] for message in result.messages] == ["assistant", "result"]
    assert result.messages[-1] == result


# ---- logs ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh_logger() -> Iterator[None]:
    logger = logging.getLogger("chucky")
    level, handlers = logger.level, list(logger.handlers)
    logger.setLevel(logging.NOTSET)
    yield
    logger.setLevel(level)
    logger.handlers = handlers


async def prompt(client: Chucky) -> None:
    await client.prompt("What is the capital of France?")


async def stream(client: Chucky) -> None:
    _ = [event async for event in client.stream("What is the capital of France?", debug=True)]


@pytest.mark.parametrize(("use", "debug"), [(prompt, True), (stream, False)])
async def test_debug_logs_every_frame_and_never_the_token(
    scripted_server: StartServer,
    caplog: pytest.LogCaptureFixture,
    use: Callable[[Chucky], Awaitable[None]],
    debug: bool,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn("Paris.")
        await peer.until_closed()

    caplog.set_level(logging.DEBUG, "")
    server = await scripted_server(script)
    async with server.client(debug=debug) as client:
        await use(client)
    assert logging.getLogger("chucky").level == logging.DEBUG
    said = [record.getMessage() for record in caplog.records if record.name == "chucky"]
    assert [line for line in said if "capital of France" in line and " > " in line]
    assert [line for line in said if "Paris." in line and " < " in line]
    assert server.token not in caplog.text


async def test_without_debug_nothing_is_logged_even_if_everything_may_be(
    scripted_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """defect 34: the library below would write the token to its debug log."""
    caplog.set_level(logging.DEBUG, "")
    server = await scripted_server(lambda peer: peer.serve())
    async with server.client() as client:
        await client.prompt("My secret is 42")
    assert "My secret is 42" not in caplog.text
    assert server.token not in caplog.text


def test_debug_writes_to_standard_error_when_logging_is_not_set_up() -> None:
    code = "import chucky; chucky.Chucky('a-token', debug=True); import logging; "
    code += "logging.getLogger('chucky').debug('> a frame')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr.strip()) == (0, "> a frame")


def test_debug_does_not_write_twice_when_logging_is_set_up() -> None:
    root, stream = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(stream)
    root.addHandler(handler)
    try:
        Chucky("a-token", debug=True)
        logging.getLogger("chucky").debug("> a frame")
    finally:
        root.removeHandler(handler)
    assert logging.getLogger("chucky").handlers == []
    assert stream.getvalue() == "> a frame\n"


async def test_an_authentication_error_never_shows_the_token(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(peer.error("The token has expired.", "token_expired"))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client(url=f"{server.url}?token=in-the-url") as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.prompt("Hello")
    assert server.token not in str(caught.value)
    assert "in-the-url" not in str(caught.value)
