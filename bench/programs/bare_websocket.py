"""The peer of the server: a WebSocket endpoint with nothing but uvicorn below it.

``bare_websocket [FRAMES]``: answers the first frame of a connection with one frame, and every
further one with all lines of the file FRAMES, each as a frame of its own. It says where it listens.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn

_READY = '{"type":"control","payload":{"action":"session_info","data":{"sessionId":"none"}}}'

_Receive = Callable[[], Awaitable[dict[str, Any]]]
_Send = Callable[[dict[str, Any]], Awaitable[None]]


class BareEndpoint:
    """The endpoint, as an ASGI application."""

    def __init__(self, frames: list[str]) -> None:
        self._frames = frames

    async def __call__(self, scope: dict[str, Any], receive: _Receive, send: _Send) -> None:
        """Serve a connection."""
        if scope["type"] == "http":  # the startup benchmark knocks here
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})
            return
        await receive()
        await send({"type": "websocket.accept"})
        answers = [_READY]
        while (await receive())["type"] == "websocket.receive":
            for frame in answers:
                await send({"type": "websocket.send", "text": frame})
            answers = self._frames


class _Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()
        print(f"Listening on ws://{host}:{port}/ws", flush=True)


def main() -> None:
    """Run until told to stop."""
    frames = Path(sys.argv[1]).read_text(encoding="ascii").splitlines() if sys.argv[1:] else []
    config = uvicorn.Config(
        BareEndpoint(frames),
        port=0,
        interface="asgi3",
        # The same settings as the server's: see EmbeddedServer in chucky.server.app.
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        backlog=2048,
        timeout_graceful_shutdown=5,
    )
    asyncio.run(_Server(config).serve())


if __name__ == "__main__":
    main()
