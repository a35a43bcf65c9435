"""What is decided on, and what the decision is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chucky.server.engines.base import ToolSpec
from chucky.server.model.catalog import Catalog, Model
from chucky.server.sessions.past import Resumption


@dataclass(frozen=True, slots=True)
class Grant:
    """What a session was granted.

    Attributes:
        model: The model that really answers.
        system_prompt: The system prompt; None for none.
        tools: The client's tools the model may call.
        server_names: The tool servers these came from.
        max_turns: How often the model may be called per message; None for no limit of theirs.
        include_partial_messages: Whether the client wants partial messages.
        fallback_model: What answers when the model is overloaded; None for nothing.
        max_thinking_tokens: How much the model may think before it answers; 0 for not at all,
            None for what it does unasked.
        output_schema: JSON Schema the final answer must conform to; None for free text.
        betas: Beta features of the provider to switch on.
        resumption: The session it goes on with; None to begin one.
        max_budget_nanos: What the session may spend, in nano-dollars; None for no limit of its own.
        ignored: Options the client named that have no effect here.
        notices: Sentences for people: a successor answers, the offline model answers.
    """

    model: Model
    system_prompt: str | None
    tools: tuple[ToolSpec, ...]
    server_names: tuple[str, ...]
    max_turns: int | None
    include_partial_messages: bool
    ignored: tuple[str, ...]
    notices: tuple[str, ...]
    fallback_model: Model | None = None
    max_thinking_tokens: int | None = None
    output_schema: Mapping[str, Any] | None = None
    betas: tuple[str, ...] = ()
    resumption: Resumption | None = None
    max_budget_nanos: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator decided for all sessions.

    Attributes:
        catalog: The models there are.
        allowed_betas: The beta features of providers that clients may ask for.
        succession: Whether a retired model's successor answers in its place.
    """

    catalog: Catalog
    allowed_betas: frozenset[str] = frozenset()
    succession: bool = True
