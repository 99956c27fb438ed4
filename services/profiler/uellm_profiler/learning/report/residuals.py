"""From point predictions to distributions: how far off, in the logarithm, the points were where they had not learned.

Split-conformal prediction with out-of-fold residuals; an answer that was cut leaves only a bound, so the residuals'
distribution is that of Kaplan and Meier (1958).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm.cost.lengths import LengthDistribution
from uellm_profiler.learning.report.forecasts import Bools, Floats


@dataclass(frozen=True, slots=True)
class Residuals:
    """Distribution function of log(length) - prediction, continuous between its knots."""

    knots: Floats
    """Ascending."""
    probabilities: Floats
    """At the knots; what is missing to 1 lies beyond what was seen."""

    @classmethod
    def of(cls, residuals: Floats, cut: Bools) -> Residuals:
        """Kaplan-Meier estimate. Raises ValueError where every answer was cut."""
        ends = np.unique(residuals[~cut])
        if not len(ends):
            raise ValueError("no answer ended by itself: nothing can be said of lengths")
        at_risk = len(residuals) - np.searchsorted(np.sort(residuals), ends, side="left")
        ended = np.searchsorted(np.sort(residuals[~cut]), ends, side="right") - np.searchsorted(
            np.sort(residuals[~cut]), ends, side="left"
        )
        longer = np.cumprod(1 - ended / at_risk)
        # Between two ends the mass is spread evenly; before the first, over as far as to the second.
        first = ends[0] - (ends[1] - ends[0] if len(ends) > 1 else 0.1)
        return cls(np.concatenate([[first], ends]), np.concatenate([[0.0], 1 - longer]))

    def distribution(self, log_tokens: float, limit: int) -> LengthDistribution:
        """The distribution of a length whose logarithm was predicted, cut at a limit."""

        def cdf(tokens: float) -> float:
            return float(np.interp(np.log(tokens) - log_tokens, self.knots, self.probabilities))

        return LengthDistribution.from_cdf(cdf, limit)
