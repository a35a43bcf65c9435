"""The offline model itself: what to answer to a checked request, by script or by rule."""

from __future__ import annotations

from dataclasses import dataclass

from chucky.jsontext import write_json
from chucky.offline.conversation import Conversation, ToolResult, bare_name
from chucky.offline.errors import ApiError
from chucky.offline.instances import build_instance
from chucky.offline.reply import (
    Reply,
    ReplyBlock,
    Text,
    Thinking,
    ToolUse,
    Usage,
    finish_reply,
    split_text,
)
from chucky.offline.request import MessagesRequest
from chucky.offline.rules import HONEST, find_answer
from chucky.offline.schemas import SchemaUnsupported
from chucky.offline.script import ScriptedCall, Step, StepMemory, find_script
from chucky.offline.tokens import count_input_tokens
from chucky.offline.toolcalls import (
    STRUCTURED_OUTPUT,
    build_call,
    calls_by_description,
    calls_by_name,
    forced_call,
    structured_output_tool,
)

MAX_RESULT_TEXT = 2_000


@dataclass(frozen=True, slots=True)
class Performance:
    """An answer and how it is to be delivered.

    Attributes:
        reply: The answer.
        delay_ms: Wait before the response begins.
        chunk_delay_ms: Wait between two deltas of a stream.
        error: The call fails with this error; in a stream, after the answer's deltas if
            ``speaks_first``, else instead of an answer.
        speaks_first: See ``error``.
        cut_after_chunks: The connection is dropped after this many deltas.
    """

    reply: Reply
    delay_ms: int = 0
    chunk_delay_ms: int = 0
    error: ApiError | None = None
    speaks_first: bool = False
    cut_after_chunks: int | None = None


class OfflineModel:
    """Answers requests; keeps nothing but which steps of scripts have failed."""

    def __init__(self) -> None:
        self._memory = StepMemory()

    def answer(self, request: MessagesRequest) -> Performance:
        """Answer a request.

        Raises:
            ApiError: The request's script is malformed, or it wants what cannot be made.
        """
        conversation = Conversation(request.messages)
        steps = find_script(conversation.prompt)
        if steps is None:
            blocks = _answer_by_rule(request, conversation)
            return Performance(finish_reply(request, blocks, _counted_usage(request)))
        turn = conversation.fingerprint(request.user_id)
        index = self._memory.next_step(turn, conversation.calls_made)
        if index >= len(steps):
            blocks = [Text(split_text(_no_such_step(index, len(steps))))]
            return Performance(finish_reply(request, blocks, _counted_usage(request)))
        performance = _perform(request, steps[index], index + 1)
        if steps[index].fails:
            self._memory.note_failure(turn, conversation.calls_made)
        return performance

    def count_tokens(self, request: MessagesRequest) -> int:
        """Count the input of a request; a script's next step may say what it is.

        Raises:
            ApiError: The request's script is malformed.
        """
        conversation = Conversation(request.messages)
        steps = find_script(conversation.prompt)
        if steps is not None:
            turn = conversation.fingerprint(request.user_id)
            index = self._memory.next_step(turn, conversation.calls_made)
            if index < len(steps) and steps[index].usage.input_tokens is not None:
                return _scripted_usage(request, steps[index]).total_input_tokens
        return count_input_tokens(request)


# --- By script ------------------------------------------------------------------------------------


def _perform(request: MessagesRequest, step: Step, number: int) -> Performance:
    blocks: list[ReplyBlock] = []
    if step.thinking:
        blocks.append(Thinking(split_text(step.thinking)))
    if step.text:
        blocks.append(Text(step.text))
    blocks.extend(_scripted_call(request, call, number) for call in step.tools)
    reply = finish_reply(
        request,
        blocks,
        _scripted_usage(request, step),
        output_tokens=step.usage.output_tokens,
        overrun=step.overrun,
    )
    return Performance(
        reply,
        delay_ms=step.delay_ms,
        chunk_delay_ms=step.chunk_delay_ms,
        error=step.error,
        speaks_first=step.text is not None,
        cut_after_chunks=step.cut_after_chunks,
    )


