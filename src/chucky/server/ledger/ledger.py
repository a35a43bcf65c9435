"""The running ledger of a process: many callers, one writer, one commit for all who came together.

Operations that arrive while a commit is on its way are written with the next one. A reservation
that finds the money held by others waits in line, first in, first out for each limit, and is tried
again whenever something is given back.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from asyncio import FIRST_COMPLETED
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from chucky.errors import ChuckyError
from chucky.server.ledger.accounts import AccountKey, Holder, Limit, Meter, Standing
from chucky.server.ledger.booking import LEASE_MS, Group, book
from chucky.server.ledger.lateness import log_what_came_too_late
from chucky.server.ledger.operations import (
    Adjust,
    Also,
    Beat,
    Busy,
    Checkpoint,
    Done,
    Extend,
    Granted,
    Operation,
    Outcome,
    Reanchor,
    Reserve,
    Settle,
    Sweep,
    Void,
)
from chucky.server.ledger.rows import LedgerRows, LedgerTransaction
from chucky.server.ledger.writer import Request, Writer, Written

logger = logging.getLogger("chucky.server")

_GIVING_BACK = (Settle, Void, Sweep, Adjust, Reanchor)

# Leases are renewed and checkpoints written so often: a process that dies loses no more.
BEAT_SECONDS = 2.0
# Money that comes from elsewhere (another process, a new window) is noticed within so long.
_LINE_RETRY_SECONDS = 0.5
# What has to be written is tried again with these pauses, for as long as the process lives.
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
# How long somebody waits for what others had to write.
_WRITTEN_SECONDS = 10.0
_MOST_GROUPS_WAITING = 50_000


@dataclass(eq=False, slots=True)
class _Line:
    """Those who wait for money of the same account under the same limit.

    Attributes:
        standing: The limit whose money others hold, as it was seen last.
        lock: Held by who is served next; it is fair.
        length: How many wait.
    """

    standing: Standing
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    length: int = 0


class _LineKey(NamedTuple):
    """Whose money is waited for, and under which limit: others of the same user may have more.

    Where a window should begin is no part of it: tokens that are minted again wait in one line.
    """

    account: AccountKey
    window: str
    amount: int

    @classmethod
    def of(cls, holder: Holder, meter: Meter, limit: Limit) -> _LineKey:
        """The line for a limit."""
        return cls(holder.key(limit.scope, meter), limit.window, limit.amount)


class Ledger:
    """The way to the ledger for everything in this process. :meth:`run` must be running.

    Attributes:
        is_shared: Whether other processes use the same database.
        server_id: What this process is called there.
    """

    def __init__(self, rows: LedgerRows, *, is_shared: bool = False) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            rows: Where the ledger is.
            is_shared: Whether other processes use it too.
        """
        self._rows = rows
        self.is_shared = is_shared
        self.server_id = uuid.uuid4().hex
        self._sweeps_from = 0.0
        self._writer = Writer(self._book, self._answer)
        self._overdue: deque[Request] = deque()
        self._is_overdue = asyncio.Event()
        self._refusal = asyncio.Event()
        self._lines: dict[_LineKey, _Line] = {}
        self._given_back = asyncio.Event()
        self._posted: defaultdict[str, set[asyncio.Future[list[Outcome]]]] = defaultdict(set)
        self._watched: dict[str, Callable[[], Checkpoint | None]] = {}

    @property
    def may_sweep(self) -> bool:
        """Whether what is not renewed was left by the dead; after an outage the living do, too."""
        return asyncio.get_running_loop().time() >= self._sweeps_from

    async def recover(self) -> int:
        """Enter this process, and end the reservations of one that died before this makes any.

        Where others share the ledger only those that nobody has renewed in time.

        Returns:
            How many there were.

        Raises:
            ChuckyError: The database cannot be used.
        """
        await self.write(Also(self._enter))
        ended = 0
        while True:
            [outcome] = await self.write(Sweep(everything=not self.is_shared))
            if not isinstance(outcome, Done) or not outcome.count:
                return ended
            ended += outcome.count

    def _enter(self, transaction: LedgerTransaction, _outcomes: Sequence[Outcome]) -> None:
        lease_ms = transaction.now_ms + LEASE_MS
        transaction.enter(self.server_id, lease_ms, is_alone=not self.is_shared)

    async def write(self, *operations: Operation) -> list[Outcome]:
        """Have a group of operations done at once, also before :meth:`run`.

        Raises:
            ChuckyError: The database failed.
        """
        return await self._request(operations, must_happen=False).done

    async def run(self) -> None:
        """Write what is asked for until cancelled; then write what has to be written, once more."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_retrying())
                tasks.create_task(self._keep_beating())
        finally:
            await self._writer.idle()
            if await self._write_overdue():
                await self._leave()
            self._writer.close()

    async def _leave(self) -> None:
        try:
            await self.write(Also(lambda transaction, _: transaction.leave(self.server_id)))
        except ChuckyError as error:
            logger.warning("the database could not be told that this server ends: %s", error)

    async def ask(self, *operations: Operation) -> list[Outcome]:
        """Have a group of operations done.

        Returns:
            Their outcomes; fewer if one before the last was not granted.

        Raises:
            ChuckyError: The database failed, or too much waits for it; nothing is held.
        """
        if self._writer.unanswered >= _MOST_GROUPS_WAITING:
            raise ChuckyError(
                "Too many turns wait for the ledger; try again in a moment.",
                code="RATE_LIMIT",
                reason="ledger_overloaded",
            )
        request = self._request(operations, must_happen=False)
        try:
            return await request.done
        except asyncio.CancelledError:
            # Answered in the same moment, or else `_take` finds that nobody waits for it.
            if not request.done.cancelled():
                self._give_back(request.operations)
            raise

    def post(self, *operations: Operation) -> asyncio.Future[list[Outcome]]:
        """Have a group of operations done in any case, as soon as the database lets it.

        Returns:
            Their outcomes, once they are written.
        """
        done = self._request(operations, must_happen=True).done
        for each in operations:
            if isinstance(each, Also) and each.about:
                self._remember(each.about, done)
        return done

    def _remember(self, about: str, done: asyncio.Future[list[Outcome]]) -> None:
        def forget(_done: object) -> None:
            self._posted[about].discard(done)
            if not self._posted[about]:
                del self._posted[about]

        self._posted[about].add(done)
        done.add_done_callback(forget)

    async def written(self, about: str) -> None:
        """Wait until everything is written that was posted about something.

        Raises:
            ChuckyError: It was not in time; it will be.
        """
        await asyncio.sleep(0)  # what happened in this moment is posted at its end
        posted = self._posted.get(about)
        if not posted:
            return
        if not await self.all_written(list(posted), timeout_seconds=_WRITTEN_SECONDS):
            raise ChuckyError(
                "What happened before cannot be written at the moment; it will be. Try again; the "
                "server's log says why.",
                code="STORE_ERROR",
                reason="ledger_unavailable",
            )

    async def all_written(
        self,
        posted: Sequence[asyncio.Future[list[Outcome]]],
        *,
        timeout_seconds: float,
        is_patient: bool = True,
    ) -> bool:
        """Wait until what was posted is written.

        Args:
            posted: What :meth:`post` gave.
            timeout_seconds: How long to wait at most.
            is_patient: Whether also when the database fails meanwhile. What must be written is
                written as soon as it can be, whoever waits for it.

        Returns:
            Whether all of it is written.
        """
        if not posted:
            return True
        if is_patient:
            return not (await asyncio.wait(posted, timeout=timeout_seconds))[1]
        refused = asyncio.create_task(self._refusal.wait())
        written = asyncio.create_task(asyncio.wait(posted))
        try:
            first = {refused, written}
            await asyncio.wait(first, timeout=timeout_seconds, return_when=FIRST_COMPLETED)
        finally:
            refused.cancel()
            written.cancel()
        return all(each.done() for each in posted)

    def has_line(self, *operations: Reserve | Extend) -> bool:
        """Whether others wait for the same money, and would be passed by who does not."""
        return self._line_ahead(operations) is not None

    def _line_ahead(self, operations: Sequence[Reserve | Extend]) -> _LineKey | None:
        keys = (
            _LineKey.of(each.holder, each.meter, limit)
            for each in operations
            for limit in each.limits
        )
        return next((key for key in keys if key in self._lines), None) if self._lines else None

    async def reserve(
        self, *operations: Reserve | Extend, told: Callable[[Standing], None]
    ) -> list[Outcome]:
        """Have a group of reservations done, in line behind others who wait for the same money.

        Args:
            operations: The group.
            told: Called when it has to wait, with the limit whose money others hold.

        Returns:
            Their outcomes, none of them :class:`Busy`; fewer if one before the last was refused.

        Raises:
            ChuckyError: The database failed; nothing is held.
        """
        granted: list[Outcome] = []
        try:
            key = self._line_ahead(operations)
            while True:
                rest = operations[len(granted) :]
                asked = self.ask(*rest) if key is None else self._ask_in_line(key, rest, told)
                outcomes = await asked
                last = outcomes[-1]
                if not isinstance(last, Busy):
                    return granted + outcomes
                granted += outcomes[:-1]
                key = self._line_up(operations[0].holder, last.standing)
        except BaseException:
            self._give_back(operations[: len(granted)])
            raise

    def _line_up(self, holder: Holder, standing: Standing) -> _LineKey:
        key = _LineKey.of(holder, standing.meter, standing.limit)
        self._lines.setdefault(key, _Line(standing)).standing = standing
        return key

    async def _ask_in_line(
        self,
        key: _LineKey,
        operations: Sequence[Reserve | Extend],
        told: Callable[[Standing], None],
    ) -> list[Outcome]:
        """Ask when it is its turn, again and again until it is not this limit that is in the way.

        Returns:
            The outcomes; the last is :class:`Busy` if it is another one.
        """
        line = self._lines[key]
        told(line.standing)
        line.length += 1
        granted: list[Outcome] = []
        try:
            async with line.lock:
                while True:
                    given_back = self._given_back
                    outcomes = await self.ask(*operations[len(granted) :])
                    last = outcomes[-1]
                    if not isinstance(last, Busy):
                        return granted + outcomes
                    if self._line_up(operations[0].holder, last.standing) != key:
                        return granted + outcomes
                    granted += outcomes[:-1]
                    told(last.standing)
                    await _wait_at_most(given_back, _LINE_RETRY_SECONDS)
        except BaseException:
            self._give_back(operations[: len(granted)])
            raise
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[key]

    def watch(self, reservation_id: str, checkpoint: Callable[[], Checkpoint | None]) -> None:
        """Write from time to time what a reservation would be booked with; None for no news."""
        self._watched[reservation_id] = checkpoint

    def unwatch(self, reservation_id: str) -> None:
        """Stop watching a reservation."""
        self._watched.pop(reservation_id, None)

    # --- writing ------------------------------------------------------------------------------

    def _request(self, operations: Group, *, must_happen: bool) -> Request:
        done: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        request = Request(operations, done, must_happen)
        self._writer.add(request)
        return request

    def _book(self, groups: Sequence[Group]) -> list[list[Outcome]]:
        with self._rows.transaction() as transaction:
            return book(transaction, groups, self.server_id)

    def _answer(self, request: Request, written: Written) -> None:
        if isinstance(written, ChuckyError):
            self._fail(request, written)
        else:
            self._take(request, written)

    def _take(self, request: Request, outcomes: list[Outcome]) -> None:
        if self._lines and any(isinstance(each, _GIVING_BACK) for each in request.operations):
            self._given_back.set()
            self._given_back = asyncio.Event()
        if not request.done.done():
            request.done.set_result(outcomes)
        log_what_came_too_late(request.operations, outcomes)
        if request.is_abandoned:
            self._give_back(
                [
                    operation
                    for operation, outcome in zip(request.operations, outcomes, strict=False)
                    if isinstance(outcome, Granted)
                ]
            )

    def _fail(self, request: Request, error: ChuckyError) -> None:
        if request.must_happen:
            logger.error("the ledger cannot be written and is tried again: %s", error)
            self._overdue.append(request)
            self._is_overdue.set()
            self._note_refusal()
            return
        # A commit whose answer was lost may have held what nobody knows of.
        self._give_back(request.operations)
        if not request.done.done():
            request.done.set_exception(error)
            request.done.exception()  # nobody may be waiting any more

    def _note_refusal(self) -> None:
        self._refusal.set()
        self._refusal = asyncio.Event()

    def _give_back(self, operations: Sequence[Operation]) -> None:
        """Void what was reserved; what was not, is not there to be voided."""
        for each in operations:
            if isinstance(each, Reserve):
                self.post(Void(each.reservation_id, each.holder, each.meter))

    async def _keep_retrying(self) -> None:
        """Write what could not be written, each by itself, so that none holds up the others."""
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            await self._is_overdue.wait()
            await asyncio.sleep(pause_seconds)
            if await self._write_overdue():
                pause_seconds = _FIRST_PAUSE_SECONDS
            else:
                pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)

    async def _write_overdue(self) -> bool:
        """Write what is overdue, up to the first that still cannot be written."""
        while self._overdue:
            request = self._overdue[0]  # it stays until it is written, should this be cancelled
            try:
                outcomes = await self.write(*request.operations)
            except Exception as error:
                logger.error("the ledger still cannot be written: %s", error)
                self._overdue.rotate(-1)
                self._note_refusal()
                return False
            self._overdue.popleft()
            self._take(request, outcomes)
        self._is_overdue.clear()
        return True

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            may_sweep = self.may_sweep
            operations: list[Operation] = []
            if self._watched or self._lines or self.is_shared or not may_sweep:
                checkpoints = filter(None, [look() for look in list(self._watched.values())])
                operations.append(Beat(self.server_id, tuple(checkpoints)))
            if self.is_shared and may_sweep:
                operations.append(Sweep())
            try:
                if operations:
                    await self.ask(*operations)
            except ChuckyError as error:
                logger.warning("the leases of running calls were not renewed: %s", error)
                # Nor were those of others, perhaps, who live and have to be left the time for it.
                self._sweeps_from = asyncio.get_running_loop().time() + LEASE_MS / 1_000


async def _wait_at_most(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
