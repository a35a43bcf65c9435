"""What an application sees when its connection is cut: what it would have seen otherwise."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from chucky import Chucky, tool

WAIT_SECONDS = 30
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
# What differs from run to run, cut or not.
_OWN = frozenset(
    {"uuid", "session_id", "duration_ms", "duration_api_ms", "turn_compute_ms", "budgets"}
)


@dataclass
class Seen:
    """What an application saw of a conversation.

    Attributes:
        messages: The complete messages, without what differs from run to run.
        deltas: The text of the partial ones.
        calls: The tool calls that ran.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    deltas: str = ""
    calls: list[int] = field(default_factory=list)


def script(*steps: dict[str, Any]) -> str:
    return f"{uuid.uuid4()}\n```offline\n{json.dumps(steps)}\n```"


CONVERSATION = (
    ({"text": ["Once ", "upon ", "a time"]},),
    (
        {
            "thinking": "Two calls.",
            "tools": [{"name": "double", "input": {"n": n}} for n in (1, 2)],
        },
        {"text": ["Two ", "and ", "four"]},
    ),
    ({"text": "The end."},),
)


async def converse(url: str, token: str) -> Seen:
    """Have the conversation, and see."""
    seen = Seen()

    @tool("double", "Double a number", schema=NUMBER)
    async def double(n: int) -> str:
        seen.calls.append(n)
        return str(2 * n)

    async with (
        asyncio.timeout(WAIT_SECONDS),
        Chucky(token, url=url, include_partial_messages=True) as client,
        client.create_session(tools=[double]) as session,
    ):
        for steps in CONVERSATION:
            await session.send(script(*steps))
            async for message in session.stream():
                if message["type"] == "stream_event":
                    seen.deltas += message["event"].get("delta", {}).get("text", "")
                else:
                    seen.messages.append(_stable(message))
    return seen


def _stable(value: Any) -> Any:
    """The message without what differs from run to run; ids of calls among it."""
    if isinstance(value, dict):
        ids = {"id", "tool_use_id"}
        return {k: _stable(v) for k, v in value.items() if k not in _OWN and k not in ids}
    return [_stable(each) for each in value] if isinstance(value, list) else value


async def test_wherever_the_connection_is_cut_the_application_sees_the_same(
    server: Any, fault_proxy: Callable[..., Any], seed: int, request: pytest.FixtureRequest
) -> None:
    async with fault_proxy(server.url) as proxy:
        undisturbed = await converse(proxy.url, server.token("cut"))
        # The first four begin the session, and a loss raises until its client knows its id; the
        # last three close it.
        positions = list(range(5, proxy.frames - 2))
    assert undisturbed.deltas == "Once upon a timeTwo and fourThe end."

    is_sample = request.config.getoption("-m") == "not slow"
    if is_sample:
        positions = sorted(random.Random(seed).sample(positions, 12))
    for position in positions:
        async with fault_proxy(server.url, cuts={position}) as proxy:
            seen = await converse(proxy.url, server.token("cut"))
        assert proxy.connections == 2, position
        assert seen == undisturbed, position
