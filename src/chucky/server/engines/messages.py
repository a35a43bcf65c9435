"""The in-process engine: a loop on the Messages API whose tools run in the client."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import Any

from chucky.errors import ChuckyError
from chucky.server.engines.base import Answer, Content, SessionSpec, ToolOutcome, ToolSpec, Turn
from chucky.server.engines.reply import Reply
from chucky.server.model.gate import Gate
from chucky.server.model.upstream import UpstreamError

# What is asked for when nothing else limits an answer.
DEFAULT_MAX_TOKENS = 32_000
# Ends a model that calls tools for ever, where neither client nor token set a limit.
MAX_CALLS_PER_TURN = 200

_FIRST_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 20.0

_EPHEMERAL = {"type": "ephemeral"}
_INTERRUPTED = ToolOutcome(
    [{"type": "text", "text": "The user interrupted the turn before this tool answered."}], True
)


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

    def open(self, spec: SessionSpec) -> MessagesConversation:
        """Begin a conversation."""
        return MessagesConversation(self._gate, self._attempts, spec)


class MessagesConversation:
    """What the model has seen of one session, and how the next answer is made."""

    def __init__(self, gate: Gate, attempts: int, spec: SessionSpec) -> None:
        self._gate = gate
        self._attempts = attempts
        self._spec = spec
        self._tools = {tool.visible_name: tool for tool in spec.tools}
        self._history: list[dict[str, Any]] = []

    async def answer(self, content: Content, turn: Turn) -> Answer:
        """Answer one user message; see :class:`~chucky.server.engines.base.Conversation`.

        A turn that fails before the model said anything, or because the provider rejects the
        conversation, is forgotten, so that the session stays usable. Otherwise what was said
        and done stays.
        """
        before = len(self._history)
        self._history.append({"role": "user", "content": _blocks(content)})
        try:
            return await self._loop(turn)
        except ChuckyError as error:
            said_something = len(self._history) > before + 1
            if not said_something or getattr(error, "rejected", False):
                del self._history[before:]
            raise

    async def _loop(self, turn: Turn) -> Answer:
        limit = self._spec.max_turns or MAX_CALLS_PER_TURN
        for _ in range(limit):
            reply = await self._call_model(turn)
            calls = reply.tool_uses()
            if not calls:
                return Answer(reply.text(), reply.stop_reason)
            await self._run_tools(calls, turn)
        raise ChuckyError(
            f"The answer was not finished after max_turns ({limit}) calls of the model; allow "
            "more, or ask for less at once.",
            code="MAX_TURNS",
            reason="max_turns_reached",
        )

    async def _call_model(self, turn: Turn) -> Reply:
        """Get one message of the model, calling again when that may help."""
        for attempt in range(1, self._attempts + 1):
            reply = Reply()
            try:
                await self._stream(reply, turn)
            except UpstreamError as error:
                pause_seconds = _pause_seconds(error, attempt)
                may_help = error.retryable and pause_seconds <= _LONGEST_RETRY_SECONDS
                if not may_help or attempt == self._attempts or self._was_shown(reply):
                    raise
                await asyncio.sleep(pause_seconds)
            except asyncio.CancelledError:
                self._keep_interrupted(reply)
                raise
            else:
                await self._keep(reply, turn)
                return reply
        raise AssertionError("the last attempt returns or raises")

    async def _stream(self, reply: Reply, turn: Turn) -> None:
        call = self._gate.call(
            self._spec.model,
            self._request(),
            turn.meter,
            project_id=self._spec.project_id,
            betas=self._spec.betas,
        )
        async with aclosing(call) as events:
            async for event in events:
                reply.feed(event.fields)
                if self._spec.include_partial_messages:
                    await turn.emit_event(event.text)

    def _was_shown(self, reply: Reply) -> bool:
        """Whether the client has seen output that a second attempt would repeat."""
        return self._spec.include_partial_messages and bool(reply.blocks)

    async def _keep(self, reply: Reply, turn: Turn) -> None:
        if reply.stop_reason == "refusal":
            raise _unusable("model_refused", "The model declined to answer.")
        if reply.stop_reason == "model_context_window_exceeded":
            raise _unusable(
                "context_window_exceeded",
                "The conversation no longer fits the model's context; start a new session.",
            )
        if reply.has_broken_tool_use():
            raise _unusable(
                "output_limit_reached",
                "The answer reached the model's output limit in the middle of a tool call; ask "
                "for less at once.",
            )
        if reply.blocks:
            self._history.append({"role": "assistant", "content": reply.blocks})
        if shown := reply.shown():
            await turn.emit(_message("assistant", shown))

    def _keep_interrupted(self, reply: Reply) -> None:
        """Let the model remember what it had said; half a thought or tool call is no message."""
        if text := reply.text().strip():
            blocks = [{"type": "text", "text": text}]
            self._history.append({"role": "assistant", "content": blocks})

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
            self._history.append({"role": "user", "content": results})
        await turn.emit(_message("user", results))

    async def _run_tool(self, call: dict[str, Any], turn: Turn) -> ToolOutcome:
        tool = self._tools.get(call["name"])
        if tool is None:
            text = f"There is no tool named {call['name']!r}."
            return ToolOutcome([{"type": "text", "text": text}], is_error=True)
        return await turn.call_tool(tool, call["input"])

    def _request(self) -> dict[str, Any]:
        spec = self._spec
        request: dict[str, Any] = {
            "model": spec.model.id,
            "max_tokens": min(DEFAULT_MAX_TOKENS, spec.model.max_output_tokens),
            "messages": _with_cache_mark(self._history),
            "metadata": {"user_id": spec.caller},
        }
        if spec.system_prompt:
            text = {"type": "text", "text": spec.system_prompt, "cache_control": _EPHEMERAL}
            request["system"] = [text]
        if spec.tools:
            request["tools"] = [_tool_param(tool) for tool in spec.tools]
        return request


def _blocks(content: Content) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _with_cache_mark(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation, marked so that the provider caches it up to its last message.

    The mark is put on a copy: in the history it would stay, and a request may have only four.
    """
    last = history[-1]
    *rest, final = last["content"]
    marked = [*rest, {**final, "cache_control": _EPHEMERAL}]
    return [*history[:-1], {**last, "content": marked}]


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
