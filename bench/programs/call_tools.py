"""Worker: answers rounds of parallel tool calls and times them. Runs with ours and with 0.2.0.

Asked with ``url``, ``token``, ``rounds``, ``tools``, ``wait_ms`` and ``message`` it opens a session
with so many tools, each of which waits for ``wait_ms`` before it answers (0: answers at once),
sends the message so many times, and answers with ``milliseconds``, one number for each round but
the first: from the first sign of the calls (the message that has them, or the first tool that runs)
to the message with the results of all.
"""

import asyncio
import json
import sys
import time
from typing import Any

from chucky import Chucky, Tool, ToolResult, text_result, tool

_SECONDS = 120


class Round:
    """One round of calls."""

    def __init__(self) -> None:
        self.began_at = 0.0
        self.results = 0

    def begin(self) -> None:
        """Note the first sign of the calls."""
        self.began_at = self.began_at or time.perf_counter()


def make_tools(number: int, wait_ms: float, rounds: list[Round]) -> list[Tool]:
    """Make tools that wait for something, as tools mostly do."""

    async def look_up() -> ToolResult:
        rounds[-1].begin()
        if wait_ms:
            await asyncio.sleep(wait_ms / 1000)
        return text_result("42")

    return [tool(f"look_up_{each}", "Look something up")(look_up) for each in range(number)]


def blocks(message: dict[str, Any], kind: str) -> int:
    """Count the content blocks of a kind."""
    content = (message.get("message") or {}).get("content") or []
    return sum(block.get("type") == kind for block in content)


async def round_ms(session: Any, message: str, rounds: list[Round]) -> float:
    """Have one turn with a round of calls and time the calls."""
    this = Round()
    rounds.append(this)
    ended_at = 0.0
    last: dict[str, Any] = {}
    await session.send(message)
    async for each in session.stream():
        last = each
        if blocks(each, "tool_use"):
            this.begin()
        if results := blocks(each, "tool_result"):
            this.results += results
            ended_at = time.perf_counter()
    assert last.get("subtype") == "success", last
    return (ended_at - this.began_at) * 1000


async def run(given: dict[str, Any]) -> dict[str, Any]:
    """Do what the worker is asked for."""
    rounds: list[Round] = []
    tools = make_tools(given["tools"], given["wait_ms"], rounds)
    client = Chucky(url=given["url"], token=given["token"])
    session = client.create_session(tools=tools)
    async with asyncio.timeout(_SECONDS):
        _first, *timed = [
            await round_ms(session, given["message"], rounds) for _ in range(given["rounds"] + 1)
        ]
    assert all(each.results == given["tools"] for each in rounds)
    await session.close()
    await client.close()
    return {"milliseconds": timed}


def main() -> None:
    """Work until the input ends."""
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            print(json.dumps(runner.run(run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
