"""What conftest.py promises every test, seen in runs of pytest of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

HERE = Path(__file__).resolve().parent

INNER_TESTS = """
import os
import time

import hypothesis
import pytest
from hypothesis import strategies

import chucky

NAP = compile("import time\\ndef nap(): time.sleep(0)", chucky.__path__[0] + "/nap.py", "exec")
namespace = {}
exec(NAP, namespace)


def test_with_a_part_that_is_missing(require_part):
    require_part("a left-handed screwdriver", False, "borrow one")


def test_with_a_part_that_is_there(require_part):
    require_part("a screwdriver", True, "buy one")


def test_environment():
    outside = ("CHUCKY_", "ANTHROPIC_", "PG")
    assert not [name for name in os.environ if name.startswith(outside)]
    assert "https_proxy" not in os.environ


async def test_blocking_in_code_of_chucky():
    namespace["nap"]()


@pytest.mark.may_block("to see that it may")
async def test_blocking_on_purpose():
    namespace["nap"]()


async def test_blocking_elsewhere():
    time.sleep(0)


@hypothesis.given(strategies.integers())
def test_numbers(number):
    print("drew", number)
"""


OUTSIDE = {
    "CHUCKY_URL": "ws://192.0.2.1/ws",
    "ANTHROPIC_BASE_URL": "https://192.0.2.1",
    "https_proxy": "http://192.0.2.1:3128",
    "PGHOST": "192.0.2.1",
}
LAST_LINE = re.compile(r"=+ 1 failed, 5 passed, 1 skipped in [\d.]+s =+")


def run_pytest(directory: Path, *arguments: str, **environment: str) -> str:
    """Run the tests above under a copy of conftest.py and return what pytest printed."""
    shutil.copy(HERE / "conftest.py", directory)
    (directory / "test_inner.py").write_text(INNER_TESTS)
    settings = ["-c", str(HERE.parent / "pyproject.toml"), f"--rootdir={directory}"]
    clean = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *settings,
            "-rA",
            "-p",
            "no:cacheprovider",
            *arguments,
            "test_inner.py",
        ],
        cwd=directory,
        env=clean | environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert not done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_pytest(tmp_path_factory.mktemp("home"), **OUTSIDE)


@pytest.fixture(scope="module")
def in_ci(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_pytest(tmp_path_factory.mktemp("ci"), CI="true", CHUCKY_TEST_SEED="7")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run at home again, shared by two processes and with the seed of that in CI."""
    return run_pytest(tmp_path_factory.mktemp("shared"), "-n", "2", CHUCKY_TEST_SEED="7", **OUTSIDE)


def drawn(output: str) -> list[str]:
    """The numbers that hypothesis tried."""
    return re.findall(r"^drew .*", output, re.MULTILINE)


def test_a_missing_part_skips_the_test_and_is_named_once_at_the_end(at_home: str) -> None:
    assert "SKIPPED" in at_home
    assert at_home.count("Left out for want of parts: a left-handed screwdriver (borrow one)") == 1
    assert "PASSED test_inner.py::test_with_a_part_that_is_there" in at_home


def test_a_missing_part_fails_the_test_in_ci(in_ci: str) -> None:
    assert "FAILED test_inner.py::test_with_a_part_that_is_missing" in in_ci
    assert "SKIPPED" not in in_ci
    assert "Left out" not in in_ci


def test_settings_keys_and_proxies_of_the_shell_do_not_reach_a_test(at_home: str) -> None:
    assert "PASSED test_inner.py::test_environment" in at_home


def test_only_blocking_calls_of_our_code_that_nobody_allowed_fail_a_test(at_home: str) -> None:
    assert "FAILED test_inner.py::test_blocking_in_code_of_chucky" in at_home
    assert "BlockingError: Blocking call to time.sleep" in at_home
    assert "PASSED test_inner.py::test_blocking_on_purpose" in at_home
    assert "PASSED test_inner.py::test_blocking_elsewhere" in at_home


def test_the_seed_is_printed_and_decides_what_hypothesis_draws(
    at_home: str, in_ci: str, shared: str
) -> None:
    assert "seed: 0 " in at_home
    assert "seed: 7 " in in_ci
    assert "seed: 7 " in shared
    assert len(drawn(in_ci)) > 10
    assert drawn(in_ci) == drawn(shared)
    assert drawn(in_ci) != drawn(at_home)


def test_the_last_line_is_the_count_of_pytest(at_home: str) -> None:
    assert LAST_LINE.fullmatch(at_home.strip().splitlines()[-1])


def test_all_of_this_holds_where_two_processes_share_the_tests(shared: str) -> None:
    assert "2 workers" in shared
    assert "PASSED test_inner.py::test_environment" in shared
    assert shared.count("Left out for want of parts: a left-handed screwdriver (borrow one)") == 1
    assert LAST_LINE.fullmatch(shared.strip().splitlines()[-1])


def test_the_postgresql_server_of_the_tests_is_durable_and_asks_for_the_password(
    postgres: PostgresServer, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute(f"SHOW {setting}".encode()).fetchone() == ("on",)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.url(password="wrong"))
