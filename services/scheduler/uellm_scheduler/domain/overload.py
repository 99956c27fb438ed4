"""Too much for the deadlines: which queries to refuse so that most of the others can be kept, as early as it is seen.

By the rule of Moore and Hodgson (1968), which leaves the fewest jobs of one machine late: in the order of their
deadlines, whenever the work so far does not fit, the longest of it goes. A query's work is its share of the engines'
time in batches as full as they get.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uellm.cost.demand import DemandPoint
from uellm.v1.stream_pb2 import ENGINE_KIND_CONTINUOUS

from .odds import Floats, mean_points
from .pending_query import NEVER
from .policy import EngineView, QueueView

STATIC_OVERHEAD = 2.0
"""A static batch takes about twice as long as its mean answer: places stay empty until the longest ends."""
CONTINUOUS_OVERHEAD = 1.2
"""Rows join at once; prefills interrupt the others."""
LEAST_BATCHES = 4
"""In a shorter queue it matters more which answers share a batch than how many there are: nothing is said of it."""
POINTS = 16
"""Of a published demand curve."""


@dataclass(frozen=True, slots=True)
class Work:
    """The queries that have deadlines, by their deadlines."""

    index: NDArray[np.intp]
    """Which of the eligible rows they are."""
    left: Floats
    """Seconds until each is due, ascending, shape [n]."""
    seconds: Floats
    """Of the engines' time that each needs, shape [n]."""
    wait: float
    """Seconds until an engine takes a query."""
    least: int = 0
    """As many are served whatever they need."""

    @property
    def slack(self) -> Floats:
        """What of the time until each deadline is not spoken for by it and those before it, shape [n]."""
        return np.asarray(self.left - self.wait - np.cumsum(self.seconds))


def work_of(view: QueueView, now_ms: int, wait: float) -> Work:
    """The work that waits; `wait` seconds pass before an engine takes any of it."""
    table, slots = view.table, view.slots
    due = table.column("deadline_ms")[slots]
    index = np.flatnonzero(due != NEVER)
    slots = slots[index]
    left = (due[index] - now_ms) / 1000.0
    tokens = mean_points(table.column("length_points").take(slots, axis=0)) - table.column("delivered_tokens")[slots]
    prompts = table.column("prompt_tokens")[slots] + table.column("delivered_tokens")[slots]
    seconds = np.maximum(tokens, 1.0) * seconds_per_token(view.engines) + prompts * prompt_seconds(view.engines)
    order = np.argsort(left, kind="stable")
    least = LEAST_BATCHES * sum(engine.max_batch_rows for engine in view.engines)
    return Work(index[order], left[order], seconds[order], wait, least)


def seconds_per_token(engines: Iterable[EngineView]) -> float:
    """Engines' time that a token takes in batches as full as they get; 0 where nothing is known of any engine."""
    rate = 0.0
    for engine in engines:
        rows = max(1, engine.max_batch_rows)
        step = engine.step_time.step_seconds(rows, rows * _typical_context(engine))
        overhead = CONTINUOUS_OVERHEAD if engine.kind == ENGINE_KIND_CONTINUOUS else STATIC_OVERHEAD
        rate += rows / (step * overhead) if step > 0 else 0.0
    return 1.0 / rate if rate else 0.0


def prompt_seconds(engines: Iterable[EngineView]) -> float:
    """Engines' time that reading a token of a prompt takes: nobody else is served meanwhile."""
    known = [engine.step_time.prefill_per_token for engine in engines]
    return 1.0 / sum(1.0 / seconds for seconds in known) if known and min(known) > 0 else 0.0


def surplus(work: Work) -> NDArray[np.intp]:
    """Indices into the eligible rows of the queries to refuse; empty where all may still be kept."""
    over = np.flatnonzero(work.slack[work.least :] < 0)
    if not len(over):
        return np.empty(0, np.intp)
    first = work.least + int(over[0])
    longest = _longest(work.seconds[:first], len(work.seconds) - first)
    total, refused = float(work.seconds[:first].sum()), []
    rest = zip(work.seconds[first:].tolist(), (work.left[first:] - work.wait).tolist(), strict=True)
    for number, (seconds, left) in enumerate(rest, first):
        heapq.heappush(longest, (-seconds, number))
        total += seconds
        if total > left:
            took, dropped = heapq.heappop(longest)
            total += took
            refused.append(dropped)
    return work.index[np.array(sorted(refused), dtype=np.intp)]


def _longest(seconds: Floats, most: int) -> list[tuple[float, int]]:
    """A heap of at most so many jobs, of those that take longest: no more can be dropped."""
    numbers = np.arange(len(seconds))
    if most < len(seconds):
        numbers = np.argpartition(-seconds, most)[:most]
    heap = list(zip((-seconds[numbers]).tolist(), numbers.tolist(), strict=True))
    heapq.heapify(heap)
    return heap


def demand(work: Work) -> tuple[DemandPoint, ...]:
    """The work that waits as a curve of a few points, ascending: what is said of it to `Submit`."""
    if len(work.left) <= work.least:
        return ()
    last = np.unique(np.linspace(work.least, len(work.left) - 1, POINTS).round().astype(int))
    longest = np.maximum.accumulate(work.seconds)
    return tuple(
        DemandPoint(float(due), float(slack), float(most))
        for due, slack, most in zip(work.left[last], work.slack[last], longest[last], strict=True)
    )


def _typical_context(engine: EngineView) -> float:
    return min(256.0, engine.context_tokens / 2)
