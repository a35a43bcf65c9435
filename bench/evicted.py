"""What a session costs in memory in which nothing happens any more, after a long conversation.

Sessions come in waves. Each has one turn, in which 100,000 characters are said, and then does
nothing: it stays connected, pings, and its conversation leaves memory, or its connection is lost
and it ends after its time of grace. Before the waves that count there are some more, since Python
keeps for what comes next most of what a process has once used. What counts is how much the
process's proportional set (PSS) grows with each further wave, for each of its sessions. The peer of
those that stay connected are sessions in which nothing was ever said, opened in the same process in
waves as large. The clients are raw sockets in a process of their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from bench.children import Child, program, proportional_kib
from bench.figures import Figures, Row, Series, Target
from bench.service import Service, chucky_service, offline_model, scripted

_SECONDS = 300
_SOON = {"CHUCKY_EVICT_AFTER_SECONDS": "1", "CHUCKY_RECONNECT_GRACE_SECONDS": "1"}


@dataclass(frozen=True, slots=True)
class _Size:
    warm_up_waves: int
    waves: int
    sessions_in_a_wave: int
    characters: int
    settling_seconds: float  # until all that is to leave memory has left it


def measure(*, quick: bool) -> Figures:
    """Measure sessions that were left; see the module's docstring."""
    size = _Size(1, 1, 5, 1_000, 0) if quick else _Size(8, 8, 100, 100_000, 4)
    held, silent = _waves(size, is_lost=False)
    ended, _ = _waves(size, is_lost=True)
    return Figures(
        rows=[
            Row(
                what="memory of a connected session that left memory",
                unit="KiB",
                ours=Series("after a long turn", held),
                peer=Series("in which nothing was said", silent),
                compared="ours - peer",
                target=Target(at_most=8),
            ),
            Row(
                what="memory of a session whose client stayed away",
                unit="KiB",
                ours=Series("after a long turn", ended),
                peer=None,
                compared="ours",
                target=Target(at_most=1),
            ),
        ],
        size=asdict(size),
    )


def _waves(size: _Size, *, is_lost: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What the process grows by for each session of each wave: of talk, and of silence."""
    held, silent = [], []
    with (
        offline_model() as model,
        chucky_service(model, _SOON) as service,
        program("say_much") as talking,
        program("idle_sockets") as idle,
    ):
        tokens = iter(
            service.tokens(2 * size.sessions_in_a_wave * (size.warm_up_waves + size.waves))
        )
        for _ in range(size.warm_up_waves + size.waves):
            held.append(_talk(service, talking, tokens, size, is_lost=is_lost))
            if not is_lost:  # they would lie between what the others have left
                silent.append(_idle(service, idle, tokens, size))
    return tuple(held[size.warm_up_waves :]), tuple(silent[size.warm_up_waves :])


def _talk(
    service: Service, client: Child, tokens: Iterator[str], size: _Size, *, is_lost: bool
) -> float:
    before = proportional_kib(service.process.pid)
    of_wave = [next(tokens) for _ in range(size.sessions_in_a_wave)]
    message = scripted({"text": ["x" * 1_000] * (size.characters // 1_000)})
    client.ask(_SECONDS, address=service.address, tokens=of_wave, message=message, is_lost=is_lost)
    return _growth(service, before, len(of_wave), size)


def _idle(service: Service, client: Child, tokens: Iterator[str], size: _Size) -> float:
    before = proportional_kib(service.process.pid)
    of_wave = [next(tokens) for _ in range(size.sessions_in_a_wave)]
    client.ask(_SECONDS, address=service.address, tokens=of_wave)
    return _growth(service, before, len(of_wave), size)


def _growth(service: Service, before: int, sessions: int, size: _Size) -> float:
    time.sleep(size.settling_seconds)
    return (proportional_kib(service.process.pid) - before) / sessions
