"""SLO-ODBS as published: SLO- and output-driven dynamic batch scheduling (UELLM paper, Algorithm 1).

Queries are sorted by a composite of SLO and predicted length, then joined greedily while

    w1 * (SLO_q + L_CM) * (n + 1) * L1  +  w2 * (length_q + O_CM) * (n + 1) * L2  <=  threshold

where n is the number of queries in the batch being formed, and L_CM, O_CM are its largest SLO and length so far. The
finished batches run in order of their tightest SLO. Constants are those of the authors' scripts: w1 = 1, w2 = 0.5,
L1 = L2 = 1.2, threshold 15,000, at most 10 queries a batch. SLOs are in seconds, lengths in tokens: the sum of unlike
units is the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..domain.filling import fitting, slo_seconds
from ..domain.policy import BatchBudget, BatchPlan, Decision, EngineView, PolicyInfo, QueueView
from ..domain.shares import free_places


@dataclass(frozen=True, slots=True)
class Constants:
    """Weights and limits of the composite metric."""

    slo_weight: float = 1.0
    """w1, per second."""
    length_weight: float = 0.5
    """w2, per token."""
    slo_overhead: float = 1.2
    """L1, the parallel overhead of latency."""
    length_overhead: float = 1.2
    """L2, the parallel overhead of length."""
    threshold: float = 15_000.0
    max_batch_rows: int = 10

    def metric(self, slo: float, length: float, rows: int, largest_slo: float, largest_length: float) -> float:
        """The composite of joining a query (SLO in s, length in tokens) to a batch of `rows` queries."""
        latency = self.slo_weight * (slo + largest_slo) * (rows + 1) * self.slo_overhead
        output = self.length_weight * (length + largest_length) * (rows + 1) * self.length_overhead
        return latency + output


@dataclass(frozen=True, slots=True)
class SloOdbs:
    """The paper's policy. It rejects nothing and does not look at the time."""

    info: ClassVar[PolicyInfo] = PolicyInfo(
        "slo-odbs", "The UELLM paper's SLO-ODBS: sorts by SLO and predicted length, joins under a composite threshold."
    )
    constants: Constants = Constants()

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:  # noqa: ARG002
        """Form batches of all that waits; dispatch the most urgent ones to the free places."""
        slos, lengths = slo_seconds(view), view.column("p50_tokens").astype(float)
        order = np.argsort(self.constants.slo_weight * slos + self.constants.length_weight * lengths, kind="stable")
        batches = []
        remaining = list(order)
        for engine in free_places(view):
            formed = self._form(view, engine, remaining, slos, lengths)
            if not formed:
                break
            urgent = min(formed, key=lambda batch: min(slos[row] for row in batch))
            chosen = fitting(view, engine, view.slots[urgent])
            if chosen:
                batches.append(BatchPlan(engine.deployment, tuple(chosen)))
            taken = set(urgent[: len(chosen)])
            remaining = [row for row in remaining if row not in taken]
        return Decision(batches=tuple(batches))

    def _form(
        self,
        view: QueueView,
        engine: EngineView,
        order: list[int],
        slos: NDArray[np.float64],
        lengths: NDArray[np.float64],
    ) -> list[list[int]]:
        """Cut the sorted rows into batches: indices into the eligible rows."""
        prompts, limits = view.column("prompt_tokens"), view.column("limit_tokens")
        batches: list[list[int]] = []
        batch: list[int] = []
        budget, largest_slo, largest_length = BatchBudget(engine), 0.0, 0.0
        for row in order:
            slo, length = float(slos[row]), float(lengths[row])
            metric = self.constants.metric(slo, length, len(batch), largest_slo, largest_length)
            closed = bool(batch) and (metric > self.constants.threshold or len(batch) == self.constants.max_batch_rows)
            if closed or not budget.take(row, int(prompts[row]), int(limits[row])):
                batches.append(batch)
                budget, batch, largest_slo, largest_length = BatchBudget(engine), [], 0.0, 0.0
                budget.take(row, int(prompts[row]), int(limits[row]))
            batch.append(row)
            largest_slo, largest_length = max(largest_slo, slo), max(largest_length, length)
        if batch:
            batches.append(batch)
        return batches
