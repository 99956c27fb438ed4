"""The step-time model against the authors' runs: each configuration predicted by a fit to the others."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np

from benchmarks.cost_model import BANDWIDTH, ROOFLINE
from benchmarks.paper.fitting import collinearity, fit, kept
from benchmarks.paper.points import POINTS, TERMS, Point, is_there, read_points
from benchmarks.paper.section import Cell, Section
from uellm.cost.model import prior_moments
from uellm.cost.regression import Regression, Sample
from uellm.cost.steps import StepTime

Predictor = Callable[[Point], float]
Learner = Callable[[Sequence[Point]], Predictor]


def least_squares(points: Sequence[Point]) -> Predictor:
    """The step-time model, as the replica has it."""
    return fit(points).seconds


def live(points: Sequence[Point]) -> Predictor:
    """The step-time model, as the scheduler learns it: from a roofline on, run by run, outliers given little weight.

    Live it is told each run of steps with its rows; here one sum a run.
    """
    base = ROOFLINE[points[0].group.partition(",")[0]] / BANDWIDTH
    mean, deviation = prior_moments(StepTime(base, 0.02 * base, 1e-5 * base, base, base).to_prior("roofline"))
    # The features have no prefill, and two kinds of start.
    regression = Regression((*mean[:3], mean[4], mean[4]), (*deviation[:3], deviation[4], deviation[4]))
    order = list(points)
    random.Random(0).shuffle(order)
    for point in order:
        regression.fold([Sample(point.features, point.seconds, point.features[0])])
    learnt = regression.posterior.mean
    return lambda point: sum(a * b for a, b in zip(learnt, point.features, strict=True))


def tokens_only(points: Sequence[Point]) -> Predictor:
    """One time a batch and one a token of its longest answer, whatever its rows."""
    features = np.array([_batches_and_steps(point) for point in points])
    seconds = np.array([point.seconds for point in points])
    weights, *_ = np.linalg.lstsq(features / seconds[:, None], np.ones(len(points)), rcond=None)
    per_batch, per_step = map(float, weights)

    def predict(point: Point) -> float:
        batches, steps = _batches_and_steps(point)
        return per_batch * batches + per_step * steps

    return predict


def mean_batch(points: Sequence[Point]) -> Predictor:
    """Every batch as long as the mean one."""
    mean = sum(point.seconds for point in points) / sum(len(point.batches) for point in points)
    return lambda point: mean * len(point.batches)


def _batches_and_steps(point: Point) -> tuple[float, float]:
    return float(len(point.batches)), point.features[0]


LEARNERS: dict[str, Learner] = {
    "step-time model, least squares": least_squares,
    "step-time model, as learnt live": live,
    "tokens only": tokens_only,
    "mean batch": mean_batch,
}


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of predictions, signed."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the absolute errors."""
        return median(map(abs, self.values))

    @property
    def p90(self) -> float:
        """Of the absolute errors."""
        return float(np.quantile(np.abs(self.values), 0.9))

    @property
    def bias(self) -> float:
        """Mean of the signed errors; above 0: predicted too long."""
        return fmean(self.values)


def folds(points: Sequence[Point]) -> dict[str, tuple[list[Point], list[Point]]]:
    """Training and held-out runs by configuration; run by run where there is but one configuration."""
    names = sorted({point.configuration for point in points})
    if len(names) == 1:
        return {f"run {n}": ([*points[:n], *points[n + 1 :]], [held]) for n, held in enumerate(points)}
    return {
        name: (
            [point for point in points if point.configuration != name],
            [point for point in points if point.configuration == name],
        )
        for name in names
    }


def cross_validated(points: Sequence[Point], learn: Learner) -> dict[str, Errors]:
    """Errors by configuration that was held out."""
    found = {}
    for name, (others, held) in folds(points).items():
        predict = learn(others)
        found[name] = Errors(tuple(predict(point) / point.seconds - 1 for point in held))
    return found


def together(errors: Mapping[str, Errors]) -> Errors:
    """Of every configuration as one: each counts once, however many runs it has, for 49 of 83 are of batch 1."""
    return Errors(tuple(fmean(one.values) for one in errors.values()))


