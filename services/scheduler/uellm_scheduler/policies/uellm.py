"""UELLM's own policy: what runs next so that most deadlines are still kept.

On a static engine a batch holds its place until its longest answer ends, so the question is not only who is urgent, but
for how long everybody else waits. For some caps on the length of an answer, the batch of those is formed that lose most
by waiting; each such batch is weighed by the deadlines that it keeps, less those that are lost meanwhile, which are
never more than the best batch would keep in the same time. Who joins a continuous engine: see `domain/joining.py`.
Deadlines are probabilities: lengths are distributions, an engine's pace depends on the rows expected to be alive.

What can't be kept any more, at the query's own confidence and served alone at once, is refused. Best effort fills
places that are left; beyond twenty times its own service time it has a place in the next batch, one row at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..domain.candidates import CAP_POINT, Rows, look_at
from ..domain.joining import who_joins
from ..domain.odds import Course, Floats, batch_courses
from ..domain.policy import BatchBudget, BatchPlan, Decision, EngineView, PolicyInfo, QueueView, RefusalPlan
from ..domain.refusals import hopeless, refusals
from ..domain.shares import free_places

CAPS = 8
"""Caps on the length of an answer that are tried."""
LEAST_SECONDS = 1e-6
"""Of a step: of an engine without a prior nothing is known at first."""


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
        refused = refusals(view, now_ms)
        waiting = np.ones(len(view.slots), np.bool_)
        waiting[refused.index] = False
        batches = []
        for engine in free_places(view):
            rows = np.flatnonzero(waiting)
            if len(view.engines) > 1:
                # What this engine is too slow for waits for another one.
                rows = np.delete(rows, hopeless(view, view.slots[rows], engine, now_ms))
            if not len(rows):
                continue
            choose = who_joins if engine.continuous else _best_batch
            chosen = choose(view, engine, rows, now_ms)
            waiting[chosen] = False
            if len(chosen):
                batches.append(BatchPlan(engine.deployment, tuple(view.slots[chosen].tolist())))
        told = tuple(RefusalPlan(int(view.slots[plan.index]), plan.refusal) for plan in refused.late)
        more = now_ms if len(told) < len(refused.index) else None
        return Decision(batches=tuple(batches), refusals=told, wake_ms=more)


def _best_batch(view: QueueView, engine: EngineView, waiting: NDArray[np.intp], now_ms: int) -> NDArray[np.intp]:
    """Indices into the eligible rows."""
    rows = look_at(view, engine, waiting, now_ms)
    lengths = np.unique(rows.points[:, CAP_POINT])
    caps = np.unique(np.quantile(lengths, np.linspace(0.125, 1.0, CAPS), method="higher"))
    formed = _form(engine, rows, caps)
    rate = max(one.kept / one.seconds for one in formed)
    best = max(formed, key=lambda one: one.kept - min(one.lost, rate * one.seconds))
    return rows.index[best.rows]


def _form(engine: EngineView, rows: Rows, caps: Floats) -> list[Formed]:
    """For each cap, the batch of answers up to it that lose most by waiting. All caps at once, for speed."""
    step, size, prompt = engine.step_time, engine.max_batch_rows, float(np.median(rows.prompts))
    start = step.startup + step.prefill_per_token * size * prompt
    pace = np.array([max(step.step_seconds(size, size * (prompt + cap / 2)), LEAST_SECONDS) for cap in caps])

    def chance(waited: Floats) -> Floats:
        """By cap and row, of an answer in time if its batch begins so many seconds from now, shape [caps, n]."""
        tokens = np.maximum(rows.left - start - waited[:, None], 0.0) / pace[:, None]
        return rows.kept_by_each(tokens, waited + start)

    now = chance(np.zeros(len(caps)))
    regret = rows.weight * (now - chance(start + caps * pace))
    if rows.owed is not None:
        regret[:, rows.owed] = np.inf
    chosen = [_choose(engine, rows, float(cap), lost) for cap, lost in zip(caps, regret, strict=True)]
    courses = batch_courses(step, [(rows.prompts[one], rows.points[one]) for one in chosen])
    lost = rows.weight * (now - chance(np.array([course.end_seconds for course in courses])))
    return [_weigh(rows, one, course, losses) for one, course, losses in zip(chosen, courses, lost, strict=True)]


def _choose(engine: EngineView, rows: Rows, cap: float, regret: Floats) -> NDArray[np.intp]:
    """The answers up to a cap with the largest regrets for which there is room."""
    fitting = np.flatnonzero((rows.points[:, CAP_POINT] <= cap) | np.isinf(regret))
    # Rows come by urgency: among those that lose nothing, the more urgent ones stand first.
    return _fill(engine, rows, fitting[np.argsort(-regret[fitting], kind="stable")])


def _weigh(rows: Rows, chosen: NDArray[np.intp], course: Course, lost: Floats) -> Formed:
    """A batch with what it keeps, and what is lost of the others, given what each row would lose."""
    kept = rows.kept(course.tokens_by(rows.left[chosen]), 0.0, float(course.seconds[0]), chosen)
    gained = (rows.weight[chosen] * kept).sum()
    others = lost.sum() - lost[chosen].sum()
    return Formed(chosen, max(course.end_seconds, LEAST_SECONDS), float(gained), float(others))


def _fill(engine: EngineView, rows: Rows, order: NDArray[np.intp]) -> NDArray[np.intp]:
    """The first of them for which there is room."""
    first = order[: engine.max_batch_rows]
    longest = int(rows.prompts[first].max(initial=0)) + int(rows.limits[first].max(initial=0))
    if engine.kv_cache.padded_bytes(len(first), longest) <= engine.kv_budget_bytes:
        return first
    budget = BatchBudget(engine)
    for row in order.tolist():
        if budget.rows >= engine.max_batch_rows:
            break
        budget.take(row, int(rows.prompts[row]), int(rows.limits[row]))
    return np.array(budget.slots, dtype=np.intp)
