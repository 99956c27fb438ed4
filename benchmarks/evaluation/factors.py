"""The report's second part: one factor at a time, confidences, and what could be had at best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.evaluation.content import Block, Figures, Heading, Table, Text
from benchmarks.evaluation.goals import misses
from benchmarks.evaluation.grid import CLAIRVOYANT, OURS, PREDICTIONS, Point
from benchmarks.evaluation.plots import factor_plot
from benchmarks.evaluation.results import Results, bound, goodput, share
from benchmarks.evaluation.svg import percent, show


def sensitivity(results: Results) -> list[Block]:
    """One factor at a time."""
    base = Point()
    cells: Mapping[str, tuple[Sequence[Any], Callable[[str, Any], Point]]] = {
        "tightness of deadlines": (
            (0.5, 1.0, 2.0),
            lambda name, value: replace(base, policy=name, tightness=value),
        ),
        "predictions": (tuple(PREDICTIONS), lambda name, value: replace(base, policy=name, predictions=value)),
        "GPUs": ((1, 4, 8), lambda name, value: replace(base, policy=name, gpus=value)),
    }
    told = (
        f"Around the base point (`{base.trace}`, {base.engine} engine, load {base.load:g}, one GPU), one factor at a "
        "time: the share in time of what was submitted. Deadlines are divided by the tightness; to *measured* "
        "predictions an error of ln(length) is added of which nobody knows; with more GPUs the same share of their "
        "capacity arrives."
    )
    plots = [factor_plot(results, title, values, cell_of) for title, (values, cell_of) in cells.items()]
    blocks: list[Block] = [Heading("Sensitivity"), Text(told), Figures([plot for plot in plots if plot])]
    for title, (values, cell_of) in cells.items():
        blocks += _factor_table(results, title, values, cell_of)
    return blocks if len(blocks) > 3 else []


def _factor_table(
    results: Results, title: str, values: Sequence[Any], cell_of: Callable[[str, Any], Point]
) -> list[Block]:
    there = [value for value in values if cell_of(OURS, value) in results.cells]
    names = dict.fromkeys(cell.policy for cell in results.cells)
    varied = [name for name in names if sum(cell_of(name, value) in results.cells for value in there) > 1]
    if len(there) < 2:
        return []
    rows = [
        [f"`{name}`", *(percent(results.mean(cell_of(name, value), share("in_time"))) for value in there)]
        for name in sorted(varied, key=lambda name: name != OURS)
    ]
    return [Table([title, *map(str, there)], rows)]


def confidences(results: Results) -> list[Block]:
    """Miss rates."""
    found = sorted(
        cell for cell in results.cells if cell == replace(Point(cell.trace, cell.engine), confidence=cell.confidence)
    )
    if not found:
        return []
    rows = []
    for cell in found:
        late, answers = misses(results, cell)
        rate = late / max(1, answers)
        counted = f"{late:,} of {answers:,}"
        rows.append([f"{cell.trace}, {cell.engine}", f"{cell.confidence:g}", counted, percent(rate)])
    told = (
        "A deadline may ask for a confidence. Of the queries that were dispatched, at most 1 - confidence should be "
        f"late; under `{OURS}` at load {Point().load:g}:"
    )
    return [Heading("Confidence"), Text(told), Table(["", "confidence", "late", "share"], rows)]


def yardsticks(results: Results) -> list[Block]:
    """Ours beside clairvoyance and the bound."""
    seers = sorted(cell for cell in results.cells if cell.policy == CLAIRVOYANT)
    rows = [_yardstick(results, cell) for cell in seers]
    if not rows:
        return []
    told = (
        f"`{CLAIRVOYANT}` is `{OURS}` told the true lengths of what has arrived, on the same engine. The bound is "
        "proven: no schedule reaches more, though none may reach it, for it leaves out what is hard to prove. "
        "In time a second:"
    )
    return [
        Heading("What could be had at best"),
        Text(told),
        Table(["", "load", f"`{OURS}`", f"`{CLAIRVOYANT}`", "times ours", "bound", "ours, of the bound"], rows),
    ]


def _yardstick(results: Results, seer: Point) -> list[str]:
    ours = results.mean(replace(seer, policy=OURS), goodput)
    seen, most = results.mean(seer, goodput), results.mean(seer, bound)
    where = f"{seer.trace}, {seer.engine}"
    return [where, f"{seer.load:g}", show(ours), show(seen), f"{seen / ours:.2f}", show(most), percent(ours / most)]
