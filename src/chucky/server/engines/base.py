"""What a session and an engine are to each other.

A session asks its engine for a :class:`Conversation` once, and for an answer each turn. The
engine reports through the :class:`Turn` it is given and knows neither sockets nor clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from chucky.server.model.catalog import Model
from chucky.server.model.meter import Meter
from chucky.server.model.payment import Payer

Content = str | list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that runs in the client.

    Attributes:
        name: The name it was defined with, which ``tool_call`` carries.
        visible_name: The name the model sees, ``mcp__<server>__<tool>``.
        description: What the model is told about it.
        input_schema: JSON Schema of its arguments, of type object.
    """

    name: str
    visible_name: str
    description: str
    input_schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a session was granted; fixed for its whole life.

    Attributes:
        model: The model that answers.
        system_prompt: The system prompt; None for none.
        tools: The tools the model may call.
        include_partial_messages: Whether the client wants the model's events as they come.
        caller: An opaque name of user and session, told to the provider with every call.
        project_id: The project, whose provider key is used if it has one.
        fallback_model: What answers when the model is overloaded; None for nothing.
        max_thinking_tokens: How much the model may think before it answers; 0 for not at all,
            None for what it does unasked.
        output_schema: JSON Schema the final answer must conform to; None for free text.
        betas: Beta features of the provider to switch on.
    """

    model: Model
    system_prompt: str | None
    tools: tuple[ToolSpec, ...]
    include_partial_messages: bool
    caller: str
    project_id: str
    fallback_model: Model | None = None
    max_thinking_tokens: int | None = None
    output_schema: Mapping[str, Any] | None = None
    betas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What a tool returned: content blocks of the Messages API (text, image)."""

    content: list[dict[str, Any]]
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """How a turn ended.

    Attributes:
        text: The final text.
        model: The id of the model that gave it.
        stop_reason: Why the model stopped, in the words of the Messages API (``end_turn``,
            ``max_tokens`` when it was cut off, …); None if it did not say.
        structured_output: The value of the text, where it was to be JSON of a schema.
    """

    text: str
    model: str
    stop_reason: str | None = None
    structured_output: Any = None


class Turn(Protocol):
    """One turn, seen from an engine."""

    @property
    def meter(self) -> Meter:
        """Counts what the turn's model calls used."""
        ...

    @property
    def payer(self) -> Payer:
        """Pays for the turn's model calls, and knows how many it may make."""
        ...

    def progressed(self) -> None:
        """Note that the model said something; a turn in which nothing happens is ended."""
        ...

    async def emit(self, message: dict[str, Any]) -> None:
        """Send a complete message (``assistant`` or ``user``) to the client."""
        ...

    async def emit_event(self, event_json: str) -> None:
        """Send one event of the model's stream to the client, as the JSON text it came in."""
        ...

    async def call_tool(
        self, tool: ToolSpec, arguments: dict[str, Any], tool_use_id: str
    ) -> ToolOutcome:
        """Have the client run a tool; a missing answer becomes an error outcome in time.

        Args:
            tool: The tool.
            arguments: What it is called with.
            tool_use_id: The id of the ``tool_use`` block in the last message that was emitted.
        """
        ...


class Memory(Protocol):
    """What an engine knows of a conversation, kept by the session.

    The steps are the engine's own business; JSON can hold them.
    """

    @property
    def steps(self) -> Sequence[dict[str, Any]]:
        """What was noted before, in order; empty for a new conversation."""
        ...

    def note(self, step: dict[str, Any]) -> None:
        """Keep one more step."""
        ...


class Conversation(Protocol):
    """An engine's side of one session: what the model has seen so far."""

    async def answer(self, content: Content, turn: Turn) -> Answer:
        """Answer one user message.

        Cancelling it interrupts the turn; the conversation must be usable afterwards.

        Raises:
            ChuckyError: The turn failed; code and sentence become its result.
        """
        ...


class Engine(Protocol):
    """Makes conversations."""

    def open(self, spec: SessionSpec, memory: Memory) -> Conversation:
        """Begin a conversation, or go on with the one that the memory has."""
        ...
