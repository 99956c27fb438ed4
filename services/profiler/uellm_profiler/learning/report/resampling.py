"""Paired bootstrap over prompts: all resamples at once, each being how often every row came up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm_profiler.learning.report.forecasts import Floats, Ints

RESAMPLES = 2_000
LEVEL = 0.95


def resample(clusters: Ints, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Weights of the rows, (1 + resamples, rows): first the sample itself, then resamples of whole clusters.

    The same clusters give the same weights whatever is then measured, which is what makes comparisons paired.
    """
    count = int(clusters.max()) + 1
    # The old generator's whole numbers are the same in every version of numpy, on every processor.
    draws = np.random.RandomState(seed).randint(0, count, size=(resamples, count))
    times = np.stack([np.bincount(draw, minlength=count) for draw in draws])
    return np.concatenate([np.ones((1, len(clusters))), times[:, clusters].astype(np.float64)])


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval; NaN where nothing can be said."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Floats, level: float = LEVEL) -> Estimate:
        """Of the value on the sample, followed by those on the resamples (percentile interval)."""
        resampled = values[1:][np.isfinite(values[1:])]
        if not np.isfinite(values[0]) or not len(resampled):
            return cls(float(values[0]), float("nan"), float("nan"))
        low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
        return cls(float(values[0]), float(low), float(high))

    def rounded(self, digits: int) -> list[float | None]:
        """As it is written down; None for NaN."""
        return [rounded(number, digits) for number in (self.value, self.low, self.high)]


def rounded(number: float, digits: int) -> float | None:
    """As it is written down; None for what is no number, and no negative zero."""
    return round(float(number), digits) + 0.0 if np.isfinite(number) else None
