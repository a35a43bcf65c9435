"""What the server knows of a project when it judges a token, and how it keeps knowing it.

The truth is in the store; :class:`ProjectDirectory` is a copy in memory, so that a token is
judged without a query, and follows the store within a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from chucky.errors import ChuckyError
from chucky.server.policy import ProjectPolicy

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProjectKey:
    """One live HMAC key of a project.

    Attributes:
        key_id: What the key is called where keys are listed, rotated and revoked.
        secret: The key itself, whole (``hk_live_…``). Never shown by ``repr``.

    Raises:
        ValueError: The secret is empty; anybody could sign with that.
    """

    key_id: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        if not self.secret:
            raise ValueError(f"The secret of the key {self.key_id!r} must not be empty.")


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """A key that a project brings along for a provider of models.

    Attributes:
        provider: The provider's name.
        secret: The key; None if what is stored cannot be opened. Never shown by ``repr``.
    """

    provider: str
    secret: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Project:
    """A project with the keys its tokens may be signed with.

    Attributes:
        project_id: The id; what a token's ``iss`` has to be.
        name: What its owner calls it.
        disabled: Whether every token of the project is refused.
        keys: The live keys, the likeliest first. Revoked keys are not among them.
        policy: What the operator decided for all its sessions.
        provider_keys: The keys it brings along for providers.
    """

    project_id: str
    name: str
    disabled: bool = False
    keys: tuple[ProjectKey, ...] = ()
    policy: ProjectPolicy = field(default_factory=ProjectPolicy)
    provider_keys: tuple[ProviderKey, ...] = ()

    def provider_key(self, provider: str) -> str | None:
        """The key it has for a provider; None if it has none.

        Raises:
            ChuckyError: It has one that cannot be opened.
        """
        for key in self.provider_keys:
            if key.provider == provider:
                if key.secret is None:
                    raise ChuckyError(
                        "The provider key of this project cannot be read; the server's log says "
                        "why.",
                        code="MODEL_ERROR",
                        reason="provider_key_unreadable",
                    )
                return key.secret
        return None


class ProjectStore(Protocol):
    """What the directory needs of a store. Both calls block, for milliseconds as a rule."""

    def load_all(self) -> Iterable[Project]:
        """Read every project, the disabled ones too, each with its live keys."""

    def change_counter(self) -> int:
        """Return a number, 0 or more, that differs from the last one after every write."""


class ProjectDirectory:
    """The projects as a running server knows them: lookups in memory, news within a second.

    When the store cannot be read, the last known projects stay valid for
    ``fail_closed_after_seconds``. After that no project is found any more, because a key that
    was revoked meanwhile must not go on working for ever, and :attr:`failure` says why. The
    directory keeps trying, and recovers by itself.

    Constructing one reads the store once and blocks for it: do it before the event loop
    runs, or in a thread.

    Args:
        store: Where the projects are kept.
        poll_seconds: How often :meth:`run` looks for news.
        fail_closed_after_seconds: For how long the last known projects are trusted while the
            store cannot be read.

    Raises:
        ChuckyError: The store cannot be read now.
    """

    def __init__(
        self,
        store: ProjectStore,
        poll_seconds: float = 0.5,
        fail_closed_after_seconds: float = 30.0,
    ) -> None:
        self._store = store
        self._poll_seconds = poll_seconds
        self._fail_closed_after_seconds = fail_closed_after_seconds
        self._callbacks: list[Callable[[], None]] = []
        self._refreshing = asyncio.Lock()
        self._failure: str | None = None
        self._failing_since: float | None = None
        self._counter, self._projects = self._read()

    @property
    def failure(self) -> str | None:
        """Why the store cannot be read at the moment; ``None`` while all is well."""
        return self._failure

    def lookup(self, project_id: str) -> Project | None:
        """Return the project with this id, also a disabled one, or ``None``."""
        return self._projects.get(project_id)

    def __iter__(self) -> Iterator[Project]:
        """All projects, the disabled ones too."""
        return iter(self._projects.values())

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called after every change of what :meth:`lookup` answers.

        It is called on the loop of :meth:`run` (or by the caller of :meth:`reload`) and must
        not block; typically it sets an event that wakes whoever closes sockets.
        """
        self._callbacks.append(callback)

    def reload(self) -> None:
        """Read the store now, for a change this process made itself. Blocks.

        Raises:
            ChuckyError: The store cannot be read; what was known stays known.
        """
        self._adopt(*self._read())

    async def refresh(self) -> None:
        """Look for news now, for whoever missed something.

        A store that cannot be read is no news here: :meth:`run` notices and deals with it.
        """
        try:
            async with self._refreshing:  # one thread at a time, however many ask
                news = await asyncio.to_thread(self._read_if_changed)
        except ChuckyError:
            return
        if news is not None:
            self._adopt(*news)

    async def run(self) -> None:
        """Follow the store until cancelled. Never raises for a store that cannot be read."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                news = await asyncio.to_thread(self._read_if_changed)
            except ChuckyError as error:
                self._note_failure(str(error))
            else:
                self._note_success()
                if news is not None:
                    self._adopt(*news)

    def _read(self) -> tuple[int, dict[str, Project]]:
        # The counter first: a write between the two reads is then seen by the next poll.
        counter = self._store.change_counter()
        return counter, {project.project_id: project for project in self._store.load_all()}

    def _read_if_changed(self) -> tuple[int, dict[str, Project]] | None:
        return None if self._store.change_counter() == self._counter else self._read()

    def _adopt(self, counter: int, projects: dict[str, Project]) -> None:
        self._counter = counter
        if projects == self._projects:
            return
        self._projects = projects
        for callback in self._callbacks:
            callback()

    def _note_failure(self, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
            _log.warning("projects cannot be read, the last known ones stay valid: %s", reason)
        self._failure = reason
        if self._projects and now - self._failing_since >= self._fail_closed_after_seconds:
            _log.error("projects cannot be read for too long, all are refused now: %s", reason)
            # No counter of a store is negative, so the first good poll reads everything again.
            self._adopt(-1, {})

    def _note_success(self) -> None:
        if self._failing_since is not None:
            _log.warning("projects can be read again")
            self._failing_since = None
            self._failure = None
