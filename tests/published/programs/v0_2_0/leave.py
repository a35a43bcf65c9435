"""Leaves sessions in the middle of a turn, many times, and then asks a last question."""

import asyncio
import json
import sys
from typing import Any

from chucky import Chucky


async def main(given: dict[str, Any]) -> dict[str, Any]:
    client = Chucky(given["url"], given["token"])
    for _ in range(given["times"]):
        session = client.create_session()
        await session.send(given["slow"])
        async for message in session.stream():
            if message["type"] == "system":
                break
        await session.close()
    result = await client.prompt(given["last"])
    await client.close()
    return {"result": result}


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
