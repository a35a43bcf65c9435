"""The orders and forms in which the hosted service, and servers before it, are known to speak."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from chucky import (
    AuthenticationError,
    BudgetExceededError,
    Chucky,
    ChuckyConnectionError,
    ChuckyError,
    ChuckyTimeoutError,
    ConcurrencyLimitError,
    ProtocolError,
    RateLimitError,
    SessionError,
    ValidationError,
    get_assistant_text,
    get_result_text,
)
from chucky.connection import MAX_HANDSHAKE_FRAMES, _credentials

if TYPE_CHECKING:
    from tests.sdk.conftest import Frame, Peer, StartServer, StartTcp

# ---- who speaks first ------------------------------------------------------------------------


async def ready_on_open(peer: Peer) -> None:
    await peer.send(peer.control("ready"))
    await peer.expect("init")


async def ready_after_init(peer: Peer) -> None:
    await peer.expect("init")
    await peer.send(peer.control("ready"))


async def session_info_before_ready(peer: Peer) -> None:
    await peer.send(peer.control("session_info", sessionId="an-id"), peer.control("ready"))
    await peer.expect("init")


async def session_info_after_ready(peer: Peer) -> None:
    await peer.send(peer.control("ready"), peer.control("session_info", sessionId="an-id"))
    await peer.expect("init")


async def session_info_alone(peer: Peer) -> None:
    await peer.expect("init")
    await peer.send(peer.control("session_info"))


async def system_init_before_ready(peer: Peer) -> None:
    await peer.expect("init")
    await peer.send(peer.system(), peer.control("ready"))


async def wrapped_system_init_alone(peer: Peer) -> None:
    await peer.expect("init")
    await peer.send({"type": "sdk_message", "payload": peer.system()})


async def unknown_frames_before_ready(peer: Peer) -> None:
    await peer.send({"type": "welcome"}, {"type": "queue", "payload": None, "position": 3})
    await peer.expect("init")
    await peer.send(peer.control("warming_up"), peer.control("ready"))


@pytest.mark.parametrize(
    "handshake",
    [
        ready_on_open,
        ready_after_init,
        session_info_before_ready,
        session_info_after_ready,
        session_info_alone,
        system_init_before_ready,
        wrapped_system_init_alone,
        unknown_frames_before_ready,
    ],
)
async def test_every_known_order_of_the_handshake_leads_to_an_answer(
    scripted_server: StartServer, handshake: Callable[[Peer], Awaitable[None]]
) -> None:
    async def script(peer: Peer) -> None:
        await handshake(peer)
        await peer.turn("Paris.")
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        result = await client.prompt("What is the capital of France?")
    assert (result.result, result.subtype) == ("Paris.", "success")
    kinds = [frame["type"] for frame in server.peers[0].received]
    assert kinds == ["init", "user", "control"]


async def test_system_init_may_come_with_the_first_message_only(
    scripted_server: StartServer,
) -> None:
    """What the comments of the public Go client say the hosted service does."""

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.system(), peer.assistant("Hi!"), peer.result("Hi!"))
        await peer.turn("Again!")
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hello")
        assert [m.type async for m in session.stream()] == ["system", "assistant", "result"]
        await session.send("Hello again")
        assert [m.type async for m in session.stream()] == ["assistant", "result"]


async def test_a_system_init_before_ready_belongs_to_no_turn_but_names_the_session(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await system_init_before_ready(peer)
        await peer.expect("user")
        await peer.send({"type": "result", "subtype": "success", "result": "Hi!"})
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hello")
        assert [m.type async for m in session.stream()] == ["result"]
        assert session.session_id == server.peers[0].system()["session_id"]


async def test_a_server_that_never_is_ready_is_given_up(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect("init")
        assert await peer.until_closed() == [peer.control("close")]

    server = await scripted_server(script)
    async with server.client(timeout=0.05) as client:
        with pytest.raises(ChuckyTimeoutError, match=r"was not ready within 0\.05 s"):
            await client.prompt("Hello")


async def test_a_server_that_chatters_without_being_ready_is_given_up(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(*[{"type": "wait"}] * (MAX_HANDSHAKE_FRAMES + 1))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ProtocolError, match="still not ready"):
            await client.prompt("Hello")


# ---- what the client says --------------------------------------------------------------------


async def test_the_client_speaks_as_the_public_clients_do(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn()
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client(system_prompt="Be brief.", allowed_tools=["Read"]) as client:
        await client.prompt("Hello", max_turns=3)
    init, user, close = server.peers[0].received
    assert init["type"] == "init"
    assert {k: v for k, v in init["payload"].items() if k != "capabilities"} == {
        "model": "claude-sonnet-4-5-20250929",
        "systemPrompt": "Be brief.",
        "maxTurns": 3,
        "allowedTools": ["Read"],
    }
    assert isinstance(user.pop("uuid"), str)
    assert user == {
        "type": "user",
        "session_id": "",
        "message": {"role": "user", "content": "Hello"},
        "parent_tool_use_id": None,
    }
    assert close == {"type": "control", "payload": {"action": "close"}}
    assert server.peers[0].socket.close_code == 1000


async def test_another_server_gets_the_token_in_a_header_and_not_in_the_url(
    scripted_server: StartServer,
) -> None:
    """defect 34: a url ends up in logs."""

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn()
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client(url=server.url + "?region=eu&empty=") as client:
        await client.prompt("Hello")
    [peer] = server.peers
    assert peer.headers["Authorization"] == f"Bearer {server.token}"
    assert peer.query == [("region", "eu"), ("empty", "")]


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("wss://conjure.chucky.cloud/ws", "wss://conjure.chucky.cloud/ws?token=T&type=prompt"),
        (
            "wss://conjure.chucky.cloud/ws?vessel=my%20box&empty=",
            "wss://conjure.chucky.cloud/ws?vessel=my+box&empty=&token=T&type=prompt",
        ),
        (
            "wss://conjure.chucky.cloud/ws?token=old&a=1",
            "wss://conjure.chucky.cloud/ws?a=1&token=T&type=prompt",
        ),
        ("wss://CHUCKY.cloud/ws", "wss://CHUCKY.cloud/ws?token=T&type=prompt"),
    ],
)
def test_the_hosted_service_gets_the_token_in_the_url_and_no_header(url: str, target: str) -> None:
    assert _credentials(url, "T") == (target, {})


@pytest.mark.parametrize(
    "url",
    [
        "ws://127.0.0.1:8787/ws",
        "wss://chucky.cloud.example.com/ws",
        "wss://notchucky.cloud/ws",
        "wss://example.com/conjure.chucky.cloud?host=chucky.cloud",
    ],
)
def test_a_host_that_only_looks_like_the_hosted_service_never_gets_a_token_in_its_url(
    url: str,
) -> None:
    assert _credentials(url, "T") == (url, {"Authorization": "Bearer T"})


# ---- the two generations ---------------------------------------------------------------------


def messages_of_a_turn(peer: Peer) -> list[Frame]:
    tool_use = {"type": "tool_use", "id": "t1", "name": "Read", "input": {"path": "a"}}
    tool_result = {"type": "tool_result", "tool_use_id": "t1", "content": "text"}
    inner = {"role": "user", "content": [tool_result]}
    return [
        peer.system(),
        peer.delta("Let me"),
        peer.assistant("Let me look.", tool_use),
        peer.message("user", message=inner, parent_tool_use_id=None),
        peer.message("system", subtype="compact_boundary", compact_metadata={"trigger": "auto"}),
        peer.delta("It is"),
        peer.assistant("It is text."),
        peer.result("It is text."),
    ]


@pytest.mark.parametrize("form", ["flat", "wrapped", "mixed"])
async def test_all_messages_arrive_in_both_forms(scripted_server: StartServer, form: str) -> None:
    sent: list[Frame] = []

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        sent.extend(messages_of_a_turn(peer))
        for number, message in enumerate(sent):
            peer.is_wrapped = form == "wrapped" or (form == "mixed" and number % 2 == 0)
            await peer.send(message)
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Look")
        received = [message async for message in session.stream()]
    assert received == sent
    assert [text for m in received if (text := get_assistant_text(m))] == [
        "Let me look.",
        "It is text.",
    ]
    assert get_result_text(received[-1]) == "It is text."


@pytest.mark.parametrize("frame", ["flat", "wrapped"])
async def test_stream_events_are_events_of_type_delta(
    scripted_server: StartServer, frame: str
) -> None:
    """defect 10: a flat partial message was dropped."""

    async def script(peer: Peer) -> None:
        peer.is_wrapped = frame == "wrapped"
        assert (await peer.start())["includePartialMessages"] is True
        await peer.expect("user")
        await peer.send(peer.delta("Hel"), peer.delta("lo!"))
        await peer.send(peer.assistant("Hello!"), peer.result("Hello!"))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client(include_partial_messages=True) as client:
        events = [event async for event in client.stream("Hello")]
    assert [(e.type, str(e.data)) for e in events[:-1]] == [
        ("delta", "Hel"),
        ("delta", "lo!"),
        ("message", "Hello!"),
        ("result", "Hello!"),
    ]


async def test_the_oldest_form_of_a_result_is_understood(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        payload = {"type": "result", "text": "Paris.", "total_cost_usd": 0.5, "duration_secs": 2}
        await peer.send({"type": "result", "payload": payload})
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        result = await client.prompt("Hello")
    assert (result.result, result.subtype, result.total_cost_usd) == ("Paris.", "success", 0.5)


async def test_frames_of_unknown_type_and_unknown_fields_are_ignored(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send({"type": "heartbeat"}, {"type": "future", "payload": [1, 2]})
        await peer.send(peer.control("moved", to="elsewhere"), peer.pong({"payload": None}))
        await peer.send({**peer.assistant("Hi!"), "new_field": {"a": 1}}, peer.result("Hi!"))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        result = await client.prompt("Hello")
    assert [message["type"] for message in result.messages] == ["assistant", "result"]


# ---- results of every kind -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subtype", "code"),
    [
        ("error_max_turns", "MAX_TURNS"),
        ("error_during_execution", "SESSION_ERROR"),
        ("error_max_budget_usd", "BUDGET_EXCEEDED"),
        ("error_max_structured_output_retries", "STRUCTURED_OUTPUT"),
        ("error_budget", "BUDGET_EXCEEDED"),
        ("error_concurrency", "CONCURRENCY_LIMIT"),
        ("error_authentication", "AUTHENTICATION_ERROR"),
        ("error", "SESSION_ERROR"),
        ("something_new", "SESSION_ERROR"),
    ],
)
@pytest.mark.parametrize("where", ["result", "errors"])
async def test_a_failed_turn_is_a_result_of_subtype_error(
    scripted_server: StartServer, subtype: str, code: str, where: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        failed = peer.result(subtype=subtype, is_error=True)
        del failed["result"]
        failed[where] = "It broke." if where == "result" else ["It broke."]
        await peer.send(failed)
        await peer.turn("Recovered.")
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("Hello")
        error, result = [message async for message in session.stream()]
        assert (result.subtype, result.is_error, result.result) == ("error", True, "It broke.")
        assert (result.error.code, result.error.subtype) == (code, subtype)
        assert (error.type, error.get("error", {}).get("message")) == ("error", "It broke.")
        assert get_result_text(result) is None
        await session.send("Hello again")
        assert [str(m) async for m in session.stream()] == ["Recovered.", "Recovered."]


async def test_a_success_that_says_it_is_an_error_is_one(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn("API Error: overloaded", is_error=True)
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        result = await client.prompt("Hello")
    assert (result.subtype, result.result) == ("error", "API Error: overloaded")
    assert result.error["subtype"] == "success"


# ---- errors and closes before ready ----------------------------------------------------------

CODES = [
    ("AUTHENTICATION_ERROR", AuthenticationError, "AUTHENTICATION_ERROR", None),
    ("token_expired", AuthenticationError, "AUTHENTICATION_ERROR", "token_expired"),
    ("BUDGET_EXCEEDED", BudgetExceededError, "BUDGET_EXCEEDED", None),
    ("user_budget_exhausted", BudgetExceededError, "BUDGET_EXCEEDED", "user_budget_exhausted"),
    (
        "developer_budget_exhausted",
        BudgetExceededError,
        "BUDGET_EXCEEDED",
        "developer_budget_exhausted",
    ),
    ("CONCURRENCY_LIMIT", ConcurrencyLimitError, "CONCURRENCY_LIMIT", None),
    (
        "concurrent_limit_reached",
        ConcurrencyLimitError,
        "CONCURRENCY_LIMIT",
        "concurrent_limit_reached",
    ),
    ("RATE_LIMIT", RateLimitError, "RATE_LIMIT", None),
    ("SESSION_ERROR", SessionError, "SESSION_ERROR", None),
    ("VALIDATION_ERROR", ValidationError, "VALIDATION_ERROR", None),
    ("SOMETHING_NEW", ChuckyError, "SOMETHING_NEW", None),
]


@pytest.mark.parametrize(("word", "kind", "code", "reason"), CODES)
async def test_an_error_before_ready_raises_the_class_of_its_code(
    scripted_server: StartServer, word: str, kind: type[ChuckyError], code: str, reason: str | None
) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(peer.error("Ask the application for help.", word, hint="x"))
        await peer.close(1008, "refused")

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ChuckyError, match=r"^Ask the application for help\.$") as caught:
            await client.prompt("Hello")
    error = caught.value
    assert type(error) is kind
    assert isinstance(error, RuntimeError)
    assert (error.code, error.reason, error.details) == (code, reason, {"hint": "x"})


@pytest.mark.parametrize("payload", [{}, {"message": ""}, {"message": 5, "code": ["x"]}])
async def test_an_error_without_words_is_still_an_error(
    scripted_server: StartServer, payload: dict[str, Any]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.send({"type": "error", "payload": payload})
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ChuckyError, match="reported an error without a message"):
            await client.prompt("Hello")


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (1000, "", r"closed before the server was ready \(code 1000\)"),
        (1001, "restarting", r"\(code 1001, 'restarting'\)"),
        (1008, "bad token", r"\(code 1008, 'bad token'\)"),
        (1011, "", r"\(code 1011\)"),
        (4401, "no", r"\(code 4401, 'no'\)"),
    ],
)
async def test_a_close_before_ready_raises_with_its_code_and_reason(
    scripted_server: StartServer, code: int, reason: str, words: str
) -> None:
    """defect 12: a close with 1000 counted as ready."""

    async def script(peer: Peer) -> None:
        await peer.close(code, reason)

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ChuckyConnectionError, match=words):
            await client.prompt("Hello")


async def test_a_cut_before_ready_raises(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        peer.abort()

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ChuckyConnectionError, match="without a closing handshake"):
            await client.prompt("Hello")


async def test_a_control_close_before_ready_raises(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(peer.control("close"))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ChuckyConnectionError, match="closed the session before"):
            await client.prompt("Hello")


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "hello",
        "{",
        "[]",
        "null",
        '"ready"',
        "{}",
        '{"type":5}',
        '{"type":"control","payload":null}',
        '{"type":"control"}',
        '{"type":"control","payload":{"action":null}}',
        '{"type":"sdk_message","payload":null}',
        '{"type":"sdk_message","payload":{}}',
        '{"type":"error","payload":null}',
        '{"type":"tool_call","payload":null}',
        '{"type":"tool_call","payload":{"callId":"1","toolName":"x","input":[]}}',
        '{"type":"system","n":NaN}',
        "[" * 100_000,
        b"\x00\xff",
    ],
)
async def test_what_is_no_frame_raises_a_protocol_error(
    scripted_server: StartServer, raw: str | bytes
) -> None:
    """defect 13: raw JSONDecodeError and AttributeError came out."""

    async def script(peer: Peer) -> None:
        await peer.send_raw(raw)
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ProtocolError, match="is not a frame of this protocol: "):
            await client.prompt("Hello")


# ---- answers that are not WebSockets ---------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (401, "", AuthenticationError, r"refused the token \(HTTP 401\)"),
        (403, "no", AuthenticationError, r"refused the token \(HTTP 403\)"),
        (404, "", ChuckyConnectionError, "answered HTTP 404 .* usually ends in /ws"),
        (200, "<html>", ChuckyConnectionError, "answered HTTP 200 instead"),
        (500, "[1]", ChuckyConnectionError, "answered HTTP 500 instead"),
        (
            401,
            {"error": "token_expired", "message": "The token has expired."},
            AuthenticationError,
            r"^The token has expired\.$",
        ),
        (
            429,
            {"error": "concurrent_limit_reached", "message": "2 of 2 sessions are open."},
            ConcurrencyLimitError,
            r"^2 of 2 sessions are open\.$",
        ),
        (
            402,
            {"error": "developer_budget_exhausted", "message": "Out of quota."},
            BudgetExceededError,
            r"^Out of quota\.$",
        ),
        (401, {"error": "Unauthorized", "message": "x"}, AuthenticationError, "HTTP 401"),
        (404, {"error": "Not Found"}, ChuckyConnectionError, "HTTP 404"),
    ],
)
async def test_an_http_answer_becomes_the_error_it_stands_for(
    scripted_server: StartServer,
    status: int,
    body: str | dict[str, str],
    kind: type[ChuckyError],
    words: str,
) -> None:
    def refuse(connection: ServerConnection, _request: Request) -> Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return connection.respond(HTTPStatus(status), text)

    async def script(_peer: Peer) -> None:
        raise AssertionError("no connection may come about")

    server = await scripted_server(script, process_request=refuse)
    async with server.client() as client:
        with pytest.raises(kind, match=words) as caught:
            await client.prompt("Hello")
    assert type(caught.value) is kind
    assert server.token not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"\x00" * 100],
)
async def test_a_server_of_another_kind_is_named(tcp_server: StartTcp, answer: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.write_eof()
        await reader.read()

    url = await tcp_server(handle)
    client = connect_to(url)
    with pytest.raises(ChuckyConnectionError, match="does not answer as a WebSocket server"):
        await client.prompt("Hello")


async def test_a_server_that_does_not_answer_at_all_is_given_up(tcp_server: StartTcp) -> None:
    async def handle(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    client = connect_to(await tcp_server(handle), timeout=0.05)
    with pytest.raises(ChuckyTimeoutError, match=r"did not answer within 0\.05 s"):
        await client.prompt("Hello")


async def test_a_server_that_is_not_running_is_named(unused_tcp_port: int) -> None:
    client = connect_to(f"ws://127.0.0.1:{unused_tcp_port}/ws")
    with pytest.raises(ChuckyConnectionError, match=r"Cannot reach ws://127.* Is the server run"):
        await client.prompt("Hello")


async def test_a_host_name_that_cannot_be_one_is_an_error_of_ours() -> None:
    client = connect_to(f"ws://{'a' * 64}.invalid/ws")
    with pytest.raises(ChuckyConnectionError, match="Cannot reach"):
        await client.prompt("Hello")


@pytest.mark.parametrize("location", ["http://127.0.0.1:1/ws", "ws://", "ws://user@host/"])
async def test_a_redirect_that_cannot_be_followed_does_not_show_the_token(
    scripted_server: StartServer, location: str
) -> None:
    def redirect(connection: ServerConnection, _request: Request) -> Response:
        response = connection.respond(HTTPStatus.MOVED_PERMANENTLY, "")
        response.headers["Location"] = f"{location}?token={server.token}"
        return response

    async def script(_peer: Peer) -> None:
        raise AssertionError("no connection may come about")

    server = await scripted_server(script, process_request=redirect)
    async with server.client() as client:
        with pytest.raises(ChuckyConnectionError, match="redirects") as caught:
            await client.prompt("Hello")
    assert server.token not in str(caught.value)


def connect_to(url: str, timeout: float = 5.0) -> Chucky:
    return Chucky("a-token", url=url, timeout=timeout)
