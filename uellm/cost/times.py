"""The distribution of a time that depends on an unknown length and on uncertain coefficients."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

_WINDOW = 5.0
"""Standard deviations beyond which a normal distribution is taken as 0 or 1."""
_ROOT_HALF = math.sqrt(0.5)
_DENSITY = 1 / math.sqrt(2 * math.pi)
_TOLERANCE = 1e-4
"""Of a quantile, relative."""


class TimeDistribution:
    """A mixture: given the length, the time is normal; the length is continuous, with an atom at its limit.

    Between two knots of the length, the time's mean runs evenly from one knot's to the next.
    """

    __slots__ = ("_atom", "_below", "_deviations", "_last_deviation", "_reach", "_seconds")

    def __init__(
        self, seconds: Sequence[float], deviations: Sequence[float], below: Sequence[float], atom: float
    ) -> None:
        """Make it of knots.

        Args:
            seconds: time at each knot, ascending, shape [k].
            deviations: standard deviation of the time at each knot, shape [k].
            below: probability of a length up to the knot, shape [k]; from 0 to 1 - atom.
            atom: probability of the last knot's length itself.
        """
        self._seconds = seconds
        self._below = below
        self._atom = atom
        self._deviations = [(a + b) / 2 for a, b in pairwise(deviations)]
        self._last_deviation = deviations[-1]
        reach = 0.0
        self._reach = []
        """Time after which what lies between two knots is over; the largest so far."""
        for end, deviation in zip(seconds[1:], self._deviations, strict=True):
            reach = max(reach, end + _WINDOW * deviation)
            self._reach.append(reach)

    def cdf(self, seconds: float) -> float:
        """Probability of at most this time."""
        times, below = self._seconds, self._below
        first = bisect_left(self._reach, seconds)
        total = below[first]
        for i, deviation in enumerate(self._deviations[first:], first):
            # Most of what lies behind has no part in it.
            if times[i] - _WINDOW * deviation < seconds:
                total += (below[i + 1] - below[i]) * _between(seconds, times[i], times[i + 1], deviation)
        if self._atom > 0:
            total += self._atom * _between(seconds, times[-1], times[-1], self._last_deviation)
        return min(1.0, total)

    def quantile(self, probability: float) -> float:
        """Smallest time, in seconds, kept with this probability (0 to 1, both excluded), to 1e-4 of itself."""
        if not 0 < probability < 1:
            raise ValueError(f"a quantile's probability lies in (0, 1); got {probability}")
        guess, spread = self._guess(probability)
        low, high = guess - spread, guess + spread
        at_low, at_high = None, self.cdf(high) - probability
        while high > 0 and at_high < 0:
            low, high, at_low = high, high + 2 * (high - low) + _TOLERANCE * abs(high), at_high
            at_high = self.cdf(high) - probability
        if at_low is None or low < 0:
            low = max(low, 0.0)
            at_low = self.cdf(low) - probability
        while low > 0 and at_low >= 0:
            low, high, at_high = max(0.0, low - 2 * (high - low) - _TOLERANCE * high), low, at_low
            at_low = self.cdf(low) - probability
        return self._root(probability, (low, at_low), (high, at_high))

    def quantiles(self, *probabilities: float) -> list[float]:
        """The quantiles of ascending probabilities, ascending, too: where two are as good as equal, they are equal."""
        return list(accumulate(map(self.quantile, probabilities), max))

    def _guess(self, probability: float) -> tuple[float, float]:
        """The quantile without the coefficients' uncertainty, and how far the true one may lie."""
        below, times = self._below, self._seconds
        if probability > below[-1]:
            return times[-1], max(self._last_deviation, _TOLERANCE * times[-1])
        index = max(1, bisect_left(below, probability))
        low, high = below[index - 1], below[index]
        share = (probability - low) / (high - low) if high > low else 1.0
        value = times[index - 1] + share * (times[index] - times[index - 1])
        return value, max(self._deviations[index - 1], _TOLERANCE * value)

    def _root(self, probability: float, lower: tuple[float, float], upper: tuple[float, float]) -> float:
        """Where the distribution function reaches `probability`: by the Illinois method.

        `lower` and `upper` are a time each, with what the distribution function is above `probability` there.
        """
        (low, at_low), (high, at_high) = lower, upper
        if at_low >= 0:
            return low
        side = 0
        for _ in range(60):
            if high - low <= _TOLERANCE * high or at_high == at_low:
                break
            middle = (low * at_high - high * at_low) / (at_high - at_low)
            # A jump defeats interpolation: every so often halve.
            middle = middle if low < middle < high and abs(side) < 3 else (low + high) / 2
            value = self.cdf(middle) - probability
            if abs(value) < 1e-6:
                return middle
            if value < 0:
                low, at_low = middle, value
                at_high = at_high / 2 if side < 0 else at_high
                side = side - 1 if side < 0 else -1
            else:
                high, at_high = middle, value
                at_low = at_low / 2 if side > 0 else at_low
                side = side + 1 if side > 0 else 1
        return high


def _between(seconds: float, low: float, high: float, deviation: float) -> float:
    """Probability that an even spread from `low` to `high`, with normal noise, is at most `seconds`."""
    width = high - low
    if deviation <= 1e-12 * high:
        if seconds >= high:
            return 1.0
        return (seconds - low) / width if seconds > low else 0.0
    if width <= deviation:
        # Hardly different from a normal distribution of the same variance.
        centre, deviation = (low + high) / 2, math.sqrt(deviation**2 + width**2 / 12)
        return 0.5 * math.erfc((centre - seconds) / deviation * _ROOT_HALF)
    return deviation * (_integral((seconds - low) / deviation) - _integral((seconds - high) / deviation)) / width


def _integral(value: float) -> float:
    """Integral of the normal distribution function up to `value`."""
    if value > _WINDOW:
        return value
    if value < -_WINDOW:
        return 0.0
    return value * 0.5 * math.erfc(-value * _ROOT_HALF) + _DENSITY * math.exp(-value * value / 2)
