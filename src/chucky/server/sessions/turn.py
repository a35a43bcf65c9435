"""One turn while it runs."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from chucky import wire
from chucky.errors import ChuckyError
from chucky.server.engines.base import Answer, ToolOutcome, ToolSpec
from chucky.server.ledger.accounts import Bill
from chucky.server.model.allowance import Allowance
from chucky.server.model.meter import Meter
from chucky.server.model.payment import Payer, Payment, Quote
from chucky.server.sessions.log import SessionLog, Write
from chucky.server.sessions.mailbox import Mailbox
from chucky.server.sessions.toolcalls import ToolCalls

logger = logging.getLogger("chucky.server")

# The published Python clients, which are the ones that speak the wrapped form, break off at a
# frame of more than 1 MiB and then wait for minutes. A frame is ASCII: a character is a byte.
_LONGEST_WRAPPED_FRAME = 1_000_000
_COUNTED_DIGITS = 12  # the last of the five parts of a UUID


class TurnPayer(Payer, Protocol):
    """Pays for a turn, as the session sees it."""

    @property
    def charged_nanos(self) -> int:
        """What its model calls have cost so far."""
        ...

    def overdue(self) -> ChuckyError | None:
        """The error of a turn whose time is over while it waits for money; None if it does not."""
        ...

    def end(self) -> None:
        """End the turn; what it has cost is written soon. Safe to call again."""
        ...

    async def close(self, finish: Callable[[Bill], Write] | None) -> Bill:
        """End the turn, and wait until all it has cost is written.

        Args:
            finish: Gives what is to be written with it. It is called in another thread.

        Raises:
            ChuckyError: It could not be written in time; it will be.
        """
        ...


@dataclass(frozen=True, slots=True)
class _HoldingPayer:
    """Pays for the model calls of a session that is still this server's, and for no other."""

    payer: Payer
    log: SessionLog

    @property
    def allowance(self) -> Allowance:
        return self.payer.allowance

    async def reserve(self, quote: Quote, *, is_final: bool) -> Payment | None:
        payment = await self.payer.reserve(quote, is_final=is_final)
        if payment is None:
            return None
        try:
            await self.log.hold()  # it was written with the reservation as a rule
        except BaseException:
            payment.void()
            raise
        return payment

    def calling(self) -> AbstractContextManager[None]:
        return self.payer.calling()

    def waiting(self) -> AbstractContextManager[None]:
        return self.payer.waiting()


OpenPayer = Callable[[str, Callable[[ChuckyError], None]], TurnPayer]
"""Makes the payer of the turn with an id, which may end the turn with an error."""


