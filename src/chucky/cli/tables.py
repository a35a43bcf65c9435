"""Tables on the terminal and in pipes."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence

import rich.table
from rich.box import SIMPLE_HEAD
from rich.console import Console

from chucky.cli.terminal import printable

_ANY_WIDTH = 10_000


class Table:
    """Rows below headings: numbers to the right, what people wrote without control characters.

    On a terminal it fits the width; in a pipe no line is cut or wrapped.

    Attributes:
        count: How many rows there are.
    """

    def __init__(self, *headings: str) -> None:
        """Make an empty table; the first column is for names."""
        self.count = 0
        self._table = rich.table.Table(box=SIMPLE_HEAD, pad_edge=False)
        for number, heading in enumerate(headings):
            is_name = number == 0
            self._table.add_column(heading, justify="left" if is_name else "right", overflow="fold")

    def add(self, *cells: str) -> None:
        """Add a row."""
        self.count += 1
        self._table.add_row(*map(printable, cells))

    def show(self) -> None:
        """Print it."""
        # Wherever it does not go to a terminal, it is as wide as it needs to be.
        width = None if sys.stdout.isatty() else _ANY_WIDTH
        Console(highlight=False, markup=False, width=width).print(self._table)


def print_csv(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows as CSV, below a line of headings."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
