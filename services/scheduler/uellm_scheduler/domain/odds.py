"""How likely deadlines are kept, for many queries at once: numpy over the pending table's columns.

A predicted length is held as `POINTS` lengths of equal weight, the middles of as many equal parts of its distribution.
A batch's rows leave as they end, so the pace of a step depends on how many are expected to be alive by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uellm.cost.lengths import LengthDistribution, log_normal_cdf
from uellm.cost.steps import StepTime
from uellm.v1 import query_pb2

Floats = NDArray[np.float64]

POINTS = 8
LEVELS = (np.arange(POINTS) + 0.5) / POINTS
"""Probabilities whose quantiles the points are."""
TAIL = (0.99, 0.999)
"""Probabilities of two more quantiles: what memory is kept free for."""
NODE_MASSES = np.array([1 / POINTS] * (POINTS - 1) + [0.08875, 0.03075, 0.0045, 0.001])
"""Of a length's nodes. Each part of the tail up to 0.999 stands half at either end: an upper bound of the mean of any
exponential of it, as long as longer answers are rarer."""
KNOTS = 64
"""Lengths at most at which a batch's course is computed."""
_Z90 = 1.2815515655446004


def length_points(message: query_pb2.LengthDistribution, levels: Sequence[float] | Floats = LEVELS) -> list[float]:
    """The points of a predicted length, ascending, in tokens; or its quantiles at other levels.

    One that has no buckets is taken as log-normal with its p50 and p90, cut at its limit.
    """
    try:
        distribution = LengthDistribution.from_proto(message)
    except ValueError:
        distribution = _from_quantiles(message)
    return [max(1.0, distribution.quantile(level)) for level in levels]


def _from_quantiles(message: query_pb2.LengthDistribution) -> LengthDistribution:
    middle, high = max(message.p50_tokens, 1.0), max(message.p90_tokens, message.p50_tokens, 1.0)
    spread = max(np.log(high / middle) / _Z90, 0.01)
    return LengthDistribution.from_cdf(
        log_normal_cdf(float(np.log(middle)), float(spread)), max(message.limit_tokens, 1)
    )


def length_nodes(points: Floats, tail: Floats, limits: Floats) -> Floats:
    """Lengths that stand for a whole distribution, with `NODE_MASSES`; shape [n, nodes].

    Args:
        points: shape [n, POINTS].
        tail: quantiles at `TAIL`, shape [n, 2].
        limits: longest answers, shape [n].
    """
    return np.concatenate([points, tail, limits[:, None]], axis=1)


def share_within(points: Floats, tokens: Floats) -> Floats:
    """Probability that each length is at most so many tokens; between two points evenly.

    Args:
        points: shape [..., POINTS], ascending.
        tokens: shape [...], or one that goes with it.
    """
    shape = np.broadcast_shapes(points.shape[:-1], tokens.shape)
    passed = np.zeros(shape, np.int8)
    for point in range(POINTS):
        passed += points[..., point] <= tokens
    known = np.broadcast_to(points, (*shape, POINTS))
    before = np.clip(passed - 1, 0, POINTS - 2).astype(np.intp)[..., None]
    low = np.take_along_axis(known, before, -1)[..., 0]
    high = np.take_along_axis(known, before + 1, -1)[..., 0]
    between = passed - 0.5 + (np.minimum(tokens, high) - low) / np.maximum(high - low, 1e-6)
    # Half a part lies before the first point, as dense as the part behind it, and half a part at the last one.
    ahead = 0.5 + 0.5 * np.maximum((tokens - low) / np.maximum((high - low) / 2, 1e-6), -1.0)
    share = np.where(passed == 0, ahead, np.where(passed == POINTS, float(POINTS), between))
    return np.asarray(share / POINTS)


@dataclass(frozen=True, slots=True)
class Course:
    """How a batch is expected to go."""

    tokens: Floats
    """Lengths, ascending, shape [knots]."""
    seconds: Floats
    """When a row of that length ends, counted from the batch's begin, shape [knots]."""
    end_seconds: float
    """When its last row ends, in expectation."""

    def tokens_by(self, seconds: Floats) -> Floats:
        """The longest answers that end within so many seconds of the begin; below 1 where none does."""
        return np.asarray(np.interp(seconds, self.seconds, self.tokens, left=0.0))


def batch_course(step: StepTime, prompt_tokens: Floats, points: Floats) -> Course:
    """The course of a batch on an engine that pads every row to the longest context.

    Args:
        step: the engine's step time.
        prompt_tokens: shape [rows].
        points: shape [rows, POINTS].
    """
    rows, longest_prompt = len(prompt_tokens), float(prompt_tokens.max())
    grid = np.unique(np.append(points, 1.0))
    if len(grid) > KNOTS:
        grid = grid[np.linspace(0, len(grid) - 1, KNOTS).round().astype(np.intp)]
    middles = (grid[1:] + grid[:-1]) / 2
    alive = 1.0 - share_within(points[:, None, :], middles[None, :])
    anyone = 1.0 - (1.0 - alive).prod(axis=0)
    # What a row that is alive meets: those expected to be, given that one is.
    together = np.maximum(alive.sum(axis=0) / np.maximum(anyone, 1e-9), 1.0)
    pace = step.base + step.per_row * together + step.per_context_token * together * (longest_prompt + middles)
    start = step.startup + step.prefill_per_token * rows * longest_prompt
    took = pace * np.diff(grid)
    seconds = start + np.append(0.0, np.cumsum(took))
    return Course(grid, seconds, start + float((took * anyone).sum()))
