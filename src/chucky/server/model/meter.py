"""What model calls used, counted where they are made; what they cost is the ledger's to say."""

from __future__ import annotations

from dataclasses import dataclass, field

from chucky.server.model.pricing import Usage


@dataclass(slots=True)
class Meter:
    """A running total over model calls.

    Attributes:
        usage: Tokens by kind.
        calls: How many calls the model answered; a call that was sent again counts once.
        api_ms: Time spent waiting for the model, in milliseconds.
    """

    usage: Usage = field(default_factory=Usage)
    calls: int = 0
    api_ms: int = 0

    def add(self, other: Meter) -> None:
        """Add another total to this one."""
        self.usage += other.usage
        self.calls += other.calls
        self.api_ms += other.api_ms
