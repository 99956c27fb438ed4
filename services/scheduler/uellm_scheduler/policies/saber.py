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

from ..domain.filling import due_ms, expected_tokens, fitting
from ..domain.policy import BatchBudget, BatchPlan, Decision, EngineView, PolicyInfo, QueueView
from ..domain.shares import free_places


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
            feasible = self._feasible(view, engine, order[: self.candidates], due, tokens, now_ms)
            if not feasible:
                feasible = order[: 1 if engine.continuous else None].tolist()
            chosen = fitting(view, engine, view.slots[feasible])
            if chosen:
                batches.append(BatchPlan(engine.deployment, tuple(chosen)))
            order = order[~np.isin(order, feasible[: len(chosen)])]
        return Decision(batches=tuple(batches))

    def _feasible(
        self,
        view: QueueView,
        engine: EngineView,
        candidates: NDArray[np.intp],
        due: NDArray[np.int64],
        tokens: NDArray[np.float64],
        now_ms: int,
    ) -> list[int]:
        """Indices of those that keep their deadlines together, with all that runs on a continuous engine."""
        prompts, limits = view.column("prompt_tokens"), view.column("limit_tokens")
        running = engine.rows if engine.continuous else []
        contexts = np.array([row.prompt_tokens + row.delivered_tokens for row in running], np.float64)
        to_come = np.array([row.expected_tokens for row in running], np.float64)
        running_due = np.array([row.deadline_ms for row in running], np.float64)
        budget = BatchBudget(engine)
        chosen: list[int] = []
        for row in candidates.tolist():
            if len(chosen) == min(engine.free_rows, engine.max_batch_rows):
                break
            together = [*chosen, row]
            ends = _ends_seconds(
                engine,
                np.append(contexts, prompts[together]),
                np.append(to_come, tokens[together]),
                joining=float(prompts[together].sum()),
            )
            kept = now_ms + 1000.0 * ends <= np.append(running_due, due[together])
            # What was late before is no reason to wait.
            late = np.append(running_due, np.full(len(together), np.inf)) <= now_ms
            if (kept | late).all() and (engine.continuous or budget.take(row, int(prompts[row]), int(limits[row]))):
                chosen.append(row)
        return chosen


def _ends_seconds(
    engine: EngineView, contexts: NDArray[np.float64], tokens: NDArray[np.float64], joining: float
) -> NDArray[np.float64]:
    """When each row ends, counted from now, at the speed of all of them together; shape [rows].

    Args:
        engine: where they run.
        contexts: tokens that are there.
        tokens: tokens to come.
        joining: tokens of the prompts to be read.
    """
    rows = len(tokens)
    middles = contexts + tokens / 2
    step = engine.step_time.step_seconds(rows, float(middles.sum() if engine.continuous else rows * middles.max()))
    prefill = joining if engine.continuous else rows * float(contexts.max())
    start = engine.step_time.startup + engine.step_time.prefill_per_token * prefill
    return np.asarray(start + step * tokens)
