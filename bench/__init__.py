"""Measurements of speed and memory, each against a peer in the same run: ``scripts/bench``.

Each benchmark is a module with a function ``measure(quick)``; its docstring says what is measured,
against what, and why the comparison is fair, and is printed in ``docs/benchmarks.md``. What runs
as a process of its own is in ``bench/programs``. ``bench/results`` keeps the raw figures.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(__file__).resolve().parent / "programs"

NAMES = (
    "imports",
    "turn",
    "streaming",
    "delay",
    "memory",
    "startup",
    "churn",
    "tools",
    "ledger",
    "parallel_calls",
    "resume",
    "reconnect",
    "evicted",
)
"""All benchmarks, in the order in which they run and are shown."""
