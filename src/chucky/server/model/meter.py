"""What model calls used and cost, counted where they are made."""

from __future__ import annotations

from dataclasses import dataclass, field

from chucky.server.model.pricing import Usage


@dataclass(slots=True)
class Meter:
    """A running total over model calls.

    Attributes:
        usage: Tokens by kind.
        cost_nanos: What they cost, in nano-dollars.
        calls: How many calls the model answered; a call that was sent again counts once.
        api_ms: Time spent waiting for the model, in milliseconds.
    """

    usage: Usage = field(default_factory=Usage)
    cost_nanos: int = 0
    calls: int = 0
    api_ms: int = 0

    def add(self, other: Meter) -> None:
        """Add another total to this one."""
        self.usage += other.usage
        self.cost_nanos += other.cost_nanos
        self.calls += other.calls
        self.api_ms += other.api_ms
