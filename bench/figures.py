"""Figures: repeated measurements of ours and of a peer, what they give together, and the target."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_COMPARISONS: Mapping[str, Callable[[float, float], float]] = {
    "ours": lambda ours, _peer: ours,
    "ours / peer": lambda ours, peer: ours / peer,
    "peer / ours": lambda ours, peer: peer / ours,
    "ours - peer": lambda ours, peer: ours - peer,
}
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """One quantity, measured several times.

    Attributes:
        label: Whose it is.
        runs: The measured values, in the order of the runs.
    """

    label: str
    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value that stands for the series."""
        return statistics.median(self.runs)

    def as_dict(self) -> dict[str, Any]:
        """The series as it is written to a result file."""
        return {
            "label": self.label,
            "median": _rounded(self.median),
            "min": _rounded(min(self.runs)),
            "max": _rounded(max(self.runs)),
            "runs": [_rounded(run) for run in self.runs],
        }


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure has to reach; exactly one of the two is given."""

    at_most: float | None = None
    at_least: float | None = None

    def reached_by(self, figure: float) -> bool:
        """Tell whether a figure is good enough."""
        if self.at_most is not None:
            return figure <= self.at_most
        return self.at_least is not None and figure >= self.at_least

    def as_text(self) -> str:
        """The target in two words."""
        if self.at_most is not None:
            return f"≤ {self.at_most:.3g}"
        return f"≥ {self.at_least:.3g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    Attributes:
        what: What was measured.
        unit: The unit of both series.
        ours: Our values.
        peer: The peer's, measured in turns with ours; None where there is no peer.
        compared: Which figure the two give: ``ours``, ``ours / peer``, ``peer / ours`` or
            ``ours - peer``. It is taken from the medians.
        target: What the figure has to reach; None for a row that is only information.
    """

    what: str
    unit: str
    ours: Series
    peer: Series | None
    compared: str
    target: Target | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as it is written to a result file."""
        figure = self._figure(self.ours.median, self.peer.median if self.peer else 0.0)
        peers = self.peer.runs if self.peer else (0.0,) * len(self.ours.runs)
        single = [self._figure(*pair) for pair in zip(self.ours.runs, peers, strict=True)]
        return {
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours.as_dict(),
            "peer": self.peer.as_dict() if self.peer else None,
            "compared": self.compared,
            "figure": _rounded(figure),
            "figure_min": _rounded(min(single)),
            "figure_max": _rounded(max(single)),
            "target": self.target.as_text() if self.target else None,
            "reached": self.target.reached_by(figure) if self.target else None,
        }

    def _figure(self, ours: float, peer: float) -> float:
        return _COMPARISONS[self.compared](ours, peer)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a benchmark found.

    Attributes:
        rows: The lines of its table.
        size: How much was done: numbers of sessions, events, repetitions.
        details: Further figures that help to read the rows.
    """

    rows: Sequence[Row]
    size: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The figures as they are written to a result file."""
        return {
            "rows": [row.as_dict() for row in self.rows],
            "size": dict(self.size),
            "details": dict(self.details),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share (0 to 1) of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _rounded(value: float) -> float:
    """Five digits: more would only be noise in the repository."""
    return float(f"{value:.{_DIGITS}g}")
