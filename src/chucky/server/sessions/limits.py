"""What a session may take."""

from __future__ import annotations

from dataclasses import dataclass


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
