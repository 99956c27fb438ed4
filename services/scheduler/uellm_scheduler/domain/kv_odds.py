"""How many rows a paged key-value cache takes, so that it overflows with at most one chance in a thousand.

Rows of a continuous engine advance together, one token a step, and a row gives its memory back when it ends: what is
held at once is less than the sum of the final sizes. From step s to step s' no more is held than by the rows that are
alive at s, each as large as it is at s' or at its end. That is a sum of independent sizes; Chernoff's inequality bounds
its odds, with the best of a few exponents, and the odds of all stages are added up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .odds import NODE_MASSES, POINTS, Floats, length_nodes
from .pending import QueryColumns
from .policy import EngineView, RunningRow

OVERFLOW = 1e-3
"""Odds that are taken."""
STAGES = 14
"""Into which the time to come is cut,"""
BODY = 9
"""so many of them by the bulk of the lengths, the others in the tail."""
EXPONENTS = np.array([11.0, 18.0, 30.0, 50.0, 100.0, 250.0], np.float32)
"""Per budget: small ones for few rows of uncertain length, large ones for many."""


@dataclass(frozen=True, slots=True)
class CachedRows:
    """Rows that hold, or would hold, a part of the cache."""

    prompts: Floats
    """Tokens, shape [n]."""
    delivered: Floats
    limits: Floats
    nodes: Floats
    """Whole lengths, shape [n, nodes]."""

    @classmethod
    def waiting(cls, table: QueryColumns, slots: NDArray[np.intp]) -> CachedRows:
        """Rows of the pending table."""
        limits = table.column("limit_tokens")[slots].astype(np.float64)
        points = table.column("length_points")[slots].astype(np.float64)
        nodes = length_nodes(points, table.column("length_tail")[slots].astype(np.float64), limits)
        prompts = table.column("prompt_tokens")[slots].astype(np.float64)
        return cls(prompts, table.column("delivered_tokens")[slots].astype(np.float64), limits, nodes)

    @classmethod
    def running(cls, rows: list[RunningRow]) -> CachedRows:
        """Rows on an engine."""
        numbers = np.array([(row.prompt_tokens, row.delivered_tokens, row.limit_tokens) for row in rows], np.float64)
        numbers = numbers.reshape(-1, 3)
        known = [(*row.length_points, *(row.length_tail or (row.limit_tokens,) * 2), row.limit_tokens) for row in rows]
        nodes = np.array(known, np.float64).reshape(-1, len(NODE_MASSES))
        return cls(numbers[:, 0], numbers[:, 1], numbers[:, 2], nodes)

    @property
    def left(self) -> tuple[Floats, Floats]:
        """Tokens still to come, at least 1, and the probability of each; both of shape [n, nodes]."""
        delivered = self.delivered[:, None]
        masses = np.where(self.nodes > delivered, NODE_MASSES, 0.0)
        # Who has outlived all that was predicted may go on to the limit.
        masses[masses.sum(axis=1) == 0, -1] = 1.0
        return np.maximum(self.nodes - delivered, 1.0), masses / masses.sum(axis=1, keepdims=True)


class PagedCache:
    """The cache of a continuous engine, with the rows that run there."""

    def __init__(self, engine: EngineView) -> None:
        self._layout, self._page = engine.kv_cache, max(1, engine.page_tokens)
        self._budget = max(1.0, float(engine.kv_budget_bytes))
        self._running = CachedRows.running(engine.rows)

    def choose(self, rows: CachedRows, skips: int = 0) -> NDArray[np.intp]:
        """Rows for which there is room, in their order, up to the first for which there is none; or behind `skips`.

        A row that does not fit alone runs alone: it was admitted, and the engine has the last word on memory.
        """
        everyone = np.arange(len(rows.prompts))
        most = self._most(self._running).sum() + self._most(rows).sum()
        if most <= self._budget or self._surely_fits(rows):
            return everyone
        knots = self._knots(rows)
        held, wanted = self._logs(self._running, knots).sum(axis=0), self._logs(rows, knots)
        chosen: list[int] = []
        for _ in range(skips + 1):
            fits = self._odds(held + wanted[everyone].cumsum(axis=0)) <= OVERFLOW
            count = len(fits) if fits.all() else int(fits.argmin())
            chosen += everyone[:count].tolist()
            if count == len(everyone):
                break
            held = held + wanted[everyone[:count]].sum(axis=0)
            everyone = everyone[count + 1 :]
        if not chosen and len(rows.prompts) and not len(self._running.prompts):
            return np.zeros(1, np.intp)
        return np.array(chosen, np.intp)

    def _surely_fits(self, rows: CachedRows) -> bool:
        """Whether there is room even if nobody gives memory back: one stage, which costs little to look at."""
        whole = np.array([0.0, np.inf])
        logs = self._logs(self._running, whole).sum(axis=0) + self._logs(rows, whole).sum(axis=0)
        return bool(self._odds(logs) <= OVERFLOW)

    def _knots(self, rows: CachedRows) -> Floats:
        """Steps from now on between which the stages lie: about as many rows end in each, and some in the tail."""
        left = np.concatenate([self._running.left[0], rows.left[0]])
        body = np.quantile(left[:, :POINTS], np.arange(1, BODY) / BODY)
        tail = np.geomspace(body[-1], left.max(), STAGES - BODY + 2)
        return np.concatenate([[0.0], body, tail[1:]])

    def _logs(self, rows: CachedRows, knots: Floats) -> Floats:
        """Logarithms of the mean of e^(exponent * size / budget), shape [n, stages, EXPONENTS]."""
        left, masses = rows.left
        reached = np.minimum(left[:, :, None], knots[1:])
        contexts = (rows.prompts + rows.delivered)[:, None, None] + reached
        size = np.where(left[:, :, None] > knots[:-1], self._bytes(contexts, rows.prompts[:, None, None]), 0.0)
        powers = (size / self._budget).astype(np.float32)[..., None] * EXPONENTS
        with np.errstate(over="ignore"):  # infinite: that exponent has no say
            np.exp(powers, out=powers)
        stages = len(knots) - 1
        powers = powers.reshape(*left.shape, stages * len(EXPONENTS))
        means = np.matmul(masses.astype(np.float32)[:, None, :], powers)
        return np.asarray(np.log(means).reshape(-1, stages, len(EXPONENTS)))

    def _odds(self, logs: Floats) -> Floats:
        """Bound on the odds of an overflow at any stage; from sums of logarithms of shape [..., stages, EXPONENTS]."""
        return np.asarray(np.exp(np.minimum((logs - EXPONENTS).min(axis=-1), 0.0)).sum(axis=-1))

    def _most(self, rows: CachedRows) -> Floats:
        return self._bytes(rows.prompts + np.maximum(rows.limits, rows.delivered + 1), rows.prompts)

    def _bytes(self, contexts: Floats, prompts: Floats) -> Floats:
        """As `KvCacheLayout.paged_row_bytes`, for many rows at once, a prompt being read in one pass."""
        page = self._page
        total = np.zeros(np.broadcast_shapes(contexts.shape, prompts.shape))
        for group in self._layout.groups:
            pages = np.ceil(contexts / page)
            if group.window_tokens:
                seen = group.window_tokens - 1 + prompts
                pages = np.minimum(pages, np.ceil((seen - 1) / page) + 1)
            total += group.layers * (group.bytes_per_token * pages * page + group.fixed_bytes)
        return total
