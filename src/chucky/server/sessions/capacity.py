"""How much one process takes on at once. What is beyond that is refused, and slows nobody down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from chucky.errors import ConcurrencyLimitError

# When somebody who was refused may try again. Clients add a random pause of their own.
RETRY_AFTER_SECONDS = 2.0


def server_full(what: str, most: int) -> ConcurrencyLimitError:
    """The error of what this process does not take on any more.

    Args:
        what: What there is too much of.
        most: How many of it there may be.
    """
    return ConcurrencyLimitError(
        f"This server has as many {what} as it takes on ({most}); try again in a moment.",
        reason="server_full",
        details={"retry_after": RETRY_AFTER_SECONDS},
    )


class TurnSlots:
    """Counts the turns that run.

    Attributes:
        most: How many may.
    """

    def __init__(self, most: int) -> None:
        """Begin with none."""
        self.most = most
        self._taken = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While a turn runs.

        Raises:
            ConcurrencyLimitError: As many run as may.
        """
        if self._taken >= self.most:
            raise server_full("running turns", self.most)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
