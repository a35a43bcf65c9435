"""What it takes to come back after a lost connection: to the first message that is sent again.

A client that has seen nothing of a session of one turn comes back to it: it connects, says in
`init` which session it is and what it has seen, and waits for the first message. The session either
goes on in the server, because the connection was cut, and has its messages in memory; or the
connection was closed, so that they are read from the log. The peer is the first part of the same
thing, TCP and the WebSocket handshake; what counts is the difference. The clients are raw sockets.
The server logs errors only.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from bench.children import Child, program
from bench.figures import Figures, Row, Series, Target
from bench.service import Service, chucky_service, offline_model, scripted

_BLOCK_SECONDS = 120


@dataclass(frozen=True, slots=True)
class _Size:
    blocks: int
    comings_in_a_block: int


def measure(*, quick: bool) -> Figures:
    """Measure coming back; see the module's docstring."""
    size = _Size(2, 2) if quick else _Size(20, 10)
    with (
        offline_model() as model,
        chucky_service(model) as service,
        program("come_back") as client,
    ):
        rows = [
            _row(what, is_lost, service, client, size)
            for what, is_lost in (("that goes on", True), ("that is in the log only", False))
        ]
    return Figures(rows=rows, size=asdict(size))


def _row(what: str, is_lost: bool, service: Service, client: Child, size: _Size) -> Row:
    (token,) = service.tokens(1)
    asked: dict[str, Any] = {"address": service.address, "token": token, "is_lost": is_lost}
    message = scripted({"text": ["Paris."]})
    asked["id"] = client.ask(_BLOCK_SECONDS, **asked, message=message)["id"]
    events, handshakes = [], []
    for _ in range(size.blocks):
        comings = size.comings_in_a_block
        found = client.ask(_BLOCK_SECONDS, **asked, comings=comings)
        events.append(statistics.median(found["events"]))
        handshakes.append(statistics.median(found["handshakes"]))
    return Row(
        what=f"first message of a session {what}, p50",
        unit="ms",
        ours=Series("coming back", tuple(events)),
        peer=Series("TCP and handshake", tuple(handshakes)),
        compared="ours - peer",
        target=Target(at_most=10),
    )
