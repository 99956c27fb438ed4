"""How far off a predictor was, prompt by prompt: what simulated predictions are drawn from."""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import pstdev

SHIPPED = Path(__file__).parent / "predictor.json"
"""Of the shipped predictor on prompts that it never saw; `benchmarks/prediction_errors.py` makes it of its card."""
COLUMNS = ["ln_length", "ln_predicted_over_length", "spread"]
NEIGHBOURS = 0.01
"""Of all rows, to either side of the one of like rank."""


class ErrorTableError(ValueError):
    """A file that is no table of errors; the message says why."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """The answers of the traffic that is predicted."""

    ascending: tuple[int, ...]
    """In tokens."""
    spread: float
    """Standard deviation of ln(length)."""

    @classmethod
    def of(cls, tokens: Iterable[int]) -> Lengths:
        """At least one."""
        ascending = tuple(sorted(tokens))
        return cls(ascending, pstdev(map(math.log, ascending)))

    def rank(self, tokens: int, draw: random.Random) -> float:
        """Share of the answers that are shorter, equals in an order that is drawn; 0 to 1."""
        low, high = bisect_left(self.ascending, tokens), bisect_right(self.ascending, tokens)
        return (low + draw.random() * (high - low)) / len(self.ascending)


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """Predictions of answers whose lengths are known, shortest first.

    Predictors err towards the middle: short answers are predicted too long, long ones too short. So an answer gets the
    error of one of like rank among its own traffic, as much smaller as its traffic's lengths differ less: levels
    and order of predictions are as good as the predictor's, whatever the traffic.
    """

    errors: tuple[float, ...]
    """ln(predicted median / length)."""
    spreads: tuple[float, ...]
    """Standard deviation of ln(length) that was told."""
    length_spread: float
    """Standard deviation of the ln(length) of them all."""

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
        deviation = pstdev(lengths)
        if not (all(map(math.isfinite, (*errors, deviation))) and min(spreads) > 0 and deviation > 0):
            raise ErrorTableError(f"{path.name}: errors must be finite, spreads above 0, and lengths must differ")
        return cls(errors, spreads, deviation)

    def like(self, tokens: tuple[int, ...]) -> Lengths:
        """Traffic of these answers, and as various as that which the predictor was tried on."""
        return Lengths(tokens, self.length_spread)

    def draw(self, tokens: int, among: Lengths, draw: random.Random) -> tuple[float, float]:
        """Error and told spread of an answer's prediction."""
        count, around = len(self.errors), round(NEIGHBOURS * len(self.errors))
        number = int(among.rank(tokens, draw) * count) + draw.randint(-around, around)
        number = min(max(number, 0), count - 1)
        scale = among.spread / self.length_spread
        return scale * self.errors[number], scale * self.spreads[number]


@cache
def shipped() -> ErrorTable:
    """The shipped predictor's."""
    return ErrorTable.read(SHIPPED)
