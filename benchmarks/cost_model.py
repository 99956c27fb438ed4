"""How well the step-time model predicts, and how long its arithmetic takes.

With `--points CSV` (columns model, batch, out_tokens, num_gpus, seconds, n_batches, note: measured batches of static,
padded serving) it is cross-validated per model and number of GPUs: five parts, each predicted by a fit to the other
four; beside it ordinary least squares on the same terms. Prompt lengths are not in such a table: they are taken as
`--prompt-tokens`. Figures go to stdout as JSON; they depend on the machine, so no test asserts them.

    python benchmarks/cost_model.py [--points uellm_points.csv]
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from uellm.cost.fit import CostFit
from uellm.cost.joint import BatchTime, JointRow, kv_exceeds
from uellm.cost.lengths import LengthDistribution, log_normal_cdf
from uellm.cost.linear import quadratic
from uellm.cost.model import half_width
from uellm.cost.regression import Regression, Sample
from uellm.cost.service import service_time
from uellm.cost.steps import StepTime
from uellm.v1.stream_pb2 import ENGINE_KIND_STATIC, DeploymentRecord, StepAggregates

PARTS = 5
LEVEL = 0.9
ROOFLINE = {"chatglm2-6b": 12.5e9, "llama(2-shard)": 13.5e9}
"""Bytes of the weights in half precision."""
BANDWIDTH = 936e9 * 0.8
"""Bytes per second of the 24 GB GPUs, as a prior would have it."""


@dataclass(frozen=True)
class Point:
    """A measured batch."""

    rows: int
    tokens: int
    seconds: float

    def sample(self, prompt_tokens: int) -> Sample:
        """Its decode steps and its start-up, as features of base, per row, per context token and start-up."""
        steps = self.tokens - 1
        context = self.rows * (steps * prompt_tokens + steps * (steps + 1) / 2)
        return Sample((steps, steps * self.rows, context, 1.0), self.seconds, steps)


def read_points(path: Path) -> dict[str, list[Point]]:
    """Single batches, by model and number of GPUs; those disturbed by another process left out."""
    groups = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["n_batches"] != "1" or "CONTAMINATED" in row["note"]:
                continue
            point = Point(int(row["batch"]), int(row["out_tokens"]), float(row["seconds"]))
            groups[f"{row['model']}, {row['num_gpus']} GPU"].append(point)
    return dict(groups)


def fit(model: str, samples: Sequence[Sample]) -> Regression:
    """Learn from samples, one by one, from a roofline on."""
    base = ROOFLINE[model] / BANDWIDTH
    mean = (base, 0.02 * base, 1e-5 * base, base)
    regression = Regression(mean, tuple(0.5 * value for value in (base, 0.1 * base, 1e-4 * base, 30 * base)))
    for sample in samples:
        regression.fold([sample])
    return regression


def cross_validate(name: str, points: list[Point], prompt_tokens: int) -> dict[str, Any]:
    """Errors of held-out batches."""
    samples = [point.sample(prompt_tokens) for point in points]
    random.Random(0).shuffle(samples)
    errors, squares, inside = [], [], []
    for part in range(PARTS):
        held = samples[part::PARTS]
        others = [sample for number, sample in enumerate(samples) if number % PARTS != part]
        regression = fit(name.split(",")[0], others)
        weights, *_ = np.linalg.lstsq(
            np.array([s.features for s in others]), np.array([s.seconds for s in others]), rcond=None
        )
        for sample in held:
            predicted = sum(a * b for a, b in zip(regression.posterior.mean, sample.features, strict=True))
            variance = regression.noise(predicted, sample.steps)
            variance += quadratic(regression.posterior.covariance, sample.features)
            errors.append(predicted / sample.seconds - 1)
            squares.append(float(weights @ np.array(sample.features)) / sample.seconds - 1)
            inside.append(abs(predicted - sample.seconds) <= half_width(variance, LEVEL))
    whole = fit(name.split(",")[0], samples)
    return {
        "batches": len(points),
        "mean_abs_relative_error": _mean_abs(errors),
        "median_abs_relative_error": median(map(abs, errors)),
        "bias": sum(errors) / len(errors),
        "least_squares_mean_abs_relative_error": _mean_abs(squares),
        "coverage_of_90_percent_interval": sum(inside) / len(inside),
        "coefficients": dict(
            zip(("base", "per_row", "per_context_token", "startup"), whole.posterior.mean, strict=True)
        ),
        "relative_noise": math.sqrt(whole.relative_variance),
    }


def _mean_abs(errors: Sequence[float]) -> float:
    return sum(map(abs, errors)) / len(errors)


def arithmetic() -> dict[str, float]:
    """Microseconds of what services and policies call."""
    fitted = CostFit(_deployment())
    choice = random.Random(0)
    batches = [_batch(choice) for _ in range(50)]
    for made in batches:
        fitted.fold(made)
    length = LengthDistribution.from_cdf(log_normal_cdf(5.6, 1.0), 1_024)
    others = [
        LengthDistribution.from_cdf(log_normal_cdf(choice.uniform(4, 6), 0.8), choice.choice([128, 512, 1_024]))
        for _ in range(16)
    ]
    like = [JointRow(100, length)] * 16
    unlike = [JointRow(choice.randint(10, 300), one) for one in others]
    model = fitted.model
    return {
        "fold_16_runs": _microseconds(lambda: fitted.fold(batches[0])),
        "alone_p50_p90": _microseconds(lambda: _both(service_time(model, 100, length))),
        "in_batch_of_16_p50_p90": _microseconds(lambda: _both(service_time(model, 100, length, rows=16))),
        "batch_of_16_end_p90": _microseconds(lambda: BatchTime(model, like, padded=True).end().quantile(0.9)),
        "batch_of_16_unlike_end_p90": _microseconds(lambda: BatchTime(model, unlike, padded=True).end().quantile(0.9)),
        "kv_of_16_exceeds": _microseconds(lambda: kv_exceeds(unlike, 46_080, 46_080 * 8_000)),
    }


def _both(distribution: Any) -> tuple[float, float]:
    return distribution.quantile(0.5), distribution.quantile(0.9)


def _microseconds(action: Callable[[], Any], repeats: int = 200) -> float:
    """CPU time of one call, the median of ten rounds."""
    rounds = []
    for _ in range(10):
        begin = time.process_time()
        for _ in range(repeats // 10):
            action()
        rounds.append((time.process_time() - begin) / (repeats // 10))
    return round(1e6 * median(rounds), 1)


def _deployment() -> DeploymentRecord:
    prior = StepTime(0.05, 0.005, 1e-6, 0.003, 0.05).to_prior("roofline")
    return DeploymentRecord(name="deployments/a", engine_kind=ENGINE_KIND_STATIC, step_time_prior=prior)


def _batch(choice: random.Random) -> StepAggregates:
    """A batch of 16 rows, of which one leaves at a time."""
    made = StepAggregates()
    made.prefill.add(rows=16, tokens=800, padded_tokens=1_600, seconds=5 * choice.gauss(1, 0.03))
    for rows in range(16, 0, -1):
        first, steps = 100 + 20 * (16 - rows), 20
        context = rows * (steps * first + steps * (steps - 1) // 2)
        seconds = (0.08 * steps + 0.007 * rows * steps + 2e-6 * context) * choice.gauss(1, 0.03)
        made.decode.add(rows=rows, first_context=first, steps=steps, context_tokens=context, seconds=seconds)
    made.total_seconds = sum(run.seconds for run in made.decode) + made.prefill[0].seconds + 0.01
    return made


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=Path, help="table of measured batches")
    parser.add_argument("--prompt-tokens", type=int, default=30)
    options = parser.parse_args()
    report: dict[str, Any] = {"microseconds": arithmetic()}
    if options.points is None or not options.points.exists():
        report["cross_validation"] = "skipped: no table of measured batches"
    else:
        groups = read_points(options.points)
        report["cross_validation"] = {
            name: cross_validate(name, points, options.prompt_tokens) for name, points in sorted(groups.items())
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
