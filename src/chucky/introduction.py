"""What a server has said of itself."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from chucky import wire

TIMEOUT_SECONDS = 10.0


class Introduction:
    """What a session knows of its server.

    Attributes:
        capabilities: The extensions the server understands.
        max_frame_bytes: The largest frame it takes.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self.capabilities: frozenset[str] = frozenset()
        self.max_frame_bytes = wire.MAX_FRAME_BYTES
        self._is_over = asyncio.Event()

    def take(self, info: dict[str, Any]) -> None:
        """Take in a ``session_info``."""
        if isinstance(limit := info.get("maxFrameBytes"), int):
            self.max_frame_bytes = limit
        if isinstance(named := info.get("capabilities"), list):
            self.capabilities = frozenset(map(str, named))
        self.end()

    def end(self) -> None:
        """Expect nothing more: this server does not introduce itself, or is gone."""
        self._is_over.set()

    async def wait(self) -> None:
        """Wait until the server has said what it can, or shows that it says nothing about it."""
        with suppress(TimeoutError):  # then it cannot
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._is_over.wait()
