"""The noise floor: how well one answer to a prompt predicts another, which bounds what a prompt can tell.

One sample is no ceiling: what all the other samples say together is nearer to it, and is given beside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from uellm_profiler.learning.labels import Decoding, Label
from uellm_profiler.learning.report.forecasts import Floats, Ints, Outcomes
from uellm_profiler.learning.report.metrics import Scorer
from uellm_profiler.learning.report.resampling import RESAMPLES, resample

ANOTHER, OTHERS, GREEDY = "another sample", "median of the other samples", "greedy answer"


@dataclass(frozen=True, slots=True)
class Samples:
    """Prompts with as many sampled answers each."""

    decoding: Decoding
    rows: Ints
    """(prompts, samples): which label each is."""
    greedy: Ints
    """(prompts,): the label of the prompt's greedy answer, -1 where it has none."""


def find_samples(labels: Sequence[Label]) -> Samples | None:
    """The prompts with the most samples under the most frequent sampled decoding; None where none has two."""
    by_prompt: defaultdict[Decoding, defaultdict[tuple[str, str], list[int]]]
    by_prompt = defaultdict(lambda: defaultdict(list))
    greedy: dict[tuple[str, str], int] = {}
    for i, label in enumerate(labels):
        if label.temperature > 0:
            by_prompt[label.decoding][label.prompt].append(i)
        else:
            greedy.setdefault(label.prompt, i)
    if not by_prompt:
        return None
    decoding, found = max(by_prompt.items(), key=lambda item: sum(len(rows) > 1 for rows in item[1].values()))
    most = max(len(rows) for rows in found.values())
    if most < 2:
        return None
    complete = {prompt: rows for prompt, rows in found.items() if len(rows) == most}
    return Samples(
        decoding,
        np.array(list(complete.values()), np.int64),
        np.array([greedy.get(prompt, -1) for prompt in complete], np.int64),
    )


def measure_floor(
    labels: Sequence[Label],
    samples: Samples,
    points: Mapping[str, Floats],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Floats]]:
    """The metrics of point predictions, by what predicts: (1 + resamples,) each.

    Every predictor meets the same answers, sample by sample, each metric being the mean over the samples. `points` are
    the predictors' medians, one a label. Beside them: `another sample`, `median of the other samples`, and where every
    prompt has one, `greedy answer`.
    """
    outcomes = Outcomes.of_labels(labels)
    weights = resample(np.arange(len(samples.rows)), resamples, seed)
    lengths = outcomes.tokens[samples.rows].astype(np.float64)
    columns = range(lengths.shape[1])
    scorers = [Scorer(outcomes.take(samples.rows[:, k]), weights) for k in columns]
    measured = {
        ANOTHER: _mean([scorers[k].measure_points(lengths[:, j]) for j, k in permutations(columns, 2)]),
        OTHERS: _mean([scorers[k].measure_points(np.median(np.delete(lengths, k, 1), axis=1)) for k in columns]),
    }
    if (samples.greedy >= 0).all():
        greedy = outcomes.tokens[samples.greedy].astype(np.float64)
        measured[GREEDY] = _mean([scorer.measure_points(greedy) for scorer in scorers])
    for name, predicted in points.items():
        measured[name] = _mean([scorers[k].measure_points(predicted[samples.rows[:, k]]) for k in columns])
    return measured


def _mean(measured: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    return {name: np.mean([one[name] for one in measured], axis=0) for name in measured[0]}
