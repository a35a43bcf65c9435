"""The server under test: ``chucky serve`` as an operator starts it, with a project of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.children import START_SECONDS, Child, chucky_command, serving
from chucky.tokens import create_budget, create_token

# Nothing of what is measured may end because somebody's money does.
_AI_DOLLARS = 1_000_000.0
_COMPUTE_HOURS = 1_000_000.0


@dataclass(frozen=True)
class Service:
    """A running server.

    Attributes:
        process: Its process.
        address: Where it listens, ``host:port``.
        project_id: The project whose users the tokens are for.
        hmac_key: What signs them.
    """

    process: Child
    address: str
    project_id: str
    hmac_key: str = field(repr=False)

    @property
    def url(self) -> str:
        """The address of its WebSocket."""
        return f"ws://{self.address}/ws"

    def tokens(self, users: int) -> list[str]:
        """Sign a token for each of so many users."""
        budget = create_budget(
            ai_dollars=_AI_DOLLARS, compute_hours=_COMPUTE_HOURS, window="lifetime"
        )
        return [
            create_token(
                user_id=f"user-{number}",
                project_id=self.project_id,
                secret=self.hmac_key,
                budget=budget,
            )
            for number in range(users)
        ]


@contextmanager
def chucky_service(
    upstream_address: str, variables: dict[str, str] | None = None
) -> Iterator[Service]:
    """Run ``chucky serve`` for a provider at ``host:port``; it logs nothing but errors.

    Args:
        upstream_address: The provider.
        variables: Settings, as variables of the environment.
    """
    with TemporaryDirectory() as directory:
        db = str(Path(directory) / "chucky.db")
        project = _create_project(db, Path(directory))
        command = [chucky_command(), "serve", "--port", "0", "--db", db, "--log-level", "error"]
        command += ["--upstream-url", f"http://{upstream_address}"]
        with serving(Child(command, Path(directory), variables)) as (process, address):
            yield Service(process, address, project["projectId"], project["hmacKey"])


@contextmanager
def offline_model() -> Iterator[str]:
    """Run ``chucky offline`` and yield its ``host:port``."""
    with (
        TemporaryDirectory() as directory,
        serving(Child([chucky_command(), "offline", "--port", "0"], Path(directory))) as started,
    ):
        yield started[1]


def _create_project(db: str, directory: Path) -> dict[str, str]:
    done = subprocess.run(
        [chucky_command(), "projects", "create", "bench", "--json", "--db", db],
        cwd=directory,
        check=True,
        capture_output=True,
        timeout=START_SECONDS,
    )
    project: dict[str, str] = json.loads(done.stdout)
    return project


def scripted(*steps: dict[str, object]) -> str:
    """A message that tells the offline model what to do, one step for each model call."""
    return f"Go.\n```offline\n{json.dumps(list(steps))}\n```"
