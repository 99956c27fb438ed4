"""The step-time model of each number of GPUs, fitted to the authors' runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.paper.points import POINTS, TERMS, Features, Point, disturbed, is_there, read_points
from uellm.cost.linear import Matrix, condition_number, non_negative_minimum
from uellm.cost.steps import StepTime

MODEL = "chatglm2-6b"


@dataclass(frozen=True, slots=True)
class Fitted:
    """Coefficients, in seconds, none negative."""

    coefficients: Features

    @property
    def step(self) -> StepTime:
        """Of an engine that is warm. Prompts of 16 to 41 tokens leave no trace: a prefill counts as its batch's start.

        Where only first batches were measured, later ones start at once.
        """
        base, per_row, per_context_token, _, warm = self.coefficients
        return StepTime(base, per_row, per_context_token, prefill_per_token=0.0, startup=warm)

    @property
    def cold_seconds(self) -> float:
        """By which the first batch takes longer than it would on a warm engine."""
        return max(0.0, self.coefficients[3] - self.coefficients[4])

    def seconds(self, point: Point) -> float:
        """Predicted."""
        return sum(a * b for a, b in zip(self.coefficients, point.features, strict=True))


COMMITTED = {
    1: Fitted((0.0207, 0.0002576, 1.682e-06, 1.274, 0.3048)),
    2: Fitted((0.02723, 0.000296, 6.649e-06, 1.876, 0)),
    3: Fitted((0.02834, 0, 8.81e-06, 2.422, 0)),
    4: Fitted((0.0287, 0, 9.522e-06, 2.956, 0)),
}
"""Of ChatGLM2-6B by number of GPUs, as `fit` finds them in the authors' runs."""
COMMITTED_FOREIGN_LOAD = 1.466
"""As `foreign_load` finds it there."""


def fit(points: Sequence[Point]) -> Fitted:
    """Least squares of the relative error, over coefficients that are not negative."""
    weighted = [(point.features, 1 / point.seconds) for point in points]
    matrix, vector = moments(weighted, kept(points))
    return Fitted(_features(non_negative_minimum(matrix, vector)))


def kept(points: Sequence[Point]) -> tuple[bool, ...]:
    """Which terms the runs can tell at all: rows count apart from steps only where batches have several sizes."""
    sizes = {rows for point in points for rows, _ in point.batches}
    return (True, len(sizes) > 1, True, True, any(len(point.batches) > 1 for point in points))


def moments(weighted: Sequence[tuple[Features, float]], terms: Sequence[bool]) -> tuple[Matrix, tuple[float, ...]]:
    """Normal equations; a term that is left out gets a 1 on the diagonal, and so the coefficient 0."""
    size = range(len(TERMS))
    rows = [[float(i == j and not terms[i]) for j in size] for i in size]
    vector = [0.0 for _ in size]
    for features, weight in weighted:
        for i in size:
            vector[i] += terms[i] * weight * features[i]
            for j in size:
                rows[i][j] += terms[i] * terms[j] * weight**2 * features[i] * features[j]
    return tuple(map(tuple, rows)), tuple(vector)


def collinearity(points: Sequence[Point]) -> float:
    """Condition number of the terms that are kept; beyond 30 some of them can't be told apart (Belsley)."""
    matrix, _ = moments([(point.features, 1 / point.seconds) for point in points], kept(points))
    return condition_number(matrix)


def fitted(path: Path = POINTS) -> dict[int, Fitted]:
    """By number of GPUs: from the runs where they are at hand, else as they were found there."""
    if not is_there(path):
        return COMMITTED
    groups = read_points(path)
    return {gpus: fit(groups[f"{MODEL}, {gpus} GPU"]) for gpus in COMMITTED}


def foreign_load(path: Path = POINTS) -> float:
    """How many times as long the disturbed runs of S3 took as the same batches would have taken alone; the median."""
    if not is_there(path):
        return COMMITTED_FOREIGN_LOAD
    alone = fitted(path)[4]
    return median(point.seconds / alone.seconds(point) for point in disturbed(path))


def _features(values: Sequence[float]) -> Features:
    base, per_row, per_context_token, cold, warm = values
    return base, per_row, per_context_token, cold, warm
