"""A session whose turn runs at another server, as the server sees it that has its client.

What happens is in the log, and is read there; what the client says travels as mail to the server
that runs the turn. Nothing is lost between the two, whichever of them dies.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from chucky import wire
from chucky.errors import ChuckyError, SessionError
from chucky.server.engines.base import ToolSpec
from chucky.server.sessions.archive import Archive
from chucky.server.sessions.log import Event, Past, taken_over
from chucky.server.sessions.mail import Kind
from chucky.server.sessions.turn import call_id_of

# How often the log is read.
LOOK_SECONDS = 0.1
# How often open tool calls are sent again: an answer may come before it is waited for.
CALL_AGAIN_SECONDS = 2.0

Send = Callable[[str], Awaitable[None]]
"""Sends a frame to the client."""


class Elsewhere:
    """Follows a session until its turn has ended; then it is this server's."""

    def __init__(self, archive: Archive, past: Past, tools: Sequence[ToolSpec]) -> None:
        """Prepare.

        Args:
            archive: Where the session is kept.
            past: The session, as it was a moment ago, and what its client has of it.
            tools: The tools that its client runs.
        """
        self._archive = archive
        self._session = past.session
        self._sent_seq = past.seen_seq
        self._read_seq = past.seen_seq - 1  # the last message may have open calls
        self._names = {tool.visible_name: tool.name for tool in tools}
        self._seat = str(uuid.uuid4())
        self._calls: dict[str, wire.ToolCall] = {}
        self._called_at = -CALL_AGAIN_SECONDS
        self._is_stopped = asyncio.Event()
        self._stopped: ChuckyError | None = None
        self._has_left = False

    async def follow(self, send: Send) -> Past:
        """Send what happens, and end when the session is this server's.

        Returns:
            The session.

        Raises:
            SessionError: Its client is on another connection now, or it was deleted.
            ChuckyError: It was stopped, or the store failed.
        """
        try:
            await self._archive.follow(self._session, self._seat)
            while (past := await self._step(send)) is None:
                await self._pause()
        except BaseException:
            self._tell("left" if self._has_left else "detached", seat=self._seat)
            raise
        return past

    async def _step(self, send: Send) -> Past | None:
        session = await self._archive.session(self._session.session_id)
        if session is None:
            raise SessionError("The session was deleted.", reason="session_not_found")
        if session.seat != self._seat:
            raise taken_over()
        self._session = session
        await self._send_new(send)
        if session.turn_id:
            await self._send_calls(send)
            return None
        past = await self._archive.own(session, self._seat)
        if past is not None:
            self._session = past.session
            await self._send_new(send)
        return past

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._is_stopped.wait()
        except TimeoutError:
            pass
        if self._stopped is not None:
            raise self._stopped

    async def _send_new(self, send: Send) -> None:
        if self._session.last_seq <= self._read_seq:
            return
        for event in await self._archive.events(self._session.session_id, self._read_seq):
            self._read_seq = event.seq
            if event.kind == "message":
                self._note_calls(event)
                if event.seq > self._sent_seq:
                    self._sent_seq = event.seq
                    await send(wire.numbered(event.body, event.seq))

    def _note_calls(self, event: Event) -> None:
        """Know which calls are open: those of the last message, until their results come."""
        self._calls.clear()
        self._called_at = -CALL_AGAIN_SECONDS
        match json.loads(event.body):
            case {
                "type": "assistant",
                "uuid": str(message_id),
                "message": {"content": list(blocks)},
            }:
                calls = (self._call(message_id, block) for block in blocks)
                self._calls = {call.call_id: call for call in calls if call is not None}

    def _call(self, message_id: str, block: dict[str, Any]) -> wire.ToolCall | None:
        match block:
            case {"type": "tool_use", "id": str(id_), "name": str(name), "input": dict(arguments)}:
                if name in self._names:
                    call_id = call_id_of(message_id, id_)
                    return wire.ToolCall(call_id, self._names[name], arguments)
        return None

    async def _send_calls(self, send: Send) -> None:
        """Send open calls, at last also those again that the client has: it runs none twice."""
        now = asyncio.get_running_loop().time()
        if self._calls and now - self._called_at >= CALL_AGAIN_SECONDS:
            self._called_at = now
            for call in self._calls.values():
                await send(wire.tool_call_frame(call))

    def deliver(self, reply: wire.ToolReply) -> None:
        """Pass on the answer to a tool call."""
        if reply.call_id in self._calls:
            self._tell("answer", callId=reply.call_id, result=reply.result)

    def interrupt(self) -> None:
        """Pass on that the user wants the turn to end."""
        self._tell("interrupt", turnId=self._session.turn_id)

    def stop(self, error: ChuckyError) -> None:
        """Follow no longer; :meth:`follow` raises ``error``."""
        self._stopped = error
        self._is_stopped.set()

    def leave(self) -> None:
        """Note that the client has closed the session, and not only lost its connection."""
        self._has_left = True

    def _tell(self, kind: Kind, **more: Any) -> None:
        self._archive.tell(self._session, kind, **more)
