"""Fills batches in a given order: what policies share that only sort."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kv_odds import CachedRows, PagedCache
from .pending_query import NEVER
from .policy import BatchBudget, BatchPlan, Decision, EngineView, QueueView
from .shares import free_places

BEST_EFFORT_SLO_SECONDS = 300.0
"""What a query without an SLO counts as where a policy needs a number: the loosest SLO of the paper's workload."""


def fill_in_order(view: QueueView, order: NDArray[np.intp]) -> Decision:
    """One batch for each free place, filled strictly in order, until nothing waits.

    `order` are indices into the eligible rows.
    """
    slots, batches = view.slots[order], []
    for engine in free_places(view):
        chosen = fitting(view, engine, slots)
        if chosen:
            batches.append(BatchPlan(engine.deployment, tuple(chosen)))
        slots = slots[len(chosen) :]
    return Decision(batches=tuple(batches))


def fitting(view: QueueView, engine: EngineView, slots: NDArray[np.intp], skips: int = 0) -> list[int]:
    """The first of the slots for which there is room, places and memory.

    Up to the first for which there is none, or for which there is none behind `skips` others.
    """
    if engine.continuous:
        slots = slots[: engine.free_rows + skips] if engine.free_rows else slots[:0]
        rows = PagedCache(engine).choose(CachedRows.waiting(view.table, slots), skips)
        return [int(slot) for slot in slots[rows[: engine.free_rows]]]
    budget, missed = BatchBudget(engine), 0
    prompts, limits = view.table.column("prompt_tokens"), view.table.column("limit_tokens")
    for slot in slots.tolist():
        if budget.rows >= engine.max_batch_rows:
            break
        if not budget.take(slot, int(prompts[slot]), int(limits[slot])):
            missed += 1
            if missed > skips:
                break
    return budget.slots


def due_ms(view: QueueView) -> NDArray[np.int64]:
    """When each eligible query must be complete, on the queue's clock, shape [n]; NEVER for best effort."""
    return np.asarray(view.column("deadline_ms"), np.int64)


def slo_seconds(view: QueueView) -> NDArray[np.float64]:
    """Completion objectives, counted from arrival, shape [n]."""
    due = due_ms(view)
    seconds = (due - view.column("arrival_ms")) / 1000.0
    return np.where(due == NEVER, BEST_EFFORT_SLO_SECONDS, seconds)


def expected_tokens(view: QueueView) -> NDArray[np.float64]:
    """Median of the tokens that each eligible query still needs, at least 1, shape [n]."""
    remaining = view.column("p50_tokens").astype(np.float64) - view.column("delivered_tokens")
    return np.asarray(np.maximum(remaining, 1.0))
