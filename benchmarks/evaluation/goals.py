"""What was aimed at, what was measured, and whether it was kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.evaluation.grid import CLAIRVOYANT, FEASIBILITY_AWARE, Point
from benchmarks.evaluation.results import Results, goodput

LEAD_FROM = 0.8
OVERLOAD = 1.2
OVERLOAD_RATIO = 1.3
CLAIRVOYANT_RATIO = 1.15


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the list; `kept` is None where nothing was asked, or nothing measured."""

    aim: str
    where: str
    measured: str
    kept: bool | None

    def row(self) -> list[str]:
        """Of a table."""
        word = {True: "kept", False: "**not kept**", None: "reported"}[self.kept]
        return [self.aim, self.where, self.measured, word]


def goals(results: Results) -> list[Goal]:
    """All, each as often as there are traces and engines."""
    found: list[Goal] = []
    for trace, engine in results.combinations:
        found += [*_leads(results, trace, engine), *_overload(results, trace, engine)]
        found += _clairvoyance(results, trace, engine)
    return sorted([*found, *_misses(results)], key=lambda goal: _ORDER.index(goal.aim))


LEADS = f"leads every other policy in goodput from {LEAD_FROM} on, interval above zero"
AT_OVERLOAD = f"at {OVERLOAD}: at least {OVERLOAD_RATIO} times every baseline without admission control"
AWARE = f"at {OVERLOAD}: times the best feasibility-aware baseline"
WITHIN = f"the clairvoyant policy has at most {CLAIRVOYANT_RATIO} times as much"
MISSES = "late of those dispatched: at most 1 - confidence + 2 sigma"
_ORDER = (LEADS, AT_OVERLOAD, AWARE, WITHIN, MISSES)


def _leads(results: Results, trace: str, engine: str) -> Iterator[Goal]:
    compared = [
        (results.paired(Point(trace, engine, load), Point(trace, engine, load, rival)), load, rival)
        for load in results.loads(trace, engine)
        if load >= LEAD_FROM
        for rival in results.rivals(trace=trace, engine=engine, load=load)
    ]
    if not compared:
        return
    above = sum(paired.low > 0 for paired, _, _ in compared)
    worst, load, rival = min(compared, key=lambda one: one[0].low / (one[0].other or 1.0))
    told = f"{above} of {len(compared)} comparisons; least against `{rival}` at {load:g}: "
    told += f"{_signed(worst.low)} to {_signed(worst.high)} a second ({worst.ratio:.2f} x)"
    yield Goal(LEADS, _where(trace, engine), told, above == len(compared))


def _overload(results: Results, trace: str, engine: str) -> Iterator[Goal]:
    ours = Point(trace, engine, OVERLOAD)
    if ours not in results.cells:
        return
    rivals = results.rivals(trace=trace, engine=engine, load=OVERLOAD)
    ratios = {name: results.paired(ours, replace(ours, policy=name)).ratio for name in rivals}
    unaware = {name: ratio for name, ratio in ratios.items() if name not in FEASIBILITY_AWARE}
    if unaware:
        name = min(unaware, key=unaware.__getitem__)
        kept = unaware[name] >= OVERLOAD_RATIO
        yield Goal(AT_OVERLOAD, _where(trace, engine), f"{_times(unaware[name])} x the best, `{name}`", kept)
    if aware := {name: ratio for name, ratio in ratios.items() if name in FEASIBILITY_AWARE}:
        name = min(aware, key=aware.__getitem__)
        yield Goal(AWARE, _where(trace, engine), f"{_times(aware[name])} x `{name}`", None)


def _clairvoyance(results: Results, trace: str, engine: str) -> Iterator[Goal]:
    for load in results.loads(trace, engine):
        ours = Point(trace, engine, load)
        seer = replace(ours, policy=CLAIRVOYANT)
        if seer in results.cells:
            ratio = results.paired(seer, ours).ratio
            told = f"{_times(ratio)} x at {load:g}"
            yield Goal(WITHIN, _where(trace, engine), told, ratio <= CLAIRVOYANT_RATIO)


def _misses(results: Results) -> Iterator[Goal]:
    for confidence in sorted({cell.confidence for cell in results.cells}):
        for trace, engine in results.combinations:
            cell = Point(trace, engine, confidence=confidence)
            if cell in results.cells:
                late, dispatched = misses(results, cell)
                limit = 1 - confidence + 2 * sigma(confidence, dispatched)
                told = f"{late / max(1, dispatched):.1%} of {dispatched:,}, limit {limit:.1%}"
                yield Goal(MISSES, f"{_where(trace, engine)}, {confidence:g}", told, late <= limit * max(1, dispatched))


def misses(results: Results, cell: Point) -> tuple[int, int]:
    """Late answers and answers, of those with a deadline, over all seeds."""
    shares = [run["attainment"] for run in results.cells[cell]]
    late = sum(round(one["late"] * one["requests"]) for one in shares)
    return late, late + sum(round(one["in_time"] * one["requests"]) for one in shares)


def sigma(confidence: float, count: int) -> float:
    """Of the share of misses among so many, if each comes with 1 - confidence by itself."""
    return math.sqrt(confidence * (1 - confidence) / count) if count else 0.0


def best_rival(results: Results, ours: Point) -> str:
    """The other policy with the highest goodput there, or nothing."""
    names = results.rivals(trace=ours.trace, engine=ours.engine, load=ours.load)
    return max(names, key=lambda name: results.mean(replace(ours, policy=name), goodput), default="")


def _where(trace: str, engine: str) -> str:
    return f"{trace}, {engine}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if math.isfinite(ratio) else "infinitely many"
