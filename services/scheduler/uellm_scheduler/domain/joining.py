"""Who joins a continuous engine now: the rows after which most deadlines are still kept, of those that run, too.

Each row that joins makes every step longer and stops all others while its prompt is read. Rows stand in order of what
waiting costs them: the chance to keep the deadline now, less the chance one service later, for each second that the row
would hold its place. Of them the first m join for which the deadlines expected to be kept are most: of those that run
and those that join, at the pace of all together, and of those that are left, each after the wait for its place. So an
engine is filled only as far as its pace still serves the urgent, while others have time.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    def kept(self, tokens: Floats) -> float:
        """Deadlines that are expected to be kept if each row makes so many tokens more in time, shape [n]."""
        if not len(self.left):
            return 0.0
        before = share_within(self.points, self.delivered)
        share = (share_within(self.points, self.delivered + tokens) - before) / np.maximum(1.0 - before, 1e-9)
        # Who has outlived its prediction may end at any token up to its limit.
        unknown = np.clip(tokens / np.maximum(self.limits - self.delivered, 1.0), 0.0, 1.0)
        share = np.where(before < 1.0 - 1e-6, share, unknown)
        return float(share[np.isfinite(self.left)].sum())


def who_joins(view: QueueView, engine: EngineView, waiting: NDArray[np.intp], now_ms: int) -> NDArray[np.intp]:
    """Indices into the eligible rows, of those in `waiting`; none if nobody should, or there is no room."""
    rows, running = look_at(view, engine, waiting, now_ms), Running.of(engine, now_ms)
    order = _order(engine, rows, running)
    slots = view.slots[rows.index]
    places = {slot: at for at, slot in enumerate(fitting(view, engine, slots[order], SKIPS))}
    room = sorted(np.flatnonzero(np.isin(slots, list(places))), key=lambda row: places[int(slots[row])])
    if not room:
        return np.zeros(0, np.intp)
    joining = np.array(room, np.intp)
    least = not engine.rows or rows.owed == joining[0]
    sizes = np.unique(np.geomspace(1, len(joining), SIZES).round().astype(np.intp))
    tried = [int(size) for size in sizes] if least else [0, *(int(size) for size in sizes)]
    best = max(tried, key=lambda size: (_value(engine, rows, running, order, joining[:size]), size))
    return np.asarray(rows.index[joining[:best]])


def _order(engine: EngineView, rows: Rows, running: Running) -> NDArray[np.intp]:
    """The order in which rows are to join."""
    size = min(engine.max_batch_rows, len(running.left) + len(rows.index))
    pace = _pace(engine, running, rows, size - len(running.left))
    start = engine.step_time.prefill_per_token * rows.prompts
    tokens = rows.points.mean(axis=1)
    holds = start + tokens * pace
    later = float(holds.mean())

    def chance(waited: float) -> Floats:
        return rows.kept(np.maximum(rows.left - start - waited, 0.0) / pace, waited, start)

    regret = rows.weight * (chance(0.0) - chance(later)) / holds
    if rows.owed is not None and running.reserved < max(1.0, RESERVED * engine.max_batch_rows):
        regret[rows.owed] = np.inf
    return np.argsort(-regret, kind="stable")


def _pace(engine: EngineView, running: Running, rows: Rows, joining: int) -> float:
    """Seconds a token, if so many rows of the mean context join and who leaves is replaced."""
    context = float((rows.prompts + rows.points.mean(axis=1) / 2).mean())
    step = engine.step_time.step_seconds(len(running.left) + joining, running.context_tokens + joining * context)
    return max(step, LEAST_SECONDS)


def _value(
    engine: EngineView, rows: Rows, running: Running, order: NDArray[np.intp], joining: NDArray[np.intp]
) -> float:
    """Deadlines expected to be kept, of those that run, of those that join, and of the others in their order."""
    pace = _pace(engine, running, rows, len(joining))
    stall = engine.step_time.startup * (len(joining) > 0)
    stall += engine.step_time.prefill_per_token * float(rows.prompts[joining].sum())
    kept = running.kept(np.maximum(running.left - stall, 0.0) / pace)
    in_time = rows.kept(np.maximum(rows.left[joining] - stall, 0.0) / pace, 0.0, stall, joining)
    now = kept + float((rows.weight[joining] * in_time).sum())
    left = order[~np.isin(order, joining)][:BEHIND]
    on_engine = max(1, len(running.left) + len(joining))
    tokens = running.tokens + float(rows.points[joining].mean(axis=1).sum())
    next_place = OVERTAKEN * tokens * pace / on_engine**2
    waits = stall + next_place * np.arange(1, len(left) + 1) + engine.step_time.prefill_per_token * rows.prompts[left]
    later = rows.kept(np.maximum(rows.left[left] - waits, 0.0) / pace, 0.0, waits, left)
    return round(now + PROMISE * float((rows.weight[left] * later).sum()), 6)
