"""A baseline after Morphling (Wang et al., SoCC 2021): stress-test a few configurations, predict the rest, serve.

Morphling meta-learns its regression beforehand, over many services; here there is one service, so it is a quadratic in
the logarithm of the rows, linear in the queue delay. What serves then is first come, first served, with the
configuration that was measured best; deadlines and lengths play no part.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from math import log, log2
from typing import Any

import numpy as np

from uellm.bench.runs import Ask, serve
from uellm.bench.triton import Batching
from uellm.bench.workload import Workload

QUEUE_DELAYS = (0.01, 0.1, 0.5)
STRESSED = 5
"""Configurations that are stress-tested before the regression, as in the UELLM paper's baseline."""
STRESS_TOKENS = 32
STRESS_BATCHES = 2
_RIDGE = 1e-3

Configure = Callable[[Batching], Awaitable[Ask]]
"""Puts a configuration in place, and says how it is asked."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the tuning chose, and what it cost."""

    chosen: Batching
    tokens_per_second: tuple[tuple[Batching, float], ...]
    """Of each configuration that was stress-tested, in that order."""
    seconds: float
    queries: int

    def to_json(self) -> dict[str, Any]:
        """Plain."""
        measured = [{**asdict(one), "tokens_per_second": speed} for one, speed in self.tokens_per_second]
        return {
            "chosen": asdict(self.chosen),
            "measured": measured,
            "seconds": self.seconds,
            "queries": self.queries,
        }


def space_of(rows: int, delays: Sequence[float]) -> list[Batching]:
    """Every delay with every power of two of rows, and with `rows` itself."""
    sizes = sorted({rows, *(2**power for power in range(rows.bit_length()))})
    return [Batching(size, delay) for size in sizes for delay in delays]


async def tune(
    space: Sequence[Batching],
    configure: Configure,
    workload: Workload,
    seed: int,
    on_stress: Callable[[Batching, int], None] = lambda *_: None,
) -> Tuning:
    """Stress some configurations with short closed bursts, then the one that the regression says is best."""
    begin, queries = time.monotonic(), 0
    measured: dict[Batching, float] = {}

    async def stress(one: Batching) -> None:
        nonlocal queries
        burst = workload.burst(STRESS_BATCHES * one.rows, seed, STRESS_TOKENS)
        on_stress(one, len(burst))
        records, seconds = await serve(burst, await configure(one))
        queries += len(burst)
        measured[one] = sum(record.output_tokens for record in records) / seconds

    for one in sampled(space, seed):
        await stress(one)
    predicted = best_predicted(space, measured)
    if predicted not in measured:
        await stress(predicted)
    chosen = max(measured, key=lambda one: measured[one])
    return Tuning(chosen, tuple(measured.items()), time.monotonic() - begin, queries)


def sampled(space: Sequence[Batching], seed: int) -> list[Batching]:
    """Those that are stress-tested: the smallest and the largest, which the regression needs, and others at random."""
    ends = [space[0], space[-1]] if len(space) > 1 else list(space)
    inner = space[1:-1]
    return ends + random.Random(seed).sample(inner, min(len(inner), STRESSED - len(ends)))


def best_predicted(space: Sequence[Batching], measured: dict[Batching, float]) -> Batching:
    """The configuration for which ridge regression on the logarithm of what was measured predicts most."""
    floor = 1e-9  # a burst of empty answers has no logarithm
    features = np.array([_features(one) for one in measured])
    speeds = np.array([log(max(floor, speed)) for speed in measured.values()])
    mean = speeds.mean()
    weights = np.linalg.solve(features.T @ features + _RIDGE * np.eye(features.shape[1]), features.T @ (speeds - mean))
    return max(space, key=lambda one: float(_features(one) @ weights))


def _features(one: Batching) -> np.ndarray[Any, np.dtype[np.float64]]:
    rows = log2(one.rows)
    return np.array([1.0, rows, rows * rows, one.queue_delay_seconds])
