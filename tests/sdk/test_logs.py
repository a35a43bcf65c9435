"""What the client logs: which session it was, and never a secret."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from chucky import AuthenticationError, Chucky
from chucky.sessionlog import presentable

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.sdk.conftest import Peer, StartServer


@pytest.fixture(autouse=True)
def _fresh_logger(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    logger = logging.getLogger("chucky")
    level, handlers = logger.level, list(logger.handlers)
    caplog.set_level(logging.DEBUG, "")
    yield
    logger.setLevel(level)
    logger.handlers = handlers


def frames(caplog: pytest.LogCaptureFixture, direction: str) -> list[Any]:
    """The frames that were logged in one direction, and the id each was logged with."""
    parts = [record.getMessage().split(" ", 3) for record in caplog.records]
    return [(part[1], part[3]) for part in parts if part[0] == "session" and part[2] == direction]


async def test_records_of_a_session_have_its_id(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with Chucky(server.token("logs"), url=server.url, debug=True) as client:
        sessions = [client.create_session(), client.create_session()]
        for number, session in enumerate(sessions):
            await session.send(f"Say exactly: number {number}")
            _ = [message async for message in session.stream()]
    for number, session in enumerate(sessions):
        [result] = [
            record
            for record in caplog.records
            if f"number {number}" in record.getMessage() and '"result"' in record.getMessage()
        ]
        assert result.name == "chucky"
        assert result.session_id == session.session_id  # type: ignore[attr-defined]
        assert session.session_id in result.getMessage()
    assert frames(caplog, ">")[0][0] == "(new)"


async def test_debug_shows_no_credential_whoever_says_it(
    scripted_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = [secrets.token_hex(16) for _ in range(9)]
    token = secrets.token_hex(32)

    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.turn(f"Your token is {token}.", env={"A": hidden[0]})
        await peer.until_closed()

    server = await scripted_server(script)
    options: dict[str, Any] = {
        "env": {"API_KEY": hidden[1], "LANG": hidden[2]},
        "mcp_servers": {
            "docs": {
                "url": f"https://{hidden[3]}@docs.example.com/mcp?key={hidden[4]}",
                "headers": {"Authorization": hidden[5]},
            },
            "files": {"command": "mcp-files", "args": [hidden[6]], "env": {"KEY": hidden[7]}},
        },
        "agents": {"critic": {"prompt": "Find faults.", "mcpServers": {"a": {"token": hidden[8]}}}},
    }
    async with server.client(token=token, debug=True, **options) as client:
        await client.prompt("Who am I?")
    assert not [secret for secret in [token, *hidden] if secret in caplog.text]
    init = json.loads(frames(caplog, ">")[0][1])["payload"]
    assert init["env"] == {"API_KEY": "…", "LANG": "…"}
    assert init["mcpServers"] == [
        {
            "name": "docs",
            "type": "http",
            "url": "https://docs.example.com/mcp",
            "headers": {"Authorization": "…"},
        },
        {
            "name": "files",
            "type": "stdio",
            "command": "mcp-files",
            "args": ["…"],
            "env": {"KEY": "…"},
        },
    ]
    assert "Who am I?" in caplog.text
    assert "Your token is …." in caplog.text


async def test_a_token_that_the_server_repeats_in_an_error_is_not_logged(
    scripted_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    token = secrets.token_hex(32)

    async def script(peer: Peer) -> None:
        await peer.send(peer.error(f"{token} has expired.", "token_expired"))
        await peer.until_closed()

    server = await scripted_server(script)
    async with server.client(token=lambda: token, debug=True) as client:
        with pytest.raises(AuthenticationError):
            await client.prompt("Hello")
    assert "… has expired." in caplog.text
    assert token not in caplog.text


async def test_images_are_shortened(
    scripted_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(peer: Peer) -> None:
        await peer.start()
        await peer.expect("user")
        await peer.send(peer.result())
        await peer.until_closed()

    server = await scripted_server(script)
    source = {"type": "base64", "media_type": "image/png", "data": "iVBO" * 100_000}
    async with server.client(debug=True) as client:
        await client.prompt([{"type": "image", "source": source}])
    [sent] = [text for _session, text in frames(caplog, ">") if '"image/png"' in text]
    assert len(sent) < 1000
    assert "iVBO… (400000 characters)" in sent


@pytest.mark.parametrize(
    ("frame", "shown"),
    [
        ('{"a": [1, null, true, "é"]}', '{"a":[1,null,true,"é"]}'),
        ('{"url": 5, "env": "x", "Token": null}', '{"url":5,"env":"…","Token":"…"}'),
        ('{"url": "http://[h"}', '{"url":"…"}'),
        ("no frame", "'no frame'"),
        (b"\xff\x00", r"b'\xff\x00'"),
        ("[" * 100_000, f"'{'[' * 99}… (100002 characters)"),
    ],
)
def test_anything_can_be_shown(frame: str | bytes, shown: str) -> None:
    assert presentable(frame) == shown
