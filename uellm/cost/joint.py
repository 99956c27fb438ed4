"""What several queries take together: from the joint distribution of their lengths, never from quantiles of each.

All of 16 rows stay under their 90th percentile in 19 % of batches only: quantiles do not add up, and the largest is no
quantile of the maximum. Lengths are independent given their predictions. Needs numpy, unlike the models themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from uellm.cost.lengths import LengthDistribution
from uellm.cost.model import CostModel
from uellm.cost.times import TimeDistribution

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class JointRow:
    """One row of a batch that is to begin, or that runs."""

    prompt_tokens: int
    length: LengthDistribution
    """Of the tokens that are still to come: see `remaining`."""


def remaining(length: LengthDistribution, delivered: int) -> LengthDistribution:
    """What is still to come of an answer of which `delivered` tokens came and that has not ended.

    As tokens of its own: the row's prompt is longer by what was delivered. At least 1 token is to come.
    """
    if delivered <= 0:
        return length
    left = length.limit - delivered
    if left < 1:
        return LengthDistribution((1,), (1.0,), 1.0)
    kept = [edge for edge in length.edges if edge > delivered]
    before = length.cdf(delivered)
    if before >= 1.0 - 1e-12:
        # Nothing was expected beyond: any length may come.
        return LengthDistribution((left,), (1.0,), 0.0)
    values = [before, *(length.cdf(edge) for edge in kept[:-1]), 1.0]
    masses = [(high - low) / (1 - before) for low, high in pairwise(values)]
    total = sum(masses)
    atom = min(length.limit_probability / (1 - before), masses[-1]) / total
    return LengthDistribution(tuple(edge - delivered for edge in kept), tuple(m / total for m in masses), atom)


class BatchTime:
    """When the rows of one static batch end, and the batch, counted from its dispatch.

    Rows leave as they end. Lengths are mapped to times; at each step the rows still alive enter with their mean, and
    their total, the coefficients and the noise with their variance.
    """

    def __init__(self, cost: CostModel, rows: Sequence[JointRow], *, padded: bool, begun: bool = False) -> None:
        """Look at a batch; `begun`: its start-up and prefill are over. Raises ValueError without rows."""
        if not rows:
            raise ValueError("a batch has at least one row")
        self._cost = cost
        self._padded = padded
        self._begun = begun
        self._prompts: Floats = np.array([row.prompt_tokens for row in rows], dtype=np.float64)
        self._atoms = [row.length.limit_probability for row in rows]
        lengths = [row.length for row in rows]
        self._grid = _grid(lengths)
        self._ends = [int(np.searchsorted(self._grid, length.limit)) for length in lengths]
        self._below = _on_grid(lengths, self._grid)

    def end(self) -> TimeDistribution:
        """When the batch ends: with its longest row."""
        everyone = np.prod(self._below, axis=0)
        # Rows alive, given that some are: else there is no step.
        alive = np.maximum(1.0, self._alive / np.maximum(1 - everyone, 1e-12))
        last = int(self._grid[-1])
        below_atoms = [1 - atom for atom, end in zip(self._atoms, self._ends, strict=True) if self._grid[end] == last]
        return self._distribution(everyone, alive, 1 - math.prod(below_atoms), None)

    def row(self, index: int) -> TimeDistribution:
        """When one row ends."""
        below = self._below[index]
        return self._distribution(below, self._alive + below, self._atoms[index], index)

    def first_token_seconds(self) -> float:
        """Expected time to the first tokens."""
        return self._cost.moments(0, 0, 0, self._prefill_tokens, 1.0)[0]

    @cached_property
    def _alive(self) -> Floats:
        """Expected rows alive at each knot, shape [knots]."""
        return np.asarray(np.sum(1 - self._below, axis=0))

    @cached_property
    def _prefill_tokens(self) -> float:
        if self._begun:
            return 0.0
        return float(len(self._prompts) * self._prompts.max() if self._padded else self._prompts.sum())

    def _distribution(self, below: Floats, alive: Floats, atom: float, own: int | None) -> TimeDistribution:
        """Times of a length with this distribution function, `alive` rows being there at each knot."""
        grid = self._grid
        row_steps, context = _sums(grid, alive), _sums(grid, self._contexts(alive, own))
        start = 0.0 if self._begun else 1.0
        moments = [
            self._cost.moments(steps, rows, tokens, self._prefill_tokens, start)
            for steps, rows, tokens in zip((grid - 1).tolist(), row_steps.tolist(), context.tolist(), strict=True)
        ]
        deviations = np.sqrt(np.array([variance for _, variance in moments]) + self._others(own)).tolist()
        count = 1 + (len(grid) - 1 if own is None else self._ends[own])
        # A length of 1 has a probability of its own: the prefill yields it.
        masses = np.maximum.accumulate(below[:count]).tolist()
        times = [mean for mean, _ in moments[:count]]
        return TimeDistribution([times[0], *times], [deviations[0], *deviations[:count]], [0.0, *masses], atom)

    def _contexts(self, alive: Floats, own: int | None) -> Floats:
        """Expected context tokens at each knot, shape [knots]."""
        if self._padded:
            return np.asarray(alive * (self._widest(own) + self._grid))
        prompts = self._prompts @ (1 - self._below)
        if own is None:
            prompts = prompts * alive / np.maximum(self._alive, 1e-12)
        else:
            prompts = prompts + self._prompts[own] * self._below[own]
        return np.asarray(prompts + alive * self._grid)

    def _widest(self, own: int | None) -> Floats:
        """Expected longest prompt of the rows alive at each knot, shape [knots]."""
        below = self._below
        if own is not None:
            below = below.copy()
            below[own] = 0.0
        order = np.argsort(-self._prompts, kind="stable")
        prompts, below = self._prompts[order], below[order]
        wider_ended = np.cumprod(below, axis=0)
        first = np.vstack([np.ones_like(self._grid), wider_ended[:-1]]) * (1 - below)
        return np.asarray((prompts @ first + 1e-12 * prompts[-1]) / (1 - wider_ended[-1] + 1e-12))

    def _others(self, own: int | None) -> Floats:
        """Variance that the other rows' lengths bring to the time of a length at each knot, shape [knots]."""
        grid, running = self._grid, 1 - self._below
        # Mean and mean square of each row's length, cut at the knot.
        mean = _sums(grid, running) + 1.0
        spread = np.maximum(0.0, 2 * _sums(grid, running * grid) + mean - mean**2)
        # Whose end is asked for is not one of the others.
        spread[int(np.argmax(spread[:, -1])) if own is None else own] = 0.0
        step = self._cost.step_time
        weights = step.per_row + step.per_context_token * (self._prompts[:, None] + grid / 2)
        return np.asarray(np.sum(weights**2 * spread, axis=0))


