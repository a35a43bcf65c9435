"""Ten tools that the model calls at once: our client and the published 0.2.0.

The same program runs with either SDK against the same server; they take turns. A round lasts from
the first sign of the calls in the client (the message that has them, or the first tool that runs)
to the message with all ten results, which the server sends when it has the last one. In the first
row each tool waits for 20 ms, as for a database or another service; 0.2.0 runs tools one after the
other, ours at the same time, so this is where the difference is. In the second row the tools answer
at once, so only the two protocols and the server remain.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.children import Child, program_of
from bench.figures import Figures, Row, Series, Target
from bench.published import VERSION, published_python
from bench.service import Service, chucky_service, offline_model, scripted

_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Size:
    repetitions: int
    rounds: int
    tools: int
    wait_ms: int


def measure(*, quick: bool) -> Figures:
    """Measure tool calls; see the module's docstring."""
    size = _Size(1, 1, 10, 1) if quick else _Size(7, 10, 10, 20)
    published = published_python()
    with (
        offline_model() as model,
        chucky_service(model) as service,
        program_of(Path(sys.executable), "call_tools") as client,
        program_of(published, "call_tools") as published_client,
    ):

        def row(what: str, wait_ms: int, target: Target | None) -> Row:
            ours, peer = [], []
            for _ in range(size.repetitions):
                ours.append(_round_ms(client, service, size, wait_ms))
                peer.append(_round_ms(published_client, service, size, wait_ms))
            return Row(
                what=what,
                unit="ms",
                ours=Series("chucky", tuple(ours)),
                peer=Series(f"chucky-sdk {VERSION}", tuple(peer)),
                compared="peer / ours",
                target=target,
            )

        rows = [
            row(
                f"{size.tools} parallel tools of {size.wait_ms} ms",
                size.wait_ms,
                Target(at_least=5.0),
            ),
            row(f"{size.tools} parallel tools that answer at once", 0, None),
        ]
    return Figures(rows=rows, size=asdict(size))


def _round_ms(client: Child, service: Service, size: _Size, wait_ms: int) -> float:
    """The median of the rounds of one session."""
    calls = [{"name": f"look_up_{number}", "input": {}} for number in range(size.tools)]
    (token,) = service.tokens(1)
    found = client.ask(
        _SECONDS,
        url=service.url,
        token=token,
        rounds=size.rounds,
        tools=size.tools,
        wait_ms=wait_ms,
        message=scripted({"tools": calls}, {"text": ["Done."]}),
    )
    return float(statistics.median(found["milliseconds"]))
