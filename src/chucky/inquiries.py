"""What a client asks its server about sessions, beside the turns."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from chucky import wire
from chucky.errors import ChuckyError, ChuckyTimeoutError, ProtocolError, error_from_wire

_ANSWER_BY_ACTION = {wire.LIST_SESSIONS: "sessions", wire.HISTORY: "messages"}

Answer = tuple[list[dict[str, Any]], int | None]
"""What was asked for, and where there is more of it: None if this is all."""


@dataclass(frozen=True)
class SessionSummary:
    """One of a user's sessions, as ``client.list_sessions()`` returns it.

    Attributes:
        session_id: Its id; ``client.resume_session(…)`` goes on with it.
        forked_from: The session it is a copy of; None for none.
        model: The model that was used last.
        created_at: When it was created, in UTC.
        last_activity_at: When something happened in it last.
        is_running: Whether a turn is running.
        turns: How many turns have ended.
        num_turns: How often the model has answered, as in results.
        total_cost_usd: What that cost, in US dollars, as in results.
    """

    session_id: str
    forked_from: str | None
    model: str
    created_at: datetime
    last_activity_at: datetime
    is_running: bool
    turns: int
    num_turns: int
    total_cost_usd: float

    @classmethod
    def from_wire(cls, said: Mapping[str, Any]) -> SessionSummary:
        """Read what a server says of a session.

        Raises:
            ProtocolError: Something is missing or wrong.
        """
        try:
            return cls(
                session_id=str(said["sessionId"]),
                forked_from=said.get("forkedFrom"),
                model=str(said["model"]),
                created_at=datetime.fromisoformat(said["createdAt"]),
                last_activity_at=datetime.fromisoformat(said["lastActivityAt"]),
                is_running=bool(said["isRunning"]),
                turns=int(said["turns"]),
                num_turns=int(said["numTurns"]),
                total_cost_usd=float(said["totalCostUsd"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(
                f"The server describes a session in a wrong way: {error}."
            ) from None


class Inquiries:
    """The questions of one connection that wait for their answers."""

    def __init__(self, timeout: float) -> None:
        """Prepare; an answer may take ``timeout`` seconds."""
        self._timeout = timeout
        self._waiting: dict[str, asyncio.Future[Answer]] = {}

    async def ask(
        self, send: Callable[[str], Awaitable[None]], action: str, data: Mapping[str, Any]
    ) -> Answer:
        """Ask, and wait for the answer.

        Args:
            send: Sends a frame.
            action: What is asked.
            data: More about that.

        Raises:
            ChuckyTimeoutError: There is no answer in time.
            ChuckyError: The server refuses, or the connection has ended.
        """
        request_id = str(uuid.uuid4())
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        try:
            async with asyncio.timeout(self._timeout):
                await send(wire.control_frame(action, {"requestId": request_id, **data}))
                return await answer
        except TimeoutError:
            raise ChuckyTimeoutError(
                f"The server did not answer {action!r} within {self._timeout:g} s."
            ) from None
        finally:
            del self._waiting[request_id]

    def answer(self, action: str, data: Mapping[str, Any]) -> None:
        """Hand in an answer; one that nobody waits for is dropped."""
        waiting = self._waiting.get(str(data.get("requestId")))
        if waiting is None or waiting.done():
            return
        error, found = data.get("error"), data.get(_ANSWER_BY_ACTION[action])
        following = data.get("next")
        if isinstance(error, Mapping):
            waiting.set_exception(error_from_wire(error))
        elif isinstance(found, list) and all(isinstance(each, dict) for each in found):
            waiting.set_result((found, following if isinstance(following, int) else None))
        else:
            waiting.set_exception(ProtocolError(f"The server's answer to {action!r} is none."))

    def fail(self, error: ChuckyError) -> None:
        """Let everybody who waits know that there will be no answer."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)
