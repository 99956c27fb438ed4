"""How well predictions order answers: Kendall's tau and recall of the longest, for many weightings at once.

Weights have the shape (weightings, rows) and are whole numbers: how often a row is there. Results: (weightings,).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uellm_profiler.learning.report.forecasts import Floats, Outcomes

Signs = NDArray[np.float32]


class PairOrder:
    """Kendall's tau-b against the order of observed answers."""

    def __init__(self, outcomes: Outcomes, weights: Floats) -> None:
        # Whole numbers below 2^24 are exact in single precision, so sums of pairs are the same on every processor.
        self._weights = weights.astype(np.float32)
        self._signs = _signs(outcomes.tokens.astype(np.float64))
        self._untied = self._sum(np.abs(self._signs))
        known = _known(outcomes)
        self._known_signs = self._signs_known(outcomes) * known
        self._known = known
        self._known_untied = self._sum(np.abs(self._known_signs))

    def tau(self, scores: Floats) -> Floats:
        """Tau-b of the scores and the observed lengths; cut answers of one limit are ties. 0 for scores all alike."""
        signs = _signs(scores)
        return _tau_b(self._sum(self._signs * signs), self._untied, self._sum(np.abs(signs)))

    def tau_known(self, scores: Floats) -> Floats:
        """Tau-b over the pairs whose order is known: a cut answer is longer than what ended before its cut."""
        signs = _signs(scores)
        return _tau_b(self._sum(self._known_signs * signs), self._known_untied, self._sum(np.abs(signs) * self._known))

    def _sum(self, pairs: Signs) -> Floats:
        """Weighted sum over ordered pairs."""
        half = (self._weights @ pairs).astype(np.float64)
        return np.asarray(np.einsum("bn,bn->b", half, self._weights, dtype=np.float64), np.float64)

    @staticmethod
    def _signs_known(outcomes: Outcomes) -> Signs:
        return _signs(_ends(outcomes))


def _ends(outcomes: Outcomes) -> Floats:
    """Lengths such that a cut answer comes after one that ended by itself at the same length."""
    return outcomes.tokens + 0.5 * outcomes.cut


def _known(outcomes: Outcomes) -> Signs:
    """1 for pairs whose shorter answer was not cut."""
    ends, whole = _ends(outcomes), ~outcomes.cut
    shorter = ends[:, None] <= ends[None, :]
    return ((shorter & whole[:, None]) | (shorter.T & whole[None, :])).astype(np.float32)


def _signs(values: Floats) -> Signs:
    return np.sign(values[:, None] - values[None, :]).astype(np.float32)


def _tau_b(agreement: Floats, untied: Floats, other_untied: Floats) -> Floats:
    scale = np.sqrt(untied * other_untied)
    return np.divide(agreement, scale, out=np.zeros_like(scale), where=scale > 0)


def top_recall(lengths: Floats, scores: Floats, weights: Floats, share: float = 0.1) -> Floats:
    """Of the longest `share` of the answers the part that the scores put among their highest `share`.

    Where a tie reaches across the border, each of the tied is in with the same fraction.
    """
    actual, predicted = _membership(lengths, weights, share), _membership(scores, weights, share)
    return np.asarray((weights * actual * predicted).sum(1) / (weights * actual).sum(1), np.float64)


def _membership(values: Floats, weights: Floats, share: float) -> Floats:
    """(weightings, rows): the fraction to which each row is among the highest `share`."""
    groups = np.unique(-values, return_inverse=True)[1]
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    size = np.add.reduceat(weights[:, order], starts, axis=1)
    before = np.cumsum(size, axis=1) - size
    room = share * weights.sum(1, keepdims=True) - before
    inside = np.divide(room, size, out=np.zeros_like(size), where=size > 0)
    return np.clip(inside, 0.0, 1.0)[:, groups]
