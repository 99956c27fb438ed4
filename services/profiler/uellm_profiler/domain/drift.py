"""Whether answers have moved away from what the calibration knows: a sequential test on randomised PITs.

The PIT of an answer is the level of its length under the distribution that was issued for it; where the length has a
probability of its own (whole numbers, the cut at the limit) the level is drawn within it. PITs are independent and
uniform while the calibration is right. Four cumulative sums (Page 1954) watch them: lengths grew or shrank, spread or
narrowed. Each adds the standardised deviation less an allowance and never falls below 0; there is drift when one
reaches the threshold.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from uellm.cost.lengths import LengthDistribution

THRESHOLD = 20.0
ALLOWANCE = 0.25
"""In standard deviations: the noise of the calibration itself must not add up."""
_DEVIATION = 12**-0.5
"""Standard deviation of a uniform number."""


@dataclass(frozen=True, slots=True)
class DriftTest:
    """The four sums: longer, shorter, wider, narrower than issued."""

    sums: tuple[float, ...] = (0.0,) * 4

    @property
    def statistic(self) -> float:
        """The largest sum over the threshold: drift from 1 on."""
        return max(self.sums) / THRESHOLD

    def learn(self, pit: float) -> DriftTest:
        """With one more PIT."""
        place = (pit - 0.5) / _DEVIATION
        spread = (abs(2 * pit - 1) - 0.5) / _DEVIATION
        steps = (place, -place, spread, -spread)
        return DriftTest(tuple(max(0.0, s + step - ALLOWANCE) for s, step in zip(self.sums, steps, strict=True)))


def draw_of(entry_id: str) -> float:
    """The uniform number in [0, 1) that belongs to an observation: the same whoever folds it, and when."""
    return int.from_bytes(hashlib.blake2b(entry_id.encode(), digest_size=6).digest()) / 2**48


def pit_of(issued: LengthDistribution, tokens: int, draw: float, *, cut: bool) -> float:
    """The randomised PIT of an answer, by a uniform number.

    A cut answer is longer than its tokens: it lies anywhere above their level. At the limit that is the whole atom.
    """
    low, high = (issued.ended_by(tokens), 1.0) if cut else (issued.ended_by(tokens - 1), issued.ended_by(tokens))
    return low + draw * (high - low)