class RunningTurn:
    """What an engine sees of a session (:class:`~chucky.server.engines.base.Turn`).

    Attributes:
        turn_id: Its id.
        meter: Counts what its model calls use.
        account: What pays for it.
        payer: The same, as the engine sees it.
    """

    def __init__(
        self,
        session_id: str,
        user_input: wire.UserInput,
        mailbox: Mailbox,
        tool_calls: ToolCalls,
        open_payer: OpenPayer,
        log: SessionLog | None,
    ) -> None:
        self.turn_id = str(uuid.uuid4())
        self.meter = Meter()
        self.account = open_payer(self.turn_id, self.interrupt)
        self.payer: Payer = self.account if log is None else _HoldingPayer(self.account, log)
        self._session_id = session_id
        self._form = user_input.form
        self._mailbox = mailbox
        self._tool_calls = tool_calls
        self._log = log
        if log is not None:
            said = {"uuid": user_input.uuid, "content": user_input.content}
            text = json.dumps(said, separators=(",", ":"))
            log.begin_turn(self.turn_id, user_input.form.value, text)
        self._started_at = time.monotonic_ns()
        # A message gets an id of its own; one that is random in all its digits takes longer to
        # make than the rest of a partial message.
        self._id_prefix = self.turn_id[:-_COUNTED_DIGITS]
        self._ids = itertools.count()
        self._last_message_id = self.turn_id
        self._task: asyncio.Task[Any] | None = None
        self._interruption: ChuckyError | None = None
        self._steps = 0
        self._open_calls = 0

    @property
    def duration_ms(self) -> int:
        """Milliseconds since the turn began."""
        return (time.monotonic_ns() - self._started_at) // 1_000_000

    async def run(
        self,
        answering: Awaitable[Answer],
        *,
        timeout_seconds: float,
        stall_timeout_seconds: float,
    ) -> Answer:
        """Wait for the answer, for as long as it may take and until it is interrupted.

        Args:
            answering: Makes the answer.
            timeout_seconds: How long that may take.
            stall_timeout_seconds: How long nothing may happen meanwhile.

        Raises:
            ChuckyError: The turn took too long or was interrupted, or the answer failed so.
        """
        task = self._task = asyncio.current_task()
        assert task is not None
        self._look_after(stall_timeout_seconds / 2)
        try:
            async with asyncio.timeout(timeout_seconds) as limit:
                return await answering
        except TimeoutError:
            if not limit.expired():
                raise
            raise self.account.overdue() or ChuckyError(
                f"The turn took longer than this server allows ({timeout_seconds:g} s).",
                code="TIMEOUT",
                reason="turn_timeout",
            ) from None
        except asyncio.CancelledError:
            # An interruption is a cancellation of ours; any other one goes on outwards.
            if self._interruption is None or task.uncancel() > 0:
                raise
            raise self._interruption from None
        finally:
            self._task = None
            self._looking.cancel()

    def _look_after(self, seconds: float, last: tuple[int, int] = (-1, 0)) -> None:
        """Look again after a while; a turn in which nothing happens for two whiles is ended."""
        steps, idle_looks = last
        is_waiting = self._open_calls > 0 or self.account.overdue() is not None
        idle_looks = idle_looks + 1 if steps == self._steps and not is_waiting else 0
        if idle_looks == 2:
            logger.error("session %s: a turn hangs and is ended", self._session_id)
            self.interrupt(
                ChuckyError(
                    f"Nothing happened in the turn for {2 * seconds:g} s, so it was ended.",
                    code="TIMEOUT",
                    reason="turn_stalled",
                )
            )
            return
        loop = asyncio.get_running_loop()
        self._looking = loop.call_later(
            seconds, self._look_after, seconds, (self._steps, idle_looks)
        )

    def progressed(self) -> None:
        """Note that something happened: the model said something, a tool answered."""
        self._steps += 1

    def interrupt(self, error: ChuckyError) -> None:
        """End the turn with ``error``, unless it is over or being interrupted already."""
        if self._task is not None and self._interruption is None:
            self._interruption = error
            self._task.cancel()

    async def emit(self, message: dict[str, Any]) -> None:
        """Send a message of the agent, in the form of the input."""
        self.progressed()
        message = self.addressed(message)
        self._last_message_id = message["uuid"]
        text = wire.message_text(message)
        seq = None
        if self._log is not None:
            seq = self._log.append("message", text)
        await self.send(message, text, seq)

    def addressed(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message with its ids."""
        return {**message, "uuid": self._next_id(), "session_id": self._session_id}

    async def send(self, message: dict[str, Any], text: str, seq: int | None) -> None:
        """Send a message that is logged already.

        Args:
            message: The message, with its ids.
            text: The same as JSON text.
            seq: Its number in the log; None if there is no log.
        """
        frame = wire.message_frame(text, self._form)
        too_long = self._form is wire.Form.WRAPPED and len(frame) > _LONGEST_WRAPPED_FRAME
        if too_long and message["type"] == "user":
            # Only the echo to the client is shortened: its tool made the result, the model has it.
            frame = wire.message_frame(wire.message_text(_shortened(message)), self._form)
        await self._mailbox.deliver(frame, seq if self._form is wire.Form.FLAT else None)

    async def emit_event(self, event_json: str) -> None:
        """Send a partial message."""
        await self._mailbox.deliver_delta(
            wire.stream_event_frame(
                event_json,
                session_id=self._session_id,
                uuid=self._next_id(),
                form=self._form,
            )
        )

    async def call_tool(
        self, tool: ToolSpec, arguments: dict[str, Any], tool_use_id: str
    ) -> ToolOutcome:
        """Have the client run a tool."""
        call_id = call_id_of(self._last_message_id, tool_use_id)
        self._open_calls += 1
        try:
            with self.account.waiting():
                return await self._tool_calls.call(call_id, tool, arguments)
        finally:
            self._open_calls -= 1
            self.progressed()

    def _next_id(self) -> str:
        """A UUID whose last digits count what this turn has sent."""
        return f"{self._id_prefix}{next(self._ids):0{_COUNTED_DIGITS}x}"


def interrupted() -> ChuckyError:
    """The error of a turn that its user has ended."""
    return ChuckyError("The turn was interrupted.", code="INTERRUPTED", reason="interrupted")


def call_id_of(message_id: str, tool_use_id: str) -> str:
    """The id by which a client knows a tool call, which also another server can tell.

    Args:
        message_id: The uuid of the message that asks for it.
        tool_use_id: What the model calls it, which need not be unique in a session.
    """
    return str(uuid.uuid5(uuid.UUID(message_id), tool_use_id))


def _shortened(message: dict[str, Any]) -> dict[str, Any]:
    """The tool results of a message, a note about its size in place of each that is too large."""
    inner = message["message"]
    blocks = inner["content"]
    largest = (_LONGEST_WRAPPED_FRAME - 100_000) // len(blocks)  # the rest is for ids and notes
    shortened = [_noted(block, largest) for block in blocks]
    return {**message, "message": {**inner, "content": shortened}}


def _noted(block: dict[str, Any], largest: int) -> dict[str, Any]:
    size = len(json.dumps(block["content"]))
    if size <= largest:
        return block
    note = f"[{size} bytes of tool result, too many to be sent back; the model has read them all]"
    return {**block, "content": [{"type": "text", "text": note}]}
