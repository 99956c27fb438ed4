"""The metrics of the card, for many weightings of the rows at once. Lengths are tokens.

Observed is min(length, limit), as what the card's predictions are about ends at the limit, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uellm_profiler.learning.report.forecasts import Floats, Forecasts, Outcomes
from uellm_profiler.learning.report.ranks import PairOrder, top_recall

BUCKET_EDGES = (58, 147, 280, 499)
"""Upper edges of the length classes, the last class being open: those of the BERT predictor of SSJF, so that they were
chosen before any of our labels was seen."""
LEVELS = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

Columns = dict[str, tuple[Floats, Floats]]
"""By metric: numerator and denominator of a mean, one entry a row."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is shown."""

    title: str
    digits: int
    goal: str
    """`high`, `low`, or the number that it should be."""


SHARE, TOKENS = 3, 1
"""Digits written of shares and correlations, and of tokens: far finer than any interval here is wide, far coarser than
the 1e-12 by which another processor's order of summation changes a mean of the committed predictions."""
POINT_METRICS = {
    "tau": Metric("Kendall tau-b", SHARE, "high"),
    "tau_known": Metric("tau-b, pairs of known order", SHARE, "high"),
    "top_decile_recall": Metric("top-decile recall", SHARE, "high"),
    "mae": Metric("MAE", TOKENS, "low"),
    "median_error": Metric("median error", TOKENS, "low"),
    "log_ratio": Metric("log-ratio error", SHARE, "low"),
    "within_50": Metric("within 50 tokens", SHARE, "high"),
    "within_100": Metric("within 100 tokens", SHARE, "high"),
    "accuracy": Metric("bucket accuracy", SHARE, "high"),
    "macro_f1": Metric("macro-F1", SHARE, "high"),
    "tail_recall": Metric("tail-bucket recall", SHARE, "high"),
    "under_share": Metric("too low", SHARE, ""),
    "under_tokens": Metric("too low by", TOKENS, "low"),
    "over_share": Metric("too high", SHARE, ""),
    "over_tokens": Metric("too high by", TOKENS, "low"),
}
DISTRIBUTION_METRICS = {
    "tau_mean": Metric("tau-b of the mean", SHARE, "high"),
    "log_likelihood": Metric("log-likelihood", SHARE, "high"),
    "crps": Metric("CRPS", TOKENS, "low"),
    "pinball_p50": Metric("pinball p50", TOKENS, "low"),
    "pinball_p90": Metric("pinball p90", TOKENS, "low"),
    "pinball_p99": Metric("pinball p99", 2, "low"),
    "coverage_p90": Metric("p90 covers, all rows", SHARE, "0.9"),
    "coverage_p90_uncut": Metric("p90 covers, uncut rows", SHARE, "0.9"),
    "coverage_p90_given_uncut": Metric("p90 given uncut covers", SHARE, "0.9"),
    "coverage_p99": Metric("p99 covers, all rows", SHARE, "0.99"),
    "coverage_p99_uncut": Metric("p99 covers, uncut rows", SHARE, "0.99"),
    "coverage_p99_given_uncut": Metric("p99 given uncut covers", SHARE, "0.99"),
    "p90_excess": Metric("beyond p90 by", TOKENS, "low"),
}
METRICS = POINT_METRICS | DISTRIBUTION_METRICS


