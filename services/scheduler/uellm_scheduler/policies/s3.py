"""S3 as the UELLM paper compares with it: sorted by predicted length, batches packed up to a budget of tokens.

S3 (Jin et al. 2023) reserves memory for the predicted length instead of the longest possible one. The reimplementation
in the UELLM authors' scripts packs while the predicted lengths of a batch sum to at most 1,024 tokens, at most 10
queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..domain.filling import expected_tokens, fitting
from ..domain.policy import BatchPlan, Decision, PolicyInfo, QueueView
from ..domain.shares import free_places


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
        batches = []
        for engine in free_places(view):
            within = np.flatnonzero(lengths[order].cumsum() > self.budget_tokens)
            count = min(self.max_batch_rows, max(1, int(within[0])) if len(within) else len(order))
            chosen = fitting(view, engine, view.slots[order[:count]])
            if chosen:
                batches.append(BatchPlan(engine.deployment, tuple(chosen)))
            order = order[len(chosen) :]
        return Decision(batches=tuple(batches))
