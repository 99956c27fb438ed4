"""S3 as the UELLM paper compares with it: sorted by predicted length, batches packed up to a budget of tokens.

S3 (Jin et al. 2023) reserves memory for the predicted length instead of the longest possible one. The reimplementation
in the UELLM authors' scripts packs while the predicted lengths of a batch sum to at most 1,024 tokens, at most 10
queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..domain.filling import expected_tokens, free_places
from ..domain.policy import BatchBudget, BatchPlan, Decision, PolicyInfo, QueueView


@dataclass(frozen=True, slots=True)
class S3:
    """Batches of similar predicted lengths, the shortest first. It knows no deadlines."""

    info: ClassVar[PolicyInfo] = PolicyInfo(
        "s3", "Sorts by predicted length and packs batches up to 1,024 predicted tokens, as the paper configures S3."
    )
    budget_tokens: float = 1_024.0
    max_batch_rows: int = 10

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:  # noqa: ARG002
        """Cut the sorted queries into one batch for each free place."""
        lengths = expected_tokens(view)
        order = np.argsort(lengths, kind="stable")
        prompts, limits = view.column("prompt_tokens"), view.column("limit_tokens")
        batches, at = [], 0
        for engine in free_places(view):
            budget, total = BatchBudget(engine), 0.0
            while at < len(order) and budget.rows < self.max_batch_rows:
                row = order[at]
                total += lengths[row]
                over = budget.rows > 0 and total > self.budget_tokens
                if over or not budget.take(int(view.slots[row]), int(prompts[row]), int(limits[row])):
                    break
                at += 1
            if budget.slots:
                batches.append(BatchPlan(engine.deployment, tuple(budget.slots)))
        return Decision(batches=tuple(batches))
