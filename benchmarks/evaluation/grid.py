"""What is played: around one base point, one factor at a time.

A run is a `Point`; points that differ in their seed only are one cell. The same seed has the same arrivals, classes and
predictions under every policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from uellm_scheduler.policies import POLICIES
from uellm_simulator import simulate
from uellm_simulator.scenario import ENGINES, Scenario
from uellm_simulator.workload import CLASSES, MEASURED, Predictions, Rules

OURS = "uellm"
CLAIRVOYANT = "clairvoyant"
FEASIBILITY_AWARE = ("qlm-edf", "saber")
"""Baselines that ask whether a deadline can be kept."""
STRONG = (OURS, "edf", "sjf", "s3", "saber")
"""The strongest of each kind."""
MAIN = (OURS, "fifo", "edf", "sjf", "s3", "slo-odbs", "qlm-edf", "saber")
"""Without `odbs` and `slo-dbs`, halves of `slo-odbs`, which are in the full grid."""
TRACES = ("conversation", "code")
LOADS = (0.5, 0.65, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5)
PREDICTIONS: Mapping[str, Predictions] = {
    "oracle": Predictions(),
    "measured": MEASURED,
    "measured + 0.5": replace(MEASURED, noise=0.5),
    "measured + 1.0": replace(MEASURED, noise=1.0),
}
"""By name; what is added is an error of ln(length) of which nobody knows."""


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One run. The defaults are the base point."""

    trace: str = "conversation"
    engine: str = "static"
    load: float = 1.0
    policy: str = OURS
    tightness: float = 1.0
    predictions: str = "measured"
    gpus: int = 1
    confidence: float = 0.9
    seed: int = 0

    @property
    def cell(self) -> Point:
        """What it is besides its seed."""
        return replace(self, seed=0)

    @property
    def machine(self) -> Point:
        """Another point with the same capacity, the same for all that have it."""
        return Point(trace=self.trace, engine=self.engine, gpus=self.gpus, load=0.0, policy="fifo")

    def scenario(self, size: Size) -> Scenario:
        """As the simulator plays it."""
        classes = tuple(replace(one, confidence=self.confidence) for one in CLASSES)
        return Scenario(
            engine=ENGINES[self.engine],
            deployments=self.gpus,
            policy=self.policy,
            rules=Rules(classes, PREDICTIONS[self.predictions], self.tightness),
            load=self.load,
            seed=self.seed,
            warm_up=size.warm_up,
            count=size.warm_up + size.requests,
        )


@dataclass(frozen=True, slots=True)
class Size:
    """Of each run."""

    requests: int = 3_000
    """Counted, after the warm-up."""
    warm_up: int = 300
    seeds: int = 5


QUICK = Size(requests=80, warm_up=20, seeds=2)


def known_policies() -> tuple[str, ...]:
    """All that a scenario may name."""
    return tuple(getattr(simulate, "PLAYED", POLICIES))


def main_grid(size: Size) -> list[Point]:
    """At most 600 runs: every policy at 1.2 of capacity, the strongest at the others, and the base point's factors."""
    return _runs([*_base_loads(), *_other_loads(), *_factors(STRONG[:1])], size)


def full_grid(size: Size) -> list[Point]:
    """Every policy at every load on both traces and engines, and every factor under the strongest."""
    loads = (
        Point(trace, engine, load, policy)
        for trace, engine, load, policy in product(TRACES, ENGINES, LOADS, known_policies())
    )
    factors = [
        replace(point, trace=trace, engine=engine)
        for trace, engine in product(TRACES, ENGINES)
        for point in _factors(STRONG)
    ]
    return _runs([*_base_loads(), *_other_loads(), *loads, *factors], size)


def quick_grid(size: Size) -> list[Point]:
    """A few of each kind, to see that all works."""
    few = [Point(load=load, policy=policy) for load in (0.8, 1.2) for policy in (OURS, "fifo", "edf")]
    return _runs([*few, Point(trace="code", load=1.2), Point(predictions="oracle"), Point(confidence=0.5)], size)


def _base_loads() -> Iterator[Point]:
    yield from (Point(load=0.5, policy=policy) for policy in (OURS, "edf"))
    yield from (Point(load=load, policy=policy) for load in (0.8, 1.0, 1.2) for policy in MAIN)
    yield from (Point(load=1.5, policy=policy) for policy in STRONG)
    yield Point(policy=CLAIRVOYANT)


def _other_loads() -> Iterator[Point]:
    for trace, engine in product(TRACES, ENGINES):
        yield Point(trace, engine, 1.2, CLAIRVOYANT)
        yield from (Point(trace, engine, 1.2, policy) for policy in MAIN)
        yield from (Point(trace, engine, load, policy) for load in (0.8, 1.0, 1.5) for policy in STRONG)


def _factors(also: Sequence[str]) -> Iterator[Point]:
    for policy in dict.fromkeys((OURS, "sjf", *also)):
        yield from (Point(policy=policy, tightness=tightness) for tightness in (0.5, 2.0))
        yield from (Point(policy=policy, predictions=name) for name in ("oracle", "measured + 1.0"))
    for policy in dict.fromkeys((OURS, "edf", *also)):
        yield from (Point(policy=policy, gpus=gpus) for gpus in (4, 8))
    yield from (Point(confidence=confidence) for confidence in (0.5, 0.99))
    yield Point(engine="continuous", confidence=0.99)


def _runs(cells: Iterable[Point], size: Size) -> list[Point]:
    """Of policies that there are; a whole seed after the other, static engines first, for they are quicker."""
    known = set(known_policies())
    there = sorted({cell for cell in cells if cell.policy in known}, key=lambda one: (one.engine != "static", one))
    return [replace(cell, seed=seed) for seed in range(size.seeds) for cell in there]
