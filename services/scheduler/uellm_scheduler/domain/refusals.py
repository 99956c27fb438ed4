"""Which queries can't be kept any more, or are too much, and what is said about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uellm.cost.demand import DemandPoint, shortfall
from uellm.v1.query_pb2 import REFUSAL_REASON_DEADLINE_INFEASIBLE, DeadlineInfeasible, Refusal

from .odds import share_within
from .overload import demand, seconds_per_token, surplus, work_of
from .pending import NEVER
from .policy import EngineView, QueueView

LEAST_RETRY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Late:
    """A query that can't be served in time."""

    index: int
    """Which of the eligible rows it is."""
    refusal: Refusal


def refusals(view: QueueView, now_ms: int) -> list[Late]:
    """Queries to refuse now: what is too late, and, where the rest is too much, what costs the most of it."""
    wait = soonest(view.engines)
    late = too_late(view, now_ms, wait)
    rest = np.setdiff1d(np.arange(len(view.slots)), late, assume_unique=True)
    work = work_of(QueueView(view.table, view.slots[rest], view.engines), now_ms, wait)
    dropped = surplus(work)
    if not len(late) and not len(dropped):
        return []
    told = _Told(view, now_ms, wait, demand(work), _fastest(view))
    before = dict(zip(work.index.tolist(), (work.left - wait - work.slack - work.seconds).tolist(), strict=True))
    return [
        *(Late(index, told.too_late(index)) for index in late.tolist()),
        *(Late(int(rest[index]), told.too_much(int(rest[index]), before[index])) for index in dropped.tolist()),
    ]


def too_late(view: QueueView, now_ms: int, wait: float) -> NDArray[np.intp]:
    """Queries that would miss a deadline even if served alone, after `wait` seconds, on the fastest engine.

    A deadline counts as lost when it is kept with less than the complement of the query's confidence (the confidence
    itself, where that is less): as surely lost as it was to be surely kept. Indices into the eligible rows.
    """
    table, slots = view.table, view.slots
    due, first_due = table.column("deadline_ms")[slots], table.column("first_token_deadline_ms")[slots]
    step = _fastest(view).step_time
    prompts = table.column("prompt_tokens")[slots] + table.column("delivered_tokens")[slots]
    start = step.startup + step.prefill_per_token * prompts
    left = (due - now_ms) / 1000.0 - wait
    pace = step.step_seconds(1, 0)
    tokens = 1.0 + np.maximum(left - start, -1.0) / max(pace, 1e-6)
    remaining = np.maximum(table.column("length_points")[slots] - table.column("delivered_tokens")[slots][:, None], 1.0)
    # Cheaply first: hardly any row is near its end.
    near = np.flatnonzero((due != NEVER) & (tokens < remaining[:, -1]))
    kept = share_within(remaining[near].astype(np.float64), tokens[near])
    confidence = table.column("confidence")[slots][near]
    lost = near[kept <= np.minimum(confidence, 1.0 - confidence)]
    mute = np.flatnonzero((first_due != NEVER) & ((first_due - now_ms) / 1000.0 - wait < start))
    return np.union1d(lost, mute)


def soonest(engines: Sequence[EngineView]) -> float:
    """Seconds until any of them takes a batch; 0 without engines."""
    return min((soonest_free(engine) for engine in engines), default=0.0)


def soonest_free(engine: EngineView) -> float:
    """Seconds until a batch may begin: hardly sooner than this."""
    if engine.free_batches:
        return 0.0
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
            lacking = shortfall(self.points, deadline / 1000.0, tokens * seconds_per_token(self.view.engines))
            retry = max(LEAST_RETRY_SECONDS, self.wait, lacking)
            detail.retry_after.FromMilliseconds(round(1000 * retry))
            advice = f"try again in {retry:.1f} s, ask for fewer tokens, or give it more time"
        message = (
            f"after {waited:.1f} s in the queue the answer is expected after "
            f"{detail.predicted_finish_p50.ToMilliseconds() / 1000:.1f} s {why}, "
            f"its deadline is {deadline / 1000:.1f} s: {advice}"
        )
        return Refusal(reason=REFUSAL_REASON_DEADLINE_INFEASIBLE, message=message, deadline_infeasible=detail)


def _fastest(view: QueueView) -> EngineView:
    return min(view.engines, key=lambda engine: engine.step_time.step_seconds(1, 0))
