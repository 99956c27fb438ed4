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
SAME = 1e-6
"""Two lengths that are no further apart, in tokens, are one."""
_LEAST = np.array([-0.5] + [0.0] * (POINTS - 2))
_ALL = np.ones(POINTS - 1)
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


def mean_points(points: NDArray[np.float32] | Floats) -> Floats:
    """Mean lengths, shape [n], of points of shape [n, POINTS]."""
    return np.asarray(np.einsum("np->n", points) / POINTS, np.float64)


def expected_tokens(points: Floats, delivered: Floats) -> Floats:
    """Mean of what is still to come of each row, at least 1; shape [n], of points of shape [n, POINTS]."""
    left = points - delivered[:, None]
    coming = left > 0
    mean = np.where(coming, left, 0.0).sum(axis=1) / coming.sum(axis=1).clip(min=1)
    return np.asarray(np.maximum(mean, 1.0))


def share_within(points: Floats, tokens: Floats) -> Floats:
    """Probability that each length is at most so many tokens; between two points evenly.

    Half a part lies before the first point, as dense as the part behind it, and half a part at the last one.

    Args:
        points: shape [..., POINTS], ascending.
        tokens: shape [...], or one that goes with it.
    """
    last = points[..., -1]
    # At two equal points it has the second's value.
    low = np.minimum(points[..., :-1], points[..., 1:] - SAME)
    passed = np.asarray(tokens)[..., None] - low
    passed /= points[..., 1:] - low
    np.maximum(passed, _LEAST, out=passed)
    np.minimum(passed, 1.0, out=passed)
    return np.asarray((passed @ _ALL + np.where(tokens >= last, 1.0, 0.5)) / POINTS)


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


def batch_courses(step: StepTime, batches: Sequence[tuple[Floats, Floats]]) -> list[Course]:
    """The courses of several batches on an engine that pads every row to the longest context, each by itself.

    Args:
        step: the engine's step time.
        batches: of each, the tokens of its prompts, shape [rows], and the points of its lengths, [rows, POINTS].
    """
    size = max(len(prompts) for prompts, _ in batches)
    # Rows that are not there have ended before they begin.
    points = np.zeros((len(batches), size, POINTS))
    for number, (prompts, of_batch) in enumerate(batches):
        points[number, : len(prompts)] = of_batch
    rows = np.array([float(len(prompts)) for prompts, _ in batches])
    longest_prompt = np.array([prompts.max() for prompts, _ in batches])
    grid = _knots(points.reshape(len(batches), -1))
    middles = (grid[:, 1:] + grid[:, :-1]) / 2
    alive = 1.0 - share_within(points[:, :, None, :], middles[:, None, :])
    anyone = 1.0 - (1.0 - alive).prod(axis=1)
    # What a row that is alive meets: those expected to be, given that one is.
    together = np.maximum(alive.sum(axis=1) / np.maximum(anyone, 1e-9), 1.0)
    context = longest_prompt[:, None] + middles
    took = (step.base + step.per_row * together + step.per_context_token * together * context) * np.diff(grid)
    start = step.startup + step.prefill_per_token * rows * longest_prompt
    seconds = start[:, None] + np.concatenate([np.zeros((len(batches), 1)), np.cumsum(took, axis=1)], axis=1)
    ends = start + (took * anyone).sum(axis=1)
    return [Course(*course) for course in zip(grid, seconds, ends.tolist(), strict=True)]


def _knots(lengths: Floats) -> Floats:
    """Of each batch some of its rows' points, from 1 to the largest, ascending: shape [batches, knots]."""
    grid = np.sort(np.maximum(lengths, 1.0), axis=1)
    grid[:, 0] = 1.0
    if grid.shape[1] > KNOTS:
        grid = grid[:, np.linspace(0, grid.shape[1] - 1, KNOTS).round().astype(np.intp)]
    return grid
