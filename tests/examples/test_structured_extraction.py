"""``examples/structured_extraction.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.examples.conftest import RunExample


def test_an_invoice_is_read_from_a_text(run_example: RunExample) -> None:
    done = run_example("structured_extraction.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "Pay 1290.50 EUR to Lovelace Instruments\nfor invoice 2026-0117 of 14 March 2026.\n"
    )


def test_the_text_may_come_from_a_file(run_example: RunExample, tmp_path: Path) -> None:
    text = 'number: "A 7"\nsupplier: Turing\nissued_on: 2025-12-31\ncurrency: GBP\ntotal: 3'
    (tmp_path / "invoice.txt").write_text(text)
    done = run_example("structured_extraction.py", "invoice.txt")
    assert done.stdout == "Pay 3.00 GBP to Turing\nfor invoice A 7 of 31 December 2025.\n"


def test_a_failed_turn_and_a_file_that_is_not_there_are_told(
    run_example: RunExample, tmp_path: Path
) -> None:
    steps = [{"error": {"status": 400, "message": "There is no invoice."}}]
    (tmp_path / "letter.txt").write_text(f"Dear all,\n```offline\n{json.dumps(steps)}\n```")
    done = run_example("structured_extraction.py", "letter.txt")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: This could not be read as an invoice: ")

    done = run_example("structured_extraction.py", "nowhere.txt")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "nowhere.txt" in done.stderr
