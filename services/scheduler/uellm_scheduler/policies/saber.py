"""SABER-style admission by predicted feasibility, a baseline for comparison.

SABER (arXiv 2506.19677) admits a request only if, at the speed that the engine would then have, it and all that run
with it are predicted to keep their objectives; what can't be kept is served as best effort. Lengths count at their
predicted median, without their spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..domain.filling import due_ms, expected_tokens, fill_in_order, free_places
from ..domain.policy import BatchBudget, BatchPlan, Decision, EngineView, PolicyInfo, QueueView


@dataclass(frozen=True, slots=True)
class Saber:
    """Earliest deadline first among what is predicted to keep its deadline without breaking another's."""

    info: ClassVar[PolicyInfo] = PolicyInfo(
        "saber", "Joins a batch only what is predicted to keep its deadline there; SABER's feasibility test."
    )
    candidates: int = 256
    """So many of the earliest deadlines are tried for a batch."""

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:  # noqa: ARG002
        """Form a batch for each free place; where nothing is feasible, the earliest deadlines are served late."""
        due, tokens = due_ms(view), expected_tokens(view)
        order = np.argsort(due, kind="stable")
        batches = []
        for engine in free_places(view):
            if not len(order):
                break
            chosen = self._feasible(view, engine, order[: self.candidates], (due - now_ms) / 1000.0, tokens)
            if not chosen:
                plan = fill_in_order(QueueView(view.table, view.slots[order], (engine,)), np.arange(len(order)))
                chosen = np.flatnonzero(np.isin(view.slots, plan.batches[0].slots)).tolist()
            batches.append(BatchPlan(engine.deployment, tuple(int(view.slots[row]) for row in chosen)))
            order = order[~np.isin(order, chosen)]
        return Decision(batches=tuple(batches))

    def _feasible(
        self,
        view: QueueView,
        engine: EngineView,
        candidates: NDArray[np.intp],
        left: NDArray[np.float64],
        tokens: NDArray[np.float64],
    ) -> list[int]:
        """Indices of those that keep their deadlines together. `left`: seconds until each is due."""
        prompts, limits = view.column("prompt_tokens"), view.column("limit_tokens")
        budget = BatchBudget(engine)
        chosen: list[int] = []
        for row in candidates.tolist():
            if len(chosen) == engine.max_batch_rows:
                break
            together = [*chosen, row]
            ends = _ends_seconds(engine, prompts[together], tokens[together])
            if (ends <= left[together]).all() and budget.take(row, int(prompts[row]), int(limits[row])):
                chosen.append(row)
        return chosen


def _ends_seconds(engine: EngineView, prompts: NDArray[np.int32], tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """When each row ends, counted from now, at the speed of all of them together; shape [rows]."""
    rows = len(tokens)
    longest = float((prompts + tokens / 2).max())
    step = engine.step_time.step_seconds(rows, rows * longest)
    start = engine.step_time.startup + engine.step_time.prefill_per_token * rows * float(prompts.max())
    return np.asarray(start + step * tokens)
