"""What every test gets: a clean environment, a fixed seed, a watched event loop, a real server."""

from __future__ import annotations

import json
import os
import queue
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import psycopg
import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from chucky.tokens import Window, create_budget, create_token

START_SECONDS = 30
STOP_SECONDS = 10

_IS_CI = os.environ.get("CI") == "true"
_SEED = int(os.environ.get("CHUCKY_TEST_SEED", "0"))
_MISSING_PART = "missing part"

# A busy machine is no reason to fail; what fails says how to run exactly that again.
_PROFILE = hypothesis.settings(
    deadline=None,
    derandomize=False,  # as it would be in CI, where the seed would then decide nothing
    print_blob=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("default", _PROFILE, max_examples=50)
hypothesis.settings.register_profile("all", _PROFILE, max_examples=1000)
hypothesis.settings.load_profile("default")


# --- the run ----------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)  # before hypothesis reads the option
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "may_block(reason): blocks the event loop on purpose; say why"
    )
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(_SEED)
    if config.getoption("dist", "no") != "no":
        return  # this process runs no test; those that do inherit the seed, and clean up themselves
    for name in _outside_settings():
        del os.environ[name]


def pytest_report_header() -> str:
    return f"seed: {_SEED} (set CHUCKY_TEST_SEED for another)"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing: dict[str, str] = {}
    for report in terminalreporter.stats.get("skipped", []):
        properties = dict(getattr(report, "user_properties", ()))
        missing.update([properties[_MISSING_PART]] if _MISSING_PART in properties else [])
    if missing:
        parts = "; ".join(f"{part} ({how})" for part, how in sorted(missing.items()))
        terminalreporter.write_line(f"Left out for want of parts: {parts}")


@pytest.fixture
def require_part(request: pytest.FixtureRequest) -> Callable[[str, bool, str], None]:
    """Call it with a part's name, whether it is there, and how to get it.

    Without the part the test is skipped, and the end of the run names it; in CI it fails.
    """

    def require(part: str, available: bool, how: str) -> None:
        if available:
            return
        if _IS_CI:
            pytest.fail(f"{part} is missing, and CI leaves nothing out: {how}", pytrace=False)
        request.node.user_properties.append((_MISSING_PART, (part, how)))
        pytest.skip(f"{part} is missing: {how}")

    return require


@pytest.fixture(scope="session")
def seed() -> int:
    """Where the randomness of a test starts; the header of the run prints it."""
    return _SEED


# --- every test -------------------------------------------------------------------------------


def _outside_settings() -> list[str]:
    """Name what the caller's shell could change a test with, or make it spend money."""
    pattern = re.compile(r"(CHUCKY|ANTHROPIC|CLAUDE)_.*|PG[A-Z]+|.*_proxy", re.IGNORECASE)
    return [name for name in os.environ if pattern.fullmatch(name)]


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove also what another test or a library has put there meanwhile."""
    for name in _outside_settings():
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def _watched_loop() -> Iterator[BlockBuster]:
    with blockbuster_ctx("chucky") as blockbuster:
        for function in blockbuster.functions.values():
            # The first import of a library reads its files, once per process, wherever it is.
            function.can_block_in(
                "<frozen importlib._bootstrap>", {"_find_and_load", "_lock_unlock_module"}
            )
        yield blockbuster


@pytest.fixture(autouse=True)
def _no_blocking_calls(
    request: pytest.FixtureRequest, _watched_loop: BlockBuster
) -> Iterator[None]:
    """Let a call that blocks the event loop raise when code of chucky is on the stack."""
    if request.node.get_closest_marker("may_block") is None:
        yield
        return
    _watched_loop.deactivate()
    yield
    _watched_loop.activate()


# --- PostgreSQL -------------------------------------------------------------------------------


@dataclass(frozen=True)
class PostgresServer:
    """A running PostgreSQL server, set up as in production: it syncs, and asks for a password."""

    programs: Path
    directory: Path
    port: int
    password: str = field(repr=False)

    def url(self, database: str = "postgres", *, password: str | None = None) -> str:
        """The address of a database, with the password."""
        return f"postgresql://tests:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement as the owner of everything."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def create_database(self) -> str:
        """Create an empty database and return its address."""
        name = f"test_{secrets.token_hex(8)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, whoever is using it."""
        self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")


def _postgres_programs() -> Path | None:
    """Find where ``initdb`` and ``pg_ctl`` are; Debian leaves them out of the path."""
    found = [Path(name).parent for name in filter(None, [shutil.which("initdb")])]
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found += [path.parent for path in sorted(debian, key=lambda path: int(path.parts[-3]))]
    return found[-1] if found else None


@pytest.fixture(scope="session")
def _running_postgres() -> Iterator[PostgresServer]:
    programs = _postgres_programs()
    assert programs
    with tempfile.TemporaryDirectory(prefix="chucky-postgres-") as name:
        server = PostgresServer(programs, Path(name), _free_port(), secrets.token_hex(16))
        if os.geteuid() == 0:
            shutil.chown(name, "postgres", "postgres")
        (server.directory / "password").write_text(server.password)
        _run_postgres(
            server,
            "initdb",
            "--username=tests",
            "--pwfile=password",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--pgdata=data",
        )
        options = f"-p {server.port} -k {name} -c listen_addresses=127.0.0.1 -c max_connections=200"
        _run_postgres(server, "pg_ctl", "start", "-w", "-D", "data", "-l", "log", "-o", options)
        try:
            yield server
        finally:
            _run_postgres(server, "pg_ctl", "stop", "-w", "-D", "data", "-m", "immediate")


