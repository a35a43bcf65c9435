"""The decisions that the edge asks for and does not take itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from chucky import wire
from chucky.errors import ChuckyError
from chucky.server.admission import Grant
from chucky.server.auth import Identity
from chucky.server.sessions.log import Past
from chucky.server.sessions.mailbox import Outbox
from chucky.server.sessions.past import Resumption
from chucky.server.sessions.session import Session


class Recall(Protocol):
    """Finds the session that a client goes on with."""

    async def __call__(self, session: Session, asked: Resumption, *, follows: bool) -> Past:
        """See :meth:`~chucky.server.sessions.archive.Archive.recall`."""
        ...


@dataclass(frozen=True, slots=True)
class Doorkeeper:
    """Takes the decisions.

    Attributes:
        authenticate: Judges a token; raises AuthenticationError.
        open_session: Makes the session of an identity.
        admit: Decides on the options a client asks for.
        recall: Finds the session that a grant goes on with, or makes a new one; raises ChuckyError.
        holds: Whether a session that is open here is not another server's meanwhile.
        inquire: Makes the frame that answers a question about sessions; raises FrameError.
    """

    authenticate: Callable[[str], Awaitable[Identity]]
    open_session: Callable[[Identity, Outbox], Session]
    admit: Callable[[Identity, Mapping[str, Any]], Grant | ChuckyError]
    recall: Recall
    holds: Callable[[str], Awaitable[bool]]
    inquire: Callable[[Session, wire.Control], Awaitable[str]]
