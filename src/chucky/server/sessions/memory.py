"""What a session has in memory of what was said, and how that leaves and comes back."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from chucky import wire
from chucky.errors import ChuckyError
from chucky.server.engines.base import Conversation, Memory
from chucky.server.sessions.log import Past, SessionLog, Write

logger = logging.getLogger("chucky.server")

# So many uuids of inputs are remembered, so that none starts a second turn.
_REMEMBERED_INPUTS = 1000

OpenConversation = Callable[[Memory], Conversation]
"""Begins a conversation, or goes on with the one that the memory has."""


class Keeper(Protocol):
    """Keeps the logs of sessions, as a session sees it."""

    @property
    def server_id(self) -> str:
        """What this server is called as the owner of sessions."""
        ...

    def post(self, session_id: str, write: Write) -> asyncio.Future[Any]:
        """Have something about a session written with the next commit."""
        ...

    async def complete(self, session_id: str, after_seq: int) -> list[tuple[int, str]]:
        """Read a session's next messages behind a number: numbers and JSON texts.

        Returns:
            Some of them; none when there are no more.

        Raises:
            ChuckyError: They cannot be read, or not be written before.
        """
        ...

    async def reread(self, session_id: str) -> Past:
        """Read again what an open session knows.

        Raises:
            ChuckyError: It cannot be read, or was deleted.
        """
        ...


class SessionMemory:
    """What a session knows: its conversation, and which inputs have come.

    For its engine it is the :class:`~chucky.server.engines.base.Memory` of the conversation.
    """

    def __init__(self, keeper: Keeper | None) -> None:
        """Know nothing.

        Args:
            keeper: Where it is read again; None where no log is kept, and nothing leaves.
        """
        self._keeper = keeper
        self._inputs: OrderedDict[str, None] = OrderedDict()
        self._steps: Sequence[dict[str, Any]] = ()
        self._log: SessionLog | None = None
        self._open: OpenConversation | None = None
        self._conversation: Conversation | None = None
        self._failure: ChuckyError | None = None

    def begin(
        self, past: Past, log: SessionLog | None, open_conversation: OpenConversation
    ) -> None:
        """Know what a session knows that begins or goes on.

        Args:
            past: What it knows.
            log: Where what the engine notes is kept; None if it is not.
            open_conversation: Has the engine make the conversation.
        """
        self._log, self._open = log, open_conversation
        self._recall(past)

    def _recall(self, past: Past) -> None:
        assert self._open is not None
        known = OrderedDict.fromkeys(past.inputs[-_REMEMBERED_INPUTS:])
        self._inputs = known | self._inputs
        self._steps = past.steps
        self._conversation = self._open(self)
        self._steps = ()  # the conversation has them now

    @property
    def steps(self) -> Sequence[dict[str, Any]]:
        """What the engine noted before; see :class:`~chucky.server.engines.base.Memory`."""
        return self._steps

    def note(self, step: dict[str, Any]) -> None:
        """Keep what the engine notes; see :class:`~chucky.server.engines.base.Memory`."""
        if self._log is not None:
            self._log.append("context", json.dumps(step, separators=(",", ":")))

    def conversation(self) -> Conversation:
        """The conversation.

        Raises:
            ChuckyError: It has left memory and could not be read again.
        """
        if self._conversation is None:
            assert self._failure is not None
            raise self._failure.with_traceback(None)
        return self._conversation

    def is_repeated(self, user_input: wire.UserInput) -> bool:
        """Whether an input came before; from now on it did."""
        if user_input.uuid is None:
            return False
        if user_input.uuid in self._inputs:
            return True
        self._inputs[user_input.uuid] = None
        if len(self._inputs) > _REMEMBERED_INPUTS:
            self._inputs.popitem(last=False)
        return False

    def leave(self) -> None:
        """Forget everything that can be read again; of a session that is new nothing can."""
        if self._log is not None and self._log.last_seq:
            self._conversation = None
            self._inputs = OrderedDict()

    async def come_back(self, session_id: str, waiting: list[wire.UserInput]) -> None:
        """Read again what has left, if it has; what fails is told by :meth:`conversation`.

        Args:
            session_id: The session.
            waiting: The inputs that came since; those are taken out that had come before.
        """
        if self._open is None or self._conversation is not None:
            return
        assert self._keeper is not None
        try:
            past = await self._keeper.reread(session_id)
        except ChuckyError as error:
            logger.error("session %s: not read again: %s", session_id, error)
            self._failure = error
            return
        known = set(past.inputs[-_REMEMBERED_INPUTS:])
        for repeated in [each for each in waiting if each.uuid in known]:
            waiting.remove(repeated)
        self._recall(past)
