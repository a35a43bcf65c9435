"""Streams the answer to a message and tells every event."""

import asyncio
import json
import sys
from typing import Any

from chucky import Chucky, PromptOptions


async def main(given: dict[str, Any]) -> dict[str, Any]:
    client = Chucky(url=given["url"], token=given["token"])
    options = PromptOptions(**given.get("options", {}))
    events = client.stream(given["message"], options=options)
    return {"events": [[event.type, event.data] async for event in events]}


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
