"""The register of the sessions that are open in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

from chucky.errors import ChuckyError, ConcurrencyLimitError, SessionError
from chucky.server.auth import Identity
from chucky.server.policy import ProjectPolicy

# How long a session may take to end that goes on on another connection.
TAKE_OVER_SECONDS = 10.0


class Attached(Protocol):
    """An open session, as the register sees it."""

    @property
    def identity(self) -> Identity:
        """Whose session it is."""
        ...

    @property
    def session_id(self) -> str:
        """Its id."""
        ...

    def stop(self, error: ChuckyError) -> None:
        """End it: ``error`` is the result of a running turn, and what the client is told."""
        ...


class Registry:
    """Counts open sessions by user and finds them again."""

    def __init__(
        self, *, sessions_per_user: int, policy_of: Callable[[Identity], ProjectPolicy]
    ) -> None:
        """Make an empty register.

        Args:
            sessions_per_user: How many sessions one user may have open.
            policy_of: Gives the policy of an identity's project, which may allow fewer.
        """
        self._sessions_per_user = sessions_per_user
        self._policy_of = policy_of
        self._by_user: dict[tuple[str, str], set[Attached]] = {}
        self._gone: dict[Attached, asyncio.Event] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return sum(map(len, self._by_user.values()))

    def __iter__(self) -> Iterator[Attached]:
        return iter([each for sessions in self._by_user.values() for each in sessions])

    def add(self, attached: Attached) -> None:
        """Enter a session.

        Raises:
            ConcurrencyLimitError: The user or the project has as many open as it may have.
        """
        identity = attached.identity
        policy = self._policy_of(identity)
        of_user = len(self._by_user.get(_user(identity), ()))
        _check(of_user, self._sessions_per_user, "close one and try again")
        _check(of_user, policy.max_user_sessions, "close one and try again")
        if policy.max_sessions is not None:
            of_project = sum(
                len(sessions)
                for (project_id, _), sessions in self._by_user.items()
                if project_id == identity.project_id
            )
            _check(of_project, policy.max_sessions, "try again when others have ended")
        self._by_user.setdefault(_user(identity), set()).add(attached)
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
        if (gone := self._gone.pop(attached, None)) is not None:
            gone.set()

    async def take_over(self, identity: Identity, session_id: str) -> None:
        """End a session of this user that is open on another connection, and wait until it has."""
        for attached in list(self._by_user.get(_user(identity), ())):
            if attached.session_id == session_id:
                gone = self._gone.setdefault(attached, asyncio.Event())
                attached.stop(
                    SessionError(
                        "The session goes on on another connection.", reason="session_taken_over"
                    )
                )
                async with asyncio.timeout(TAKE_OVER_SECONDS):
                    await gone.wait()

    async def wait_empty(self) -> None:
        """Wait until no session is open."""
        await self._empty.wait()


def _check(count: int, most: int | None, advice: str) -> None:
    if most is not None and count >= most:
        raise ConcurrencyLimitError(
            f"The maximum of concurrent sessions is reached ({count}/{most}); {advice}.",
            reason="concurrent_limit_reached",
            details={"spent": count, "limit": most, "resets_at": None},
        )


def _user(identity: Identity) -> tuple[str, str]:
    return identity.project_id, identity.user_id
