"""How well issued distributions have done lately."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.cost.lengths import LengthDistribution

WINDOW = 500
_LEVELS = (0.5, 0.9, 0.99)
P90, P99, P90_GIVEN_UNCUT, P99_GIVEN_UNCUT = 1, 2, 4, 8
"""Flags of an answer that stayed within a percentile: as issued, and of the distribution given that it is not cut."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Scores of the last answers, and how many were cut.

    The answers that are cut are the long ones. Those that are left stay within their p90 more often than in 9 of 10
    cases, however right the p90 is: with a cut probability of 10 %, always. The percentile to hold them against is that
    of the distribution given that the answer is not cut. Whether as many are cut as predicted is the other half.
    """

    within: bytes = b""
    """Flags of the last `WINDOW` uncut answers, oldest first."""
    pinball: tuple[float, ...] = ()
    """Mean pinball loss of the issued p50, p90 and p99 of each of the last `WINDOW` answers, in tokens, oldest first.

    Cut answers are among them, with the tokens that came: without them a loss would favour what is too short."""
    rows: float = 0.0
    """Observations, cut ones too, each counting 1/e after `WINDOW` more."""
    cuts: float = 0.0
    """Of these, cut."""
    predicted_cuts: float = 0.0
    """Of these, predicted to be cut: the sum of the probabilities."""

    def learn(self, issued: LengthDistribution, tokens: int, *, cut: bool) -> Quality:
        """With one more answer."""
        fade = 1 - 1 / WINDOW
        within = self.within if cut else (self.within + bytes([_flags(issued, tokens)]))[-WINDOW:]
        return Quality(
            within,
            (*self.pinball, _pinball(issued, tokens))[-WINDOW:],
            self.rows * fade + 1,
            self.cuts * fade + cut,
            self.predicted_cuts * fade + issued.limit_probability,
        )

    def coverage(self, flag: int) -> float:
        """Share of the uncut answers with a flag; 0 without any."""
        return sum(bool(flags & flag) for flags in self.within) / len(self.within) if self.within else 0.0

    @property
    def pinball_loss(self) -> float:
        """Mean, in tokens; 0 without answers."""
        return sum(self.pinball) / len(self.pinball) if self.pinball else 0.0

    @property
    def cut_share(self) -> float:
        """Share that was cut."""
        return self.cuts / self.rows if self.rows else 0.0

    @property
    def predicted_cut_share(self) -> float:
        """Share that was predicted to be cut."""
        return self.predicted_cuts / self.rows if self.rows else 0.0


def _flags(issued: LengthDistribution, tokens: int) -> int:
    level, uncut = issued.ended_by(tokens), issued.below[-1]
    return (
        P90 * (tokens <= issued.quantile(0.9))
        | P99 * (tokens <= issued.quantile(0.99))
        | P90_GIVEN_UNCUT * (level <= 0.9 * uncut)
        | P99_GIVEN_UNCUT * (level <= 0.99 * uncut)
    )


def _pinball(issued: LengthDistribution, tokens: int) -> float:
    losses = []
    for probability in _LEVELS:
        missed = tokens - issued.quantile(probability)
        losses.append(max(probability * missed, (probability - 1) * missed))
    return sum(losses) / len(losses)
