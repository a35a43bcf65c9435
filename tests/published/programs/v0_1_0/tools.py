"""Sends a message with tools of every kind and tells how they were called and what came back."""

import asyncio
import json
import sys
from typing import Any

from chucky import (
    Chucky,
    PromptOptions,
    ToolResult,
    create_mcp_server,
    error_result,
    text_result,
    tool,
)

calls: list[list[Any]] = []


@tool("add", "Add two numbers")
def add(a: int, b: int) -> ToolResult:
    calls.append(["add", a, b])
    return text_result(str(a + b))


@tool("greet", "Greet somebody")
async def greet(name: str, style: str = "kindly") -> ToolResult:
    await asyncio.sleep(0)
    calls.append(["greet", name, style])
    return text_result(f"Hello {name}, {style}")


@tool("refuse", "Refuse")
async def refuse() -> ToolResult:
    return error_result("I will not.")


@tool("fail", "Fail")
async def fail() -> ToolResult:
    raise ValueError("out of order")


async def main(given: dict[str, Any]) -> dict[str, Any]:
    servers = {"calculator": create_mcp_server("calculator", [add])}
    client = Chucky(url=given["url"], token=given["token"], mcp_servers=servers)
    options = PromptOptions(tools=[greet, refuse, fail])
    messages: list[Any] = []
    async for event in client.stream(given["message"], options=options):
        if event.type in ("message", "result"):
            messages.append(event.data)
    return {"calls": calls, "messages": messages}


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
