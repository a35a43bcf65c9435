"""The thread that writes: all groups that came while it wrote the last are its next transaction."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from chucky.errors import ChuckyError
from chucky.server.ledger.booking import Group
from chucky.server.ledger.operations import Outcome

logger = logging.getLogger("chucky.server")

_MOST_AT_ONCE: Final = 256

Written = list[Outcome] | ChuckyError
Book = Callable[[Sequence[Group]], list[list[Outcome]]]


@dataclass(eq=False, slots=True)
class Request:
    """A group that was asked for.

    Attributes:
        operations: The group.
        done: Gets the outcomes.
        must_happen: Whether a failure of the database is no answer, only a delay.
    """

    operations: Group
    done: asyncio.Future[list[Outcome]]
    must_happen: bool

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits any more; what it is granted is given back.

        The future tells it at once. Who waited learns of it a moment later, and the answer may come
        between the two.
        """
        return not self.must_happen and self.done.cancelled()


class Writer:
    """Has groups written in a thread of its own, in the order in which they were asked for.

    Attributes:
        unanswered: How many requests wait for their answer.
    """

    def __init__(self, book: Book, answer: Callable[[Request, Written], None]) -> None:
        """Prepare; the thread begins with the first request.

        Args:
            book: Does groups in one transaction. It is called in the thread.
            answer: Called on the event loop with what came of a request. One that was abandoned
                before its turn came is not answered.
        """
        self._book = book
        self._answer = answer
        self._asked: list[Request] = []
        self._handed: queue.SimpleQueue[list[Request] | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.unanswered = 0

    def add(self, request: Request) -> None:
        """Have a group written together with all that is asked for in this moment."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._run, name="chucky-ledger", daemon=True).start()
        if not self._asked:
            self._loop.call_soon(self._hand_over)
        self._asked.append(request)
        self.unanswered += 1
        self._idle.clear()

    def _hand_over(self) -> None:
        asked, self._asked = self._asked, []
        self._handed.put(asked)

    async def idle(self) -> None:
        """Wait until everything is answered."""
        await self._idle.wait()

    def close(self) -> None:
        """End the thread, which has nothing to do any more."""
        self._handed.put(None)

    def _take(self, count: int, batch: Sequence[Request], written: Sequence[Written]) -> None:
        self.unanswered -= count
        if not self.unanswered:
            self._idle.set()
        for request, outcomes in zip(batch, written, strict=True):
            try:
                self._answer(request, outcomes)
            except Exception:  # a fault of ours, for which the others must not wait for ever
                logger.exception("the ledger could not answer %s", request.operations)
                if not request.done.done():
                    request.done.set_exception(_own_fault())

    # --- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        assert self._loop is not None
        for taken in self._batches():
            batch = [each for each in taken if not each.is_abandoned]
            written = self._write(batch) if batch else []
            self._loop.call_soon_threadsafe(self._take, len(taken), batch, written)

    def _batches(self) -> Iterator[list[Request]]:
        waiting: deque[Request] = deque()
        while True:
            while not waiting or not self._handed.empty():
                handed = self._handed.get()
                if handed is None:
                    return
                waiting.extend(handed)
            yield [waiting.popleft() for _ in range(min(len(waiting), _MOST_AT_ONCE))]

    def _write(self, batch: Sequence[Request]) -> list[Written]:
        try:
            return list(self._book([each.operations for each in batch]))
        except ChuckyError as error:
            return [error] * len(batch)
        except Exception:
            # A fault of ours in one of them, for which the others must not suffer.
            if len(batch) > 1:
                return [written for each in batch for written in self._write([each])]
            logger.exception("the ledger could not do %s", batch[0].operations)
            return [_own_fault()]


def _own_fault() -> ChuckyError:
    return ChuckyError(
        "The ledger failed to book this; the server's log says why.",
        code="INTERNAL_ERROR",
        reason="internal_error",
    )
