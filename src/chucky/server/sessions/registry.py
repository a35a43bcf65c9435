"""The register of the sessions that are open in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Protocol

from chucky.errors import ChuckyError, ConcurrencyLimitError
from chucky.server.auth import Identity


class Attached(Protocol):
    """An open session, as the register sees it."""

    @property
    def identity(self) -> Identity:
        """Whose session it is."""
        ...

    def stop(self, error: ChuckyError) -> None:
        """End it: ``error`` is the result of a running turn, and what the client is told."""
        ...


class Registry:
    """Counts open sessions by user and finds them again."""

    def __init__(self, *, sessions_per_user: int) -> None:
        self._sessions_per_user = sessions_per_user
        self._by_user: dict[tuple[str, str], set[Attached]] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return sum(map(len, self._by_user.values()))

    def __iter__(self) -> Iterator[Attached]:
        return iter([each for sessions in self._by_user.values() for each in sessions])

    def add(self, attached: Attached) -> None:
        """Enter a session.

        Raises:
            ConcurrencyLimitError: The user has as many open as one may have.
        """
        sessions = self._by_user.setdefault(_user(attached.identity), set())
        if len(sessions) >= self._sessions_per_user:
            raise ConcurrencyLimitError(
                f"The maximum of concurrent sessions is reached ({len(sessions)}/"
                f"{self._sessions_per_user}); close one and try again.",
                reason="concurrent_limit_reached",
            )
        sessions.add(attached)
        self._empty.clear()

    def remove(self, attached: Attached) -> None:
        """Strike a session out."""
        user = _user(attached.identity)
        sessions = self._by_user.get(user, set())
        sessions.discard(attached)
        if not sessions:
            self._by_user.pop(user, None)
        if not self._by_user:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until no session is open."""
        await self._empty.wait()


def _user(identity: Identity) -> tuple[str, str]:
    return identity.project_id, identity.user_id
