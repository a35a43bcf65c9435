"""How long `chucky serve` takes from its start to its first good answer.

From starting the process to a `200` of `/healthz`, with a database that exists, and with no
provider key, so that the offline model is loaded and started as well: more than a server in
production does. A peer of the same kind does not exist; for orientation the same is measured for a
bare uvicorn endpoint of the same packages, in turns. Byte code is compiled and files are cached, as
after the first start.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.children import Child, chucky_command, program, serving
from bench.figures import Figures, Row, Series, Target

_SECONDS = 10


@dataclass(frozen=True, slots=True)
class _Size:
    starts: int


def measure(*, quick: bool) -> Figures:
    """Measure starts; see the module's docstring."""
    size = _Size(starts=1 if quick else 11)
    ours: list[float] = []
    peer: list[float] = []
    with TemporaryDirectory() as name:
        directory = Path(name)
        command = [chucky_command(), "serve", "--port", "0", "--db", str(directory / "chucky.db")]
        first = _start_seconds(lambda: Child(command, directory))
        _start_seconds(lambda: program("bare_websocket"))
        for _ in range(size.starts):
            ours.append(_start_seconds(lambda: Child(command, directory)))
            peer.append(_start_seconds(lambda: program("bare_websocket")))
    return Figures(
        rows=[
            Row(
                what="`chucky serve` from start to ready",
                unit="s",
                ours=Series("chucky serve", tuple(ours)),
                peer=Series("bare uvicorn", tuple(peer)),
                compared="ours",
                target=Target(at_most=0.7),
            )
        ],
        size=asdict(size),
        details={"first_start_with_new_database_seconds": round(first, 3)},
    )


def _start_seconds(start: Callable[[], Child]) -> float:
    started_at = time.perf_counter()
    server: AbstractContextManager[tuple[Child, str]] = serving(start())
    with server as (_, address):
        connection = http.client.HTTPConnection(address, timeout=_SECONDS)
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
        seconds = time.perf_counter() - started_at
        connection.close()
    assert status == 200
    return seconds
