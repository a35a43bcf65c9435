"""Has a session of several turns, with tools, and tells every message of each turn."""

import asyncio
import json
import sys
from typing import Any

from chucky import (
    Chucky,
    ToolResult,
    create_mcp_server,
    error_result,
    get_assistant_text,
    get_result_text,
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


@tool("fill", "Make a text of a given size")
async def fill(characters: int) -> ToolResult:
    return text_result("x" * characters)


async def main(given: dict[str, Any]) -> dict[str, Any]:
    servers = {"calculator": create_mcp_server("calculator", [add])}
    client = Chucky(given["url"], given["token"], mcp_servers=servers)
    session = client.create_session(tools=[greet, refuse, fail, fill], **given.get("options", {}))
    turns = []
    for message in given["messages"]:
        await session.send(message)
        messages = [each async for each in session.stream()]
        turns.append(
            {
                "messages": messages,
                "assistant": [get_assistant_text(each) for each in messages],
                "result": get_result_text(messages[-1]),
            }
        )
    await session.close()
    await client.close()
    return {"turns": turns, "calls": calls}


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
