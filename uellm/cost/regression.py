"""Bayesian linear regression of seconds on work, for coefficients that are not negative.

One sample is `seconds = x'b + noise`. The noise is Student-t with 4 degrees of freedom, so that a sample far off (a
paused machine) is given little weight; its scale has a relative and an absolute part,
`variance = relative * seconds^2 + per_step * steps`, both found by least squares on the squared residuals. Samples are
folded in by the batch, iteratively reweighted; old ones are forgotten exponentially.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from uellm.cost.linear import Matrix, Vector, diagonal, inverse, non_negative_minimum, product, quadratic
from uellm.v1.stream_pb2 import RegressionState

MEMORY_BATCHES = 50
"""After as many batches what was learnt counts 1/e."""
FREEDOM = 4.0
"""Degrees of freedom of the noise."""
PASSES = 4
"""Reweightings of a batch, at most."""
SETTLED = 0.01
"""Weights that change by less are settled."""
SURPRISING_SIGMAS = 3.0
SURPRISES_BELIEVED = 3
"""After as many batches in a row that are off on the same side, the engine has changed: what is known is rescaled."""
KEPT = 0.02
"""Share of what was learnt before that counts after that."""
FIRST_NOISE = 0.1
"""Relative noise expected before anything was measured."""
FIRST_STEP_NOISE = 2e-3
"""Absolute noise of one step expected before anything was measured, in seconds."""
FIRST_NOISE_WEIGHT = 6.0
"""Samples that these two expectations count as."""
LEAST_NOISE = 0.002
LEAST_STEP_NOISE = 1e-6


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement."""

    features: Vector
    seconds: float
    steps: float
    """Pieces of work in it; absolute noise adds up over them."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """Coefficients and what is known of them."""

    mean: Vector
    """The most probable coefficients that are not negative."""
    covariance: Matrix
    """Of the coefficients, were they allowed to be negative: on the safe side."""

    @classmethod
    def of(cls, prior_mean: Vector, prior_deviation: Vector, information: Matrix, moment: Vector) -> Posterior:
        """Of an independent prior and what data say."""
        prior = [1 / value**2 for value in prior_deviation]
        precision = _sum(information, diagonal(prior))
        total = tuple(value + p * m for value, p, m in zip(moment, prior, prior_mean, strict=True))
        covariance = inverse(precision)
        mean = product(covariance, total)
        if min(mean) < 0:
            mean = non_negative_minimum(precision, total)
        return cls(mean, covariance)

    @classmethod
    def of_state(cls, state: RegressionState) -> Posterior:
        """Of a stored regression; raises ValueError if it is none."""
        information, vectors = information_of(state), (state.prior_mean, state.prior_deviation, state.moment)
        if any(len(vector) != len(information) or not all(map(math.isfinite, vector)) for vector in vectors):
            raise ValueError("prior and moment have one finite number a coefficient")
        if not all(value > 0 for value in state.prior_deviation):
            raise ValueError("standard deviations are above 0")
        return cls.of(tuple(state.prior_mean), tuple(state.prior_deviation), information, tuple(state.moment))


class Regression:
    """What is known of some coefficients. Not thread-safe."""

    def __init__(self, mean: Vector, deviation: Vector) -> None:
        """Begin with independent coefficients of this mean and standard deviation (above 0)."""
        self._prior_mean, self._prior_deviation = mean, deviation
        self.information: Matrix = diagonal([0.0] * len(mean))
        self._moment: Vector = (0.0,) * len(mean)
        self._noise_information, self._noise_moment = _NOISE_PRIOR, product(_NOISE_PRIOR, _FIRST_VARIANCES)
        self._surprises = 0
        self.relative_variance, self.step_variance = _FIRST_VARIANCES
        self._settle(self.information, self._moment)

    def noise(self, seconds: float, steps: float) -> float:
        """Variance of the noise of a measurement, in square seconds."""
        return self.relative_variance * seconds**2 + self.step_variance * steps

    def fold(self, samples: Sequence[Sample]) -> None:
        """Learn from the samples of one batch."""
        if not samples:
            return
        self._notice_surprise(samples)
        # The prior is not forgotten: directions that the data do not identify stay where it puts them.
        keep = 1 - 1 / MEMORY_BATCHES
        information = _scaled(keep, self.information)
        moment = tuple(keep * value for value in self._moment)
        # The samples of one batch share much of their noise: they count as at most as many as there are coefficients.
        share = min(1.0, len(moment) / len(samples))
        weights = [1.0] * len(samples)
        for _ in range(PASSES):
            scales = [
                share * weight / self.noise(max(self._predict(sample), sample.seconds), sample.steps)
                for weight, sample in zip(weights, samples, strict=True)
            ]
            self._settle(*_add(information, moment, samples, scales))
            before, weights = weights, [self._weight(sample) for sample in samples]
            if max(abs(now - then) for now, then in zip(weights, before, strict=True)) < SETTLED:
                break
        self._learn_noise(samples, weights, share)

    def to_state(self) -> RegressionState:
        """All that is needed to go on."""
        return RegressionState(
            prior_mean=self._prior_mean,
            prior_deviation=self._prior_deviation,
            information=[value for row in self.information for value in row],
            moment=self._moment,
            relative_variance=self.relative_variance,
            step_variance=self.step_variance,
            noise_information=[value for row in self._noise_information for value in row],
            noise_moment=self._noise_moment,
            surprises=self._surprises,
        )

    def restore(self, state: RegressionState) -> None:
        """Go on from a state; raises ValueError if it is none."""
        noise, squares = _square_matrix(state.noise_information, 2), tuple(state.noise_moment)
        if len(squares) != 2 or not all(map(math.isfinite, squares)) or not (noise[0][0] > 0 and noise[1][1] > 0):
            raise ValueError("the noise has two variances")
        self.posterior = Posterior.of_state(state)
        self._noise_information, self._noise_moment = noise, squares
        self._prior_mean, self._prior_deviation = tuple(state.prior_mean), tuple(state.prior_deviation)
        self.information, self._moment = information_of(state), tuple(state.moment)
        self._surprises = state.surprises
        self.relative_variance, self.step_variance = state.relative_variance, state.step_variance

    def _predict(self, sample: Sample) -> float:
        return sum(a * b for a, b in zip(self.posterior.mean, sample.features, strict=True))

    def _settle(self, information: Matrix, moment: Vector) -> None:
        self.information, self._moment = information, moment
        self.posterior = Posterior.of(self._prior_mean, self._prior_deviation, information, moment)

    def _square(self, sample: Sample) -> float:
        """Expected square of a sample's noise, given what is known."""
        return (sample.seconds - self._predict(sample)) ** 2 + quadratic(self.posterior.covariance, sample.features)

    def _weight(self, sample: Sample) -> float:
        noise = self.noise(max(self._predict(sample), sample.seconds), sample.steps)
        return (FREEDOM + 1) / (FREEDOM + self._square(sample) / noise)

    def _notice_surprise(self, samples: Sequence[Sample]) -> None:
        """Rescale what is known, once several batches in a row took longer, or shorter, than noise explains."""
        off = median(
            (sample.seconds - predicted)
            / (self.noise(predicted, sample.steps) + quadratic(self.posterior.covariance, sample.features)) ** 0.5
            for sample in samples
            for predicted in [self._predict(sample)]
        )
        if abs(off) < SURPRISING_SIGMAS:
            self._surprises = 0
            return
        side = 1 if off > 0 else -1
        self._surprises = self._surprises + side if self._surprises * side >= 0 else side
        # A prior is not defended: the first batch that contradicts it is believed.
        fresh = not any(self._moment)
        if abs(self._surprises) < SURPRISES_BELIEVED and not fresh:
            return
        self._surprises = 0
        ratios = [sample.seconds / predicted for sample in samples if (predicted := self._predict(sample)) > 0]
        if ratios:
            self._rescale(median(ratios))

    def _rescale(self, ratio: float) -> None:
        """Multiply all coefficients, and have what was learnt before count little."""
        self._prior_mean = tuple(ratio * value for value in self._prior_mean)
        self._prior_deviation = tuple(ratio * value for value in self._prior_deviation)
        information = _scaled(KEPT / ratio**2, self.information)
        self._settle(information, tuple(KEPT / ratio * value for value in self._moment))

    def _learn_noise(self, samples: Sequence[Sample], weights: Sequence[float], share: float) -> None:
        """Fit both variances to the squared residuals, each relative to what is expected of it now."""
        keep = 1 - 1 / MEMORY_BATCHES
        information = _sum(_scaled(keep, self._noise_information), _scaled(1 - keep, _NOISE_PRIOR))
        first = product(_NOISE_PRIOR, _FIRST_VARIANCES)
        moment = tuple(keep * a + (1 - keep) * b for a, b in zip(self._noise_moment, first, strict=True))
        squares, scales = [], []
        for sample, weight in zip(samples, weights, strict=True):
            seconds = max(self._predict(sample), sample.seconds)
            squares.append(Sample((seconds**2, sample.steps), weight * self._square(sample), sample.steps))
            scales.append(share / self.noise(seconds, sample.steps) ** 2)
        self._noise_information, self._noise_moment = _add(information, moment, squares, scales)
        relative, absolute = non_negative_minimum(self._noise_information, self._noise_moment)
        self.relative_variance = max(relative, LEAST_NOISE**2)
        self.step_variance = max(absolute, LEAST_STEP_NOISE**2)


