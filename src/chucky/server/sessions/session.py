"""One conversation on the server: its inputs, its single running turn, its results."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from chucky import wire
from chucky.errors import ChuckyError
from chucky.server.admission import Grant
from chucky.server.auth import Identity
from chucky.server.engines.base import Answer, Content, Engine, SessionSpec
from chucky.server.ledger.accounts import Bill, amounts
from chucky.server.ledger.windows import iso_time
from chucky.server.sessions.capacity import TurnSlots
from chucky.server.sessions.content import checked_content
from chucky.server.sessions.log import Past, SessionLog, SessionRecord, Write
from chucky.server.sessions.mailbox import Mailbox, Outbox, Position
from chucky.server.sessions.memory import Keeper, SessionMemory
from chucky.server.sessions.results import init_message, result_message
from chucky.server.sessions.toolcalls import ToolCalls
from chucky.server.sessions.turn import RunningTurn, TurnPayer

logger = logging.getLogger("chucky.server")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a session may take at most.

    Attributes:
        turn_timeout_seconds: How long a turn may take.
        tool_timeout_seconds: How long a tool of its client may take.
        queued_inputs: How many messages may wait.
        frame_bytes: The largest frame its client may send.
        stall_timeout_seconds: How long a turn may run without anything happening.
        tail_seconds: How long what was sent is kept in memory after a turn.
        evict_after_seconds: After how long without a turn the conversation leaves memory.
    """

    turn_timeout_seconds: float
    tool_timeout_seconds: float
    queued_inputs: int
    frame_bytes: int
    stall_timeout_seconds: float
    tail_seconds: float
    evict_after_seconds: float


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
        return self._turn is not None or bool(self._inputs)

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
        past = past or Past(SessionRecord(self.session_id, *_owner(self.identity)))
        self._recall(past, grant)
        self._info = {
            "sessionId": self.session_id,
            "state": "ready",
            "messageCount": past.message_count,
            **_times(past.session),
            "model": grant.model.id,
            "tools": [tool.visible_name for tool in grant.tools],
            "capabilities": [
                each for each in wire.CAPABILITIES if each != wire.REPLAY or self._log is not None
            ],
            "ignored": list(grant.ignored),
            "notices": list(grant.notices),
            "maxFrameBytes": self._limits.frame_bytes,
            **({} if self._log is None else {"seq": self._log.last_seq}),
        }
        if self.is_replayed and self._log is not None and self._keeper is not None:
            self._mailbox.keep(
                self._log.last_seq,
                partial(self._keeper.complete, self.session_id),
                self._tool_calls.send_again,
            )
        await self._mailbox.send(wire.control_frame("session_info", self._info))

    @property
    def is_replayed(self) -> bool:
        """Whether its client can come back after its connection was lost."""
        return self.named(wire.REPLAY) and self._log is not None

    @property
    def is_new(self) -> bool:
        """Whether nothing has happened in it yet."""
        return self._log is not None and self._log.last_seq == 0

    @property
    def can_be_taken_up(self) -> bool:
        """Whether the client may do so now."""
        return self.is_replayed and self._stopped is None

    def detach(self, outbox: Outbox) -> None:
        """Go on without this connection."""
        self._mailbox.detach(outbox)

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
        self.session_id = session.session_id
        self._calls, self._spent_nanos = session.calls, session.spent_nanos
        if self._keeper is not None:
            self._log = SessionLog(session, self._keeper.post)
        self._memory.begin(past, self._log, partial(self._engine.open, self._spec(grant)))

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
        self._tool_calls.deliver(reply)

    def interrupt(self) -> None:
        """End the running turn now, or the one that is about to begin: the user wants it."""
        if self._turn is not None:
            self._turn.interrupt(_interrupted())
        else:
            self._interrupts_next = bool(self._inputs)

    def stop(self, error: ChuckyError, *, patience_seconds: float = 0.0) -> None:
        """End the running turn and every one that waits or comes with ``error``.

        Args:
            error: Why.
            patience_seconds: How long the running turn has to end by itself.
        """
        self._stopped = error
        if self.is_replayed:
            self._inputs.clear()  # see `submit`
        if self._turn is None:
            return
        if patience_seconds:
            asyncio.get_running_loop().call_later(patience_seconds, self._turn.interrupt, error)
        else:
            self._turn.interrupt(error)

    async def run(self) -> None:
        """Answer inputs, one after the other, until cancelled."""
        while True:
            while not self._inputs:
                self._idle.set()
                self._arrived.clear()
                await self._wait_for_input()
            await self._memory.come_back(self.session_id, self._inputs)
            if self._inputs:  # it may have been one that came before, or the session was stopped
                await self._take_turn()

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
            turn.payer.end()  # also of a turn whose client has left
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
            bill = await turn.payer.close(None if ending is None else finish)
        except ChuckyError as error:
            logger.error("session %s: %s", self.session_id, error)
            outcome = outcome if isinstance(outcome, ChuckyError) else error
            bill, result = Bill(turn.payer.charged_nanos), None
            if ending is not None:
                ending.post(finish(bill))
        else:
            if ending is not None:
                ending.note_written()
        self._log_warnings(bill)
        if result is None:
            result = {**self._result(turn, outcome, bill), **ids}
        self._calls += turn.meter.calls
        self._spent_nanos += bill.ai_nanos
        seq = None if ending is None else ending.seq
        await turn.send(result, wire.message_text(result), seq)

    def _abandon(self, turn: RunningTurn) -> None:
        """Log how a turn ended whose client has left."""
        if self._log is None or not self._log.runs_turn:
            return
        why = ChuckyError(
            "The client left before the turn had ended.", code="INTERRUPTED", reason="client_left"
        )
        bill = Bill(turn.payer.charged_nanos)
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
            raise _interrupted()
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

    def _spec(self, grant: Grant) -> SessionSpec:
        # The provider wants to tell users apart, but need not learn who they are.
        user = f"{self.identity.project_id}\n{self.identity.user_id}".encode()
        return SessionSpec(
            model=grant.model,
            system_prompt=grant.system_prompt,
            tools=grant.tools,
            include_partial_messages=grant.include_partial_messages,
            caller=f"user_{hashlib.sha256(user).hexdigest()}_session_{self.session_id}",
            project_id=self.identity.project_id,
            fallback_model=grant.fallback_model,
            max_thinking_tokens=grant.max_thinking_tokens,
            output_schema=grant.output_schema,
            betas=grant.betas,
        )

    def _log_warnings(self, bill: Bill) -> None:
        for standing in bill.standings:
            if percent := bill.reached_percent(standing):
                logger.warning(
                    "session %s: %d %% of the %s budget of the %s is spent: %s in this %s",
                    self.session_id,
                    percent,
                    standing.meter,
                    standing.limit.scope,
                    amounts(standing),
                    standing.limit.window,
                )

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


def _interrupted() -> ChuckyError:
    return ChuckyError("The turn was interrupted.", code="INTERRUPTED", reason="interrupted")


def _owner(identity: Identity) -> tuple[str, str]:
    return identity.project_id, identity.user_id


def _times(session: SessionRecord) -> dict[str, Any]:
    """What `session_info` says of a session that was there before."""
    if not session.created_ms:
        return {}
    return {
        "createdAt": iso_time(session.created_ms),
        "lastActivityAt": iso_time(session.active_ms),
    }
