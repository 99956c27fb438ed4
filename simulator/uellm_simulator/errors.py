"""How far off a predictor was, prompt by prompt: what simulated predictions are drawn from."""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import pstdev

SHIPPED = Path(__file__).parent / "predictor.json"
"""Of the shipped predictor on prompts that it never saw; `benchmarks/prediction_errors.py` makes it of its card."""
COLUMNS = ["ln_length", "ln_predicted_over_length", "spread"]
KNOTS = 64
NEIGHBOURS = 0.01
"""Of all rows, to either side of the one of like rank."""


class ErrorTableError(ValueError):
    """A file that is no table of errors; the message says why."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of the answers of some traffic."""

    ascending: tuple[float, ...]
    """ln(tokens)."""
    knots: tuple[float, ...]
    """Of them, at ranks that are evenly spaced from 0 to 1."""
    spread: float
    """Their standard deviation."""

    @classmethod
    def of(cls, logarithms: Iterable[float]) -> Lengths:
        """At least one."""
        ascending = tuple(sorted(logarithms))
        last = len(ascending) - 1
        return cls(ascending, tuple(ascending[round(last * k / KNOTS)] for k in range(KNOTS + 1)), pstdev(ascending))

    def rank(self, logarithm: float, draw: random.Random) -> float:
        """Share of the answers that are shorter, equals in an order that is drawn; 0 to 1."""
        low, high = bisect_left(self.ascending, logarithm), bisect_right(self.ascending, logarithm)
        return (low + draw.random() * (high - low)) / len(self.ascending)

    def as_in(self, other: Lengths, logarithm: float) -> float:
        """The length of like rank in other traffic; beyond the own lengths as many standard deviations further."""
        number = bisect_right(self.knots, logarithm)
        if number == 0:
            return other.knots[0] + (logarithm - self.knots[0]) * other.spread / self.spread
        if number == len(self.knots):
            return other.knots[-1] + (logarithm - self.knots[-1]) * other.spread / self.spread
        low, high = self.knots[number - 1], self.knots[number]
        share = (logarithm - low) / (high - low)
        return other.knots[number - 1] + share * (other.knots[number] - other.knots[number - 1])


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """Predictions of answers whose lengths are known, shortest first.

    Predictors err towards the middle: short answers are predicted too long, long ones too short. So an answer gets the
    error of one of like rank among its own traffic, on a scale on which lengths of like rank are the same: levels and
    order of the predictions are those of the predictor, as far as the traffic's lengths differ.
    """

    lengths: Lengths
    errors: tuple[float, ...]
    """ln(predicted median / length)."""
    spreads: tuple[float, ...]
    """Standard deviation of ln(length) that was told."""

    @classmethod
    def read(cls, path: Path) -> ErrorTable:
        """Read a file as `predictor.json` is. Raises ErrorTableError, OSError."""
        try:
            content = json.loads(path.read_text("utf-8"))
            named = content["columns"] == COLUMNS
            lengths, errors, spreads = zip(*sorted(tuple(map(float, row)) for row in content["rows"]), strict=True)
        except (ValueError, KeyError, TypeError) as error:
            raise ErrorTableError(f"{path.name} is no table of prediction errors: {error!r}") from None
        if not named:
            raise ErrorTableError(f"{path.name}: the columns are to be {', '.join(COLUMNS)}")
        found = cls(Lengths.of(lengths), errors, spreads)
        if not (
            all(map(math.isfinite, (*errors, *spreads))) and min(spreads) > 0 and 0 < found.lengths.spread < math.inf
        ):
            raise ErrorTableError(f"{path.name}: errors must be finite, spreads above 0, and lengths must differ")
        return found

    def cdf(self, logarithm: float, among: Lengths, shift: float, draw: random.Random) -> Callable[[float], float]:
        """Distribution function that is told of an answer, in tokens.

        Args:
            logarithm: ln(length) of the answer.
            among: those of its traffic; they differ.
            shift: of what is told, in ln(length).
            draw: source of the error.
        """
        count, around = len(self.errors), round(NEIGHBOURS * len(self.errors))
        number = int(among.rank(logarithm, draw) * count) + draw.randint(-around, around)
        number = min(max(number, 0), count - 1)
        middle = among.as_in(self.lengths, logarithm) + self.errors[number]
        scale = self.spreads[number] * math.sqrt(2)

        def cdf(tokens: float) -> float:
            return 0.5 * math.erfc((middle - among.as_in(self.lengths, math.log(tokens) - shift)) / scale)

        return cdf


@cache
def shipped() -> ErrorTable:
    """The shipped predictor's."""
    return ErrorTable.read(SHIPPED)
