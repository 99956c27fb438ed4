"""Many runs: windows of a trace by seed, side by side on several cores, compared pair by pair."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from uellm_simulator.arrivals import Generated
from uellm_simulator.clients import Clients, Drawn
from uellm_simulator.metrics import Metrics
from uellm_simulator.scenario import Scenario
from uellm_simulator.simulate import capacity_of, simulate
from uellm_simulator.workload import Arrival

T_975 = (
    12.71,
    4.30,
    3.18,
    2.78,
    2.57,
    2.45,
    2.36,
    2.31,
    2.26,
    2.23,
    2.20,
    2.18,
    2.16,
    2.14,
    2.13,
    2.12,
    2.11,
    2.10,
    2.09,
)
"""Of Student's t at 97.5 %, from one degree of freedom on; beyond: 1.96."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where arrivals come from: a trace, or a generator."""

    trace: tuple[Arrival, ...] = ()
    generated: Generated | Clients | Drawn | None = None
    rate: float = 1.0
    """Of what is generated, a second."""

    def window(self, count: int, seed: int) -> list[Arrival]:
        """So many requests, other ones for each seed as far as the trace goes; the first at 0."""
        if self.generated is not None:
            return self.generated.take(count, self.rate, seed)
        spare = len(self.trace) - count
        if spare < 0:
            raise ValueError(f"the trace has {len(self.trace)} requests, not {count}")
        start = seed * count % (spare + 1)
        first = self.trace[start].seconds
        return [replace(one, seconds=one.seconds - first) for one in self.trace[start : start + count]]

    @property
    def digest(self) -> str:
        """Of all that it can give."""
        return hashlib.sha256(repr((self.trace, self.generated, self.rate)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Summary:
    """A run without its requests."""

    scenario: Scenario
    rate: float
    metrics: Metrics


def capacity(source: Source, scenario: Scenario) -> float:
    """Requests a second that the engines of a scenario serve when full, of the source's first requests."""
    count = scenario.count or len(source.trace)
    return capacity_of(source.window(count, 0), scenario)


def run(source: Source, scenario: Scenario, full: float) -> Summary:
    """Play the window of the scenario's seed; `full` is the capacity that its load is a share of."""
    arrivals = source.window(scenario.count or len(source.trace), scenario.seed)
    result = simulate(arrivals, scenario, capacity=full)
    return Summary(scenario, result.rate, result.metrics)


def run_all(
    source: Source, wanted: Sequence[tuple[Scenario, float]], jobs: int = 0, done: Callable[[], None] = lambda: None
) -> list[Summary]:
    """Play them all, each with the capacity that it is told, in the order of `wanted`.

    Args:
        source: of the arrivals.
        wanted: scenarios and capacities.
        jobs: processes; 0: as many as there are cores.
        done: told of each that has ended.
    """
    if jobs == 1 or len(wanted) == 1:
        return list(_one_by_one(source, wanted, done))
    with ProcessPoolExecutor(min(jobs or os.cpu_count() or 1, len(wanted))) as pool:
        running = {pool.submit(run, source, scenario, full): number for number, (scenario, full) in enumerate(wanted)}
        found: dict[int, Summary] = {}
        try:
            for future in as_completed(running):
                found[running[future]] = future.result()
                done()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [found[number] for number in range(len(wanted))]


def _one_by_one(
    source: Source, wanted: Sequence[tuple[Scenario, float]], done: Callable[[], None]
) -> Iterator[Summary]:
    for scenario, full in wanted:
        yield run(source, scenario, full)
        done()


@dataclass(frozen=True, slots=True)
class Paired:
    """One figure of two alternatives over the same seeds."""

    mean: float
    other: float
    low: float
    high: float
    """95 % interval of the mean difference to the other; infinite with a single seed."""

    @classmethod
    def of(cls, values: Sequence[float], others: Sequence[float]) -> Paired:
        """Seed by seed, in the same order."""
        differences = [value - other for value, other in zip(values, others, strict=True)]
        middle, count = fmean(differences), len(differences)
        if count < 2:
            return cls(fmean(values), fmean(others), -math.inf, math.inf)
        t = T_975[count - 2] if count - 2 < len(T_975) else 1.96
        half = t * stdev(differences) / math.sqrt(count)
        return cls(fmean(values), fmean(others), middle - half, middle + half)

    @property
    def ratio(self) -> float:
        """Of the means."""
        return self.mean / self.other if self.other else math.inf
