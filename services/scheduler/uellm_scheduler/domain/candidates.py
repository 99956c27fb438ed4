"""Those of the waiting queries that a decision looks at, with what it needs to know of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .odds import Floats, mean_points, share_within
from .pending_query import NEVER
from .policy import EngineView, QueueView
from .tenants import fair_weights

CANDIDATES = 512
"""Deadlines looked at for a batch, the most urgent ones, and half as many of best effort, the oldest."""
CAP_POINT = 6
"""Which of the points of a length a cap is compared with: the 81st percentile."""
PATIENCE = 20.0
"""Best effort has a place after so many times its own service time, and at least as many seconds."""
BEST_EFFORT_WEIGHT = 0.05
"""Of an answer of best effort beside a deadline kept."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The queries looked at."""

    index: NDArray[np.intp]
    """Which of the eligible rows they are."""
    left: Floats
    """Seconds until the answer is due; infinite for best effort."""
    first_left: Floats
    """Seconds until the first token is due."""
    points: Floats
    """Lengths still to come, shape [n, POINTS]."""
    means: Floats
    """Of the points."""
    prompts: Floats
    context_tokens: float
    """Of a mean row, halfway through its answer."""
    limits: NDArray[np.int32]
    weight: Floats
    """What an answer in time is worth."""
    owed: int | None
    """A query of best effort that has waited so long that it has a place in the next batch."""

    def kept(
        self, tokens: Floats, waited: float, start: float | Floats, rows: NDArray[np.intp] | slice = slice(None)
    ) -> Floats:
        """Probability of an answer in time, if so many tokens are made in time and the first one after `start` seconds.

        Of some rows, or all; the result and `tokens` are of their shape.
        """
        in_time = share_within(self.points[rows], tokens)
        return np.where(waited + start <= self.first_left[rows], in_time, 0.0)

    def kept_by_each(self, tokens: Floats, first_after: Floats) -> Floats:
        """The same of all rows for several cases at once.

        Args:
            tokens: shape [cases, n].
            first_after: seconds until the first token, shape [cases, 1] or [cases, n].
        """
        in_time = np.ones(tokens.shape)
        # Most deadlines are far off.
        case, row = np.nonzero(tokens < self.points[:, -1])
        in_time[case, row] = share_within(self.points[row], tokens[case, row])
        return np.where(first_after <= self.first_left, in_time, 0.0)


def look_at(view: QueueView, engine: EngineView, waiting: NDArray[np.intp], now_ms: int) -> Rows:
    """The most urgent of those that wait."""
    table, slots = view.table, view.slots[waiting]
    due, points = table.column("deadline_ms")[slots], table.column("length_points")
    best_effort = due == NEVER
    first_due = table.column("first_token_deadline_ms")[slots]
    best_effort &= first_due == NEVER
    pace = engine.step_time.step_seconds(engine.max_batch_rows, 0)
    latest = np.minimum(due / 1000.0 - points[slots, CAP_POINT] * pace, first_due / 1000.0)
    urgent = _first(np.flatnonzero(~best_effort), latest, CANDIDATES)
    patient = _first(np.flatnonzero(best_effort), table.column("arrival_ms")[slots], CANDIDATES // 2)
    chosen = np.concatenate([urgent, patient])
    slots = slots[chosen]
    delivered = table.column("delivered_tokens")[slots][:, None]
    left = np.maximum(points[slots] - delivered, 1.0).astype(np.float64)
    means = mean_points(left)
    weight = np.where(best_effort[chosen], BEST_EFFORT_WEIGHT, 1.0) * 2.0 ** (table.column("priority")[slots] / 10.0)
    weight *= fair_weights(table.tenants.served(now_ms), table.column("tenant")[slots])
    waited = (now_ms - table.column("arrival_ms")[slots]) / 1000.0
    alone = means * engine.step_time.step_seconds(1, 0)
    overdue = np.flatnonzero(best_effort[chosen] & (waited > PATIENCE * np.maximum(alone, 1.0)))
    prompts = table.column("prompt_tokens")[slots].astype(np.float64) + delivered[:, 0]
    return Rows(
        index=waiting[chosen],
        left=_seconds_left(due[chosen], now_ms),
        first_left=_seconds_left(first_due[chosen], now_ms),
        points=left,
        means=means,
        prompts=prompts,
        context_tokens=float(prompts.sum() + means.sum() / 2) / max(1, len(slots)),
        limits=table.column("limit_tokens")[slots],
        weight=weight,
        owed=int(overdue[0]) if len(overdue) else None,
    )


def _first(rows: NDArray[np.intp], key: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Those of `rows` with the smallest keys, ascending."""
    if len(rows) > count:
        rows = rows[np.argpartition(key[rows], count)[:count]]
    return np.asarray(rows[np.argsort(key[rows], kind="stable")])


def _seconds_left(due: NDArray[np.int64], now_ms: int) -> Floats:
    return np.where(due == NEVER, np.inf, (due - now_ms) / 1000.0)
