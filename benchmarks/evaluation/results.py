"""The runs by cell, and what one cell is against another."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from uellm_simulator.runs import T_975, Paired

from benchmarks.evaluation.grid import CLAIRVOYANT, OURS, Point

Figure = Callable[[Mapping[str, Any]], float]
PLACES = {"p50": 0, "p95": 1, "p99": 2}


def goodput(run: Mapping[str, Any]) -> float:
    """Answers in time a second."""
    return float(run["goodput"])


def share(name: str) -> Figure:
    """`in_time`, `late` or `refused`, of those submitted with a deadline."""
    return lambda run: float(run["attainment"][name])


def plain(name: str) -> Figure:
    """A figure that is there as it is."""
    return lambda run: float(run[name])


def quantile(name: str, place: str) -> Figure:
    """Of `latency` or `first_token`; not a number where nothing was completed."""
    return lambda run: float(run[name][PLACES[place]]) if run[name] else math.nan


def of_class(name: str) -> Figure:
    """Share in time of those submitted in a class; not a number where there was none."""
    return lambda run: float(run["by_class"][name]["in_time"]) if name in run["by_class"] else math.nan


def bound(run: Mapping[str, Any]) -> float:
    """Of goodput; not a number where none is proven."""
    return float(run["bound"]) if run.get("bound") is not None else math.nan


def refused_after(run: Mapping[str, Any]) -> float:
    """Median, as a share of the time there was; not a number where nothing was refused."""
    return float(run["refused_after"]) if run["attainment"]["refused"] else math.nan


class Results:
    """Cells, each with its runs in order of seed."""

    def __init__(self, runs: Mapping[Point, Any]) -> None:
        cells: dict[Point, list[Any]] = defaultdict(list)
        for point in sorted(runs, key=lambda one: (one.cell, one.seed)):
            cells[point.cell].append(runs[point])
        self.cells: Mapping[Point, Sequence[Mapping[str, Any]]] = cells

    @cached_property
    def combinations(self) -> list[tuple[str, str]]:
        """Traces and engines, as the base point has them first."""
        found = {(cell.trace, cell.engine) for cell in self.cells}
        return sorted(found, key=lambda one: (one[0] != Point().trace, one[1] != Point().engine))

    def policies(self, **fields: Any) -> list[str]:
        """Of the cells that have these fields and are otherwise at the base point; ours first, clairvoyance last."""
        base = replace(Point(), **fields)
        found = {cell.policy for cell in self.cells if replace(base, policy=cell.policy) == cell}
        return sorted(found, key=lambda name: (name != OURS, name == CLAIRVOYANT, name))

    def loads(self, trace: str, engine: str) -> list[float]:
        """At which ours was played, otherwise at the base point."""
        return sorted({cell.load for cell in self.cells if cell == Point(trace, engine, cell.load)})

    def rivals(self, **fields: Any) -> list[str]:
        """Policies that ours is to lead."""
        return [name for name in self.policies(**fields) if name not in (OURS, CLAIRVOYANT)]

    def mean(self, cell: Point, figure: Figure) -> float:
        """Over the seeds that have it; not a number where none has, or the cell was not played."""
        values = [value for value in map(figure, self.cells.get(cell, ())) if not math.isnan(value)]
        return fmean(values) if values else math.nan

    def interval(self, cell: Point, figure: Figure) -> tuple[float, float]:
        """95 % of the mean over the seeds; infinite with a single one."""
        values = list(map(figure, self.cells[cell]))
        if len(values) < 2:
            return -math.inf, math.inf
        half = student(len(values)) * stdev(values) / math.sqrt(len(values))
        return fmean(values) - half, fmean(values) + half

    def paired(self, cell: Point, other: Point, figure: Figure = goodput) -> Paired:
        """Seed by seed; raises KeyError for a cell that was not played."""
        return Paired.of([figure(run) for run in self.cells[cell]], [figure(run) for run in self.cells[other]])


def student(count: int) -> float:
    """Student's t at 97.5 % for the mean of so many values."""
    return T_975[count - 2] if count - 2 < len(T_975) else 1.96
