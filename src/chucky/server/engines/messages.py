"""The in-process engine: a loop on the Messages API whose tools run in the client."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from chucky.errors import ChuckyError
from chucky.server.engines.base import (
    Answer,
    Content,
    Memory,
    SessionSpec,
    ToolOutcome,
    ToolSpec,
    Turn,
)
from chucky.server.engines.compaction import (
    FULL_PERCENT,
    as_first_message,
    asked_for_compaction,
    compaction_request,
)
from chucky.server.engines.history import EPHEMERAL, INTERRUPTED_TOOL, Blocks, History
from chucky.server.engines.reply import Reply
from chucky.server.engines.structured import NonConformingError, OutputSchema
from chucky.server.engines.thinking import thinking_param
from chucky.server.model.catalog import Model
from chucky.server.model.gate import Gate
from chucky.server.model.meter import Meter
from chucky.server.model.payment import CutShortError
from chucky.server.model.upstream import UpstreamError

logger = logging.getLogger("chucky.server")

# What is asked for when nothing else limits an answer.
DEFAULT_MAX_TOKENS = 32_000
# How often the model may correct an answer that does not conform to the schema asked for.
MAX_CORRECTIONS = 1

_FIRST_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 20.0

_INTERRUPTED = ToolOutcome([{"type": "text", "text": INTERRUPTED_TOOL}], is_error=True)


class MessagesEngine:
    """Answers by calling the model until it calls no more tools."""

    def __init__(self, gate: Gate, *, attempts: int) -> None:
        """Make an engine.

        Args:
            gate: The way to the model.
            attempts: How often one model call is made at most, when it fails in a way that may
                pass (rate limits, overload, a broken connection).
        """
        self._gate = gate
        self._attempts = attempts

    def open(self, spec: SessionSpec, memory: Memory) -> MessagesConversation:
        """Begin a conversation, or go on with the one that the memory has."""
        return MessagesConversation(self._gate, self._attempts, spec, memory)


class MessagesConversation:
    """What the model has seen of one session, and how the next answer is made."""

    def __init__(self, gate: Gate, attempts: int, spec: SessionSpec, memory: Memory) -> None:
        self._gate = gate
        self._attempts = attempts
        self._spec = spec
        self._tools = {tool.visible_name: tool for tool in spec.tools}
        self._schema = None if spec.output_schema is None else OutputSchema(spec.output_schema)
        self._history = History.recalled(memory.steps, memory.note)
        self._model = spec.model  # the one that answers now

    async def answer(self, content: Content, turn: Turn) -> Answer:
        """Answer one user message; see :class:`~chucky.server.engines.base.Conversation`.

        A turn that fails before the model said anything, or because the provider rejects the
        conversation, is forgotten, so that the session stays usable. Otherwise what was said
        and done stays.
        """
        self._model = self._spec.model
        wish = asked_for_compaction(content)
        if wish is not None:
            return await self._compact_as_asked(wish, turn)
        message = self._history.add_user(_blocks(content))
        try:
            return await self._loop(turn)
        except ChuckyError as error:
            if self._history.ends_with(message) or getattr(error, "rejected", False):
                self._history.forget_from(message)
            raise

    async def _loop(self, turn: Turn) -> Answer:
        corrections = MAX_CORRECTIONS
        while True:
            reply = await self._call_model(turn)
            if calls := reply.tool_uses():
                await self._run_tools(calls, turn)
                continue
            try:
                return await self._final_answer(reply)
            except NonConformingError as fault:
                if not corrections:
                    raise
                corrections -= 1
                self._history.add_user(_blocks(fault.as_message()))

    async def _final_answer(self, reply: Reply) -> Answer:
        text = reply.text()
        if self._schema is None:
            return Answer(text, self._model.id, reply.stop_reason)
        if reply.stop_reason == "max_tokens":
            raise _unusable(
                "output_limit_reached",
                "The answer reached the model's output limit before its JSON was complete; ask for "
                "less at once.",
            )
        return Answer(text, self._model.id, reply.stop_reason, await self._schema.read(text))

    async def _call_model(self, turn: Turn) -> Reply:
        """Get one message of the model, making room for it where the window is full."""
        if self._history.context_tokens * 100 >= self._model.context_tokens * FULL_PERCENT:
            await self._compact("auto", turn)
        try:
            reply = await self._ask(self._answer_request, turn)
        except UpstreamError as error:
            if error.reason != "context_window_exceeded" or not await self._compact("auto", turn):
                raise
            reply = await self._ask(self._answer_request, turn)
        await self._keep(reply, turn)
        return reply

    async def _ask(
        self, request: Callable[[Model], dict[str, Any]], turn: Turn, *, aside: bool = False
    ) -> Reply:
        """Make a call, again when that may help, at last to the fallback model.

        Args:
            request: Makes the request for a model.
            turn: Pays for it.
            aside: Whether it is no part of the conversation: nothing of it is shown or kept.
        """
        shows = self._spec.include_partial_messages and not aside
        attempt = 0
        while True:
            attempt += 1
            reply = Reply()
            try:
                await self._stream(reply, request(self._model), turn, shows=shows, aside=aside)
            except UpstreamError as error:
                # What the client has seen of an answer must not come a second time.
                if not error.retryable or (shows and reply.blocks):
                    raise
                pause_seconds = _pause_seconds(error, attempt)
                if attempt < self._attempts and pause_seconds <= _LONGEST_RETRY_SECONDS:
                    await asyncio.sleep(pause_seconds)
                elif self._fall_back(error):
                    attempt = 0
                else:
                    raise
            except asyncio.CancelledError:
                if not aside:
                    self._keep_interrupted(reply)
                raise
            else:
                return reply

    def _fall_back(self, error: UpstreamError) -> bool:
        """For the rest of the turn, ask the fallback model; False if there is none (left)."""
        fallback = self._spec.fallback_model
        if fallback is None or fallback is self._model:
            return False
        logger.warning("%s: %s; %s answers", self._spec.caller, error, fallback.id)
        self._model = fallback
        return True

    async def _stream(
        self, reply: Reply, request: dict[str, Any], turn: Turn, *, shows: bool, aside: bool
    ) -> None:
        used = Meter()
        call = self._gate.call(
            self._model,
            request,
            used,
            payer=turn.payer,
            project_id=self._spec.project_id,
            betas=self._spec.betas,
            is_aside=aside,
        )
        try:
            async with aclosing(call) as events:
                async for event in events:
                    reply.feed(event)
                    turn.progressed()
                    if shows:
                        await turn.emit_event(event.text)
        except CutShortError as error:
            reply.cut_short = error
        finally:
            turn.meter.add(used)
            reply.context_tokens = used.usage.prompt_tokens + used.usage.output_tokens

    async def _keep(self, reply: Reply, turn: Turn) -> None:
        if reply.cut_short is not None:
            self._keep_interrupted(reply)
            if text := reply.text():
                await turn.emit(_message("assistant", [{"type": "text", "text": text}]))
            reply.cut_short.text = text
            raise reply.cut_short
        if reply.stop_reason == "refusal":
            raise _unusable("model_refused", "The model declined to answer.")
        if reply.stop_reason == "model_context_window_exceeded":
            raise _unusable(
                "context_window_exceeded",
                "The answer no longer fits the model's context; ask again, and the conversation "
                "will be summarised first.",
            )
        if reply.has_broken_tool_use():
            raise _unusable(
                "output_limit_reached",
                "The answer reached the model's output limit in the middle of a tool call; ask "
                "for less at once.",
            )
        if reply.blocks:
            self._history.add_assistant(reply.blocks, self._model.id, reply.context_tokens)
        if shown := reply.shown():
            await turn.emit(_message("assistant", shown))

    def _keep_interrupted(self, reply: Reply) -> None:
        """Let the model remember what it had said; half a thought or tool call is no message."""
        if text := reply.text().strip():
            self._history.add_assistant(
                [{"type": "text", "text": text}], self._model.id, reply.context_tokens
            )

    async def _compact_as_asked(self, wish: str, turn: Turn) -> Answer:
        if await self._compact("manual", turn, wish):
            text = "The conversation so far was summarised; it goes on from the summary."
        else:
            text = "There is nothing to summarise yet."
        return Answer(text, self._model.id, "end_turn")

    async def _compact(self, trigger: str, turn: Turn, wish: str = "") -> bool:
        """Put a summary in the place of the conversation; False if that would gain nothing."""
        whole = trigger == "manual"
        beginning = self._history.copy() if whole else self._history.beginning()
        if not beginning.is_worth_a_summary:
            return False

        def request(model: Model) -> dict[str, Any]:
            asked = beginning.copy()
            asked.add_user(_blocks(compaction_request(wish)))
            return self._request(model, asked)

        reply = await self._ask(request, turn, aside=True)
        if reply.cut_short is not None:
            raise reply.cut_short
        summary = reply.text().strip()
        if not summary:
            raise _unusable(
                "compaction_failed",
                "The conversation fills the model's context, and the model made no summary of it; "
                "start a new session.",
            )
        pre_tokens = self._history.context_tokens
        self._history.replace(beginning, as_first_message(summary))
        await turn.emit(_compact_boundary(trigger, pre_tokens))
        return True

    async def _run_tools(self, calls: list[dict[str, Any]], turn: Turn) -> None:
        """Run the calls side by side; each gets a result, whatever happens."""
        outcomes: dict[str, ToolOutcome] = {}

        async def run(call: dict[str, Any]) -> None:
            outcomes[call["id"]] = await self._run_tool(call, turn)

        try:
            async with asyncio.TaskGroup() as tasks:
                for call in calls:
                    tasks.create_task(run(call))
        finally:
            # Also when interrupted: the API refuses a call that has no result after it.
            results = [_tool_result(call, outcomes.get(call["id"], _INTERRUPTED)) for call in calls]
            self._history.add_user(results)
        await turn.emit(_message("user", results))

    async def _run_tool(self, call: dict[str, Any], turn: Turn) -> ToolOutcome:
        tool = self._tools.get(call["name"])
        if tool is None:
            text = f"There is no tool named {call['name']!r}."
            return ToolOutcome([{"type": "text", "text": text}], is_error=True)
        return await turn.call_tool(tool, call["input"], call["id"])

    def _answer_request(self, model: Model) -> dict[str, Any]:
        request = self._request(model, self._history)
        if self._schema is not None and (param := self._schema.param):
            request["output_config"] = param
        return request

    def _request(self, model: Model, history: History) -> dict[str, Any]:
        spec = self._spec
        thinking = thinking_param(model, spec.max_thinking_tokens)
        budget_tokens = (thinking or {}).get("budget_tokens", 0)
        request: dict[str, Any] = {
            "model": model.id,
            "max_tokens": min(DEFAULT_MAX_TOKENS + budget_tokens, model.max_output_tokens),
            "messages": history.messages(model.id),
            "metadata": {"user_id": spec.caller},
        }
        if system := self._system():
            request["system"] = system
        if spec.tools:
            request["tools"] = [_tool_param(tool) for tool in spec.tools]
        if thinking is not None:
            request["thinking"] = thinking
        return request

    def _system(self) -> Blocks:
        instruction = None if self._schema is None else self._schema.instruction
        texts = [text for text in (self._spec.system_prompt, instruction) if text]
        blocks: Blocks = [{"type": "text", "text": text} for text in texts]
        if blocks:
            blocks[-1]["cache_control"] = EPHEMERAL
        return blocks


def _blocks(content: Content) -> Blocks:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _tool_param(tool: ToolSpec) -> dict[str, Any]:
    return {
        "name": tool.visible_name,
        "description": tool.description,
        "input_schema": tool.input_schema,
    }


def _tool_result(call: dict[str, Any], outcome: ToolOutcome) -> dict[str, Any]:
    result: dict[str, Any] = {
        "type": "tool_result",
        "tool_use_id": call["id"],
        "content": outcome.content,
    }
    if outcome.is_error:
        result["is_error"] = True
    return result


def _message(role: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": role,
        "message": {"role": role, "content": content},
        "parent_tool_use_id": None,
    }


def _compact_boundary(trigger: str, pre_tokens: int) -> dict[str, Any]:
    return {
        "type": "system",
        "subtype": "compact_boundary",
        "compact_metadata": {"trigger": trigger, "pre_tokens": pre_tokens},
    }


def _unusable(reason: str, sentence: str) -> ChuckyError:
    return ChuckyError(sentence, code="MODEL_ERROR", reason=reason)


def _pause_seconds(error: UpstreamError, attempt: int) -> float:
    """How long to wait before the next attempt: what the provider asked for, else doubling.

    The jitter keeps many sessions that failed together from coming back together.
    """
    if error.retry_after_seconds is not None:
        return error.retry_after_seconds
    pause: float = min(_FIRST_RETRY_SECONDS * 2 ** (attempt - 1), _LONGEST_RETRY_SECONDS)
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - not for secrets
    return pause * jitter
