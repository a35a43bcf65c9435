"""The rules of the house, each broken once in a small tree of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "house_rules.py"

CLEAN = {
    "pyproject.toml": 'version = "1.0"\n',
    "CHANGELOG.md": "## [1.0] - unreleased\n",
    "src/chucky/__init__.py": '"""The package."""\n\n__version__ = "1.0"\n',
    "src/chucky/server/__init__.py": '"""The server."""\n',
}

LONG_FUNCTION = '"""A module."""\n\n\ndef work() -> None:\n    """Work."""\n' + "    work()\n" * 70


def write_tree(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def run_rules(root: Path) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(root)],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def module(code: str) -> str:
    return f'"""A module."""\n\n{code}\n'


def test_a_tree_that_keeps_the_rules_passes(tmp_path: Path) -> None:
    write_tree(tmp_path, CLEAN)

    assert run_rules(tmp_path) == (0, [])


@pytest.mark.parametrize(
    ("files", "place", "rule"),
    [
        pytest.param(
            {"src/chucky/client.py": module("from .server import app")},
            "src/chucky/client.py:3",
            "client-half",
            id="the client half imports the server",
        ),
        pytest.param(
            {
                "src/chucky/client.py": module(
                    "import typing\n\nif typing.TYPE_CHECKING:\n    import chucky.cli.main"
                )
            },
            "src/chucky/client.py:6",
            "client-half",
            id="an import for types only counts too",
        ),
        pytest.param(
            {"src/chucky/server/app.py": module("from ..session import Session")},
            "src/chucky/server/app.py:3",
            "server-half",
            id="the server imports the session of the client",
        ),
        pytest.param(
            {"src/chucky/server/app.py": module("from chucky import Chucky")},
            "src/chucky/server/app.py:3",
            "server-half",
            id="the server imports through the front door",
        ),
        pytest.param(
            {
                "src/chucky/server/app.py": module("from ..between import work"),
                "src/chucky/between.py": module("from .client import Chucky"),
                "src/chucky/client.py": module(""),
            },
            "src/chucky/server/app.py:3",
            "server-half",
            id="the server reaches the client through another module",
        ),
        pytest.param(
            {"src/chucky/wire.py": module("from asyncio import Queue")},
            "src/chucky/wire.py:3",
            "pure-module",
            id="the wire imports asyncio",
        ),
        pytest.param(
            {"src/chucky/server/edge/websocket.py": module("from ..engines import base")},
            "src/chucky/server/edge/websocket.py:3",
            "separate-parts",
            id="the edge imports an engine",
        ),
        pytest.param(
            {
                "src/chucky/server/one.py": module("import sqlite3"),
                "src/chucky/server/two.py": module("from sqlite3 import connect"),
            },
            "src/chucky/server/two.py:3",
            "one-home",
            id="a library has two homes",
        ),
        pytest.param(
            {"src/chucky/utils.py": module("")},
            "src/chucky/utils.py:1",
            "module-name",
            id="a name that says nothing",
        ),
        pytest.param(
            {"src/chucky/bare.py": "import json\n"},
            "src/chucky/bare.py:1",
            "docstring",
            id="a module without a docstring",
        ),
        pytest.param(
            {
                "src/chucky/bare.py": module(
                    'class Bare:\n    """A class."""\n\n    def work(self) -> None: ...'
                )
            },
            "src/chucky/bare.py:6",
            "docstring",
            id="a method without a docstring",
        ),
        pytest.param(
            {"src/chucky/long.py": LONG_FUNCTION},
            "src/chucky/long.py:4",
            "function-length",
            id="a function that is too long",
        ),
        pytest.param(
            {"src/chucky/long.py": module("x = 1\n" * 500)},
            "src/chucky/long.py:501",
            "file-length",
            id="a module that is too long",
        ),
        pytest.param(
            {"src/chucky/loud.py": module("print('hello')")},
            "src/chucky/loud.py:3",
            "print",
            id="a print outside the commands",
        ),
        pytest.param(
            {"docs/later.md": "TO" + "DO: write this\n"},
            "docs/later.md:1",
            "leftover",
            id="a note of unfinished work",
        ),
        pytest.param(
            {"README.md": "Look into /wo" + "rk/main.\n"},
            "README.md:1",
            "machine-path",
            id="a path of one machine",
        ),
        pytest.param(
            {"requirements.txt": "# from py" + "pi.org\n"},
            "requirements.txt:1",
            "registry-host",
            id="the address of a registry",
        ),
        pytest.param(
            {"scripts/idle": "#!/bin/sh\n"},
            "scripts/idle:1",
            "executable",
            id="a script that cannot be run",
        ),
        pytest.param(
            {"CHANGELOG.md": "# Changes\n\n## [0.9] - 2026-01-01\n"},
            "CHANGELOG.md:3",
            "version",
            id="a changelog of another version",
        ),
        pytest.param(
            {"src/chucky/__init__.py": '"""The package."""\n\n__version__ = "2.0"\n'},
            "src/chucky/__init__.py:3",
            "version",
            id="a package of another version",
        ),
    ],
)
def test_a_broken_rule_is_reported_where_it_is(
    tmp_path: Path, files: dict[str, str], place: str, rule: str
) -> None:
    write_tree(tmp_path, CLEAN | files)

    status, lines = run_rules(tmp_path)

    assert status == 1
    assert any(line.startswith(f"{place}: {rule}: ") for line in lines), lines
    assert {line.split(": ")[1] for line in lines} == {rule}
