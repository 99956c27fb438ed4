"""What a prediction is worth to users: a simulated server that takes the query it expects to be shortest first.

A query that is expected to miss its deadline waits until none is left that may keep it. Not the stack of this project:
one step gives each running row one token, a free row takes the next query at once, and only lengths matter.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from uellm_profiler.learning.report.forecasts import Floats, Ints


@dataclass(frozen=True, slots=True)
class Load:
    """The traffic that is simulated."""

    rows: int = 8
    """Answers generated at once."""
    utilisations: tuple[float, ...] = (0.9, 1.1)
    """Shares of the rows that arriving work would keep busy: one that can be served, and a rush that can't."""
    deadline: float = 2.0
    """By which a query is on time, from its arrival: in units of the 90th percentile of the time to answer one."""
    runs: int = 30
    """Each in another order and with other arrivals (Poisson), the same for all predictors."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """Means over the runs."""

    on_time: Floats
    """Share of the queries that met the deadline, one entry a run."""
    wait: Floats
    """Mean wait, in units of the mean time to answer, one entry a run."""


def simulate(lengths: Ints, expected: Floats, utilisation: float, load: Load) -> Served:
    """Serve every answer once; of equal `expected` lengths the one that came first goes first."""
    deadline = load.deadline * float(np.quantile(lengths, 0.9))
    gap = float(lengths.mean()) / (load.rows * utilisation)
    on_time, wait = [], []
    for run in range(load.runs):
        draw = np.random.RandomState(load.seed + run)
        order = draw.permutation(len(lengths))
        arrivals = np.cumsum(draw.exponential(gap, len(lengths)))
        waits = _serve(arrivals, lengths[order], expected[order], load.rows, deadline)
        on_time.append(float((waits + lengths[order] <= deadline).mean()))
        wait.append(float(waits.mean() / lengths.mean()))
    return Served(np.array(on_time), np.array(wait))


def _serve(arrivals: Floats, lengths: Ints, expected: Floats, rows: int, deadline: float) -> Floats:
    """Time that each query waits."""
    waits = np.zeros(len(arrivals))
    free = [0.0] * rows
    waiting: list[tuple[float, int]] = []
    hopeless: list[int] = []
    arrived = served = 0
    while served < len(arrivals):
        now = free[0] if waiting or hopeless else max(free[0], float(arrivals[arrived]))
        while arrived < len(arrivals) and arrivals[arrived] <= now:
            heapq.heappush(waiting, (float(expected[arrived]), arrived))
            arrived += 1
        while waiting and now - arrivals[waiting[0][1]] + waiting[0][0] > deadline:
            heapq.heappush(hopeless, heapq.heappop(waiting)[1])
        chosen = heapq.heappop(waiting)[1] if waiting else heapq.heappop(hopeless)
        waits[chosen] = now - arrivals[chosen]
        heapq.heapreplace(free, now + float(lengths[chosen]))
        served += 1
    return waits
