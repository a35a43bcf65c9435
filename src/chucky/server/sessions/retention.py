"""Deletes sessions that their projects do not want to keep for longer, a little at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from chucky.errors import ChuckyError

logger = logging.getLogger("chucky.server")

# How often old sessions are looked for.
_INTERVAL_SECONDS = 600.0
# One transaction does no more than this, and others get the database before the next.
_SESSIONS_AT_ONCE = 100
_EVENTS_AT_ONCE = 200
_PAUSE_SECONDS = 0.02

_DAY_MS = 86_400_000


class Deletable(Protocol):
    """Kept sessions, as they are deleted. Everything here blocks for a moment."""

    def disown_old(self, project_id: str, before_ms: int, most: int) -> int:
        """Make sessions ones that do not exist in which nothing happened since; how many?"""
        ...

    def sweep(self, most_events: int) -> bool:
        """Delete so much of what was disowned; False when there is nothing left."""
        ...


class Retention:
    """Keeps projects to their ``retentionDays``."""

    def __init__(
        self,
        kept: Deletable,
        days_by_project: Callable[[], Mapping[str, int]],
        clock_ms: Callable[[], int],
    ) -> None:
        """Prepare; nothing is deleted yet.

        Args:
            kept: The sessions.
            days_by_project: How long projects keep theirs; those that are not named for ever.
            clock_ms: The time, in milliseconds since 1970.
        """
        self._kept = kept
        self._days_by_project = days_by_project
        self._clock_ms = clock_ms

    async def run(self) -> None:
        """Delete what is old, until cancelled. A database that fails is tried again later."""
        while True:
            try:
                if count := await self.clean():
                    logger.info("sessions over their retention that were deleted: %d", count)
            except ChuckyError as error:
                logger.warning("old sessions could not be deleted: %s", error)
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def clean(self) -> int:
        """Delete everything that is old now, and what another deletion has left behind.

        Returns:
            How many sessions are old.

        Raises:
            ChuckyError: The database cannot be written.
        """
        count = 0
        for project_id, days in self._days_by_project().items():
            count += await self._disown(project_id, self._clock_ms() - days * _DAY_MS)
        is_left = True
        while is_left:
            is_left = await asyncio.to_thread(self._kept.sweep, _EVENTS_AT_ONCE)
            await asyncio.sleep(_PAUSE_SECONDS)
        return count

    async def _disown(self, project_id: str, before_ms: int) -> int:
        total = 0
        while True:
            count = await asyncio.to_thread(
                self._kept.disown_old, project_id, before_ms, _SESSIONS_AT_ONCE
            )
            total += count
            if count < _SESSIONS_AT_ONCE:
                return total
            await asyncio.sleep(_PAUSE_SECONDS)
