"""Fills batches in a given order: what policies share that only sort."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .pending import NEVER
from .policy import BatchBudget, BatchPlan, Decision, EngineView, QueueView

BEST_EFFORT_SLO_SECONDS = 300.0
"""What a query without an SLO counts as where a policy needs a number: the loosest SLO of the paper's workload."""


def free_places(view: QueueView) -> Iterator[EngineView]:
    """An engine for each batch that may begin now."""
    return (engine for engine in view.engines for _ in range(engine.free_batches))


def fill_in_order(view: QueueView, order: NDArray[np.intp]) -> Decision:
    """One batch for each free place, filled strictly in order, until nothing waits.

    `order` are indices into the eligible rows.
    """
    slots, prompts, limits = view.slots[order], view.column("prompt_tokens")[order], view.column("limit_tokens")[order]
    batches = []
    at = 0
    for engine in free_places(view):
        budget = BatchBudget(engine)
        while at < len(order) and budget.take(int(slots[at]), int(prompts[at]), int(limits[at])):
            at += 1
        if budget.slots:
            batches.append(BatchPlan(engine.deployment, tuple(budget.slots)))
    return Decision(batches=tuple(batches))


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
