"""How a worker works: it reads what to do from its standard input and prints what it found."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

MODEL = "claude-sonnet-5-5"
"""The model that all clients ask for."""


def work(run: Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]]) -> None:
    """Do what each line of the input asks for, until it ends; nothing runs between two lines."""
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            answer(runner.run(_run(run, json.loads(line))))


def answer(found: Mapping[str, Any]) -> None:
    """Print what was found."""
    print(json.dumps(found), flush=True)


async def _run(
    run: Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]], given: dict[str, Any]
) -> Mapping[str, Any]:
    return await run(given)
