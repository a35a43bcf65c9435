"""What the operator decided for all sessions of one project: ``chucky projects policy``.

A JSON object with any of

====================  ==========================================================================
``models``            the only models its users may use, by id or alias
``allowedTools``      the only tools; ``blockedTools`` the ones that nobody may use
``maxTurns``          how often the model may be called to answer one message
``maxThinkingTokens`` how much a client may have a model think; 0 turns thinking off
``betas``             the beta features a client may ask for, out of those the server allows
``locked``            options that clients may not set; the token's ``sdkConfig`` still may
====================  ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chucky.errors import ValidationError
from chucky.jsontext import read_json
from chucky.server.permissions import Permissions, name_set, read_permissions, whole_number

_PERMISSIONS = ("models", "allowedTools", "blockedTools", "maxTurns")
_OTHERS = ("maxThinkingTokens", "betas", "locked")

LOCKABLE = frozenset(
    {
        "agents",
        "allowDangerouslySkipPermissions",
        "allowedTools",
        "betas",
        "continue",
        "disallowedTools",
        "env",
        "fallbackModel",
        "forkSession",
        "includePartialMessages",
        "jobId",
        "maxBudgetUsd",
        "maxThinkingTokens",
        "maxTurns",
        "mcpServers",
        "outputFormat",
        "permissionMode",
        "resume",
        "resumeSessionAt",
        "sessionId",
        "settingSources",
        "systemPrompt",
        "tools",
        "vessel",
    }
)


@dataclass(frozen=True, slots=True)
class ProjectPolicy:
    """A project's policy; without arguments it allows everything.

    Attributes:
        permissions: Limits of the kinds that tokens know, too.
        max_thinking_tokens: The largest ``maxThinkingTokens``; None for any.
        betas: The only beta features; None for all that the server allows.
        locked: Options that clients may not set.
        is_damaged: Whether what is stored cannot be understood, so that nothing may be allowed.
    """

    permissions: Permissions = field(default_factory=Permissions)
    max_thinking_tokens: int | None = None
    betas: frozenset[str] | None = None
    locked: frozenset[str] = frozenset()
    is_damaged: bool = False


def read_policy(text: str) -> ProjectPolicy:
    """Read a policy from its JSON text.

    Raises:
        ValidationError: It is none; the sentence names what is wrong.
    """
    try:
        return _policy(read_json(text, unique_names=True))
    except ValueError as error:
        # A fault of one entry begins with a point, where its name goes on.
        gap = "" if str(error).startswith(".") else " "
        raise ValidationError(f"The policy{gap}{error}.", reason="policy_invalid") from None


def _policy(entries: Any) -> ProjectPolicy:
    if not isinstance(entries, dict):
        raise ValueError("must be a JSON object")
    said = {name: value for name, value in entries.items() if name not in _OTHERS}
    locked = name_set(entries, "locked") if "locked" in entries else frozenset()
    if unknown := sorted(locked - LOCKABLE):
        hint = " (use 'models' to limit models)" if "model" in unknown else ""
        raise ValueError(f".locked names {unknown[0]!r:.80}, which is no option to lock{hint}")
    return ProjectPolicy(
        permissions=read_permissions(said, _PERMISSIONS),
        max_thinking_tokens=(
            whole_number(entries, "maxThinkingTokens", 0)
            if "maxThinkingTokens" in entries
            else None
        ),
        betas=name_set(entries, "betas") if "betas" in entries else None,
        locked=locked,
    )
