"""What the server costs on one turn: a short message on an open session, an answer of one chunk.

Client, server and offline model are three processes. The peer is the official `anthropic` client
(`AsyncAnthropic.messages.create(stream=True)`) calling the same process of the offline model
directly, streaming as the server does, and keeping the conversation as the server does: both send
the model the same growing history, from a first message to the last of the block, over a
connection that is open already. Ours and the peer take turns in blocks; the figure of a block is
its median. The server logs errors only, and this version has no ledger that could be switched off.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

from bench.children import program
from bench.figures import Figures, Row, Series, Target, percentile
from bench.service import chucky_service, offline_model, scripted

_BLOCK_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Size:
    blocks: int
    turns_in_a_block: int
    warm_up_turns: int


def measure(*, quick: bool) -> Figures:
    """Measure turns; see the module's docstring."""
    size = _Size(2, 2, 1) if quick else _Size(30, 20, 3)
    asked = {
        "message": scripted({"text": ["Paris."]}),
        "warm_up": size.warm_up_turns,
        "turns": size.turns_in_a_block,
    }
    through: list[list[float]] = []
    direct: list[list[float]] = []
    with (
        offline_model() as model,
        chucky_service(model) as service,
        program("ask_server") as ours,
        program("ask_model") as peer,
    ):
        (token,) = service.tokens(1)
        for _ in range(size.blocks):
            found = ours.ask(_BLOCK_SECONDS, url=service.url, token=token, **asked)
            through.append(found["milliseconds"])
            found = peer.ask(_BLOCK_SECONDS, base_url=f"http://{model}", **asked)
            direct.append(found["milliseconds"])
    return Figures(
        rows=[
            Row(
                what="one turn, p50",
                unit="ms",
                ours=Series("through the server", _medians(through)),
                peer=Series("`anthropic` client, directly", _medians(direct)),
                compared="ours / peer",
                target=Target(at_most=1.3),
            )
        ],
        size=asdict(size),
        details={"through_the_server_ms": _spread(through), "directly_ms": _spread(direct)},
    )


def _medians(blocks: list[list[float]]) -> tuple[float, ...]:
    return tuple(statistics.median(block) for block in blocks)


def _spread(blocks: list[list[float]]) -> dict[str, float]:
    every = [turn for block in blocks for turn in block]
    return {f"p{share}": round(percentile(every, share / 100), 3) for share in (10, 50, 90, 99)}
