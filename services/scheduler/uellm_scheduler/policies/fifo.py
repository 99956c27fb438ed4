"""First in, first out: batches are filled in order of arrival."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..domain.policy import BatchBudget, BatchPlan, Decision, PolicyInfo, QueueView


class Fifo:
    """Fills each free batch with the queries that have waited longest."""

    info: ClassVar[PolicyInfo] = PolicyInfo(
        "fifo", "Fills batches in order of arrival; knows neither lengths nor deadlines."
    )

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:  # noqa: ARG002
        """One batch per free place of each engine, until nothing waits."""
        prompts, limits = view.column("prompt_tokens"), view.column("limit_tokens")
        batches = []
        at = 0
        for engine in (place for place in view.engines for _ in range(place.free_batches)):
            budget = BatchBudget(engine)
            while at < len(view.slots) and budget.take(int(view.slots[at]), int(prompts[at]), int(limits[at])):
                at += 1
            if budget.slots:
                batches.append(BatchPlan(engine.deployment, tuple(budget.slots)))
        return Decision(batches=tuple(batches))
