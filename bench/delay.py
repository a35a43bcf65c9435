"""How much later a streamed event arrives because a server is in between, with 50 sessions at once.

The provider sends each of the 50 streams one event every 40 ms (a fast model: some hundred tokens
a second, several in each event), each in an HTTP chunk of its own, and writes into the event when
it was sent; all processes of a machine share that clock. An event has arrived when the application
has it: from our client's `stream()` through the server, or, for the peer, from the `anthropic`
client directly. Both read 50 streams of the same provider in one process, and take turns. Only the
time in which all 50 ran counts. The figure is the difference of the two percentiles; both contain
what the provider and the client cost.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from bench.children import program, serving
from bench.figures import Figures, Row, Series, Target, percentile
from bench.service import chucky_service

_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Size:
    repetitions: int
    sessions: int
    events_in_a_stream: int
    pace_ms: int


def measure(*, quick: bool) -> Figures:
    """Measure delays; see the module's docstring."""
    size = _Size(2, 3, 60, 5) if quick else _Size(6, 50, 100, 40)
    through: list[list[float]] = []
    direct: list[list[float]] = []
    provider = program(
        "recorded_provider",
        *("--events", str(size.events_in_a_stream), "--pace-ms", str(size.pace_ms)),
    )
    with (
        serving(provider) as (_, upstream),
        chucky_service(upstream) as service,
        program("streamed_delays") as reader,
    ):
        (token,) = service.tokens(1)
        ours = {"url": service.url, "token": token, "streams": size.sessions}
        peer = {"base_url": f"http://{upstream}", "streams": size.sessions}
        for given in (ours, peer):  # the first run imports, connects, compiles
            reader.ask(_SECONDS, **given)
        for _ in range(size.repetitions):
            through.append(reader.ask(_SECONDS, **ours)["milliseconds"])
            direct.append(reader.ask(_SECONDS, **peer)["milliseconds"])

    def row(what: str, share: float, target: Target | None) -> Row:
        return Row(
            what=what,
            unit="ms",
            ours=Series("through the server", _percentiles(through, share)),
            peer=Series("`anthropic` client, directly", _percentiles(direct, share)),
            compared="ours - peer",
            target=target,
        )

    return Figures(
        rows=[
            row("delay of an event, p99", 0.99, Target(at_most=5.0)),
            row("delay of an event, p50", 0.5, None),
        ],
        size=asdict(size),
        details={"events_in_each_run": [len(run) for run in (*through, *direct)]},
    )


def _percentiles(runs: list[list[float]], share: float) -> tuple[float, ...]:
    return tuple(percentile(run, share) for run in runs)
