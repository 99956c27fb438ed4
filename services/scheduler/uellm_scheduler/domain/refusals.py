"""Which deadlines can't be kept any more, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uellm.v1.query_pb2 import REFUSAL_REASON_DEADLINE_INFEASIBLE, DeadlineInfeasible, Refusal

from .odds import share_within
from .pending import NEVER
from .policy import EngineView, QueueView
from .shares import serving


@dataclass(frozen=True, slots=True)
class Late:
    """A query that can't be served in time."""

    index: int
    """Which of the eligible rows it is."""
    refusal: Refusal


def too_late(view: QueueView, now_ms: int) -> list[Late]:
    """Queries that would miss a deadline even if served alone, as soon as may be, on the fastest engine."""
    engines = serving(view)
    if not engines:
        return []
    fastest = min(engines, key=lambda engine: engine.step_time.step_seconds(1, 0))
    wait = min(_soonest_free(engine) for engine in engines)
    lost = hopeless(view, view.slots, fastest, now_ms + 1000.0 * wait)
    return [Late(int(index), _refusal(view, int(index), now_ms, fastest)) for index in lost]


def hopeless(view: QueueView, slots: NDArray[np.intp], engine: EngineView, begin_ms: float) -> NDArray[np.intp]:
    """Which of the slots would miss a deadline if served alone on an engine from then on: indices, ascending.

    A deadline counts as lost when it is kept with less than the complement of the query's confidence: as surely lost as
    it was to be surely kept.
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
    late = (due[near] != NEVER) & (kept <= 1.0 - table.column("confidence")[slots[near]])
    mute = (first_due[near] != NEVER) & ((first_due[near] - begin_ms) / 1000.0 < start[near])
    return np.asarray(near[late | mute])


def _soonest_free(engine: EngineView) -> float:
    """Seconds until a batch may begin, or a row on a continuous engine: hardly sooner than this."""
    if engine.free_batches:
        return 0.0
    if engine.continuous:
        # Until the first of them ends they all run.
        step = engine.step_time.step_seconds(sum(map(len, engine.running)), 0)
        return step * min((row.fewest_tokens for row in engine.rows), default=0.0)
    pace = engine.step_time.step_seconds(1, 0)
    return pace * min((max((row.fewest_tokens for row in batch), default=0.0) for batch in engine.running), default=0.0)


def _refusal(view: QueueView, index: int, now_ms: int, engine: EngineView) -> Refusal:
    table, slot = view.table, int(view.slots[index])
    arrival, due = int(table.column("arrival_ms")[slot]), int(table.column("deadline_ms")[slot])
    first_due = int(table.column("first_token_deadline_ms")[slot])
    prompt, delivered = int(table.column("prompt_tokens")[slot]), int(table.column("delivered_tokens")[slot])
    detail = DeadlineInfeasible()
    waited = (now_ms - arrival) / 1000.0
    for name, field in (("p50_tokens", detail.predicted_finish_p50), ("p90_tokens", detail.predicted_finish_p90)):
        tokens = max(1.0, float(table.column(name)[slot]) - delivered)
        seconds = waited + engine.step_time.alone_seconds(prompt + delivered, tokens)
        field.FromMilliseconds(round(1000 * seconds))
    deadline = due if due != NEVER else first_due
    detail.deadline.FromMilliseconds(deadline - arrival)
    message = (
        f"after {waited:.1f} s in the queue the answer is expected after "
        f"{detail.predicted_finish_p50.ToMilliseconds() / 1000:.1f} s at the earliest, "
        f"its deadline is {(deadline - arrival) / 1000:.1f} s: ask for fewer tokens, or give it more time"
    )
    return Refusal(reason=REFUSAL_REASON_DEADLINE_INFEASIBLE, message=message, deadline_infeasible=detail)
