"""UELLM's own policy: the batch after which most deadlines are still kept.

On a static engine a batch holds its place until its longest answer ends, so the question is not only who is urgent, but
for how long everybody else waits. For some caps on the length of an answer, the batch of those is formed that lose most
by waiting; each such batch is weighed by the deadlines that it keeps, less those that are lost meanwhile, which are
never more than the best batch would keep in the same time. Deadlines are probabilities: lengths are distributions, a
batch's pace depends on the rows expected to be alive.

What can't be kept any more, at the query's own confidence and served alone at once, is refused. Best effort fills
places that are left; beyond twenty times its own service time it has a place in the next batch, one row at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..domain.filling import free_places
from ..domain.odds import Floats, batch_course, share_within
from ..domain.pending import NEVER
from ..domain.policy import BatchBudget, BatchPlan, Decision, EngineView, PolicyInfo, QueueView, RefusalPlan
from ..domain.refusals import refusals
from ..domain.tenants import fair_weights

CANDIDATES = 1_024
"""Deadlines looked at for a batch, the most urgent ones, and half as many of best effort, the oldest."""
CAPS = 8
"""Caps on the length of an answer that are tried."""
CAP_POINT = 6
"""Which of the points of a length a cap is compared with: the 81st percentile."""
PATIENCE = 20.0
"""Best effort has a place after so many times its own service time, and at least as many seconds."""
LEAST_SECONDS = 1e-6
"""Of a step: of an engine without a prior nothing is known at first."""
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
    prompts: Floats
    limits: NDArray[np.int32]
    weight: Floats
    """What an answer in time is worth."""
    owed: int | None
    """A query of best effort that has waited so long that it has a place in the next batch."""

    def kept(self, tokens: Floats, waited: float, start: float) -> Floats:
        """Probability of an answer in time, if so many tokens are made in time; shape [n]."""
        in_time = share_within(self.points, tokens)
        return np.where(waited + start <= self.first_left, in_time, 0.0)


@dataclass(frozen=True, slots=True)
class Formed:
    """A batch that could be dispatched."""

    rows: NDArray[np.intp]
    """Indices into `Rows`."""
    seconds: float
    kept: float
    """Weight of the deadlines that it is expected to keep."""
    lost: float
    """Weight of those that are lost meanwhile."""


class Uellm:
    """See the module."""

    info: ClassVar[PolicyInfo] = PolicyInfo(
        "uellm",
        "Forms the batch after which most deadlines are still kept, from distributions of lengths and times.",
        refuses=True,
    )

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:  # noqa: ARG002
        """Refuse what can't be kept, and form a batch for each free place."""
        if not view.engines:
            return Decision()
        hopeless = refusals(view, now_ms)
        refused = np.array([plan.index for plan in hopeless], dtype=np.intp)
        waiting = np.setdiff1d(np.arange(len(view.slots)), refused, assume_unique=True)
        batches = []
        for engine in free_places(view):
            if not len(waiting):
                break
            chosen = _best_batch(view, engine, waiting, now_ms)
            batches.append(BatchPlan(engine.deployment, tuple(view.slots[chosen].tolist())))
            waiting = np.setdiff1d(waiting, chosen, assume_unique=True)
        refused_plans = tuple(RefusalPlan(int(view.slots[plan.index]), plan.refusal) for plan in hopeless)
        return Decision(batches=tuple(batches), refusals=refused_plans)


def _best_batch(view: QueueView, engine: EngineView, waiting: NDArray[np.intp], now_ms: int) -> NDArray[np.intp]:
    """Indices into the eligible rows."""
    rows = _look_at(view, engine, waiting, now_ms)
    lengths = np.unique(rows.points[:, CAP_POINT])
    caps = np.unique(np.quantile(lengths, np.linspace(0.125, 1.0, CAPS), method="higher"))
    formed = [_form(engine, rows, float(cap)) for cap in caps]
    rate = max(one.kept / one.seconds for one in formed)
    best = max(formed, key=lambda one: one.kept - min(one.lost, rate * one.seconds))
    return rows.index[best.rows]