def kv_exceeds(rows: Sequence[JointRow], bytes_per_token: float, budget_bytes: float) -> float:
    """Probability that the final caches of rows without padding are larger than a budget in all."""
    tokens = budget_bytes / bytes_per_token - sum(row.prompt_tokens for row in rows)
    return sum_exceeds([row.length for row in rows], tokens)


def padded_kv_exceeds(rows: Sequence[JointRow], bytes_per_token: float, budget_bytes: float) -> float:
    """The same where each row takes as much as the longest prompt and the longest answer: an upper bound.

    It is reached if no row leaves before the longest answer ends.
    """
    longest = math.floor(budget_bytes / bytes_per_token / len(rows)) - max(row.prompt_tokens for row in rows)
    return 1.0 - math.prod(row.length.cdf(longest) if longest >= 1 else 0.0 for row in rows)


def sum_exceeds(lengths: Sequence[LengthDistribution], tokens: float) -> float:
    """Probability that independent lengths sum to more than `tokens`.

    Saddlepoint approximation (Lugannani and Rice 1980, with continuity correction), of small relative error far out in
    the tail, where a normal one is off by orders of magnitude. Exact outside of what is possible at all.
    """
    if not lengths or tokens >= sum(length.limit for length in lengths):
        return 0.0
    if tokens < len(lengths):
        return 1.0
    if len(lengths) == 1:
        return 1 - lengths[0].cdf(math.floor(tokens))
    values, logs = _nodes(lengths)
    bound = math.floor(tokens) + 0.5
    tilt, (cumulant, _, curvature, third) = _saddlepoint(values, logs, bound)
    w = math.copysign(math.sqrt(max(0.0, 2 * (tilt * bound - cumulant))), tilt)
    if abs(w) < 1e-4:
        return 0.5 - third / (6 * math.sqrt(2 * math.pi) * curvature * math.sqrt(curvature))
    u = 2 * math.sinh(tilt / 2) * math.sqrt(curvature)
    density = math.exp(-w * w / 2) / math.sqrt(2 * math.pi)
    return min(1.0, max(0.0, 0.5 * math.erfc(w / math.sqrt(2)) + density * (1 / u - 1 / w)))