def _scripted_usage(request: MessagesRequest, step: Step) -> Usage:
    scripted = step.usage
    tokens = scripted.input_tokens
    return Usage(
        input_tokens=count_input_tokens(request) if tokens is None else tokens,
        output_tokens=0,
        cache_creation_5m_tokens=scripted.cache_creation_5m_tokens,
        cache_creation_1h_tokens=scripted.cache_creation_1h_tokens,
        cache_read_tokens=scripted.cache_read_tokens,
    )


def _scripted_call(request: MessagesRequest, call: ScriptedCall, number: int) -> ToolUse:
    offered = [tool.name for tool in request.tools]
    named = [name for name in offered if name == call.name]
    named = named or [name for name in offered if name.endswith(f"__{call.name}")]
    if len(named) != 1:
        fault = "several tools have this name" if named else "no such tool is offered"
        names = ", ".join(named or offered) or "none"
        raise ApiError(
            f"offline script: step {number}: tool {call.name[:128]!r}: {fault}; "
            f"{'they are' if named else 'offered are'}: {names[:2_000]}"
        )
    return ToolUse(named[0], call.input)


def _no_such_step(index: int, count: int) -> str:
    steps = "1 step" if count == 1 else f"{count} steps"
    return f"The offline script has no step {index + 1}: it has {steps}."


# --- By rule --------------------------------------------------------------------------------------


def _answer_by_rule(request: MessagesRequest, conversation: Conversation) -> list[ReplyBlock]:
    blocks, rule = _find_blocks(request, conversation)
    if request.thinks:
        thought = f"I go through my rules in their order. The one that fits: {rule}."
        return [Thinking(split_text(thought)), *blocks]
    return blocks


def _find_blocks(
    request: MessagesRequest, conversation: Conversation
) -> tuple[list[ReplyBlock], str]:
    if request.tool_choice.kind in ("any", "tool"):
        sentence = _find_sentence(conversation)[0]
        return [forced_call(request, conversation, sentence)], "a tool must be called"
    if calls := calls_by_name(request, conversation):
        return [*calls], "a tool's name"
    if conversation.pending_results:
        results = [each for each in conversation.turn_results if each.name != STRUCTURED_OUTPUT]
        text = " ".join(map(_result_sentence, results)) or "Done."
        return _spoken(request, conversation, text), "the tools have answered"
    text, rule = _find_sentence(conversation)
    if not rule and (calls := calls_by_description(request, conversation)):
        return [*calls], "a tool's description"
    return _spoken(request, conversation, text), rule or "none, which I should say"


def _find_sentence(conversation: Conversation) -> tuple[str, str]:
    answer = find_answer(conversation)
    return (answer.text, answer.rule) if answer else (HONEST, "")


def _spoken(request: MessagesRequest, conversation: Conversation, text: str) -> list[ReplyBlock]:
    """Say a text, in the form the request wants."""
    if request.output_schema is not None:
        try:
            value = build_instance(request.output_schema, conversation.prompt, text)
        except SchemaUnsupported as reason:
            raise ApiError(
                f"output_config.format.schema: the offline model cannot answer to it: {reason}"
            ) from None
        return [Text(split_text(write_json(value)))]
    tool = structured_output_tool(request)
    answered = any(result.name == STRUCTURED_OUTPUT for result in conversation.turn_results)
    if tool is not None and not answered:
        return [build_call(tool, conversation, text)]
    return [Text(split_text(text))]


def _result_sentence(result: ToolResult) -> str:
    name = bare_name(result.name)
    text = result.text
    if len(text) > MAX_RESULT_TEXT:
        text = f"{text[:MAX_RESULT_TEXT]} …"
    if result.is_error:
        return f"The tool {name} failed: {text or 'it did not say why'}"
    return f"The tool {name} answered: {text}" if text else f"The tool {name} answered nothing."


def _counted_usage(request: MessagesRequest) -> Usage:
    return Usage(input_tokens=count_input_tokens(request), output_tokens=0)