def _run_postgres(server: PostgresServer, program: str, *arguments: str) -> None:
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    # Not a pipe: the server would inherit it and hold it open.
    with (server.directory / "output").open("w+") as output:
        done = subprocess.run(
            [server.programs / program, *arguments],
            cwd=server.directory,
            user=user,
            group=user,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=START_SECONDS,
        )
        output.seek(0)
        assert done.returncode == 0, f"{program} {arguments} failed: {output.read()}"


@pytest.fixture
def postgres(
    require_part: Callable[[str, bool, str], None], request: pytest.FixtureRequest
) -> PostgresServer:
    """A PostgreSQL server for the whole run."""
    require_part("PostgreSQL", _postgres_programs() is not None, "scripts/parts installs it")
    server = request.getfixturevalue("_running_postgres")
    assert isinstance(server, PostgresServer)
    return server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The address of an empty database of this test's own."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


# --- ports ------------------------------------------------------------------------------------


def _free_port() -> int:
    """Choose a port to listen at later, or again and again.

    Systems give away those above 32767 to whoever asks for any, and would give it to another test.
    """
    for port in random.SystemRandom().sample(range(10_000, 32_768), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("None of 100 ports is free.")


@pytest.fixture
def free_port() -> int:
    """A port for a server of this test, which nobody else is given while it does not listen."""
    return _free_port()


# --- real processes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A running ``chucky serve`` with the offline model, and a project of its own in it."""

    url: str
    http_url: str
    project_id: str
    hmac_key: str = field(repr=False)
    database: str

    @property
    def db(self) -> Path:
        """Its database, where that is a file."""
        return Path(self.database)

    def token(
        self,
        user: str = "user-1",
        *,
        ai_dollars: float = 1_000.0,
        compute_hours: float = 100.0,
        window: Window = "day",
    ) -> str:
        """Sign a token for a user of this server's project."""
        return create_token(
            user_id=user,
            project_id=self.project_id,
            secret=self.hmac_key,
            budget=create_budget(ai_dollars=ai_dollars, compute_hours=compute_hours, window=window),
        )


@pytest.fixture(scope="session")
def chucky_command() -> str:
    """The installed ``chucky`` command."""
    return str(Path(sys.executable).parent / "chucky")


@pytest.fixture(scope="session")
def server(chucky_command: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the whole run; take a user of your own in it."""
    directory = tmp_path_factory.mktemp("server")
    with _serving(chucky_command, str(directory / "chucky.db"), directory) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server(
    chucky_command: str,
    tmp_path_factory: pytest.TempPathFactory,
    _running_postgres: PostgresServer,
) -> Iterator[Server]:
    """The same on a PostgreSQL database. Before it ask for ``postgres``, and set ``PGPASSWORD``."""
    db = _running_postgres.create_database().replace(f":{_running_postgres.password}@", "@")
    directory = tmp_path_factory.mktemp("postgres-server")
    with _serving(chucky_command, db, directory) as server:
        yield server


@contextmanager
def _serving(chucky_command: str, db: str, directory: Path) -> Iterator[Server]:
    with _running([chucky_command, "serve", "--port", "0", "--db", db], directory) as address:
        created = subprocess.run(
            [chucky_command, "projects", "create", "tests", "--json", "--db", db],
            cwd=directory,
            check=True,
            capture_output=True,
            timeout=START_SECONDS,
        )
        project = json.loads(created.stdout)
        yield Server(
            url=f"ws://{address}/ws",
            http_url=f"http://{address}",
            project_id=project["projectId"],
            hmac_key=project["hmacKey"],
            database=db,
        )


RunServer = Callable[[list[str], Path], AbstractContextManager[str]]


@pytest.fixture(scope="session")
def run_server() -> RunServer:
    """Run a command in a directory: ``with run_server(command, directory) as host_and_port``."""
    return _running


@pytest.fixture(scope="session")
def offline_url(chucky_command: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base address of a ``chucky offline`` for the whole run."""
    directory = tmp_path_factory.mktemp("offline")
    with _running([chucky_command, "offline", "--port", "0"], directory) as address:
        yield f"http://{address}"


@pytest.fixture(scope="session")
def running() -> Callable[..., AbstractContextManager[str]]:
    """Runs another program that says where it listens: ``with running(command, directory)``.

    Beside exit code 0 it may end with one of ``statuses`` when it is asked to stop.
    """
    return _running


@contextmanager
def _running(command: list[str], directory: Path, statuses: Collection[int] = ()) -> Iterator[str]:
    """Run a server in `directory` and yield ``host:port`` once it says where it listens."""
    process = subprocess.Popen(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    addresses: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_output, args=(process, said, addresses), daemon=True)
    reader.start()
    try:
        try:
            address = addresses.get(timeout=START_SECONDS)
        except queue.Empty:
            address = None
        if address is None:
            pytest.fail(f"{command} did not start; it said:\n{''.join(said)}", pytrace=False)
        yield address
    finally:
        try:
            _stop(process, {0, *statuses})
        finally:
            reader.join(STOP_SECONDS)
            if process.stdout:
                process.stdout.close()


def _read_output(
    process: subprocess.Popen[str], said: list[str], addresses: queue.SimpleQueue[str | None]
) -> None:
    """Keep what a process says, and pass on the first address, or None if it ends without one."""
    assert process.stdout
    for line in process.stdout:
        said.append(line)
        if match := re.search(r"(?:http|ws)://(127\.0\.0\.1:\d+)", line):
            addresses.put(match[1])
    addresses.put(None)


def _stop(process: subprocess.Popen[str], statuses: Collection[int]) -> None:
    process.terminate()
    try:
        status = process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"{process.args!r} did not stop when asked to.") from None
    assert status in statuses, f"{process.args!r} stopped with exit code {status}."
