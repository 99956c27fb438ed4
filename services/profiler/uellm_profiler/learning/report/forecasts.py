"""Answers and what was predicted of them, as arrays with one entry a row. Lengths are tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uellm.cost.lengths import LengthDistribution
from uellm_profiler.learning.examples import Example
from uellm_profiler.learning.labels import Label

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SMALLEST_PROBABILITY = 1e-6
"""What a prediction said to be impossible counts as having been given, so that likelihoods stay finite."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Observed lengths."""

    tokens: Ints
    """Of a cut answer: where it was cut."""
    cut: Bools
    limits: Ints
    clusters: Ints
    """Number of the row's prompt, from 0: rows of one prompt depend on each other."""

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Outcomes:
        """Of examples."""
        return cls.of_labels([example.label for example in examples])

    @classmethod
    def of_labels(cls, labels: Sequence[Label]) -> Outcomes:
        """Of labels."""
        numbers: dict[tuple[str, str], int] = {}
        return cls(
            np.array([label.output_tokens for label in labels], np.int64),
            np.array([label.censored for label in labels], np.bool_),
            np.array([label.max_tokens for label in labels], np.int64),
            np.array([numbers.setdefault(label.prompt, len(numbers)) for label in labels], np.int64),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Ints) -> Outcomes:
        """Some of the rows; clusters are numbered anew."""
        clusters = np.unique(self.clusters[rows], return_inverse=True)[1]
        return Outcomes(self.tokens[rows], self.cut[rows], self.limits[rows], clusters.astype(np.int64))


@dataclass(frozen=True, slots=True)
class Forecasts:
    """What the card asks of each predicted distribution, and how it fits its outcome.

    Quantiles are whole tokens, the smallest number that holds at least the probability.
    """

    p50: Floats
    """The point prediction."""
    p90: Floats
    p99: Floats
    mean: Floats
    p90_uncut: Floats
    """90th percentile, given that the answer is not cut."""
    p99_uncut: Floats
    pit_low: Floats
    """Probability of a shorter answer, and"""
    pit_high: Floats
    """of one at most as long; of a cut answer 1."""
    log_likelihood: Floats
    """Natural logarithm of the probability of the length, of a cut answer of a longer one."""
    crps: Floats
    """Continuous ranked probability score of the length up to the limit, in tokens."""

    @classmethod
    def of(cls, distributions: Sequence[LengthDistribution], outcomes: Outcomes) -> Forecasts:
        """Raises ValueError where a distribution ends elsewhere than at the row's limit."""
        if len(distributions) != len(outcomes):
            raise ValueError(f"{len(distributions)} distributions do not fit {len(outcomes)} rows")
        rows = [
            _row(distribution, int(outcomes.tokens[i]), int(outcomes.limits[i]), cut=bool(outcomes.cut[i]))
            for i, distribution in enumerate(distributions)
        ]
        columns = np.array(rows, np.float64).reshape(len(rows), 10).T
        return cls(*columns)

    def take(self, rows: Ints) -> Forecasts:
        """Some of the rows."""
        return Forecasts(*(getattr(self, name)[rows] for name in Forecasts.__slots__))


def _row(distribution: LengthDistribution, tokens: int, limit: int, *, cut: bool) -> tuple[float, ...]:
    if distribution.limit != limit:
        raise ValueError(f"a distribution up to {distribution.limit} tokens does not fit a limit of {limit}")
    inside = distribution.below[-1]
    below, within = distribution.ended_by(tokens - 1), distribution.ended_by(tokens)
    low, high = (within, 1.0) if cut else (below, within)
    return (
        whole(distribution.quantile(0.5)),
        whole(distribution.quantile(0.9)),
        whole(distribution.quantile(0.99)),
        distribution.mean,
        whole(distribution.quantile(0.9 * inside)),
        whole(distribution.quantile(0.99 * inside)),
        low,
        high,
        math.log(max(high - low, SMALLEST_PROBABILITY)),
        _crps(distribution, tokens),
    )


def whole(tokens: float) -> float:
    """Lengths are whole, so the quantile is the next whole number; at least 1."""
    return max(1.0, math.ceil(tokens - _ROUNDING))


def _crps(distribution: LengthDistribution, tokens: int) -> float:
    """Of a whole-numbered length: the squared distance to the outcome's step, summed over 0 ... limit - 1."""
    grid = np.arange(distribution.limit)
    cdf = np.interp(grid, (0, *distribution.edges), distribution.below)
    return float(np.square(cdf - (grid >= tokens)).sum())
