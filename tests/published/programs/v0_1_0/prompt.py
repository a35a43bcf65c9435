"""Sends each message as a prompt of its own and tells what came back, or what was raised."""

import asyncio
import json
import sys
from typing import Any

from chucky import Chucky


async def ask(client: Chucky, message: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        result = await client.prompt(message, **options)
    except Exception as error:
        return {"raised": type(error).__name__, "text": str(error)}
    return {
        "class": type(result).__name__,
        "result": result.result,
        "messages": result.messages,
        "session_id": result.session_id,
        "total_cost_usd": result.total_cost_usd,
        "duration_ms": result.duration_ms,
    }


async def main(given: dict[str, Any]) -> dict[str, Any]:
    client = Chucky(url=given["url"], token=given["token"], **given.get("client", {}))
    options = given.get("options", {})
    return {"answers": [await ask(client, message, options) for message in given["messages"]]}


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
