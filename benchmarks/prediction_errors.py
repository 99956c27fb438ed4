"""Writes how far the shipped predictor is off, for the simulator: from its report card's committed predictions.

    python benchmarks/prediction_errors.py

Each greedy test answer becomes three figures: the logarithm of its length, that of the predicted median over it, and
the spread of ln(length) that the prediction told (the log-normal that is nearest to it below the limit). Of an answer
that was cut the length is drawn from what was told beyond the cut, as a randomised PIT does; so the figures say of the
predictor what the card says, and nothing of any prompt.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from statistics import NormalDist

import numpy as np
import uellm_profiler
import uellm_simulator
from uellm_profiler.learning.evaluation import read_evaluation
from uellm_profiler.learning.labels import Label
from uellm_profiler.learning.report.command import PREDICTIONS
from uellm_profiler.learning.report.entrants import read_predictions

from uellm.cost.lengths import LengthDistribution

CARD = Path(uellm_profiler.__path__[0]) / "learning" / "card"
TABLE = Path(uellm_simulator.__path__[0]) / "predictor.json"
PREDICTOR = "lora/1"
NORMAL = NormalDist()


def log_normal(told: LengthDistribution) -> tuple[float, float]:
    """Location and spread of ln(length): least squares of the levels' normal quantiles, the middle counting most."""
    points = [
        (math.log(edge), NORMAL.inv_cdf(level), NORMAL.pdf(NORMAL.inv_cdf(level)))
        for edge, level in zip(told.edges, told.below[1:], strict=True)
        if 0.005 < level < 0.995
    ]
    x, z, weight = np.array(points).T
    slope, intercept = np.polyfit(x, z, 1, w=weight)
    return float(-intercept / slope), float(1 / slope)


def row(label: Label, told: LengthDistribution, draw: random.Random) -> tuple[float, float, float]:
    """Logarithms of the length and of the predicted median over it; spread."""
    middle, spread = log_normal(told)
    length = math.log(label.output_tokens)
    if label.censored:
        beyond = NORMAL.cdf((length - middle) / spread)
        length = middle + spread * NORMAL.inv_cdf(beyond + (1 - beyond) * draw.uniform(0.001, 0.999))
    return length, middle - length, spread


def rows() -> list[tuple[float, float, float]]:
    """Of all greedy test answers, shortest first."""
    test = [example.label for example in read_evaluation(None).test if example.label.temperature == 0]
    found = {one.name: one for one in read_predictions(CARD / PREDICTIONS, [one.key for one in test])}
    draw = random.Random(0)
    return sorted(row(label, told, draw) for label, told in zip(test, found[PREDICTOR].distributions, strict=True))


def main() -> None:
    """Write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, default=TABLE)
    options = parser.parse_args()
    content = {
        "predictor": PREDICTOR,
        "columns": ["ln_length", "ln_predicted_over_length", "spread"],
        "rows": [[round(value, 3) for value in one] for one in rows()],
    }
    options.write.write_text(json.dumps(content).replace("], [", "],\n[") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
