"""How a model is told how much it may think: each generation of models wants it said differently.

Sources: https://platform.claude.com/docs/en/build-with-claude/thinking and the migration guides
of the models 5.5; which model belongs to which generation is in the model table.
"""

from __future__ import annotations

from typing import Any

from chucky.server.model.catalog import Model

# The least budget the API accepts.
LEAST_BUDGET_TOKENS = 1024


def thinking_param(model: Model, max_thinking_tokens: int | None) -> dict[str, Any] | None:
    """The ``thinking`` field of a request; None where the field is left out.

    A number too small to think with means not to think, so that it is never exceeded where the
    model takes a budget. A model that decides by itself is only switched on or off.

    Args:
        model: The model that is asked.
        max_thinking_tokens: What was granted; None for what the model does unasked.
    """
    if max_thinking_tokens is None or model.thinking == "none":
        return None
    if model.thinking == "budget":
        # At least a quarter of the longest answer is left for what comes after the thinking.
        budget_tokens = min(max_thinking_tokens, model.max_output_tokens * 3 // 4)
        if budget_tokens < LEAST_BUDGET_TOKENS:
            return None  # these models think only when they are told to
        return {"type": "enabled", "budget_tokens": budget_tokens}
    if max_thinking_tokens > 0:
        # Unasked, the newer models sign their thoughts and keep the text to themselves.
        return {"type": "adaptive", "display": "summarized"}
    return None if model.thinking_off == "never" else {"type": model.thinking_off}
