"""What the server costs on one turn: a short message on an open session, an answer of one chunk.

Client, server and offline model are three processes. The peer is the official `anthropic` client
(`AsyncAnthropic.messages.create(stream=True)`) calling the same process of the offline model
directly, streaming as the server does, and keeping the conversation as the server does: both send
the model the same growing history, from a first message to the last of the block, over a
connection that is open already. Ours and the peer take turns in blocks; the figure of a block is
its median. The server logs errors only.

Three servers are measured side by side: one with ledger and session log switched off, one with
the ledger, one with both, which is what an operator runs. What the ledger costs is compared with
what it cannot do without: two durable commits of one row each, made by a bare loop on an SQLite
file of the same kind (write-ahead log, `synchronous = FULL`) in the same run. Both write first
until they begin to use their log's space again, as they do from then on: a commit that makes the
file longer takes half as long again. A server does not make one commit after the other, so that a
further row compares with two that a thread makes for an event loop, as far apart as those of a
turn: processor and disk have been idle before each.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from bench.bare_commits import BareCommits
from bench.children import program
from bench.figures import Figures, Row, Series, Target, percentile
from bench.service import chucky_service, offline_model, scripted

_BLOCK_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Size:
    blocks: int
    turns_in_a_block: int
    warm_up_turns: int
    first_blocks: int


_SERVERS = {
    "bare": {"CHUCKY_LEDGER": "off", "CHUCKY_SESSION_LOG": "off"},
    "ledger": {"CHUCKY_SESSION_LOG": "off"},
    "both": dict[str, str](),
}


def measure(*, quick: bool) -> Figures:
    """Measure turns; see the module's docstring."""
    size = _Size(2, 2, 1, 1) if quick else _Size(30, 20, 3, 13)
    asked = {
        "message": scripted({"text": ["Paris."]}),
        "warm_up": size.warm_up_turns,
        "turns": size.turns_in_a_block,
    }
    ours: dict[str, list[list[float]]] = {name: [] for name in _SERVERS}
    direct: list[list[float]] = []
    commits: list[list[float]] = []
    paced_commits: list[list[float]] = []
    with ExitStack() as running:
        model = running.enter_context(offline_model())
        servers = {
            name: running.enter_context(chucky_service(model, settings))
            for name, settings in _SERVERS.items()
        }
        client = running.enter_context(program("ask_server"))
        peer = running.enter_context(program("ask_model"))
        bare = running.enter_context(BareCommits())
        tokens = {name: server.tokens(1)[0] for name, server in servers.items()}
        given = {
            name: {"url": server.url, "token": tokens[name], **asked}
            for name, server in servers.items()
        }
        for _ in range(size.first_blocks):
            for name in servers:
                client.ask(_BLOCK_SECONDS, **given[name])
            bare.one_after_the_other_ms(100)
        for _ in range(size.blocks):
            for name in servers:
                ours[name].append(client.ask(_BLOCK_SECONDS, **given[name])["milliseconds"])
            found = peer.ask(_BLOCK_SECONDS, base_url=f"http://{model}", **asked)
            direct.append(found["milliseconds"])
            count = 2 * size.turns_in_a_block
            commits.append(bare.one_after_the_other_ms(count))
            paced_commits.append(bare.apart_ms(count, statistics.median(ours["bare"][-1]) / 2))
    medians = {name: _medians(blocks) for name, blocks in ours.items()}
    return Figures(
        rows=_rows(medians, direct, _medians(commits), _medians(paced_commits)),
        size=asdict(size),
        details={
            "directly_ms": _spread(direct),
            "one_commit_ms": _spread(commits),
            "one_commit_apart_ms": _spread(paced_commits),
            **{f"{name}_ms": _spread(blocks) for name, blocks in ours.items()},
        },
    )


def _rows(
    ours: dict[str, tuple[float, ...]],
    direct: list[list[float]],
    commits: tuple[float, ...],
    paced_commits: tuple[float, ...],
) -> list[Row]:
    directly = Series("`anthropic` client, directly", _medians(direct))
    with_ledger = Series("with the ledger", ours["ledger"])

    def without(label: str, commits: tuple[float, ...]) -> Series:
        turns = zip(ours["bare"], commits, strict=True)
        return Series(label, tuple(turn + 2 * commit for turn, commit in turns))

    return [
        Row(
            what="one turn, p50, ledger and log off",
            unit="ms",
            ours=Series("through the server", ours["bare"]),
            peer=directly,
            compared="ours / peer",
            target=Target(at_most=1.3),
        ),
        Row(
            what="one turn, p50, ledger and log on",
            unit="ms",
            ours=Series("through the server", ours["both"]),
            peer=directly,
            compared="ours / peer",
            target=Target(at_most=2.2),
        ),
        Row(
            what="what the ledger adds to a turn, beyond two commits",
            unit="ms",
            ours=with_ledger,
            peer=without("without, and two bare commits", commits),
            compared="ours - peer",
            target=Target(at_most=0.4),
        ),
        Row(
            what="the same, beyond two commits as far apart as those of a turn",
            unit="ms",
            ours=with_ledger,
            peer=without("without, and two bare commits of a thread", paced_commits),
            compared="ours - peer",
        ),
        Row(
            what="what the log adds to a turn with the ledger",
            unit="ms",
            ours=Series("with both", ours["both"]),
            peer=with_ledger,
            compared="ours - peer",
            target=Target(at_most=0.3),
        ),
    ]


def _medians(blocks: list[list[float]]) -> tuple[float, ...]:
    return tuple(statistics.median(block) for block in blocks)


def _spread(blocks: list[list[float]]) -> dict[str, float]:
    every = [turn for block in blocks for turn in block]
    return {f"p{share}": round(percentile(every, share / 100), 3) for share in (10, 50, 90, 99)}
