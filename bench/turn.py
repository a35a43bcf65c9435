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
file longer takes half as long again.
"""

from __future__ import annotations

import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

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
    with ExitStack() as running:
        model = running.enter_context(offline_model())
        servers = {
            name: running.enter_context(chucky_service(model, settings))
            for name, settings in _SERVERS.items()
        }
        client = running.enter_context(program("ask_server"))
        peer = running.enter_context(program("ask_model"))
        bare_database = running.enter_context(_bare_database())
        tokens = {name: server.tokens(1)[0] for name, server in servers.items()}
        given = {
            name: {"url": server.url, "token": tokens[name], **asked}
            for name, server in servers.items()
        }
        for _ in range(size.first_blocks):
            for name in servers:
                client.ask(_BLOCK_SECONDS, **given[name])
            _commits_ms(bare_database, 100)
        for _ in range(size.blocks):
            for name in servers:
                ours[name].append(client.ask(_BLOCK_SECONDS, **given[name])["milliseconds"])
            found = peer.ask(_BLOCK_SECONDS, base_url=f"http://{model}", **asked)
            direct.append(found["milliseconds"])
            commits.append(_commits_ms(bare_database, 2 * size.turns_in_a_block))
    return Figures(
        rows=_rows({name: _medians(blocks) for name, blocks in ours.items()}, direct, commits),
        size=asdict(size),
        details={
            "directly_ms": _spread(direct),
            "one_commit_ms": _spread(commits),
            **{f"{name}_ms": _spread(blocks) for name, blocks in ours.items()},
        },
    )


def _rows(
    ours: dict[str, tuple[float, ...]], direct: list[list[float]], commits: list[list[float]]
) -> list[Row]:
    directly = Series("`anthropic` client, directly", _medians(direct))
    bare = [turn + 2 * commit for turn, commit in zip(ours["bare"], _medians(commits), strict=True)]
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
            ours=Series("with the ledger", ours["ledger"]),
            peer=Series("without, and two bare commits", tuple(bare)),
            compared="ours - peer",
            target=Target(at_most=0.4),
        ),
        Row(
            what="what the log adds to a turn with the ledger",
            unit="ms",
            ours=Series("with both", ours["both"]),
            peer=Series("with the ledger", ours["ledger"]),
            compared="ours - peer",
            target=Target(at_most=0.3),
        ),
    ]


@contextmanager
def _bare_database() -> Iterator[sqlite3.Connection]:
    with (
        TemporaryDirectory() as directory,
        closing(sqlite3.connect(Path(directory) / "bare.db", isolation_level=None)) as connection,
    ):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE row (number INTEGER)")
        yield connection


def _commits_ms(database: sqlite3.Connection, count: int) -> list[float]:
    """Time durable commits of one small row each."""
    timed = []
    for number in range(count):
        started_at = time.perf_counter()
        database.execute("INSERT INTO row VALUES (?)", (number,))
        timed.append((time.perf_counter() - started_at) * 1000)
    return timed


def _medians(blocks: list[list[float]]) -> tuple[float, ...]:
    return tuple(statistics.median(block) for block in blocks)


def _spread(blocks: list[list[float]]) -> dict[str, float]:
    every = [turn for block in blocks for turn in block]
    return {f"p{share}": round(percentile(every, share / 100), 3) for share in (10, 50, 90, 99)}
