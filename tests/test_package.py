"""What is published: the wheel's contents, and an SDK that stands on the base dependencies."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

REFUSE_EXTRAS = """
import sys

EXTRAS = {"anthropic", "click", "genai_prices", "httpx", "httpx2", "psycopg", "psycopg_pool",
          "rich", "sqlite3", "starlette", "typer", "uvicorn"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"{name} is not installed with the base package", name=name)

sys.meta_path.insert(0, Refuse())
"""


def run_python(code: str) -> str:
    """Run `code` in an interpreter of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_contains_every_file_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hatchling.build import build_wheel

    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "chucky").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    monkeypatch.chdir(ROOT)

    wheel = build_wheel(str(tmp_path))

    with zipfile.ZipFile(tmp_path / wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("chucky/")}
    assert packed == expected
    assert "chucky/py.typed" in packed
    assert {".sql", ".toml"} <= {Path(name).suffix for name in packed}


def test_every_public_name_works_with_the_base_dependencies_alone() -> None:
    names = run_python(
        REFUSE_EXTRAS + "import chucky\n"
        "for name in chucky.__all__:\n"
        "    assert getattr(chucky, name) is not None\n"
        "    print(name)\n"
    )

    assert {"Chucky", "Session", "tool", "create_token"} <= set(names.split())


def test_a_tool_and_a_token_can_be_made_with_the_base_dependencies_alone() -> None:
    said = run_python(
        REFUSE_EXTRAS + "import chucky, secrets\n"
        "@chucky.tool('double', 'Doubles a number')\n"
        "async def double(n: int) -> str:\n"
        "    return str(2 * n)\n"
        "key = secrets.token_hex(32)\n"
        "budget = chucky.create_budget(ai_dollars=1, compute_hours=1, window='day')\n"
        "token = chucky.create_token(user_id='u', project_id='p', secret=key, budget=budget)\n"
        "chucky.verify_token(token, key)\n"
        "print('made')\n"
    )

    assert said == "made\n"


def test_importing_the_package_or_a_token_function_loads_no_networking_and_no_pydantic() -> None:
    loaded = run_python(
        "import sys, chucky\n"
        "from chucky import create_token\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )

    assert not {"asyncio", "jsonschema", "pydantic", "websockets"} & set(loaded.split())


def test_networking_is_loaded_by_the_first_connections_and_not_on_their_event_loop() -> None:
    said = run_python(
        "import asyncio, sys, threading\n"
        "from chucky import Chucky, ChuckyConnectionError\n"
        "assert 'websockets' not in sys.modules\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in {'chucky.connection', 'websockets.asyncio.client'}:\n"
        "            print(name, threading.current_thread() is threading.main_thread())\n"
        "sys.meta_path.insert(0, Watch())\n"
        "async def attempt():\n"
        "    try:\n"
        "        await Chucky('a-token', url='ws://127.0.0.1:1/ws').prompt('Hello')\n"
        "    except ChuckyConnectionError:\n"
        "        print('refused')\n"
        "async def main():\n"
        "    await asyncio.gather(attempt(), attempt())\n"
        "    await attempt()\n"
        "asyncio.run(main())\n"
    )
    *loaded, first, second, third = said.splitlines()
    assert loaded == ["chucky.connection False", "websockets.asyncio.client False"]
    assert {first, second, third} == {"refused"}
