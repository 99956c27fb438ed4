"""The page's plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.evaluation.content import Figure
from benchmarks.evaluation.grid import OURS, Point
from benchmarks.evaluation.playing import CDF
from benchmarks.evaluation.results import Results, goodput, share
from benchmarks.evaluation.svg import Axis, Plot, linear, logarithmic, number

COLOURS = {
    OURS: "ours",
    "clairvoyant": "seer",
    "fifo": "c1",
    "edf": "c2",
    "sjf": "c3",
    "s3": "c4",
    "slo-odbs": "c5",
    "qlm-edf": "c6",
    "saber": "c7",
    "odbs": "c8",
    "slo-dbs": "c9",
}
CDF_SHOWN = (OURS, "fifo", "edf", "sjf", "saber")
LANE = 13


def colour(policy: str) -> str:
    """The CSS class of a policy."""
    return COLOURS.get(policy, "c9")


def names(policies: Sequence[str]) -> list[tuple[str, str]]:
    """A legend."""
    return [(name, colour(name)) for name in policies]


def load_plot(results: Results, trace: str, engine: str) -> Figure:
    """Goodput against load; each policy where it was played, with the interval of its mean."""
    loads = results.loads(trace, engine)
    policies = list(
        dict.fromkeys(name for load in loads for name in results.policies(trace=trace, engine=engine, load=load))
    )
    most = max(results.mean(cell, goodput) for cell in _cells(results, trace, engine, policies, loads))
    title = f"{trace}, {engine} engine"
    low, high = min(loads) - 0.05, max(loads) + 0.05
    plot = Plot(
        f"Goodput against load: {title}",
        Axis("load, of capacity", low, high, loads),
        linear("in time a second", most * 1.05),
    )
    # Ours last, on top of the others.
    for policy in sorted(policies, key=lambda name: name == OURS):
        cells = _cells(results, trace, engine, [policy], loads)
        plot.line([(cell.load, results.mean(cell, goodput)) for cell in cells], colour(policy), policy)
        for cell in cells:
            mean, (low, high) = results.mean(cell, goodput), results.interval(cell, goodput)
            if math.isfinite(low):
                plot.interval(cell.load, low, high, colour(policy))
            plot.dot((cell.load, mean), colour(policy), f"{policy} at {cell.load:g}: {number(mean)} a second")
    return Figure(plot.svg(), title, names(policies))


def _cells(results: Results, trace: str, engine: str, policies: Sequence[str], loads: Sequence[float]) -> list[Point]:
    wanted = (Point(trace, engine, load, policy) for policy in policies for load in loads)
    return [cell for cell in wanted if cell in results.cells]


def distribution_plot(results: Results, base: Point, figure: str, title: str) -> Figure:
    """Cumulative shares of the completed requests, of all seeds together."""
    policies = [name for name in CDF_SHOWN if replace(base, policy=name) in results.cells]
    curves = {name: _curve(results.cells[replace(base, policy=name)], figure) for name in policies}
    values = [value for curve in curves.values() for value, _ in curve]
    if not values:
        values = [1.0]
    plot = Plot(
        f"Distribution of {title}",
        logarithmic(f"{title}, seconds", max(0.05, min(values)), max(values)),
        linear("share of completed", 1.0),
    )
    for name in sorted(policies, key=lambda name: name == OURS):
        plot.line(curves[name], colour(name), name)
    return Figure(plot.svg(), f"{title}: {base.trace}, {base.engine} engine, load {base.load:g}", names(policies))


def _curve(runs: Sequence[Mapping[str, Any]], figure: str) -> list[tuple[float, float]]:
    """Mean quantiles of the seeds."""
    found = [run[figure] for run in runs if run[figure]]
    return [(sum(run[at] for run in found) / len(found), level) for at, level in enumerate(CDF)] if found else []


def timeline_plot(point: Point, timeline: Mapping[str, Any]) -> Figure:
    """Rows of one engine over a short time: green in time, red late; what was refused meanwhile above them."""
    places, seconds = int(timeline["places"]), float(timeline["seconds"])
    x = linear("seconds", seconds)
    axis = Axis("row of the engine", 0, places + 1.5, [0.5, places - 0.5], names=("1", str(places)))
    plot = Plot(
        f"Batches under {point.policy}",
        Axis("seconds", 0, seconds, [t for t in x.ticks if t <= seconds]),
        axis,
        LANE * (places + 2) + 58,
    )
    for place, begin, end, outcome in timeline["slices"]:
        colour_of = "good" if outcome == "in time" else "bad"
        corner, other = (max(0.0, begin), place - 1), (min(seconds, end), place)
        plot.bar(corner, other, colour_of, f"{outcome}, {end - begin:.1f} s")
    for at in timeline["refused"]:
        plot.bar((at, places + 0.4), (at + seconds / 200, places + 1.4), "no", "refused")
    legend = [("in time", "good"), ("late", "bad"), ("refused (above)", "no")]
    return Figure(plot.svg(), f"`{point.policy}`: {point.trace}, {point.engine} engine, load {point.load:g}", legend)


def factor_plot(
    results: Results, title: str, values: Sequence[Any], cell_of: Callable[[str, Any], Point]
) -> Figure | None:
    """Share in time against a factor; None where it was not varied."""
    policies = [name for name in COLOURS if any(cell_of(name, value) in results.cells for value in values)]
    there = [value for value in values if cell_of(OURS, value) in results.cells]
    if len(there) < 2:
        return None
    x = Axis(title, -0.3, len(there) - 0.7, list(range(len(there))), names=[_named(value) for value in there])
    plot = Plot(f"In time against {title}", x, linear("in time, of submitted", 1.0))
    shown = []
    for name in sorted(policies, key=lambda name: name == OURS):
        cells = [(at, cell_of(name, value)) for at, value in enumerate(there) if cell_of(name, value) in results.cells]
        if len(cells) < 2:
            continue
        shown.append(name)
        plot.line([(at, results.mean(cell, share("in_time"))) for at, cell in cells], colour(name), name)
        for at, cell in cells:
            low, high = results.interval(cell, share("in_time"))
            if math.isfinite(low):
                plot.interval(at, low, high, colour(name))
            plot.dot((at, results.mean(cell, share("in_time"))), colour(name), name)
    return Figure(plot.svg(), title, names(shown[::-1]))


def _named(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