def validation_sections(path: Path = POINTS) -> list[Section]:
    """Errors, coefficients, and where the model is off."""
    if not is_there(path):
        note = "The authors' measured runs are not at hand (`UELLM_SHARED`): nothing to validate against."
        return [Section("Step-time model against the authors' runs", (note,), ("model, GPUs",), ())]
    groups = {name: points for name, points in read_points(path).items() if len(points) > 2}
    return [_errors(groups), _held_out(groups), _terms(groups)]


def _errors(groups: Mapping[str, Sequence[Point]]) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for name, points in groups.items():
        for learner, learn in LEARNERS.items():
            by = cross_validated(points, learn)
            every, each = Errors(tuple(v for one in by.values() for v in one.values)), together(by)
            rows.append(
                (
                    name,
                    learner,
                    float(len(points)),
                    float(len({p.configuration for p in points})),
                    *tuple(f"{100 * v:.1f} %" for v in (every.median, every.p90)),
                    f"{100 * every.bias:+.1f} %",
                    f"{100 * each.median:.1f} %",
                    f"{100 * max(map(abs, each.values)):.1f} %",
                )
            )
    notes = (
        (
            "Time of a run predicted by a fit to all other configurations: a configuration is a batch size, or a "
            "system "
            "that served a whole run. Llama was measured in one configuration (one row, one prompt): there single "
            "runs are "
            "held out, which says little. Absolute relative errors; bias above 0: predicted too long. Most runs are of "
            "batch 1, so that the last two columns count every held-out configuration once, by its mean error."
        ),
    )
    header = (
        "model, GPUs", "predicted by", "runs", "configurations", "median", "p90", "bias", "median configuration",
        "worst configuration",
    )  # fmt: skip
    return Section("Step-time model: configurations held out", notes, header, tuple(rows))


def _held_out(groups: Mapping[str, Sequence[Point]]) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for name, points in groups.items():
        if len({point.configuration for point in points}) == 1:
            continue
        ours, tokens = (cross_validated(points, LEARNERS[one]) for one in (next(iter(LEARNERS)), "tokens only"))
        rows += [
            (name, held, float(len(ours[held].values)), *map(_signed, (ours[held].bias, tokens[held].bias)))
            for held in sorted(ours, key=_order)
        ]
    notes = ("Mean signed error of each configuration that was held out.",)
    header = ("model, GPUs", "held out", "runs", "step-time model", "tokens only")
    return Section("Step-time model: where it is off", notes, header, tuple(rows))


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _order(name: str) -> tuple[bool, int, str]:
    size = name.removeprefix("batch ")
    return (not size.isdigit(), int(size) if size.isdigit() else 0, name)


def _terms(groups: Mapping[str, Sequence[Point]]) -> Section:
    """Coefficients of all runs, and between which values they move as one configuration is left out."""
    units = ((1e3, "ms"), (1e3, "ms"), (1e6, "us"), (1.0, "s"), (1.0, "s"))
    rows: list[tuple[Cell, ...]] = []
    for name, points in groups.items():
        whole, tells = fit(points).coefficients, kept(points)
        others = [fit(training).coefficients for training, _ in folds(points).values()]
        cells: list[Cell] = [name, collinearity(points)]
        for term, (factor, unit) in enumerate(units):
            if not tells[term]:
                cells.append(None)
                continue
            least, most = (factor * bound(one[term] for one in others) for bound in (min, max))
            cells.append(f"{factor * whole[term]:.3g} ({least:.3g} to {most:.3g}) {unit}")
        rows.append(tuple(cells))
    notes = (
        (
            "Fit to all runs of a group (least and largest value as one configuration is left out). A term whose range "
            "comes near 0, or is wide, is not identified; a dash: these runs cannot tell it at all. Steps and "
            "contexts are "
            "told on all; a row's own time is within a factor of two on one GPU, of four on two, and not at all on "
            "more. "
            "On two and three GPUs nobody served a second batch; on one, a warm start is known to a factor of twenty."
        ),
        (
            "Not recorded, and so in no term: prompt lengths, first-token times, arrivals, rows that end early (there "
            "a "
            "batch ends with its longest row), single steps (a run is one sum). Long contexts come from the batches "
            "that "
            "one runaway answer held up to the cap. What the scheduler learns live is worse here than least squares: "
            "it is "
            "made for runs of steps, not for sums of whole runs, and counts a batch unlike the others as an outlier."
        ),
    )
    return Section("Step-time model: what the runs identify", notes, ("model, GPUs", "condition", *TERMS), tuple(rows))