class Scorer:
    """Measures predictions of one set of answers."""

    def __init__(self, outcomes: Outcomes, weights: Floats, edges: Sequence[int] = BUCKET_EDGES) -> None:
        """`weights` as `resample` gives them: (weightings, rows)."""
        self.outcomes = outcomes
        self.weights = weights
        self.edges = tuple(edges)
        self._lengths = outcomes.tokens.astype(np.float64)
        self._order = PairOrder(outcomes, weights)

    def measure(self, forecasts: Forecasts) -> dict[str, Floats]:
        """All metrics: (weightings,) each."""
        measured = self.measure_points(forecasts.p50)
        measured["tau_mean"] = self._order.tau(forecasts.mean)
        return measured | self._means(_distribution_columns(forecasts, self.outcomes))

    def measure_points(self, points: Floats) -> dict[str, Floats]:
        """The metrics of point predictions: (weightings,) each."""
        confusion = self._confusion(points)
        return {
            "tau": self._order.tau(points),
            "tau_known": self._order.tau_known(points),
            "top_decile_recall": top_recall(self._lengths, points, self.weights),
            "median_error": weighted_median(np.abs(points - self._lengths), self.weights),
            **self._means(_point_columns(points, self._lengths)),
            **_classification(confusion),
        }

    def majority(self) -> Floats:
        """Bucket accuracy of always naming the most frequent bucket of these very answers: (weightings,)."""
        counts = self._confusion(self._lengths).sum(2)
        return np.asarray(counts.max(1) / counts.sum(1), np.float64)

    def tau(self, scores: Floats) -> Floats:
        """Tau-b alone: (weightings,)."""
        return self._order.tau(scores)

    def _means(self, columns: Columns) -> dict[str, Floats]:
        above = self.weights @ np.stack([column[0] for column in columns.values()], axis=1)
        below = self.weights @ np.stack([column[1] for column in columns.values()], axis=1)
        means = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
        return {name: means[:, i] for i, name in enumerate(columns)}

    def _confusion(self, points: Floats) -> Floats:
        """(weightings, actual bucket, predicted bucket)."""
        count = len(self.edges) + 1
        actual = np.searchsorted(self.edges, self._lengths, side="left")
        predicted = np.searchsorted(self.edges, points, side="left")
        cells = np.eye(count * count)[actual * count + predicted]
        return np.asarray(self.weights @ cells, np.float64).reshape(-1, count, count)


def _point_columns(points: Floats, lengths: Floats) -> Columns:
    error, one = points - lengths, np.ones_like(lengths)
    under, over = (error < 0).astype(np.float64), (error > 0).astype(np.float64)
    return {
        "mae": (np.abs(error), one),
        "log_ratio": (np.abs(np.log(points / lengths)), one),
        "within_50": ((np.abs(error) <= 50).astype(np.float64), one),
        "within_100": ((np.abs(error) <= 100).astype(np.float64), one),
        "under_share": (under, one),
        "under_tokens": (-error * under, under),
        "over_share": (over, one),
        "over_tokens": (error * over, over),
    }


def _distribution_columns(forecasts: Forecasts, outcomes: Outcomes) -> Columns:
    lengths = outcomes.tokens.astype(np.float64)
    one, uncut = np.ones_like(lengths), (~outcomes.cut).astype(np.float64)
    columns: Columns = {"log_likelihood": (forecasts.log_likelihood, one), "crps": (forecasts.crps, one)}
    for name, level in LEVELS.items():
        columns[f"pinball_{name}"] = (pinball(getattr(forecasts, name), lengths, level), one)
    for name in ("p90", "p99"):
        covered = (lengths <= getattr(forecasts, name)).astype(np.float64)
        given_uncut = (lengths <= getattr(forecasts, f"{name}_uncut")).astype(np.float64)
        columns[f"coverage_{name}"] = (covered, one)
        columns[f"coverage_{name}_uncut"] = (covered * uncut, uncut)
        columns[f"coverage_{name}_given_uncut"] = (given_uncut * uncut, uncut)
    beyond = np.maximum(lengths - forecasts.p90, 0.0)
    columns["p90_excess"] = (beyond, (beyond > 0).astype(np.float64))
    return columns


def pinball(quantile: Floats, lengths: Floats, level: float) -> Floats:
    """Pinball loss of each row; its mean is least where the quantile is the one of this level."""
    error = lengths - quantile
    return np.maximum(level * error, (level - 1) * error)


def _classification(confusion: Floats) -> dict[str, Floats]:
    """From counts (weightings, actual, predicted). The mean F1 is over buckets that are there or were named."""
    hit = np.einsum("bkk->bk", confusion)
    actual, named = confusion.sum(2), confusion.sum(1)
    there = actual + named
    f1 = np.divide(2 * hit, there, out=np.zeros_like(hit), where=there > 0)
    tail = np.divide(hit[:, -1], actual[:, -1], out=np.full(len(hit), np.nan), where=actual[:, -1] > 0)
    return {
        "accuracy": hit.sum(1) / actual.sum(1),
        "macro_f1": f1.sum(1) / (there > 0).sum(1),
        "tail_recall": tail,
    }


def weighted_median(values: Floats, weights: Floats) -> Floats:
    """Median of rows that are there so many times: (weightings,); between two, their mean."""
    order = np.argsort(values, kind="stable")
    ordered, passed = values[order], np.cumsum(weights[:, order], axis=1)
    half = passed[:, -1:] / 2
    low, high = np.argmax(passed >= half, axis=1), np.argmax(passed > half, axis=1)
    return np.asarray((ordered[low] + ordered[high]) / 2, np.float64)
