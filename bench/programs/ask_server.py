"""Worker: has turns on an open session with our client and times each.

Asked with ``url``, ``token``, ``message``, ``warm_up`` and ``turns`` it opens a session, has
``warm_up`` turns that do not count and ``turns`` that do, and answers with ``milliseconds``, one
number for each.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.worker import MODEL, work
from chucky import Chucky, Session

_SECONDS = 60


async def turn_ms(session: Session, message: str) -> float:
    """Have one turn; from sending the message to its result."""
    started_at = time.perf_counter()
    await session.send(message)
    last = [each async for each in session.stream()][-1]
    spent = time.perf_counter() - started_at
    assert last["subtype"] == "success", last
    return spent * 1000


async def run(given: dict[str, Any]) -> dict[str, Any]:
    """Do what the worker is asked for."""
    async with (
        asyncio.timeout(_SECONDS),
        Chucky(given["token"], given["url"], model=MODEL) as client,
        client.create_session() as session,
    ):
        for _ in range(given["warm_up"]):
            await turn_ms(session, given["message"])
        timed = [await turn_ms(session, given["message"]) for _ in range(given["turns"])]
    return {"milliseconds": timed}


if __name__ == "__main__":
    work(run)
