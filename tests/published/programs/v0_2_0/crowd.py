"""Many clients at once, each with a tool and a conversation of its own."""

import asyncio
import json
import sys
from typing import Any

from chucky import Chucky, ToolResult, text_result, tool


async def one(url: str, token: str, name: str, use_tool: str) -> list[Any]:
    @tool("secret", "Tell the secret")
    async def secret() -> ToolResult:
        return text_result(f"the secret of {name}")

    client = Chucky(url, token)
    session = client.create_session(tools=[secret])
    told: list[Any] = []
    for message in (f"Hello, I am {name}", use_tool, "What is my name?"):
        await session.send(message)
        async for each in session.stream():
            if each["type"] == "user":
                told.append(each["message"]["content"][0]["content"][0]["text"])
            if each["type"] == "result":
                told.append(each["result"])
    await client.close()
    return told


async def main(given: dict[str, Any]) -> dict[str, Any]:
    tasks = [
        one(given["url"], token, name, given["use_tool"]) for name, token in given["users"].items()
    ]
    return dict(zip(given["users"], await asyncio.gather(*tasks), strict=True))


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
