"""Which queries can't be kept any more, or are too much, and what is said about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uellm.cost.demand import DemandPoint, least_chance, shortfall
from uellm.v1.query_pb2 import REFUSAL_REASON_DEADLINE_INFEASIBLE, DeadlineInfeasible, Refusal

from .odds import share_within
from .overload import demand, seconds_per_token, surplus, work_of
from .pending_query import NEVER
from .policy import EngineView, QueueView
from .shares import serving

LEAST_RETRY_SECONDS = 0.1
MOST_AT_ONCE = 128
"""What is said of a refusal takes some time, in which nothing else is decided."""


@dataclass(frozen=True, slots=True)
class Late:
    """A query that can't be served in time."""

    index: int
    """Which of the eligible rows it is."""
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Refused:
    """Queries that are not to be served any more."""

    index: NDArray[np.intp]
    """Which of the eligible rows they are."""
    late: tuple[Late, ...]
    """Those of them that are to be told now, at most `MOST_AT_ONCE`; the others with the next decisions."""


def refusals(view: QueueView, now_ms: int) -> Refused:
    """Queries to refuse now: what is too late, and, where the rest is too much, what costs the most of it."""
    engines = serving(view)
    if not engines:
        return Refused(np.empty(0, np.intp), ())
    wait, fastest = soonest(engines), fastest_of(engines)
    late = hopeless(view, view.slots, fastest, now_ms + 1000.0 * wait)
    kept = np.ones(len(view.slots), np.bool_)
    kept[late] = False
    rest = np.flatnonzero(kept)
    work = work_of(QueueView(view.table, view.slots[rest], tuple(engines)), now_ms, wait)
    dropped = surplus(work)
    refused = np.concatenate([late, rest[dropped]])
    if not len(refused):
        return Refused(refused, ())
    told = _Told(view, now_ms, wait, demand(work), seconds_per_token(engines), fastest)
    first = [Late(index, told.too_late(index)) for index in late[:MOST_AT_ONCE].tolist()]
    dropped = dropped[: MOST_AT_ONCE - len(first)]
    before = work.left - wait - work.slack - work.seconds
    for index in dropped.tolist():
        place = int(np.flatnonzero(work.index == index)[0])
        first.append(Late(int(rest[index]), told.too_much(int(rest[index]), float(before[place]))))
    return Refused(refused, tuple(first))


def hopeless(view: QueueView, slots: NDArray[np.intp], engine: EngineView, begin_ms: float) -> NDArray[np.intp]:
    """Which of the slots would miss a deadline if served alone on an engine from then on: indices, ascending.

    When a deadline counts as lost: `least_chance`.
    """
    table, step = view.table, engine.step_time
    due, first_due = table.column("deadline_ms")[slots], table.column("first_token_deadline_ms")[slots]
    prompts = table.column("prompt_tokens")[slots] + table.column("delivered_tokens")[slots]
    start = step.startup + step.prefill_per_token * prompts
    left = (np.minimum(due, first_due) - begin_ms) / 1000.0 - start
    # Cheaply first: hardly any row is near its end, even if its answer is as long as may be.
    pace = max(step.step_seconds(1, 0), 1e-6)
    near = np.flatnonzero(left < pace * table.column("length_points")[slots, -1])
    tokens = 1.0 + np.maximum((due[near] - begin_ms) / 1000.0 - start[near], -1.0) / pace
    delivered = table.column("delivered_tokens")[slots[near]][:, None]
    remaining = np.maximum(table.column("length_points")[slots[near]] - delivered, 1.0).astype(np.float64)
    kept = share_within(remaining, tokens)
    confidence = table.column("confidence")[slots[near]]
    late = (due[near] != NEVER) & (kept <= least_chance(confidence))
    mute = (first_due[near] != NEVER) & ((first_due[near] - begin_ms) / 1000.0 < start[near])
    return np.asarray(near[late | mute])


def soonest(engines: Sequence[EngineView]) -> float:
    """Seconds until any of them takes a query; 0 without engines."""
    return min((soonest_free(engine) for engine in engines), default=0.0)


def soonest_free(engine: EngineView) -> float:
    """Seconds until a batch may begin, or a row on a continuous engine: hardly sooner than this."""
    if engine.free_batches:
        return 0.0
    if engine.continuous:
        # Until the first of them ends they all run.
        step = engine.step_time.step_seconds(sum(map(len, engine.running)), 0)
        return step * min((row.fewest_tokens for row in engine.rows), default=0.0)
    pace = engine.step_time.step_seconds(1, 0)
    return pace * min((max((row.fewest_tokens for row in batch), default=0.0) for batch in engine.running), default=0.0)


@dataclass(frozen=True, slots=True)
class _Told:
    """What is told of refusals that are made together."""

    view: QueueView
    now_ms: int
    wait: float
    points: tuple[DemandPoint, ...]
    """What is left of the queue speaks for."""
    seconds_per_token: float
    engine: EngineView

    def too_late(self, index: int) -> Refusal:
        """Of a query that would be late even alone."""
        return self._refusal(index, self.wait, "at the earliest")

    def too_much(self, index: int, before: float) -> Refusal:
        """Of a query for which there is no time, since `before` seconds are spoken for by what is due before it."""
        return self._refusal(index, self.wait + before, f"behind {before:.1f} s of work that is due before it")

    def _refusal(self, index: int, wait: float, why: str) -> Refusal:
        table, slot = self.view.table, int(self.view.slots[index])
        arrival, due = int(table.column("arrival_ms")[slot]), int(table.column("deadline_ms")[slot])
        deadline = (due if due != NEVER else int(table.column("first_token_deadline_ms")[slot])) - arrival
        prompt, delivered = int(table.column("prompt_tokens")[slot]), int(table.column("delivered_tokens")[slot])
        detail = DeadlineInfeasible()
        waited = (self.now_ms - arrival) / 1000.0
        for name, field in (("p50_tokens", detail.predicted_finish_p50), ("p90_tokens", detail.predicted_finish_p90)):
            tokens = max(1.0, float(table.column(name)[slot]) - delivered)
            seconds = waited + wait + self.engine.step_time.alone_seconds(prompt + delivered, tokens)
            field.FromMilliseconds(round(1000 * seconds))
        detail.deadline.FromMilliseconds(deadline)
        # Sent again it has its whole time again: that helps unless the answer takes longer than that by itself.
        alone = detail.predicted_finish_p50.ToMilliseconds() / 1000.0 - waited - wait
        advice = "ask for fewer tokens, or give it more time"
        if alone < deadline / 1000.0:
            tokens = float(table.column("length_points")[slot].mean())
            lacking = shortfall(self.points, deadline / 1000.0, tokens * self.seconds_per_token)
            retry = max(LEAST_RETRY_SECONDS, self.wait, lacking)
            detail.retry_after.FromMilliseconds(round(1000 * retry))
            advice = f"try again in {retry:.1f} s, ask for fewer tokens, or give it more time"
        message = (
            f"after {waited:.1f} s in the queue the answer is expected after "
            f"{detail.predicted_finish_p50.ToMilliseconds() / 1000:.1f} s {why}, "
            f"its deadline is {deadline / 1000:.1f} s: {advice}"
        )
        return Refusal(reason=REFUSAL_REASON_DEADLINE_INFEASIBLE, message=message, deadline_infeasible=detail)


def fastest_of(engines: Sequence[EngineView]) -> EngineView:
    """The one that serves a query alone the fastest."""
    return min(engines, key=lambda engine: engine.step_time.step_seconds(1, 0))
