"""The register of the sessions that are open in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from chucky.errors import ChuckyError, ConcurrencyLimitError, SessionError
from chucky.server.auth import Identity
from chucky.server.policy import ProjectPolicy
from chucky.server.sessions.capacity import server_full
from chucky.server.sessions.log import taken_over

if TYPE_CHECKING:
    from chucky.server.sessions.host import Running

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

    @property
    def is_connected(self) -> bool:
        """Whether its client is there; if not, it may come back."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether a turn is running or waiting. Without, and without a client, it is not needed."""
        ...

    @property
    def epoch(self) -> int:
        """The number by which it may be written; 0 where it may not yet."""
        ...

    def release(self) -> Running | None:
        """Give the session away to another connection, which goes on with it; None if it ends."""
        ...

    def stop(self, error: ChuckyError, *, patience_seconds: float = 0.0) -> None:
        """End it: ``error`` is the result of a running turn, and what the client is told.

        A running turn has ``patience_seconds`` to end by itself.
        """
        ...


class Registry:
    """Counts open sessions by user and finds them again."""

    def __init__(
        self,
        *,
        most: int,
        sessions_per_user: int,
        policy_of: Callable[[Identity], ProjectPolicy],
    ) -> None:
        """Make an empty register.

        Args:
            most: How many sessions may be open; may be changed.
            sessions_per_user: How many of them one user may have; may be changed.
            policy_of: Gives the policy of an identity's project, which may allow fewer.
        """
        self.most = most
        self.sessions_per_user = sessions_per_user
        self._policy_of = policy_of
        self._refusal: ChuckyError | None = None
        self._by_user: dict[tuple[str, str], set[Attached]] = {}
        self._gone: dict[Attached, asyncio.Event] = {}
        self._count = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Attached]:
        return iter([each for sessions in self._by_user.values() for each in sessions])

    def close(self, refusal: ChuckyError) -> None:
        """Let nobody in any more; ``refusal`` is what they are told."""
        self._refusal = refusal

    def add(self, attached: Attached, *, resumes: str = "") -> None:
        """Enter a session.

        Args:
            attached: The session.
            resumes: The id of a session that its client says it comes back for.

        Raises:
            ConcurrencyLimitError: The user or the project has as many open as it may have, or this
                server has.
            ChuckyError: The register is closed.
        """
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)
        # A client that comes back takes up a session that is counted already: whether this one may
        # begin another is asked when it says so. Its old connection may still look alive.
        self._check_room(
            attached.identity, lambda each: each.is_connected and each.session_id != resumes
        )
        if len(self) >= self.most and not self._find(attached.identity, resumes):
            raise server_full("sessions", self.most)
        self.enter(attached)

    def check_room(self, entered: Attached) -> None:
        """Check that a session that was entered may begin.

        Raises:
            ConcurrencyLimitError: With those whose clients are away there are too many.
        """
        self._check_room(
            entered.identity,
            lambda each: each is not entered and (each.is_connected or each.is_busy),
        )
        of_user = self.of_user(entered.identity)
        if len(of_user) > self.sessions_per_user:
            for each in of_user:
                if not (each.is_connected or each.is_busy):
                    each.stop(SessionError("Others have begun.", reason="session_taken_over"))

    def _check_room(self, identity: Identity, counts: Callable[[Attached], bool]) -> None:
        policy = self._policy_of(identity)
        of_user = sum(map(counts, self.of_user(identity)))
        for most in (self.sessions_per_user, policy.max_user_sessions):
            if most is not None and of_user >= most:
                raise _too_many(
                    of_user, most, "close one and try again", reason="concurrent_limit_reached"
                )
        if policy.max_sessions is not None:
            sessions = (each for each in self if each.identity.project_id == identity.project_id)
            of_project = sum(map(counts, sessions))
            if of_project >= policy.max_sessions:
                raise _too_many(
                    of_project,
                    policy.max_sessions,
                    "this application has as many as it may; try again when others have ended",
                    reason="developer_concurrent_limit_reached",
                )

    def enter(self, attached: Attached) -> None:
        """Enter a session that was let in before."""
        sessions = self._by_user.setdefault(_user(attached.identity), set())
        if attached not in sessions:
            sessions.add(attached)
            self._count += 1
        self._empty.clear()

    def of_user(self, identity: Identity) -> list[Attached]:
        """The open sessions of a user."""
        return list(self._by_user.get(_user(identity), ()))

    def remove(self, attached: Attached) -> None:
        """Strike a session out. Safe to call again."""
        user = _user(attached.identity)
        sessions = self._by_user.get(user, set())
        if attached in sessions:
            sessions.remove(attached)
            self._count -= 1
        if not sessions:
            self._by_user.pop(user, None)
        if not self._by_user:
            self._empty.set()
        if (gone := self._gone.pop(attached, None)) is not None:
            gone.set()

    async def take_over(self, identity: Identity, session_id: str) -> None:
        """End a session of this user that is open on another connection, and wait until it has.

        Raises:
            SessionError: It does not end in time.
        """
        try:
            async with asyncio.timeout(TAKE_OVER_SECONDS):
                # Again when others have waited for the same: it is now one of theirs.
                while (attached := self._find(identity, session_id)) is not None:
                    gone = self._gone.setdefault(attached, asyncio.Event())
                    attached.stop(taken_over())
                    await gone.wait()
        except TimeoutError:
            raise session_busy() from None

    def _find(self, identity: Identity, session_id: str) -> Attached | None:
        return self.find(_user(identity), session_id)

    def find(self, user: tuple[str, str], session_id: str) -> Attached | None:
        """The open session of a user (of a project) with this id."""
        sessions = self._by_user.get(user, ())
        return next((each for each in sessions if each.session_id == session_id), None)

    async def wait_empty(self) -> None:
        """Wait until no session is open."""
        await self._empty.wait()


def session_busy() -> SessionError:
    """The error of a session that is open elsewhere and not let go of."""
    return SessionError(
        "The session does not end on the connection where it is open; try again in a moment.",
        reason="session_busy",
    )


def _too_many(count: int, most: int, advice: str, *, reason: str) -> ConcurrencyLimitError:
    return ConcurrencyLimitError(
        f"The maximum of concurrent sessions is reached ({count}/{most}); {advice}.",
        reason=reason,
        details={"spent": count, "limit": most, "resets_at": None},
    )


def _user(identity: Identity) -> tuple[str, str]:
    return identity.project_id, identity.user_id
