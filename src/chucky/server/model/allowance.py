"""How often a turn may call a model: one count for everything that calls it there."""

from __future__ import annotations

from chucky.errors import ChuckyError

# Ends a model that calls tools for ever, where neither client nor token nor policy set a limit.
MAX_CALLS_PER_TURN = 200


class Allowance:
    """The calls that a turn may still make.

    A call takes one before it is made, and gives it back if the model did not answer. So what is
    taken are the answers there were, and the calls that may yet become one; calls side by side
    cannot take the same.
    """

    def __init__(self, limit: int | None = None) -> None:
        """Allow so many calls; None for as many as this server allows to any turn."""
        self._limit = limit or MAX_CALLS_PER_TURN
        self._taken = 0

    def take(self) -> None:
        """Take one.

        Raises:
            ChuckyError: All are taken.
        """
        if self._taken >= self._limit:
            raise ChuckyError(
                f"The answer was not finished after max_turns ({self._limit}) calls of the model; "
                "allow more, or ask for less at once.",
                code="MAX_TURNS",
                reason="max_turns_reached",
            )

        self._taken += 1

    def give_back(self) -> None:
        """Give back one that was taken."""
        self._taken -= 1
