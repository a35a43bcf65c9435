"""Worker: opens sessions, has one turn in each, closes them. Runs with ours and with 0.2.0.

Asked with ``url``, ``tokens``, ``sessions``, ``at_once`` and ``message`` it answers with
``seconds`` and ``errors``, the sentences of what went wrong.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from chucky import Chucky

_SECONDS = 240


async def one(client: Chucky, message: str) -> None:
    """Open a session, have a turn, close it."""
    session = client.create_session()
    await session.send(message)
    last: dict[str, Any] = {}
    async for each in session.stream():
        last = each
    await session.close()
    if last.get("subtype") != "success":
        raise RuntimeError(f"the turn ended with {last}")


async def take(clients: Iterator[Chucky], message: str, errors: list[str]) -> None:
    """Take one session after the other until there are no more."""
    for client in clients:
        try:
            await one(client, message)
        except (RuntimeError, OSError) as error:
            errors.append(f"{type(error).__name__}: {error}"[:300])


async def run(given: dict[str, Any]) -> dict[str, Any]:
    """Do what the worker is asked for."""
    clients = [Chucky(url=given["url"], token=token) for token in given["tokens"]]
    sessions = iter([clients[number % len(clients)] for number in range(given["sessions"])])
    errors: list[str] = []
    started_at = time.perf_counter()
    async with asyncio.timeout(_SECONDS), asyncio.TaskGroup() as tasks:
        for _ in range(given["at_once"]):
            tasks.create_task(take(sessions, given["message"], errors))
    seconds = time.perf_counter() - started_at
    for client in clients:
        await client.close()
    return {"seconds": seconds, "errors": errors}


def main() -> None:
    """Work until the input ends."""
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            found = runner.run(run(json.loads(line)))
            gc.collect()  # what is then still there is held by something
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
