"""Who joins a continuous engine now: the rows after which most deadlines are still kept, of those that run, too.

Each row that joins makes every step longer and stops all others while its prompt is read. Rows stand in order of what
waiting costs them: the chance to keep the deadline now, less the chance one service later, for each second that the row
would hold its place. Of them the first m join for which the deadlines expected to be kept are most: of those that run
and those that join, at the pace of all together, and of those that are left, each after the wait for its place. So an
engine is filled only as far as its pace still serves the urgent, while others have time.
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


def who_joins(view: QueueView, engine: EngineView, waiting: NDArray[np.intp], now_ms: int) -> NDArray[np.intp]:
    """Indices into the eligible rows, of those in `waiting`; none if nobody should, or there is no room."""
    rows, running = look_at(view, engine, waiting, now_ms), Running.of(engine, now_ms)
    order = _order(engine, rows, running)
    slots = view.slots[rows.index[order]]
    row_of = dict(zip(slots.tolist(), order.tolist(), strict=True))
    joining = np.array([row_of[slot] for slot in fitting(view, engine, slots, SKIPS)], np.intp)
    if not len(joining):
        return joining
    sizes = _sizes(len(joining))
    if not engine.rows or rows.owed == joining[0]:
        sizes = sizes[1:]
    values = _values(engine, rows, running, order, joining, sizes)
    # Of equal ones the most.
    best = sizes[len(sizes) - 1 - int(values[::-1].argmax())]
    return np.asarray(rows.index[joining[:best]])


@cache
def _sizes(most: int) -> NDArray[np.intp]:
    """Numbers of rows that are tried, ascending: none, and up to `SIZES` others."""
    return np.append(0, np.unique(np.geomspace(1, most, SIZES).round().astype(np.intp)))


def _order(engine: EngineView, rows: Rows, running: Running) -> NDArray[np.intp]:
    """The order in which rows are to join."""
    size = min(engine.max_batch_rows, len(running.left) + len(rows.index))
    pace = _pace(engine, running, rows, size - len(running.left))
    start = engine.step_time.prefill_per_token * rows.prompts
    holds = start + rows.means * pace
    later = float(holds.mean())

    def chance(waited: float) -> Floats:
        return rows.kept(np.maximum(rows.left - start - waited, 0.0) / pace, waited, start)

    regret = rows.weight * (chance(0.0) - chance(later)) / holds
    if rows.owed is not None and running.reserved < max(1.0, RESERVED * engine.max_batch_rows):
        regret[rows.owed] = np.inf
    return np.argsort(-regret, kind="stable")


def _pace(engine: EngineView, running: Running, rows: Rows, joining: int) -> float:
    """Seconds a token, if so many rows of the mean context join and who leaves is replaced."""
    context = running.context_tokens + joining * rows.context_tokens
    step = engine.step_time.step_seconds(len(running.left) + joining, context)
    return max(step, LEAST_SECONDS)


def _values(
    engine: EngineView,
    rows: Rows,
    running: Running,
    order: NDArray[np.intp],
    joining: NDArray[np.intp],
    sizes: NDArray[np.intp],
) -> Floats:
    """Deadlines expected to be kept if the first m of `joining` join, for each m of `sizes`, ascending; shape [sizes].

    Of those that run, of those that join, and of the others in their order.
    """
    order, step = order[: BEHIND + len(joining)], engine.step_time
    pace = np.array([_pace(engine, running, rows, size) for size in sizes.tolist()])[:, None]
    prompts, tokens = (np.append(0.0, of[joining].cumsum())[sizes] for of in (rows.prompts, rows.means))
    stall = (step.startup * (sizes > 0) + step.prefill_per_token * prompts)[:, None]
    on_engine = np.maximum(len(running.left) + sizes, 1)[:, None]
    kept = running.kept(np.maximum(running.left - stall, 0.0) / pace)
    number = np.full(len(rows.index), len(joining))
    number[joining] = np.arange(len(joining))
    joins = number[order] < sizes[:, None]
    rank = (~joins).cumsum(axis=1)
    next_place = OVERTAKEN * (running.tokens + tokens[:, None]) * pace / on_engine**2
    waits = stall + np.where(joins, 0.0, next_place * rank + step.prefill_per_token * rows.prompts[order])
    chance = rows.kept(np.maximum(rows.left[order] - waits, 0.0) / pace, 0.0, waits, order)
    worth = np.where(joins, 1.0, np.where(rank <= BEHIND, PROMISE, 0.0)) * rows.weight[order]
    return np.asarray((kept + (worth * chance).sum(axis=1)).round(6))
