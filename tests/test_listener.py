"""The sockets that servers of ours listen on."""

from __future__ import annotations

import asyncio
import socket

import pytest

from chucky.listener import bind

WAIT_SECONDS = 10


async def test_small_frames_do_not_wait_for_acknowledgements() -> None:
    delays_off: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def look(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        delays_off.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with await bind("127.0.0.1", 0) as listening:
        async with (
            asyncio.timeout(WAIT_SECONDS),
            await asyncio.start_server(look, sock=listening),
        ):
            _reader, writer = await asyncio.open_connection(*listening.getsockname())
            assert await delays_off
            writer.close()
            await writer.wait_closed()


async def test_an_address_in_use_is_an_error_and_leaves_no_socket_open() -> None:
    with await bind("127.0.0.1", 0) as listening:
        port: int = listening.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            await bind("127.0.0.1", port)