def _look_at(view: QueueView, engine: EngineView, waiting: NDArray[np.intp], now_ms: int) -> Rows:
    """The most urgent of those that wait."""
    table, slots = view.table, view.slots[waiting]
    due, points = table.column("deadline_ms")[slots], table.column("length_points")
    best_effort = due == NEVER
    first_due = table.column("first_token_deadline_ms")[slots]
    best_effort &= first_due == NEVER
    pace = engine.step_time.step_seconds(engine.max_batch_rows, 0)
    latest = np.minimum(due / 1000.0 - points[slots][:, CAP_POINT] * pace, first_due / 1000.0)
    urgent = _first(np.flatnonzero(~best_effort), latest, CANDIDATES)
    patient = _first(np.flatnonzero(best_effort), table.column("arrival_ms")[slots], CANDIDATES // 2)
    chosen = np.concatenate([urgent, patient])
    slots = slots[chosen]
    delivered = table.column("delivered_tokens")[slots][:, None]
    left = np.maximum(points[slots] - delivered, 1.0)
    weight = np.where(best_effort[chosen], BEST_EFFORT_WEIGHT, 1.0) * 2.0 ** (table.column("priority")[slots] / 10.0)
    weight *= fair_weights(table.tenants.served(now_ms), table.column("tenant")[slots])
    waited = (now_ms - table.column("arrival_ms")[slots]) / 1000.0
    alone = left.mean(axis=1) * engine.step_time.step_seconds(1, 0)
    overdue = np.flatnonzero(best_effort[chosen] & (waited > PATIENCE * np.maximum(alone, 1.0)))
    return Rows(
        index=waiting[chosen],
        left=_seconds_left(due[chosen], now_ms),
        first_left=_seconds_left(first_due[chosen], now_ms),
        points=left.astype(np.float64),
        prompts=table.column("prompt_tokens")[slots].astype(np.float64) + delivered[:, 0],
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


def _form(engine: EngineView, rows: Rows, cap: float) -> Formed:
    """The batch of answers up to a cap that lose most by waiting."""
    step, size = engine.step_time, engine.max_batch_rows
    start = step.startup + step.prefill_per_token * size * float(np.median(rows.prompts))
    pace = max(step.step_seconds(size, size * (float(np.median(rows.prompts)) + cap / 2)), LEAST_SECONDS)
    duration = start + cap * pace

    def chance(waited: float) -> Floats:
        return rows.kept(np.maximum(rows.left - start - waited, 0.0) / pace, waited, start)

    now = chance(0.0)
    regret = rows.weight * (now - chance(duration))
    if rows.owed is not None:
        regret[rows.owed] = np.inf
    fitting = np.flatnonzero((rows.points[:, CAP_POINT] <= cap) | np.isinf(regret))
    # Rows come by urgency: among those that lose nothing, the more urgent ones stand first.
    chosen = _fill(engine, rows, fitting[np.argsort(-regret[fitting], kind="stable")])
    course = batch_course(step, rows.prompts[chosen], rows.points[chosen])
    kept = rows.kept(course.tokens_by(rows.left), 0.0, float(course.seconds[0]))[chosen]
    others = np.ones(len(rows.index), np.bool_)
    others[chosen] = False
    lost = (rows.weight * (now - chance(course.end_seconds)))[others].sum()
    gained = (rows.weight[chosen] * kept).sum()
    return Formed(chosen, max(course.end_seconds, LEAST_SECONDS), float(gained), float(lost))


def _fill(engine: EngineView, rows: Rows, order: NDArray[np.intp]) -> NDArray[np.intp]:
    """The first of them for which there is room."""
    budget = BatchBudget(engine)
    for row in order.tolist():
        if budget.rows >= engine.max_batch_rows:
            break
        budget.take(row, int(rows.prompts[row]), int(rows.limits[row]))
    return np.array(budget.slots, dtype=np.intp)
