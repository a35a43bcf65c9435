"""The defects of the published 0.2.0 that concern connections and sessions, one test for each.

Each test does what a user of 0.2.0 did when it went wrong. The other defects have their tests
where their subject has: tools, tokens and messages.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from chucky import (
    AuthenticationError,
    ChuckyConnectionError,
    ChuckyError,
    ChuckyTimeoutError,
    Message,
    ProtocolError,
    SessionError,
    tool,
)

if TYPE_CHECKING:
    from tests.sdk.conftest import Peer, StartServer, StartTcp

WAIT_SECONDS = 5.0


async def texts(stream: AsyncIterator[Message]) -> list[str]:
    return [str(message) async for message in stream]


async def test_defect_03_a_socket_lost_in_a_turn_raises_instead_of_hanging(
    scripted_server: StartServer,
) -> None:
    async def lose(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        peer.abort()

    async def dismiss(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.control("close"))
        await peer.until_closed()

    server = await scripted_server(lose, dismiss)
    async with server.client() as client:
        with pytest.raises(ChuckyConnectionError, match="was closed"):
            await client.prompt("Hello")
        with pytest.raises(ChuckyConnectionError, match="The server closed the session"):
            await client.prompt("Hello")


async def test_defect_04_a_silent_server_ends_a_stream_with_an_exception(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await is_given_up.wait()

    is_given_up = asyncio.Event()
    server = await scripted_server(script)
    async with (
        server.client(keepalive_interval=0.05) as client,
        client.create_session() as session,
    ):
        await session.send("Hello")
        with pytest.raises(ChuckyTimeoutError):
            await texts(session.stream())
        is_given_up.set()


async def test_defect_05_what_goes_wrong_while_reading_reaches_the_caller(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send_raw('{"type":"sdk_message","payload":null}')
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ProtocolError, match=r"payload must be an object\."):
            await client.prompt("Hello")


async def test_defect_06_two_sends_and_then_two_streams_are_two_turns(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn("First.")
        await peer.turn("Second.")
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client, client.create_session() as session:
        await session.send("one")
        await session.send("two")
        assert await texts(session.stream()) == ["First.", "First."]
        assert await texts(session.stream()) == ["Second.", "Second."]


async def test_defect_07_tools_run_at_once_and_hold_up_neither_loop_nor_reader(
    scripted_server: StartServer,
) -> None:
    met = threading.Barrier(2, timeout=WAIT_SECONDS)

    @tool("meet", "Blocks until it runs twice")
    def meet() -> str:
        met.wait()
        return "met"

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.tool_call("1", "meet"))
        await peer.settle()  # the client reads and answers while the tool blocks
        await peer.send(peer.tool_call("2", "meet"))
        for _ in range(2):
            result = (await peer.expect("tool_result"))["payload"]["result"]
            assert result["content"] == [{"type": "text", "text": "met"}]
        await peer.send(peer.result())
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        assert (await client.prompt("Meet", tools=[meet])).subtype == "success"


async def test_defect_08_keep_alives_are_sent(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.pong(await peer.receive()), peer.result("Kept."))
        assert peer.received[-1]["type"] == "ping"
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client(keepalive_interval=0.05) as client:
        assert (await client.prompt("Hello")).result == "Kept."


async def test_defect_09_the_session_id_is_set(scripted_server: StartServer) -> None:
    server = await scripted_server(lambda peer: peer.serve())
    async with server.client() as client, client.create_session() as session:
        await session.send("Hello")
        await texts(session.stream())
        assert session.session_id == server.peers[0].result()["session_id"] != ""


async def test_defect_10_a_flat_partial_message_arrives(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.delta("Hel"), peer.result())
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client(include_partial_messages=True) as client:
        events = [event async for event in client.stream("Hello")]
    assert [event.type for event in events] == ["delta", "result", "done"]


async def test_defect_11_errors_keep_their_text_and_code_and_have_classes(
    scripted_server: StartServer,
) -> None:
    async def in_turn(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.error("Your limit is reached.", "BUDGET_EXCEEDED"))
        await peer.close(1008)

    async def before_ready(peer: Peer) -> None:
        await peer.send(peer.error("Your token has expired.", "token_expired"))
        await peer.close(1008)

    server = await scripted_server(in_turn, before_ready)
    async with server.client() as client:
        result = await client.prompt("Hello")
        assert (result.subtype, result.result) == ("error", "Your limit is reached.")
        assert result.error["code"] == "BUDGET_EXCEEDED"
        with pytest.raises(AuthenticationError, match=r"^Your token has expired\.$") as caught:
            await client.prompt("Hello")
        assert (caught.value.code, caught.value.reason) == ("AUTHENTICATION_ERROR", "token_expired")


async def test_defect_12_a_close_before_ready_is_not_ready(scripted_server: StartServer) -> None:
    async def script(peer: Peer) -> None:
        await peer.close(1000)

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ChuckyConnectionError, match=r"before the server was ready \(code 1000"):
            await client.prompt("Hello")


@pytest.mark.parametrize("raw", ["not JSON", '{"type":"control","payload":null}'])
async def test_defect_13_nonsense_before_ready_is_an_error_of_ours(
    scripted_server: StartServer, raw: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.send_raw(raw)
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client() as client:
        with pytest.raises(ProtocolError):
            await client.prompt("Hello")


async def test_defect_14_a_frame_of_three_mebibytes_arrives(scripted_server: StartServer) -> None:
    text = "x" * (3 * 1024 * 1024)
    server = await scripted_server(lambda peer: peer.serve(text))
    async with server.client() as client:
        assert (await client.prompt("Write much")).result == text


async def test_defect_15_a_session_that_is_over_says_so_and_never_loses_its_history(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.close(1001, "restart")

    server = await scripted_server(script)
    async with server.client() as client:
        session = client.create_session()
        await session.send("Hello")
        with pytest.raises(ChuckyConnectionError, match="restart"):
            await texts(session.stream())
        with pytest.raises(ChuckyConnectionError, match="restart"):
            await session.send("Hello?")
        await session.close()
        with pytest.raises(SessionError, match="is closed"):
            await session.send("Hello?")
    assert len(server.peers) == 1


async def test_defect_16_sessions_of_prompt_and_stream_are_forgotten(
    scripted_server: StartServer,
) -> None:
    server = await scripted_server(lambda peer: peer.serve())
    async with server.client() as client:
        await client.prompt("Hello")
        _ = [event async for event in client.stream("Hello")]
        session = client.create_session()
        assert client._sessions == {session}
        await session.close()
        assert not client._sessions


async def test_defect_17_a_time_out_before_ready_closes_the_socket(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect("init")
        await peer.until_closed()

    server = await scripted_server(script)
    session = server.client(timeout=0.05).create_session()
    with pytest.raises(ChuckyTimeoutError):
        await session.send("Hello")
    await server.end()
    assert server.peers[0].socket.close_code == 1000
    await session.close()


async def test_defect_18_the_server_is_told_that_the_session_is_closed(
    scripted_server: StartServer,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn()
        assert await peer.until_closed() == [peer.control("close")]

    server = await scripted_server(script)
    async with server.client() as client:
        await client.prompt("Hello")


def test_defect_19_nothing_deprecated_is_imported() -> None:
    code = (
        "import sys, chucky\n"
        "for name in chucky.__all__: getattr(chucky, name)\n"
        "import chucky.connection\n"
        "assert not [name for name in sys.modules if name.startswith('websockets.legacy')]\n"
        "assert 'websockets.asyncio.client' in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_defect_33_falsy_options_are_sent(scripted_server: StartServer) -> None:
    server = await scripted_server(lambda peer: peer.serve())
    async with server.client(
        system_prompt="Be brief.", max_turns=5, allowed_tools=[], disallowed_tools=[]
    ) as client:
        await client.prompt("Hello", system_prompt="", max_turns=0)
    init = server.peers[0].received[0]["payload"]
    assert (init["systemPrompt"], init["maxTurns"]) == ("", 0)
    assert (init["allowedTools"], init["disallowedTools"]) == ([], [])


async def test_defect_34_the_token_is_neither_in_the_url_nor_in_what_is_logged(
    scripted_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "")
    server = await scripted_server(lambda peer: peer.serve())
    async with server.client(debug=True) as client:
        await client.prompt("Hello")
    [peer] = server.peers
    assert peer.query == []
    assert peer.headers["Authorization"] == f"Bearer {server.token}"
    assert "Hello!" in caplog.text
    assert server.token not in caplog.text


async def test_defect_36_every_time_out_is_of_one_class(
    scripted_server: StartServer, tcp_server: StartTcp
) -> None:
    async def never_ready(peer: Peer) -> None:
        await peer.until_closed()

    async def never_answers(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def never_done(peer: Peer) -> None:
        await peer.start()
        await peer.until_closed()

    server = await scripted_server(never_ready, never_done)
    ways: list[dict[str, Any]] = [
        {"url": await tcp_server(never_answers), "timeout": 0.05},
        {"timeout": 0.05},
        {"turn_timeout": 0.05},
    ]
    for way in ways:
        async with server.client(**way) as client:
            with pytest.raises(ChuckyTimeoutError) as caught:
                await client.prompt("Hello")
        assert isinstance(caught.value, ChuckyError | RuntimeError)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.code == "TIMEOUT"
