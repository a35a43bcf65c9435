"""What a budget costs calls that run side by side, as those of sub-agents do.

Five callers at a time make model calls of one turn, each 15,000 tokens in and 600 out, for which
32,000 are asked for: held like that, five of them would not fit a budget of two dollars beside each
other. They go through the real gate and the real ledger in an SQLite file, to the offline model in
another process. It takes two seconds for an answer, which is faster than a real model. The peer
makes the same calls of the same model without a budget and without a ledger. Ours and the peer take
turns; each block of ours begins with a new user and two whole dollars, of which it spends half.
Where less is left than five calls with 8,192 tokens of output need, some have to wait for others.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.figures import Figures, Row, Series, Target
from bench.service import offline_model, scripted
from bench.worker import MODEL
from chucky.server.ledger.accounts import Holder, Limit
from chucky.server.ledger.ledger import Ledger
from chucky.server.ledger.payer import FreePayer, TurnLimits, TurnPayer
from chucky.server.model.anthropic_api import open_upstream
from chucky.server.model.catalog import Catalog, Model
from chucky.server.model.gate import Gate, Provider
from chucky.server.model.meter import Meter
from chucky.server.model.pricing import PriceTable
from chucky.server.model.providers import ProviderSettings
from chucky.server.model.upstream import Upstream
from chucky.server.settings import Settings
from chucky.server.store import open_ledger

_CALLERS = 5
_INPUT_TOKENS = 15_000
_OUTPUT_TOKENS = 600
_ASKED_TOKENS = 32_000
_BUDGET_NANOS = 2_000_000_000
_COST_NANOS = _INPUT_TOKENS * 2_000 + _OUTPUT_TOKENS * 10_000  # at the prices of the model
_LIMITS = TurnLimits(ai=(Limit("user", "day", _BUDGET_NANOS),))
_CHARACTERS_PER_TOKEN = 4  # of the offline model


@dataclass(frozen=True, slots=True)
class _Size:
    blocks: int
    calls_of_each_caller: int
    delay_ms: int
    chunks: int
    chunk_delay_ms: int


def measure(*, quick: bool) -> Figures:
    """Measure calls side by side; see the module's docstring."""
    size = _Size(2, 2, 20, 5, 1) if quick else _Size(4, 6, 400, 40, 40)
    with (
        offline_model() as model,
        TemporaryDirectory() as directory,
        closing(open_ledger(Settings(db=Path(directory) / "chucky.db"))) as rows,
    ):
        found = asyncio.run(_measure(Ledger(rows), f"http://{model}", size))
    return Figures(
        rows=[
            Row(
                what="five calls at a time, on a budget of two dollars",
                unit="s",
                ours=Series("with the budget", tuple(found["budget"])),
                peer=Series("without", tuple(found["free"])),
                compared="ours / peer",
                target=Target(at_most=1.1),
            )
        ],
        size={**asdict(size), "callers": _CALLERS},
        details={"spent_of_a_budget": _spent(size) / _BUDGET_NANOS},
    )


async def _measure(ledger: Ledger, url: str, size: _Size) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"budget": [], "free": []}
    async with _running(ledger), _gate(url) as call:
        await call(FreePayer(), size)  # the first one connects
        for _ in range(size.blocks):
            payer = _payer(ledger)
            found["budget"].append(await _seconds(call, payer, size))
            bill = await payer.close()
            assert bill.ai_nanos == _spent(size), bill
            found["free"].append(await _seconds(call, FreePayer(), size))
    return found


def _spent(size: _Size) -> int:
    return _CALLERS * size.calls_of_each_caller * _COST_NANOS


def _payer(ledger: Ledger) -> TurnPayer:
    def never(error: Exception) -> None:
        raise error

    holder = Holder("bench", uuid.uuid4().hex, uuid.uuid4().hex, "turn")
    return TurnPayer(ledger, holder, _LIMITS, min_output_tokens=64, end_turn=never)


@asynccontextmanager
async def _running(ledger: Ledger) -> AsyncIterator[None]:
    running = asyncio.create_task(ledger.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


_Call = Callable[[Any, _Size], Any]


@dataclass(frozen=True, slots=True)
class _OneUpstream:
    """The way to one provider, whatever the model."""

    upstream: Upstream

    async def upstream_for(self, model: Model, project_id: str) -> Upstream:
        """The provider."""
        return self.upstream

    async def close(self) -> None:
        """Close it."""
        await self.upstream.close()


@asynccontextmanager
async def _gate(url: str) -> AsyncIterator[_Call]:
    """A function that makes a call and has it paid for."""
    catalog = Catalog.load()
    settings = ProviderSettings("anthropic", "anthropic", base_url=url)
    upstreams = _OneUpstream(open_upstream(settings))
    ready: asyncio.Future[Provider] = asyncio.get_running_loop().create_future()
    ready.set_result(Provider(upstreams, PriceTable(catalog)))
    gate = Gate(ready, lambda: datetime.now(UTC))

    async def call(payer: Any, size: _Size) -> None:
        meter = Meter()
        stream = gate.call(
            catalog.models[MODEL], _request(size), meter, payer=payer, project_id="bench"
        )
        async with aclosing(stream) as events:
            async for _ in events:
                pass
        assert meter.usage.output_tokens == _OUTPUT_TOKENS, meter

    try:
        yield call
    finally:
        await upstreams.close()


def _request(size: _Size) -> dict[str, Any]:
    usage = {"input_tokens": _INPUT_TOKENS, "output_tokens": _OUTPUT_TOKENS}
    text = ["word " * (_OUTPUT_TOKENS * _CHARACTERS_PER_TOKEN // 5 // size.chunks)] * size.chunks
    script = scripted(
        {
            "text": text,
            "usage": usage,
            "delay_ms": size.delay_ms,
            "chunk_delay_ms": size.chunk_delay_ms,
        }
    )
    reading = "word " * ((_INPUT_TOKENS * _CHARACTERS_PER_TOKEN - len(script)) // 5)
    content = [{"type": "text", "text": reading + script}]
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL, "max_tokens": _ASKED_TOKENS, "messages": messages}


async def _seconds(call: _Call, payer: Any, size: _Size) -> float:
    async def caller() -> None:
        for _ in range(size.calls_of_each_caller):
            await call(payer, size)

    started_at = time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(_CALLERS):
            callers.create_task(caller())
    return time.perf_counter() - started_at
