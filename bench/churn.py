"""1,000 sessions opened, one turn in each, closed: our client and the published 0.2.0.

The same program runs with either SDK, in an environment of its own, against the same server and the
same offline model, some sessions at once; they take turns. The answer has one chunk, so that the
client, and not the model, is most of what differs. Sessions that fail are counted and named in the
raw figures. The memory that is left is the growth of the process over the runs that count, for each
session opened in them: a session that is held on to would show with its whole size (see *memory*).
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.children import Child, cpu_seconds, program_of, proportional_kib
from bench.figures import Figures, Row, Series, Target
from bench.published import VERSION, published_python
from bench.service import Service, chucky_service, offline_model, scripted

_SECONDS = 250
_LEFT_KIB = 1.0
_USERS = 20


@dataclass(frozen=True, slots=True)
class _Size:
    repetitions: int
    sessions: int
    sessions_at_once: int
    warm_up_sessions: int


@dataclass(frozen=True, slots=True)
class _Run:
    """One run: time, processor time, errors, and the memory server and client are left with."""

    seconds: float
    client_cpu_ms: float
    errors: list[str]
    server_left_kib: float
    client_left_kib: float


def measure(*, quick: bool) -> Figures:
    """Measure many short sessions; see the module's docstring."""
    size = _Size(1, 20, 4, 4) if quick else _Size(5, 1_000, 10, 500)
    ours: list[_Run] = []
    peer: list[_Run] = []
    published = published_python()
    with (
        offline_model() as model,
        chucky_service(model) as service,
        program_of(Path(sys.executable), "churn_sessions") as client,
        program_of(published, "churn_sessions") as published_client,
    ):
        for each in (client, published_client):
            _run(each, service, size, size.warm_up_sessions)
        for _ in range(size.repetitions):
            ours.append(_run(client, service, size, size.sessions))
            peer.append(_run(published_client, service, size, size.sessions))
    return Figures(
        rows=_rows(size, ours, peer),
        size=asdict(size),
        details={
            "first_errors": {
                "ours": [sentence for run in ours for sentence in run.errors][:5],
                "peer": [sentence for run in peer for sentence in run.errors][:5],
            }
        },
    )


def _rows(size: _Size, ours: list[_Run], peer: list[_Run]) -> list[Row]:
    def row(
        what: str,
        unit: str,
        key: str,
        compared: str = "ours / peer",
        target: Target | None = None,
    ) -> Row:
        return Row(
            what=what,
            unit=unit,
            ours=Series("chucky", tuple(_value(run, key) for run in ours)),
            peer=Series(f"chucky-sdk {VERSION}", tuple(_value(run, key) for run in peer)),
            compared=compared,
            target=target,
        )

    sessions = f"{size.sessions:,} sessions"
    left = Target(at_most=_LEFT_KIB)
    return [
        row(f"{sessions} with one turn each", "s", "seconds", "ours / peer", Target(at_most=1.0)),
        row("processor time of the client, for each session", "ms", "client_cpu_ms"),
        row("sessions that failed", "sessions", "errors", "ours", Target(at_most=0)),
        row("left in the server, for each session", "KiB", "server_left_kib", "ours", left),
        row("left in the client, for each session", "KiB", "client_left_kib", "ours", left),
    ]


def _value(run: _Run, key: str) -> float:
    value: Any = getattr(run, key)
    return float(len(value)) if isinstance(value, list) else float(value)


def _run(client: Child, service: Service, size: _Size, sessions: int) -> _Run:
    server_before, client_before = _memory(service, client)
    cpu_before = cpu_seconds(client.pid)
    found = client.ask(
        _SECONDS,
        url=service.url,
        tokens=service.tokens(_USERS),
        sessions=sessions,
        at_once=size.sessions_at_once,
        message=scripted({"text": ["Paris."]}),
    )
    server_after, client_after = _memory(service, client)
    return _Run(
        found["seconds"],
        (cpu_seconds(client.pid) - cpu_before) / sessions * 1000,
        found["errors"],
        (server_after - server_before) / sessions,
        (client_after - client_before) / sessions,
    )


def _memory(service: Service, client: Child) -> tuple[int, int]:
    return proportional_kib(service.process.pid), proportional_kib(client.pid)
