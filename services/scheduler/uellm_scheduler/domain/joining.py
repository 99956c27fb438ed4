"""Who joins a continuous engine now: the rows after which most deadlines are still kept, of those that run, too.

Each row that joins makes every step longer and stops all others while its prompt is read. Rows stand in order of what
waiting costs them: the chance to keep the deadline now, less the chance one service later, for the time of places that
the row takes: its own while it runs, and all while its prompt is read. Of them the first m join for which the deadlines
expected to be kept are most: of those that run and those that join, at the pace of all together, of those that are
left, each after the wait for its place, and of those to come. So an engine is filled only as far as its pace still
serves the urgent, while others have time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .candidates import Rows, look_at
from .filling import fitting
from .odds import POINTS, Floats, expected_tokens, share_within
from .pending_query import NEVER
from .policy import EngineView, QueueView

SIZES = 12
"""Numbers of rows that are tried."""
SKIPS = 8
"""Rows too large for the memory that is left, behind which smaller ones are tried."""
RESERVED = 0.05
"""Share of the places, at least one, for best effort that has waited beyond its patience."""
BEHIND = 128
"""Rows that are left, the first in their order, whose chances later are looked at."""
OVERTAKEN = 4.0
"""By how much a place is waited for longer than what waits now explains: some that come later are more urgent. From
simulation: 3 to 6 hardly differ; with 1 the engine is left too empty, with 16 the wait costs nothing any more."""
PROMISE = 0.95
"""What a deadline that may be kept later is worth beside one that may be kept now."""
NEWCOMERS = 4.0
"""For each row on the engine, those to come for which a slower pace counts, too: else an engine without a queue fills
up with what has time, and is slow when the urgent come. From simulation: 4 to 8 serve code best, chat hardly minds."""
LEAST_SECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class Running:
    """Rows on the engine."""

    left: Floats
    """Seconds until each answer is due; infinite for best effort."""
    points: Floats
    """Whole lengths, shape [n, POINTS]."""
    delivered: Floats
    limits: Floats
    tokens: float
    """Expected still to come, of all of them."""
    lengths: float
    """Whole answers in tokens, the sum of what is expected."""
    prompts: float
    """Their sum, in tokens."""
    context_tokens: float
    """Of all of them, half of what is expected to come included."""
    reserved: int
    """Rows without a deadline."""

    @classmethod
    def of(cls, engine: EngineView, now_ms: int) -> Running:
        """What runs there."""
        rows = engine.rows
        due = np.array([row.deadline_ms for row in rows], np.int64)
        points = np.array([row.length_points for row in rows], np.float64).reshape(-1, POINTS)
        numbers = [(row.prompt_tokens, row.delivered_tokens, row.limit_tokens) for row in rows]
        prompts, delivered, limits = np.array(numbers, np.float64).reshape(-1, 3).T
        tokens = float(expected_tokens(points, delivered).sum())
        return cls(
            left=np.where(due == NEVER, np.inf, (due - now_ms) / 1000.0),
            points=points,
            delivered=delivered,
            limits=limits,
            tokens=tokens,
            lengths=tokens + float(delivered.sum()),
            prompts=float(prompts.sum()),
            context_tokens=tokens / 2 + float((prompts + delivered).sum()),
            reserved=int((due == NEVER).sum()),
        )

    def kept(self, tokens: Floats) -> Floats:
        """Deadlines that are expected to be kept if each row makes so many tokens more in time.

        `tokens` has the shape [..., n], the result [...].
        """
        before = share_within(self.points, self.delivered)
        share = (share_within(self.points, self.delivered + tokens) - before) / np.maximum(1.0 - before, 1e-9)
        # Who has outlived its prediction may end at any token up to its limit.
        unknown = np.clip(tokens / np.maximum(self.limits - self.delivered, 1.0), 0.0, 1.0)
        share = np.where(before < 1.0 - 1e-6, share, unknown)
        return np.asarray(share[..., np.isfinite(self.left)].sum(axis=-1))


@dataclass(frozen=True, slots=True)
class Cases:
    """So many rows of the mean that wait join, one number in each case; arrays have the shape [cases, 1]."""

    joining: NDArray[np.intp]
    """Ascending."""
    on_engine: NDArray[np.intp]
    """Rows then, at least one."""
    step: Floats
    """Seconds of a decode step."""
    pace: Floats
    """Seconds a token, if whoever leaves is replaced by its like: the prompts of those that come are read, too."""
    tokens: Floats
    """Expected still to come, of a mean row on the engine."""

    @classmethod
    def of(cls, engine: EngineView, running: Running, rows: Rows, joining: NDArray[np.intp]) -> Cases:
        """`joining`: the numbers."""
        joining, step = joining[:, None], engine.step_time
        there, mean = len(running.left), float(rows.means.mean())
        on_engine = np.maximum(there + joining, 1)
        context = running.context_tokens + joining * rows.context_tokens
        steps = step.base + step.per_row * on_engine + step.per_context_token * context
        lengths = np.maximum(running.lengths + joining * mean, 1.0)
        prompts = running.prompts + joining * float(rows.prompts.mean())
        replaced = (on_engine * step.startup + prompts * step.prefill_per_token) * on_engine / lengths
        pace = np.maximum(steps + np.where(there + joining > 0, replaced, 0.0), LEAST_SECONDS)
        return cls(joining, on_engine, steps, pace, (running.tokens + joining * mean) / on_engine)


def who_joins(view: QueueView, engine: EngineView, waiting: NDArray[np.intp], now_ms: int) -> NDArray[np.intp]:
    """Indices into the eligible rows, of those in `waiting`; none if nobody should, or there is no room."""
    rows, running = look_at(view, engine, waiting, now_ms), Running.of(engine, now_ms)
    most = min(len(rows.index), engine.free_rows)
    if not most:
        return rows.index[:0]
    cases = Cases.of(engine, running, rows, _sizes(most))
    orders, newcomers = _orders(engine, rows, running, cases)
    values = (newcomers + _values(engine, rows, running, cases, orders)).round(6)
    if not engine.rows or (rows.owed is not None and rows.owed in orders[:, 0]):
        values[0] = -np.inf
    # Of equal ones the most.
    best = len(values) - 1 - int(values[::-1].argmax())
    slots = view.slots[rows.index[orders[best]]]
    row_of = dict(zip(slots.tolist(), orders[best].tolist(), strict=True))
    chosen = fitting(view, engine, slots, SKIPS)[: int(cases.joining[best, 0])]
    return np.asarray(rows.index[np.array([row_of[slot] for slot in chosen], np.intp)])


@cache
def _sizes(most: int) -> NDArray[np.intp]:
    """Numbers of rows that are tried, ascending: none, and up to `SIZES` others."""
    return np.append(0, np.unique(np.geomspace(1, most, SIZES).round().astype(np.intp)))


def _orders(engine: EngineView, rows: Rows, running: Running, cases: Cases) -> tuple[NDArray[np.intp], Floats]:
    """The order in which rows are to join in each case, shape [cases, n]; and what those to come keep, shape [cases].

    Those to come are taken to be like those that wait, each served at the pace of the case at once.
    """
    start = engine.step_time.startup + engine.step_time.prefill_per_token * rows.prompts
    later = (start + rows.means * cases.pace).mean(axis=1, keepdims=True)

    def chance(waited: float | Floats) -> Floats:
        tokens = np.maximum(rows.left - start - waited, 0.0) / cases.pace
        return rows.kept_by_each(tokens, waited + start)

    now = chance(0.0)
    # All places stand still while a prompt is read.
    takes = np.maximum(cases.on_engine * start + rows.means * cases.step, LEAST_SECONDS)
    regret = rows.weight * (now - chance(later)) / takes
    if rows.owed is not None and running.reserved < max(1.0, RESERVED * engine.max_batch_rows):
        regret[:, rows.owed] = np.inf
    newcomers = NEWCOMERS * len(running.left) * (rows.weight * now).mean(axis=1)
    return np.argsort(-regret, axis=1, kind="stable"), newcomers


def _values(engine: EngineView, rows: Rows, running: Running, cases: Cases, orders: NDArray[np.intp]) -> Floats:
    """Deadlines expected to be kept in each case, shape [cases].

    Of those that run, of those that join, and of the others in their order.
    """
    step = engine.step_time
    orders = orders[:, : BEHIND + int(cases.joining[-1, 0])]
    place = np.arange(orders.shape[1])
    joins = place < cases.joining
    rank = np.maximum(place + 1 - cases.joining, 0)
    prompts = step.prefill_per_token * rows.prompts[orders]
    stall = step.startup * (cases.joining > 0) + np.where(joins, prompts, 0.0).sum(axis=1, keepdims=True)
    kept = running.kept(np.maximum(running.left - stall, 0.0) / cases.pace)
    next_place = OVERTAKEN * cases.tokens * cases.pace / cases.on_engine
    waits = stall + np.where(joins, 0.0, next_place * rank + prompts)
    chance = rows.kept(np.maximum(rows.left[orders] - waits, 0.0) / cases.pace, 0.0, waits, orders)
    worth = np.where(joins, 1.0, np.where(rank <= BEHIND, PROMISE, 0.0)) * rows.weight[orders]
    return np.asarray(kept + (worth * chance).sum(axis=1))
