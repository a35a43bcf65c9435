"""``examples/notebook.ipynb``: a notebook as Jupyter reads it, whose cells run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Server

WAIT_SECONDS = 40

# Like that of Jupyter it runs the cells on an event loop, and says that it is IPython.
KERNEL = """
import asyncio, json, sys, types

sys.modules["IPython"] = ipython = types.ModuleType("IPython")
ipython.get_ipython = lambda: ipython

async def run_all(cells):
    names = {"__name__": "__main__"}
    for cell in cells:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        print("--", cell["id"])

asyncio.run(run_all(json.load(sys.stdin)))
"""


@pytest.fixture
def notebook(examples: Path) -> dict[str, Any]:
    content = json.loads((examples / "notebook.ipynb").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_it_has_the_form_of_a_notebook_and_nothing_that_was_printed(
    notebook: dict[str, Any],
) -> None:
    assert notebook.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["language_info"]["name"] == "python"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        assert cell["metadata"] == {}
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "code":
            assert cell.keys() - {"id", "metadata", "source", "cell_type"} == {
                "execution_count",
                "outputs",
            }
            assert (cell["execution_count"], cell["outputs"]) == (None, [])
        else:
            assert cell["cell_type"] == "markdown"
            assert cell.keys() == {"id", "metadata", "source", "cell_type"}


def test_its_cells_run_from_top_to_bottom(
    notebook: dict[str, Any], server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHUCKY_URL", server.url)
    monkeypatch.setenv("CHUCKY_TOKEN", server.token("who works in a notebook"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        cwd=tmp_path,
        check=False,
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = dict(
        zip([cell["id"] for cell in cells], re.split(r"-- .*\n", done.stdout), strict=False)
    )
    assert printed["client"] == printed["end"] == ""
    answer, cost = printed["ask"].splitlines()
    assert "12" in answer
    assert float(cost.removeprefix("$")) > 0
    assert len(printed["stream"].splitlines()) > 1
    assert "4.5 degrees Celsius" in printed["tool"]
    assert printed["talk"].endswith("Your name is Alice.\n")
    assert printed["table"] == ("Ada        2  lamp\nGrace     12  chair\nAlan       1  table\n")
