"""Sends each message as a prompt of its own and tells what came back, or what was raised."""

import asyncio
import json
import sys
from typing import Any

from chucky import Chucky


async def ask(client: Chucky, message: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": await client.prompt(message, **options)}
    except Exception as error:
        return {"raised": type(error).__name__, "text": str(error)}


async def main(given: dict[str, Any]) -> dict[str, Any]:
    client = Chucky(given["url"], given["token"], **given.get("client", {}))
    options = given.get("options", {})
    answers = [await ask(client, message, options) for message in given["messages"]]
    await client.close()
    return {"answers": answers}


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
