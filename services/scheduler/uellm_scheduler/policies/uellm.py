"""UELLM's own policy: what runs next so that most deadlines are still kept.

On a static engine a batch holds its place until its longest answer ends, so the question is not only who is urgent, but
for how long everybody else waits. For some caps on what a row takes, prompt and answer, and some sizes, the batch of
those is formed that lose most by waiting; each such batch is weighed by the deadlines that it keeps, and by those that
batches like it are expected to keep after it. Who joins a continuous engine: see `domain/joining.py`.
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
"""Caps on what a batch takes that are tried."""
SIZES = 5
"""Sizes of a batch that are tried for each, from one row to all places."""
OVERHEAD = 1.5
"""A batch holds its place for longer than its mean answer takes. From simulation: 1 to 2 hardly differ."""
PROMISE = 0.95
"""What a deadline that may be kept later is worth beside one that may be kept now."""
LEAST_SECONDS = 1e-6
"""Of a step: of an engine without a prior nothing is known at first."""


@dataclass(frozen=True, slots=True)
class Cases:
    """Kinds of batches: a cap on what its rows take, and a size. Arrays have shape [cases] unless told otherwise."""

    within: NDArray[np.bool_]
    """Which rows each lets in, shape [cases, n]."""
    size: NDArray[np.intp]
    start: Floats
    """Seconds until the first tokens."""
    pace: Floats
    """Seconds a token."""
    tokens: Floats
    """Of its longest answer."""
    short: NDArray[np.intp]
    """Rows, those first that take least, shape [n]."""

    @classmethod
    def of(cls, engine: EngineView, rows: Rows) -> Cases:
        """Some caps, each with some sizes."""
        step, longest = engine.step_time, rows.points[:, CAP_POINT]
        full = step.step_seconds(engine.max_batch_rows, 0)
        takes = step.prefill_per_token * engine.max_batch_rows * rows.prompts + full * longest
        caps = np.unique(np.quantile(np.unique(takes), np.linspace(0.125, 1.0, CAPS), method="higher"))
        most = min(engine.max_batch_rows, len(rows.index))
        sizes = np.unique(np.geomspace(1, most, SIZES).round().astype(np.intp))
        inside = takes <= caps[:, None]
        prompts = np.repeat([np.median(rows.prompts[one]) for one in inside], len(sizes))
        tokens = np.repeat([longest[one].max() for one in inside], len(sizes))
        size = np.tile(sizes, len(caps))
        pace = step.base + step.per_row * size + step.per_context_token * size * (prompts + tokens / 2)
        return cls(
            within=np.repeat(inside, len(sizes), axis=0),
            size=size,
            start=step.startup + step.prefill_per_token * size * prompts,
            pace=np.maximum(pace, LEAST_SECONDS),
            tokens=tokens,
            short=np.argsort(takes, kind="stable"),
        )

    def kept(self, rows: Rows, waited: Floats) -> Floats:
        """By case and row, the chance of an answer in time if its batch begins so late, shape [cases, n]."""
        first = waited + self.start[:, None]
        return rows.kept_by_each(np.maximum(rows.left - first, 0.0) / self.pace[:, None], first)


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
    cases = Cases.of(engine, rows)
    now = cases.kept(rows, np.zeros((len(cases.size), 1)))
    regret = rows.weight * (now - cases.kept(rows, (cases.start + cases.tokens * cases.pace)[:, None]))
    if rows.owed is not None:
        regret[:, rows.owed] = np.inf
    chosen = [
        _choose(engine, rows, inside, lost, size)
        for inside, lost, size in zip(cases.within, regret, cases.size.tolist(), strict=True)
    ]
    # All at once, for speed.
    courses = batch_courses(engine.step_time, [(rows.prompts[one], rows.points[one]) for one in chosen])
    ends = np.array([course.end_seconds for course in courses])
    gained = [_gained(rows, one, course) for one, course in zip(chosen, courses, strict=True)]
    value = np.round(np.array(gained) + PROMISE * _kept_later(engine, rows, cases, chosen, ends), 6)
    return rows.index[chosen[int(np.lexsort((ends, -value))[0])]]


def _choose(engine: EngineView, rows: Rows, within: NDArray[np.bool_], regret: Floats, size: int) -> NDArray[np.intp]:
    """So many of the rows within a cap, those with the largest regrets for which there is room."""
    fitting = np.flatnonzero(within | np.isinf(regret))
    # Rows come by urgency: among those that lose nothing, the more urgent ones stand first.
    return _fill(engine, rows, fitting[np.argsort(-regret[fitting], kind="stable")], size)


def _gained(rows: Rows, chosen: NDArray[np.intp], course: Course) -> float:
    """Weight of the deadlines that a batch is expected to keep."""
    kept = rows.kept(course.tokens_by(rows.left[chosen]), 0.0, float(course.seconds[0]), chosen)
    return float((rows.weight[chosen] * kept).sum())


def _kept_later(engine: EngineView, rows: Rows, cases: Cases, chosen: list[NDArray[np.intp]], ends: Floats) -> Floats:
    """Weight of the deadlines of the others that are expected to be kept after each batch, shape [cases].

    They are taken to be served in batches of the same size, the urgent ones or the short ones first, whichever keeps
    more; each waits for its share of those before it, as far as these can still be kept.
    """
    step = engine.step_time
    others = np.repeat(np.isfinite(rows.left)[None, :], len(chosen), axis=0)
    for case, one in enumerate(chosen):
        others[case, one] = False
    decode = OVERHEAD * cases.pace[:, None] * rows.points.mean(axis=1)
    share = step.prefill_per_token * rows.prompts + (step.startup + decode) / cases.size[:, None]
    share *= others * cases.kept(rows, ends[:, None])
    most = np.zeros(len(chosen))
    for order in (np.arange(len(rows.left)), cases.short):
        before = np.empty(share.shape)
        before[:, order] = np.cumsum(share[:, order], axis=1) - share[:, order]
        kept = cases.kept(rows, ends[:, None] + before) * others
        most = np.maximum(most, (rows.weight * kept).sum(axis=1))
    return most


def _fill(engine: EngineView, rows: Rows, order: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """The first of them for which there is room, up to a size."""
    first = order[:size]
    longest = int(rows.prompts[first].max(initial=0)) + int(rows.limits[first].max(initial=0))
    if engine.kv_cache.padded_bytes(len(first), longest) <= engine.kv_budget_bytes:
        return first
    budget = BatchBudget(engine)
    for row in order.tolist():
        if budget.rows >= size:
            break
        budget.take(row, int(rows.prompts[row]), int(rows.limits[row]))
    return np.array(budget.slots, dtype=np.intp)
