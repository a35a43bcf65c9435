"""How many partial messages one server process relays in a second.

A provider that does nothing but play a recorded stream as fast as the socket takes it answers; the
client counts frames on raw sockets; both leave the server the limit (`server_cpu_share` in the raw
figures says how much of a core the server used while it was measured). The peer is a bare uvicorn
WebSocket endpoint (sans-IO websockets, no deflate: the settings of the server) in the same kind of
process, which sends to the same client, on as many connections, the very frames that our server
sent a moment before, ready made, from memory. It does no more than any Python server has to:
the rate is what the sockets and the framing allow.

In the first row the provider's HTTP chunks have 16 KiB, as where anything between buffers; in the
second each event is an HTTP chunk of its own, which costs the HTTP client more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.children import Child, cpu_seconds, program, serving
from bench.figures import Figures, Row, Series, Target
from bench.service import Service, chucky_service

_SECONDS = 60
_CHUNK_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class _Size:
    repetitions: int
    connections: int
    turns_on_each: int
    events_in_a_turn: int


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of a server: events in a second, and what it used meanwhile."""

    rate: float
    cpu_share: float
    cpu_microseconds: float


def measure(*, quick: bool) -> Figures:
    """Measure relaying; see the module's docstring."""
    size = _Size(2, 2, 1, 100) if quick else _Size(5, 4, 2, 5_000)
    relayed, bare = _compare(size, _CHUNK_BYTES)
    single, bare_again = _compare(size, 0)
    return Figures(
        rows=[
            _row("partial messages relayed", relayed, bare, Target(at_least=0.4)),
            _row("the same, an HTTP chunk for each event", single, bare_again, None),
        ],
        size=asdict(size),
        details={
            "relayed": _details(relayed),
            "bare": _details(bare),
            "relayed_chunk_for_each_event": _details(single),
        },
    )


def _compare(size: _Size, chunk_bytes: int) -> tuple[list[_Run], list[_Run]]:
    """Measure server and peer in turns."""
    ours: list[_Run] = []
    peer: list[_Run] = []
    provider = program(
        "recorded_provider",
        *("--events", str(size.events_in_a_turn), "--chunk-bytes", str(chunk_bytes)),
    )
    with (
        TemporaryDirectory() as directory,
        serving(provider) as (_, upstream),
        chucky_service(upstream) as service,
        program("frame_counter") as counter,
    ):
        frames = str(Path(directory) / "frames.txt")
        tokens = service.tokens(size.connections)
        _ask(counter, service, size, tokens, record=frames)
        with serving(program("bare_websocket", frames)) as (bare, address):
            _ask(counter, _Endpoint(bare, address), size, [None] * size.connections)
            for _ in range(size.repetitions):
                ours.append(_ask(counter, service, size, tokens))
                peer.append(
                    _ask(counter, _Endpoint(bare, address), size, [None] * size.connections)
                )
    return ours, peer


@dataclass(frozen=True, slots=True)
class _Endpoint:
    process: Child
    address: str


def _ask(
    counter: Child,
    server: Service | _Endpoint,
    size: _Size,
    tokens: Sequence[str | None],
    record: str | None = None,
) -> _Run:
    before = cpu_seconds(server.process.pid)
    found = counter.ask(
        _SECONDS,
        address=server.address,
        tokens=tokens,
        turns=size.turns_on_each,
        record=record,
    )
    spent = cpu_seconds(server.process.pid) - before
    events, seconds = found["events"], found["seconds"]
    return _Run(events / seconds, spent / seconds, spent / events * 1e6)


def _row(what: str, ours: list[_Run], peer: list[_Run], target: Target | None) -> Row:
    return Row(
        what=what,
        unit="events/s",
        ours=Series("one server process", tuple(run.rate for run in ours)),
        peer=Series("bare uvicorn", tuple(run.rate for run in peer)),
        compared="ours / peer",
        target=target,
    )


def _details(runs: list[_Run]) -> dict[str, Any]:
    return {
        "server_cpu_share": [round(run.cpu_share, 2) for run in runs],
        "server_cpu_microseconds_per_event": [round(run.cpu_microseconds, 2) for run in runs],
    }
