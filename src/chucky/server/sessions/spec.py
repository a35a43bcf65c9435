"""What an engine is told about a session."""

from __future__ import annotations

import hashlib

from chucky.server.admission import Grant
from chucky.server.auth import Identity
from chucky.server.engines.base import SessionSpec


def session_spec(identity: Identity, session_id: str, grant: Grant) -> SessionSpec:
    """What an engine needs of a grant, and of whose it is no more than it must know."""
    # The provider wants to tell users apart, but need not learn who they are.
    user = f"{identity.project_id}\n{identity.user_id}".encode()
    return SessionSpec(
        model=grant.model,
        system_prompt=grant.system_prompt,
        tools=grant.tools,
        include_partial_messages=grant.include_partial_messages,
        caller=f"user_{hashlib.sha256(user).hexdigest()}_session_{session_id}",
        project_id=identity.project_id,
        fallback_model=grant.fallback_model,
        max_thinking_tokens=grant.max_thinking_tokens,
        output_schema=grant.output_schema,
        betas=grant.betas,
    )
