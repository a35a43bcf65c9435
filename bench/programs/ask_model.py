"""Worker: has the turns of ``ask_server`` with the ``anthropic`` client and no server between.

Asked with ``base_url``, ``message``, ``warm_up`` and ``turns`` it keeps a conversation as an
application would, and answers with ``milliseconds``, one number for each turn that counts.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from anthropic import AsyncAnthropic
from anthropic.types import MessageParam

from bench.worker import MODEL, work

_SECONDS = 60
_MAX_TOKENS = 32_000


async def turn_ms(client: AsyncAnthropic, history: list[MessageParam], message: str) -> float:
    """Have one turn; from sending the message to the end of the streamed answer."""
    started_at = time.perf_counter()
    history.append({"role": "user", "content": [{"type": "text", "text": message}]})
    stream = await client.messages.create(
        model=MODEL,
        max_tokens=_MAX_TOKENS,
        messages=history,
        metadata={"user_id": "user_bench_session_bench"},
        stream=True,
    )
    text = ""
    async for event in stream:
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            text += event.delta.text
    history.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
    return (time.perf_counter() - started_at) * 1000


async def run(given: dict[str, Any]) -> dict[str, Any]:
    """Do what the worker is asked for."""
    history: list[MessageParam] = []
    client = AsyncAnthropic(base_url=given["base_url"], api_key="none", max_retries=0)
    async with asyncio.timeout(_SECONDS), client:
        for _ in range(given["warm_up"]):
            await turn_ms(client, history, given["message"])
        timed = [await turn_ms(client, history, given["message"]) for _ in range(given["turns"])]
    return {"milliseconds": timed}


if __name__ == "__main__":
    work(run)
