"""Settings that are read again while the server runs."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass

from chucky.errors import ValidationError
from chucky.server.settings import Settings

logger = logging.getLogger("chucky.server")

# The others are built into what runs already: addresses, keys of providers, tables, the database.
LIVE_SETTINGS = frozenset(
    {
        "allowed_betas",
        "drain_seconds",
        "evict_after_seconds",
        "idle_timeout_seconds",
        "log_level",
        "max_queued_inputs",
        "max_running_turns",
        "max_sessions",
        "max_sessions_per_user",
        "min_output_tokens",
        "reconnect_grace_seconds",
        "stall_timeout_seconds",
        "succession",
        "tool_timeout_seconds",
        "turn_timeout_seconds",
    }
)


@dataclass(frozen=True, slots=True)
class Reloading:
    """How a server is told that its settings have changed.

    Attributes:
        asked: Set when they are to be read again.
        read: Reads them; raises ValidationError. Runs in a thread.
    """

    asked: asyncio.Event
    read: Callable[[], Settings]

    async def next(self, settings: Settings) -> Settings:
        """Wait until there are others, and return what is true from now on.

        Those that cannot change while the server runs stay as they are, and are named in the log;
        so does everything when anything is wrong.
        """
        while True:
            await self.asked.wait()
            self.asked.clear()
            try:
                return _merged(settings, await asyncio.to_thread(self.read))
            except ValidationError as error:
                logger.error("the settings stay as they are: %s", error)


def _merged(old: Settings, new: Settings) -> Settings:
    names = {field.name for field in dataclasses.fields(old)}
    changed = {name for name in names if getattr(old, name) != getattr(new, name)}
    if later := changed - LIVE_SETTINGS:
        logger.warning("these settings change with the next start: %s", ", ".join(sorted(later)))
    now = changed & LIVE_SETTINGS
    logger.info("settings read again; changed: %s", ", ".join(sorted(now)) or "none")
    return dataclasses.replace(old, **{name: getattr(new, name) for name in now})