def _nodes(lengths: Sequence[LengthDistribution]) -> tuple[Floats, Floats]:
    """Values and their log probabilities that stand for each row's length, both of shape [rows, nodes].

    A bucket is two nodes of the same mean and variance; one is the atom.
    """
    size = max(len(length.edges) for length in lengths)
    values, masses = np.zeros((len(lengths), 2 * size + 1)), np.zeros((len(lengths), 2 * size + 1))
    for row, length in enumerate(lengths):
        edges = np.array((0, *length.edges), dtype=np.float64)
        count = np.diff(edges)
        middle, deviation = (edges[:-1] + edges[1:] + 1) / 2, np.sqrt((count**2 - 1) / 12)
        end = len(count)
        values[row, :end], values[row, size : size + end] = middle - deviation, middle + deviation
        masses[row, :end] = masses[row, size : size + end] = np.diff(length.below) / 2
        values[row, -1], masses[row, -1] = length.limit, length.limit_probability
    return values, np.log(np.maximum(masses, 1e-300))


def _saddlepoint(values: Floats, logs: Floats, bound: float) -> tuple[float, tuple[float, float, float, float]]:
    """Where the slope of the sum's cumulant generating function is `bound`; and what `_cumulants` says there."""
    tilt, low, high = 0.0, -math.inf, math.inf
    for _ in range(60):
        found = _cumulants(values, logs, tilt)
        miss = found[1] - bound
        if abs(miss) <= 1e-6 * math.sqrt(found[2]) + 1e-9 * abs(bound):
            break
        low, high = (tilt, high) if miss < 0 else (low, tilt)
        step = tilt - miss / found[2]
        if not low < step < high:
            step = (low + high) / 2 if math.isfinite(low + high) else tilt + math.copysign(abs(tilt) + 1e-3, -miss)
        tilt = step
    return tilt, found


def _cumulants(values: Floats, logs: Floats, tilt: float) -> tuple[float, float, float, float]:
    """The sum's cumulant generating function at a point, and its first three derivatives."""
    exponents = logs + tilt * values
    top = exponents.max(axis=1, keepdims=True)
    weights = np.exp(exponents - top)
    total = weights.sum(axis=1, keepdims=True)
    weights /= total
    mean = (weights * values).sum(axis=1, keepdims=True)
    apart = values - mean
    second = weights * apart**2
    cumulant = float((top + np.log(total)).sum())
    return cumulant, float(mean.sum()), max(1e-12, float(second.sum())), float((second * apart).sum())


def _grid(lengths: Sequence[LengthDistribution]) -> Floats:
    """Knots from 1 to the largest limit, ascending: edges of all rows; a limit within has two, before and behind it."""
    edges: set[int] = {1}.union(*{length.edges for length in lengths})
    limits = {length.limit for length in lengths}
    if len(edges) > MOST_KNOTS:
        others = sorted(edges - limits - {1})
        edges = {1} | limits | set(others[:: math.ceil(len(others) / MOST_KNOTS)])
    return np.array(sorted([*edges, *(limits - {max(limits)})]), dtype=np.float64)


MOST_KNOTS = 64
"""Where distributions have different edges, they are thinned out to about as many."""


def _on_grid(lengths: Sequence[LengthDistribution], grid: Floats) -> Floats:
    """P(length <= knot) of each row; at the first knot of its limit, without the atom there.

    Of shape [rows, knots].
    """
    rows = np.empty((len(lengths), len(grid)))
    for row, length in zip(rows, lengths, strict=True):
        row[:] = np.interp(grid, (0, *length.edges), length.below)
        row[np.searchsorted(grid, length.limit) + 1 :] = 1.0
    return rows


def _sums(grid: Floats, values: Floats) -> Floats:
    """Sums over the steps 1 <= k < knot of values that run evenly between knots; the same shape, [..., knots]."""
    count = np.diff(grid)
    low, high = values[..., :-1], values[..., 1:]
    pieces = np.where(count > 0, count * (low + high) / 2 + (low - high) / 2, 0.0)
    sums = np.zeros_like(values)
    np.cumsum(pieces, axis=-1, out=sums[..., 1:])
    return sums
