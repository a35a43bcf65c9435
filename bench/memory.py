"""What an idle connected session costs the server in memory, with 5,000 of them in one process.

Each session belongs to a user of its own, has sent its `init` and got its `session_info`, and then
stays silent. The peer is a bare uvicorn WebSocket endpoint (sans-IO websockets, no deflate) with as
many connections, each of which has had one frame in either direction. Both are new processes in
each run; some connections are opened and closed before the first look, so that what is loaded on
first use is not counted. What counts is the growth of the process's proportional set (PSS) over the
sessions; it contains everything: buffers, tasks, the allocator's waste. The kernel's socket buffers
are in neither. Ours has had a turn before: a server loads the way to its model beside listening,
and that would count as the sessions'. The clients are raw sockets in processes of their own. One
more process holds 10,000; of it the whole resident set (RSS) counts, with all that is loaded. The
raw figures also say what is left when all sessions are closed: Python keeps most of the memory for
what comes next, in both; *churn* shows that it does use it again.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from bench.children import (
    Child,
    ChildError,
    open_files,
    program,
    proportional_kib,
    resident_kib,
    serving,
)
from bench.figures import Figures, Row, Series, Target
from bench.service import Service, chucky_service, offline_model, scripted

_SECONDS = 120
_OTHER_FILES = 500
_CLOSING_SECONDS = 60
_KEPT_FILES = 10  # connections to the model, and the like


@dataclass(frozen=True, slots=True)
class _Size:
    repetitions: int
    sessions: int
    most_sessions: int
    client_processes: int
    warm_up_sessions: int


@dataclass(frozen=True, slots=True)
class _Run:
    """Memory for each session in KiB: open, counted otherwise, and after all were closed.

    Attributes:
        whole_mib: What the whole process has resident with all of them, in MiB.
    """

    proportional: float
    resident: float
    left: float
    whole_mib: float


def measure(*, quick: bool) -> Figures:
    """Measure idle sessions; see the module's docstring.

    Raises:
        OSError: The system does not allow so many open files.
    """
    size = _Size(1, 40, 60, 2, 4) if quick else _Size(3, 5_000, 10_000, 5, 50)
    _raise_file_limit(size.most_sessions + _OTHER_FILES)
    ours: list[_Run] = []
    peer: list[_Run] = []
    for _ in range(size.repetitions):
        with offline_model() as model, chucky_service(model) as service:
            ours.append(_hold_ours(service, size.sessions, size))
        with serving(program("bare_websocket")) as (bare, address):
            peer.append(_hold(bare, address, [None] * size.sessions, size))
    with offline_model() as model, chucky_service(model) as service:
        most = _hold_ours(service, size.most_sessions, size)
    return Figures(
        rows=[
            Row(
                what=f"memory of an idle session among {size.sessions:,}",
                unit="KiB",
                ours=Series("one server process", tuple(run.proportional for run in ours)),
                peer=Series("bare uvicorn", tuple(run.proportional for run in peer)),
                compared="ours",
                target=Target(at_most=48),
            ),
            Row(
                what=f"resident memory with {size.most_sessions:,} idle sessions",
                unit="MiB",
                ours=Series("one server process", (most.whole_mib,)),
                peer=None,
                compared="ours",
                target=Target(at_most=1024),
            ),
        ],
        size=asdict(size),
        details={
            "resident_kib_per_session": {
                "ours": [round(run.resident, 1) for run in ours],
                "peer": [round(run.resident, 1) for run in peer],
            },
            "kib_per_session_after_closing_all": {
                "ours": [round(run.left, 1) for run in ours],
                "peer": [round(run.left, 1) for run in peer],
            },
        },
    )


def _hold_ours(service: Service, sessions: int, size: _Size) -> _Run:
    """Wait until the server has loaded the way to its model, and open the sessions."""
    *tokens, first = service.tokens(sessions + 1)
    with program("ask_server") as client:
        client.ask(
            _SECONDS,
            url=service.url,
            token=first,
            message=scripted({"text": ["Ready."]}),
            warm_up=0,
            turns=1,
        )
    return _hold(service.process, service.address, tokens, size)


def _hold(server: Child, address: str, tokens: Sequence[str | None], size: _Size) -> _Run:
    """Open all sessions, look at the server, and close them."""
    files = open_files(server.pid)
    with _clients(size.client_processes) as clients:
        clients[0].ask(_SECONDS, address=address, tokens=tokens[: size.warm_up_sessions])
        _close(clients)
        _wait_for_files(server.pid, files)
        before = proportional_kib(server.pid), resident_kib(server.pid)
        opened = sum(
            client.ask(_SECONDS, address=address, tokens=tokens[first :: len(clients)])["open"]
            for first, client in enumerate(clients)
        )
        assert opened == len(tokens)
        after = proportional_kib(server.pid), resident_kib(server.pid)
        _close(clients)
    _wait_for_files(server.pid, files)
    left = proportional_kib(server.pid)
    proportional, resident = (
        (now - then) / len(tokens) for now, then in zip(after, before, strict=True)
    )
    return _Run(proportional, resident, (left - before[0]) / len(tokens), after[1] / 1024)


@contextlib.contextmanager
def _clients(number: int) -> Iterator[list[Child]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(program("idle_sockets")) for _ in range(number)]


def _close(clients: Sequence[Child]) -> None:
    for client in clients:
        client.ask(_SECONDS, close=True)


def _wait_for_files(pid: int, files: int) -> None:
    """Wait until a server has closed its side of the connections too."""
    deadline = time.monotonic() + _CLOSING_SECONDS
    while open_files(pid) > files + _KEPT_FILES:
        if time.monotonic() > deadline:
            raise ChildError(f"After {_CLOSING_SECONDS} s the server still holds connections.")
        time.sleep(0.1)


def _raise_file_limit(files: int) -> None:
    """Let this process, and so the server it starts, have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        if hard != resource.RLIM_INFINITY and hard < files:
            raise OSError(
                f"This needs {files} open files and the limit is {hard}; raise it (ulimit -Hn)."
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
