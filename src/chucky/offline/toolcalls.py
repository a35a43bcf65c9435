"""Choosing tools to call: those whose words the message uses and whose arguments it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chucky.offline.conversation import Conversation, bare_name
from chucky.offline.errors import ApiError
from chucky.offline.instances import build_instance, find_arguments
from chucky.offline.reply import ToolUse
from chucky.offline.request import MessagesRequest, Tool
from chucky.offline.schemas import SchemaUnsupported
from chucky.offline.values import words_of

# The tool by which the Claude CLI asks for an answer that conforms to a schema.
STRUCTURED_OUTPUT = "StructuredOutput"

MAX_CALLS = 10
MAX_DESCRIPTION = 200
MAX_MESSAGE = 4_000

_WORD = re.compile(r"\w{1,40}")
# They tell nothing about what a tool is for, unless its name has no other words.
_EMPTY_WORD = re.compile(
    r"a|all|an|and|any|by|call|current|do|fetch|for|from|function|get|given|in|is|it|make|me|my|of|"
    r"on|or|run|returns?|set|some|that|the|this|to|tool|use|what|which|with|you|your"
)


@dataclass(frozen=True, slots=True)
class _Fit:
    """How well a tool fits: which of its words the message has, and what share of them that is."""

    tool: Tool
    words: frozenset[str]
    share: float


def calls_by_name(request: MessagesRequest, conversation: Conversation) -> list[ToolUse]:
    """Call the tools that the message speaks of by their name, if it has what they need.

    Half of the words of a tool's name must be in the message. Several tools are called at once
    if the message uses different words for each, unless the request forbids it.
    """
    spoken = _spoken(conversation)
    fits = [_fit(tool, words_of(bare_name(tool.name)), spoken) for tool in _callable(request)]
    mentioned = [fit for fit in fits if _is_written_out(fit.tool, conversation.prompt)]
    chosen = mentioned or [fit for fit in fits if fit.share >= 0.5]
    return _calls(request, conversation, chosen)


def calls_by_description(request: MessagesRequest, conversation: Conversation) -> list[ToolUse]:
    """Call a tool whose description shares words with the message, if it has what it needs."""
    spoken = _spoken(conversation)
    fits = [
        _fit(tool, _words_in(tool.description[:MAX_DESCRIPTION]), spoken)
        for tool in _callable(request)
    ]
    good = [fit for fit in fits if len(fit.words) >= 2 or fit.share >= 0.5]
    return _calls(request, conversation, good)[:1]


def forced_call(request: MessagesRequest, conversation: Conversation, sentence: str) -> ToolUse:
    """Call a tool because the request says that one must be called.

    Args:
        request: Its ``tool_choice`` is ``tool`` or ``any``.
        conversation: The conversation so far.
        sentence: The value of the first argument that nothing is said about.

    Raises:
        ApiError: No arguments can be made for the tool's schema (status 400).
    """
    if request.tool_choice.name is not None:
        tool = next(each for each in request.tools if each.name == request.tool_choice.name)
        return build_call(tool, conversation, sentence)
    for choose in (calls_by_name, calls_by_description):
        if calls := choose(request, conversation):
            return calls[0]
    called = {result.name for result in conversation.turn_results}
    fresh = [tool for tool in request.tools if tool.name not in called]
    return build_call((fresh or request.tools)[0], conversation, sentence)


def build_call(tool: Tool, conversation: Conversation, sentence: str) -> ToolUse:
    """Call a tool with arguments that conform to its schema, whether or not the message has them.

    Raises:
        ApiError: No arguments can be made for the tool's schema (status 400).
    """
    if tool.input_schema is None:
        return ToolUse(tool.name, {})
    try:
        arguments = build_instance(tool.input_schema, conversation.prompt, sentence)
    except SchemaUnsupported as reason:
        raise ApiError(
            f"tools: the offline model can make no arguments for the input_schema of "
            f"{tool.name!r}: {reason}"
        ) from None
    return ToolUse(tool.name, arguments)


def structured_output_tool(request: MessagesRequest) -> Tool | None:
    """Find the tool by which the Claude CLI takes structured output, if it may be called."""
    if request.tool_choice.kind == "none":
        return None
    return next((tool for tool in request.tools if tool.name == STRUCTURED_OUTPUT), None)


def _callable(request: MessagesRequest) -> list[Tool]:
    if request.tool_choice.kind == "none":
        return []
    return [
        tool
        for tool in request.tools
        if tool.input_schema is not None and tool.name != STRUCTURED_OUTPUT
    ]


def _calls(
    request: MessagesRequest, conversation: Conversation, fits: Iterable[_Fit]
) -> list[ToolUse]:
    """Make the calls, the best fit first, each word of the message for one tool only."""
    fits = list(fits)
    called = {result.name for result in conversation.turn_results}
    used = {word for fit in fits if fit.tool.name in called for word in fit.words}
    calls: list[ToolUse] = []
    for fit in sorted(fits, key=lambda each: (-each.share, -len(each.words))):
        if fit.words & used or fit.tool.input_schema is None:
            continue
        arguments = find_arguments(fit.tool.input_schema, conversation.prompt)
        if arguments is not None:
            calls.append(ToolUse(fit.tool.name, arguments))
            used |= fit.words
        if len(calls) == (MAX_CALLS if request.tool_choice.parallel else 1):
            break
    return calls


def _fit(tool: Tool, own_words: Sequence[str], spoken: frozenset[str]) -> _Fit:
    telling = [word for word in own_words if not _EMPTY_WORD.fullmatch(word)]
    words = {_stem(word) for word in telling or own_words}
    shared = frozenset(words & spoken)
    return _Fit(tool, shared, len(shared) / len(words) if words else 0.0)


def _spoken(conversation: Conversation) -> frozenset[str]:
    return frozenset(_stem(word) for word in _words_in(conversation.prompt[:MAX_MESSAGE]))


def _words_in(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text.replace("_", " "))]


def _stem(word: str) -> str:
    """Bring the forms of a word together: times, timing, timed are one."""
    for ending in ("ing", "ies", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _is_written_out(tool: Tool, prompt: str) -> bool:
    names = {tool.name, bare_name(tool.name)}
    written = set(re.findall(r"[\w-]{1,128}", prompt[:MAX_MESSAGE]))
    return any("_" in name and name in written for name in names)
