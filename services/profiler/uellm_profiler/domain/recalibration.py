"""How predicted levels are corrected: hazard ratios learnt from the stream, and feedback from what was issued.

The level of a length under a prediction is its distribution function there. The levels of real answers are uniform if
the predictions are right. On the scale t = -log(1 - level), the residuals of Cox and Snell (1968), they are exponential
with hazard 1; an answer that was cut is censored at its level. The hazard is estimated between knots, as events over
exposure, where a cut answer is exposed up to its cut and has no event: no assumption is needed about how long it would
have been. Old observations fade exponentially.

Feedback corrects what such a map can't see, for example a predictor whose error depends on how likely a cut is. It is
that of Gibbs and Candes (2021): after each answer the level that is issued as p moves by a step times (miss - (1 - p)),
so that the share of misses goes to 1 - p whatever happens. It acts on the levels of uncut answers among the uncut ones,
and on the odds of a cut, since only these two are seen without error under censoring.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from uellm.cost.lengths import LengthDistribution

MEMORY_ROWS = 400.0
"""An observation counts 1/e after so many more."""
PRIOR_ROWS = 10.0
"""The identity counts as much as so many observations, and does not fade."""
TAIL_WEIGHT = 0.005
"""Share of a tail that is mixed into every prediction, so that each length has a level of its own."""
TAIL_MEDIAN_TOKENS = 32.0
LEVELS = (0.5, 0.9, 0.99)
"""Levels with feedback."""
_STEPS = (0.02, 0.0072, 0.0008)
_RANGES = ((0.25, 0.75), (0.8, 0.97), (0.975, 0.999))
_CUT_STEP = 0.06
_CUT_RANGE = 2.0


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


KNOTS = (0.0, *(_logistic(-9 + step / 4) for step in range(73)), 1.0)
"""Levels between which the hazard ratio is constant: dense towards both ends, where gross errors lie."""
_TIMES = tuple(-math.log1p(-level) for level in KNOTS[:-1])
_PRIOR = tuple(PRIOR_ROWS * (high - low) for low, high in pairwise(KNOTS))
CELLS = len(_PRIOR)


def level_of(prediction: LengthDistribution, tokens: float) -> float:
    """Level of a length, in [0, 1), strictly increasing: the prediction with a little of a heavy tail.

    The tail does not depend on the limit, so that a prediction cut earlier gives the same levels below its limit.
    """
    return _with_tail(prediction.ended_by(tokens), tokens)


def _with_tail(level: float, tokens: float) -> float:
    return (1 - TAIL_WEIGHT) * level + TAIL_WEIGHT * tokens / (tokens + TAIL_MEDIAN_TOKENS)


@dataclass(frozen=True, slots=True)
class HazardRatios:
    """Events and exposure between the knots, faded."""

    events: tuple[float, ...] = (0.0,) * CELLS
    exposure: tuple[float, ...] = (0.0,) * CELLS
    rows: float = 0.0
    """Observations behind them."""

    def learn(self, level: float, *, cut: bool) -> HazardRatios:
        """With an answer that ended at a level, or was cut there."""
        fade = 1 - 1 / MEMORY_ROWS
        time = -math.log1p(-min(level, 1 - 1e-12))
        cell = bisect_right(_TIMES, time) - 1
        events = [count * fade for count in self.events]
        exposure = [time * fade for time in self.exposure]
        for passed in range(cell):
            exposure[passed] += _TIMES[passed + 1] - _TIMES[passed]
        exposure[cell] += time - _TIMES[cell]
        if not cut:
            events[cell] += 1
        return HazardRatios(tuple(events), tuple(exposure), self.rows * fade + 1)

    def reduced(self, rows: float) -> HazardRatios:
        """As if no more than `rows` observations were behind them."""
        share = min(1.0, rows / self.rows) if self.rows else 1.0
        return HazardRatios(
            tuple(count * share for count in self.events),
            tuple(time * share for time in self.exposure),
            self.rows * share,
        )

    def levels(self) -> tuple[float, ...]:
        """The corrected level of each knot, ascending from 0 to 1."""
        ratios = [
            (events + prior) / (exposure + prior)
            for events, exposure, prior in zip(self.events, self.exposure, _PRIOR, strict=True)
        ]
        hazards = (ratio * (high - low) for ratio, (low, high) in zip(ratios, pairwise(_TIMES), strict=False))
        return (*(-math.expm1(-hazard) for hazard in accumulate(hazards, initial=0.0)), 1.0)


@dataclass(frozen=True, slots=True)
class Feedback:
    """Corrections that follow the misses of what was issued."""

    levels: tuple[float, ...] = LEVELS
    """The level among uncut answers that is issued as each of `LEVELS`."""
    cut_log_odds: float = 0.0
    """Added to the log-odds of a cut."""

    def learn(self, issued: LengthDistribution, level: float, *, cut: bool) -> Feedback:
        """With an answer at a level of the issued distribution; of a cut one the level is not used."""
        uncut = issued.below[-1]
        error = float(cut) - (1 - uncut)
        odds = min(_CUT_RANGE, max(-_CUT_RANGE, self.cut_log_odds + _CUT_STEP * error))
        if cut or not uncut:
            return Feedback(self.levels, odds)
        moved = zip(self.levels, LEVELS, _STEPS, _RANGES, strict=True)
        return Feedback(
            tuple(
                min(high, max(low, own + step * ((level > target * uncut) - (1 - target))))
                for own, target, step, (low, high) in moved
            ),
            odds,
        )

    def apply(self, levels: Sequence[float]) -> list[float]:
        """Correct ascending levels that end with the probability of no cut."""
        uncut = levels[-1]
        if uncut <= 0:
            return list(levels)
        kept = uncut / (uncut + (1 - uncut) * math.exp(self.cut_log_odds))
        own, target = (0.0, *self.levels, 1.0), (0.0, *LEVELS, 1.0)
        return [kept * interpolate(own, target, min(1.0, level / uncut)) for level in levels]


def interpolate(knots: Sequence[float], values: Sequence[float], at: float) -> float:
    """Piecewise linear, for `at` within the ascending knots."""
    index = min(bisect_right(knots, at), len(knots) - 1)
    low, high = knots[index - 1], knots[index]
    return values[index - 1] + (at - low) / (high - low) * (values[index] - values[index - 1])


@dataclass(frozen=True, slots=True)
class Calibration:
    """Corrects predictions: monotone in the length, so that quantiles keep their order."""

    version: str
    """Id of the last observation behind it."""
    levels: tuple[float, ...]
    """`HazardRatios.levels`."""
    feedback: Feedback

    def calibrate(self, prediction: LengthDistribution) -> LengthDistribution:
        """The corrected distribution, over the same edges."""
        plain = [
            interpolate(KNOTS, self.levels, _with_tail(level, edge))
            for level, edge in zip(prediction.below[1:], prediction.edges, strict=True)
        ]
        # Rounding must not make a bucket's mass negative.
        levels = list(accumulate(self.feedback.apply(plain), max))
        masses = [high - low for low, high in pairwise((0.0, *levels))]
        cut = max(0.0, 1 - levels[-1])
        masses[-1] += cut
        return LengthDistribution(prediction.edges, tuple(masses), cut)