_FIRST_VARIANCES = (FIRST_NOISE**2, FIRST_STEP_NOISE**2)
_NOISE_PRIOR = diagonal([FIRST_NOISE_WEIGHT / value**2 for value in _FIRST_VARIANCES])


def information_of(state: RegressionState) -> Matrix:
    """What the data of a state say; raises ValueError if it is no matrix."""
    return _square_matrix(state.information, len(state.moment))


def _square_matrix(values: Sequence[float], size: int) -> Matrix:
    if not size or len(values) != size**2 or not all(map(math.isfinite, values)):
        raise ValueError(f"{len(values)} values are no square matrix of {size} rows")
    return tuple(tuple(values[i * size : (i + 1) * size]) for i in range(size))


def _sum(first: Matrix, second: Matrix) -> Matrix:
    return tuple(tuple(a + b for a, b in zip(x, y, strict=True)) for x, y in zip(first, second, strict=True))


def _scaled(factor: float, matrix: Matrix) -> Matrix:
    return tuple(tuple(factor * value for value in row) for row in matrix)


def _add(
    information: Matrix, moment: Vector, samples: Sequence[Sample], scales: Sequence[float]
) -> tuple[Matrix, Vector]:
    """Information and moment with the samples, each of its own precision, added."""
    size = range(len(moment))
    pairs = list(zip(samples, scales, strict=True))
    return (
        tuple(
            tuple(information[i][j] + sum(s.features[i] * s.features[j] * scale for s, scale in pairs) for j in size)
            for i in size
        ),
        tuple(moment[i] + sum(s.features[i] * s.seconds * scale for s, scale in pairs) for i in size),
    )
