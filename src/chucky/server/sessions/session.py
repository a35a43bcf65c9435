"""One conversation on the server: its inputs, its single running turn, its results."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from chucky import wire
from chucky.errors import ChuckyError
from chucky.server.admission import Grant
from chucky.server.auth import Identity
from chucky.server.engines.base import Answer, Content, Engine
from chucky.server.ledger.accounts import Bill
from chucky.server.sessions.capacity import TurnSlots
from chucky.server.sessions.content import checked_content
from chucky.server.sessions.elsewhere import Elsewhere
from chucky.server.sessions.limits import Limits
from chucky.server.sessions.log import Past, SessionLog, SessionRecord, Write, taken_over
from chucky.server.sessions.mailbox import Mailbox, Outbox, Position
from chucky.server.sessions.memory import Keeper, SessionMemory
from chucky.server.sessions.results import (
    init_message,
    log_warnings,
    result_message,
    session_info,
)
from chucky.server.sessions.spec import session_spec
from chucky.server.sessions.toolcalls import ToolCalls
from chucky.server.sessions.turn import RunningTurn, TurnPayer, interrupted

logger = logging.getLogger("chucky.server")


class Session:
    """A conversation of one user.

    Inputs queue and are answered one after the other; each gets exactly one result. ``run()``
    must be running for that.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        outbox: Outbox,
        engine: Engine,
        limits: Limits,
        recheck: Callable[[Identity], None],
        open_payer: Callable[[Session, str, Callable[[ChuckyError], None]], TurnPayer],
        turn_slots: TurnSlots,
        keeper: Keeper | None = None,
        follow: Callable[[Past, Grant], Elsewhere] | None = None,
    ) -> None:
        """Make a session; :meth:`begin` decides what it may do.

        Args:
            identity: Whose session it is.
            outbox: Where its frames go.
            engine: What answers.
            limits: What it may take at most.
            recheck: Raises AuthenticationError once an identity is no longer good.
            open_payer: Makes the payer of a turn of this session, of the turn's id and of what ends
                the turn when its compute is used up.
            turn_slots: How many turns may run beside each other.
            keeper: Keeps its log; None keeps none.
            follow: Follows a session whose turn runs at another server.
        """
        self.session_id = str(uuid.uuid4())
        self.identity = identity
        self._mailbox = Mailbox(outbox)
        self._engine = engine
        self._limits = limits
        self._recheck = recheck
        self._open_payer = partial(open_payer, self)
        self._turn_slots = turn_slots
        self._keeper = keeper
        self._server_id = "" if keeper is None else keeper.server_id
        self._follow = follow
        self._elsewhere: Elsewhere | None = None
        self._memory = SessionMemory(keeper)
        self._log: SessionLog | None = None
        self._tool_calls = ToolCalls(
            lambda call: self._mailbox.send_passing(wire.tool_call_frame(call)),
            timeout_seconds=limits.tool_timeout_seconds,
        )
        self._inputs: list[wire.UserInput] = []  # few; an empty deque takes 760 bytes
        self._arrived = asyncio.Event()
        self._grant: Grant | ChuckyError | None = None
        self._info: dict[str, Any] = {}
        self._capabilities: frozenset[str] = frozenset()
        self._turn: RunningTurn | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._calls = 0
        self._spent_nanos = 0
        self._announced = False
        self._stopped: ChuckyError | None = None
        self._interrupts_next = False

    @property
    def grant(self) -> Grant | None:
        """What it may do; None before that is settled, and where it may do nothing."""
        return self._grant if isinstance(self._grant, Grant) else None

    @property
    def refusal(self) -> ChuckyError | None:
        """Why it may do nothing; None before that is settled, and where it may do something."""
        return self._grant if isinstance(self._grant, ChuckyError) else None

    @property
    def begun(self) -> bool:
        """Whether the session's options are settled."""
        return self._grant is not None

    @property
    def busy(self) -> bool:
        """Whether a turn is running or waiting."""
        return self._turn is not None or bool(self._inputs) or self._elsewhere is not None

    def named(self, capability: str) -> bool:
        """Whether the client named an extension of ours."""
        return capability in self._capabilities

    async def begin(
        self, grant: Grant | ChuckyError, capabilities: frozenset[str], past: Past | None = None
    ) -> None:
        """Settle what the session may do.

        Args:
            grant: What it may do, or why it may do nothing.
            capabilities: The extensions its client named.
            past: The session it goes on with; None for a new one.

        A refusal is not sent at once: every client understands the result of a turn, while some
        would lose the text of an error, so it becomes the result of whatever is asked.
        """
        self._capabilities = capabilities
        self._grant = grant
        if isinstance(grant, ChuckyError):
            if self.named(wire.SESSIONS):  # it may ask for more than turns
                refused = {"state": "refused", "capabilities": list(wire.CAPABILITIES)}
                await self._mailbox.send(wire.control_frame("session_info", refused))
            return
        if past is None:
            user = self.identity.project_id, self.identity.user_id
            past = Past(SessionRecord(self.session_id, *user, owner=self._server_id))
        self.session_id = past.session.session_id
        if past.session.owner != self._server_id and self._follow is not None:
            self._elsewhere = self._follow(past, grant)
            self._idle.clear()
        else:
            self._recall(past, grant)
        self._info = session_info(past, grant, keeps_log=self._keeper is not None)
        self._info["maxFrameBytes"] = self._limits.frame_bytes
        await self._mailbox.send(wire.control_frame("session_info", self._info))

    @property
    def is_replayed(self) -> bool:
        """Whether its client can come back after its connection was lost."""
        return self.named(wire.REPLAY) and self._keeper is not None

    @property
    def epoch(self) -> int:
        """The number by which its log may be written; 0 before it may be."""
        return 0 if self._log is None else self._log.epoch

    @property
    def is_new(self) -> bool:
        """Whether nothing has happened in it yet."""
        return self._log is not None and self._log.last_seq == 0

    @property
    def can_be_taken_up(self) -> bool:
        """Whether the client may do so now."""
        return self.is_replayed and self._stopped is None and self._elsewhere is None

    def detach(self, outbox: Outbox, *, has_left: bool = False) -> None:
        """Go on without this connection, which its client may have closed."""
        self._mailbox.detach(outbox)
        if has_left and self._elsewhere is not None:
            self._elsewhere.leave()

    async def go_elsewhere(self) -> None:
        """Let the running turn go on for a client that is at another server now.

        What has not begun does not: the client sends it there.
        """
        self._inputs.clear()
        await self._tool_calls.send_again()

    async def take_up(
        self,
        identity: Identity,
        capabilities: frozenset[str],
        outbox: Outbox,
        after: Position,
    ) -> None:
        """Go on with another connection of the same client.

        Args:
            identity: What its token says.
            capabilities: The extensions it names.
            outbox: Where frames go from now on.
            after: The last message the client has.

        Raises:
            ChuckyError: What the client has missed cannot be read.
        """
        assert self._log is not None
        self.identity, self._capabilities = identity, capabilities
        info = {**self._info, "seq": self._log.last_seq}
        await outbox.send(wire.control_frame("session_info", info))
        await self.replay(outbox, after)

    async def replay(self, outbox: Outbox, after: Position) -> None:
        """Send what the client has not seen; see :meth:`take_up`."""
        assert self._log is not None
        self._announced = self._announced or after.seq > 0
        if after.seq > self._log.last_seq:
            # The log is an older one, put back from a backup; `seq` has told the client.
            after = Position(self._log.last_seq)
        await self._mailbox.attach(outbox, after)

    def abandon(self) -> None:
        """Go on without a client, which stayed away for too long."""
        self._tool_calls.abandon()

    def _recall(self, past: Past, grant: Grant) -> None:
        session = replace(past.session, model=grant.model.id)
        self._calls, self._spent_nanos = session.calls, session.spent_nanos
        if self._keeper is not None:
            self._log = SessionLog(session, self._keeper.post, self._lose)
            if self.is_replayed:
                complete = partial(self._keeper.complete, self.session_id)
                self._mailbox.keep(self._log.last_seq, complete, self._tool_calls.send_again)
        spec = session_spec(self.identity, self.session_id, grant)
        self._memory.begin(past, self._log, partial(self._engine.open, spec))

    def _lose(self) -> None:
        """End the running turn: the session is another server's now."""
        if self._turn is not None:
            self._turn.interrupt(taken_over())

    def submit(self, user_input: wire.UserInput) -> None:
        """Queue an input; the same uuid never starts a second turn.

        Raises:
            ChuckyError: Too many inputs wait already.
        """
        if self._stopped is not None and self.is_replayed:
            return  # the connection ends; the client sends on the next what was not answered here
        if self._memory.is_repeated(user_input):
            logger.info("session %s: an input came twice", self.session_id)
            return
        if len(self._inputs) >= self._limits.queued_inputs:
            raise ChuckyError(
                f"{self._limits.queued_inputs} messages wait for their turn already; wait for "
                "results before sending more.",
                code="RATE_LIMIT",
                reason="too_many_inputs",
            )
        self._inputs.append(user_input)
        self._idle.clear()
        self._arrived.set()

    def deliver(self, reply: wire.ToolReply) -> None:
        """Hand in the answer to a tool call."""
        if self._elsewhere is not None:
            self._elsewhere.deliver(reply)
        self._tool_calls.deliver(reply)

    def interrupt(self, turn_id: str | None = None) -> None:
        """End the running turn now, or the one that is about to begin: the user wants it.

        Args:
            turn_id: Only this one.
        """
        if self._elsewhere is not None:
            self._elsewhere.interrupt()
        elif turn_id is not None and (self._turn is None or self._turn.turn_id != turn_id):
            return
        elif self._turn is not None:
            self._turn.interrupt(interrupted())
        else:
            self._interrupts_next = bool(self._inputs)

    def stop(self, error: ChuckyError, *, patience_seconds: float = 0.0) -> None:
        """End the running turn and every one that waits or comes with ``error``.

        Args:
            error: Why.
            patience_seconds: How long the running turn has to end by itself.
        """
        self._stopped = error
        if self._elsewhere is not None:
            self._elsewhere.stop(error)
        if self.is_replayed:
            self._inputs.clear()  # see `submit`
        if self._turn is None:
            return
        if patience_seconds:
            asyncio.get_running_loop().call_later(patience_seconds, self._turn.interrupt, error)
        else:
            self._turn.interrupt(error)

    async def run(self) -> None:
        """Answer inputs, one after the other, until cancelled.

        Raises:
            ChuckyError: The session goes on elsewhere, or cannot be followed there.
        """
        try:
            if self._elsewhere is not None:
                await self._come_here(self._elsewhere)
            while self._log is None or not self._log.is_lost:
                while not self._inputs:
                    self._idle.set()
                    self._arrived.clear()
                    await self._wait_for_input()
                await self._memory.come_back(self.session_id, self._inputs)
                if self._inputs:  # it may have been one that came before, or was stopped
                    await self._take_turn()
            raise taken_over()
        finally:
            self._idle.set()

    async def _come_here(self, elsewhere: Elsewhere) -> None:
        """Follow a turn that runs at another server; what comes meanwhile is answered here."""
        past = await elsewhere.follow(self._mailbox.send)
        self._elsewhere = None
        assert self.grant is not None
        self._recall(past, self.grant)
        known = set(past.inputs)
        self._inputs = [each for each in self._inputs if each.uuid not in known]
        self._announced = True

    async def _wait_for_input(self) -> None:
        """Wait; there may be many sessions in which nothing happens, so that memory is left."""
        limits = self._limits
        for seconds, leave in (
            (limits.tail_seconds, self._mailbox.forget),
            (limits.evict_after_seconds - limits.tail_seconds, self.leave_memory),
        ):
            try:
                async with asyncio.timeout(max(0, seconds)):
                    await self._arrived.wait()
                    return
            except TimeoutError:
                if not self.busy:
                    leave()
        await self._arrived.wait()

    def leave_memory(self) -> None:
        """Forget what was said, if it can be read again; only while no turn runs or waits."""
        self._memory.leave()

    async def wait_idle(self) -> None:
        """Wait until every input has its result."""
        await self._idle.wait()

    async def _take_turn(self) -> None:
        user_input = self._inputs.pop(0)
        turn = self._turn = RunningTurn(
            self.session_id,
            user_input,
            self._mailbox,
            self._tool_calls,
            self._open_payer,
            self._log,
        )
        try:
            outcome = await self._outcome(turn, user_input.content)
            await self._end_turn(turn, outcome)
        except BaseException:
            self._abandon(turn)
            raise
        finally:
            turn.account.end()  # also of a turn whose client has left
            self._turn = None

    async def _end_turn(self, turn: RunningTurn, outcome: Answer | ChuckyError) -> None:
        """Have the result written together with the last of what the turn cost, and send it."""
        result: dict[str, Any] | None = None
        ids = turn.addressed({})
        ending = None if self._log is None else self._log.end_turn()

        def finish(bill: Bill) -> Write:
            nonlocal result
            # One that is written again, because nobody knows whether it was, is the same.
            result = result or {**self._result(turn, outcome, bill), **ids}
            assert ending is not None
            return ending.writing(wire.message_text(result), turn.meter.calls, bill.ai_nanos)

        try:
            bill = await turn.account.close(None if ending is None else finish)
        except ChuckyError as error:
            logger.error("session %s: %s", self.session_id, error)
            outcome = outcome if isinstance(outcome, ChuckyError) else error
            bill, result = Bill(turn.account.charged_nanos), None
            if ending is not None:
                ending.post(finish(bill))
        else:
            if ending is not None:
                ending.note_written()
        seq = None if ending is None else ending.seq
        if self._log is not None and self._log.is_lost:
            outcome, result, seq = taken_over(), None, None
        log_warnings(self.session_id, bill)
        if result is None:
            result = {**self._result(turn, outcome, bill), **ids}
        self._calls += turn.meter.calls
        self._spent_nanos += bill.ai_nanos
        await turn.send(result, wire.message_text(result), seq)

    def _abandon(self, turn: RunningTurn) -> None:
        """Log how a turn ended whose client has left."""
        if self._log is None or not self._log.runs_turn:
            return
        why = ChuckyError(
            "The client left before the turn had ended.", code="INTERRUPTED", reason="client_left"
        )
        bill = Bill(turn.account.charged_nanos)
        result = wire.message_text(turn.addressed(self._result(turn, why, bill)))
        ending = self._log.end_turn()
        ending.post(ending.writing(result, turn.meter.calls, bill.ai_nanos))

    async def _outcome(self, turn: RunningTurn, content: Content) -> Answer | ChuckyError:
        try:
            return await turn.run(
                self._answer(content, turn),
                timeout_seconds=self._limits.turn_timeout_seconds,
                stall_timeout_seconds=self._limits.stall_timeout_seconds,
            )
        except ChuckyError as error:
            return error
        except Exception:
            # The boundary between our own faults and the client: a turn always has a result,
            # and what went wrong inside is for the log and not for the client.
            logger.exception("session %s: a turn failed", self.session_id)
            return ChuckyError(
                "The server failed to answer; its log says why.",
                code="INTERNAL_ERROR",
                reason="internal_error",
            )

    async def _answer(self, content: Content, turn: RunningTurn) -> Answer:
        if self._stopped is not None:
            raise self._stopped
        if self._interrupts_next:
            self._interrupts_next = False
            raise interrupted()
        grant = self._grant
        if isinstance(grant, ChuckyError):
            raise grant
        assert grant is not None
        conversation = self._memory.conversation()
        self._recheck(self.identity)
        content = checked_content(content)
        if not self._announced:
            self._announced = True
            await turn.emit(init_message(grant))
        with self._turn_slots.taken():
            return await conversation.answer(content, turn)

    def _result(
        self, turn: RunningTurn, outcome: Answer | ChuckyError, bill: Bill
    ) -> dict[str, Any]:
        return result_message(
            outcome,
            bill,
            turn.meter,
            grant=self.grant,
            duration_ms=turn.duration_ms,
            calls_before=self._calls,
            nanos_before=self._spent_nanos,
            has_details=self.named(wire.RESULT_DETAILS),
        )
