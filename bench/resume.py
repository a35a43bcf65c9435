"""What it takes to go on with a session of 1,000 messages: from `init` to its `session_info`.

The session has had 500 turns: as many messages of the user, and an answer to each. It is resumed on
connections that are open already, one after the other, each closed before the next; the server
reads its log and rebuilds what the model knows each time. The peer begins a new session in the same
way, in turns with ours. The clients are raw sockets. The server logs errors only.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

from bench.children import program
from bench.figures import Figures, Row, Series, Target
from bench.service import chucky_service, offline_model, scripted

_BLOCK_SECONDS = 60
_TURNS_SECONDS = 300


@dataclass(frozen=True, slots=True)
class _Size:
    blocks: int
    openings_in_a_block: int
    turns: int


def measure(*, quick: bool) -> Figures:
    """Measure resuming; see the module's docstring."""
    size = _Size(2, 2, 3) if quick else _Size(20, 10, 500)
    resumed: list[float] = []
    begun: list[float] = []
    with (
        offline_model() as model,
        chucky_service(model) as service,
        program("open_sessions") as client,
    ):
        (token,) = service.tokens(1)
        asked = {"address": service.address, "token": token}
        message = scripted({"text": ["Paris."]})
        session_id = client.ask(_TURNS_SECONDS, **asked, turns=size.turns, message=message)["id"]
        for _ in range(size.blocks):
            for into, resume in ((resumed, session_id), (begun, None)):
                count = size.openings_in_a_block
                found = client.ask(_BLOCK_SECONDS, **asked, openings=count, resume=resume)
                into.append(statistics.median(found["milliseconds"]))
    return Figures(
        rows=[
            Row(
                what=f"opening a session of {2 * size.turns:,} messages, p50",
                unit="ms",
                ours=Series("resumed", tuple(resumed)),
                peer=Series("a new one", tuple(begun)),
                compared="ours",
                target=Target(at_most=50),
            )
        ],
        size=asdict(size),
    )
