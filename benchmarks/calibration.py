"""Replays recorded answer lengths through the online calibration: does it keep its coverage when the traffic changes?

Each seeded replay draws two families of prompts. Answers of the first come in random order, then those of the second;
where a family has fewer labels than the replay has rows, they are drawn with replacement. An answer is observed only
after `--lag` later ones were predicted. Judged are observations 200 to 1,200 of the first family, and 300 to 1,300
after the switch, with predictions as they are and as they are calibrated. Streams without a switch, all families mixed,
tell how often the drift test is wrong.

    python benchmarks/calibration.py                                  # the statistical prior
    python benchmarks/calibration.py --adapter FOLDER [--base FOLDER] # a trained one, on its test prompts
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uellm_profiler.adapters.loader import neural_reader
from uellm_profiler.domain.calibration import CalibrationState, Observed, PredictorCalibration, fold
from uellm_profiler.domain.predictor import LengthModel
from uellm_profiler.domain.prior import MU, SIGMA
from uellm_profiler.domain.quality import P90, P90_GIVEN_UNCUT, P99_GIVEN_UNCUT, Quality
from uellm_profiler.learning import DATA
from uellm_profiler.learning.dataset import part_of
from uellm_profiler.learning.examples import join, to_input
from uellm_profiler.learning.labels import Label, read_labels
from uellm_profiler.learning.prompts import Prompt, read_prompts

from uellm.cost.lengths import LengthDistribution, log_normal_cdf

FIRST_WINDOW, SECOND_WINDOW = (200, 1_200), (300, 1_300)
METRICS = ("coverage_p90", "coverage_p99", "issued_coverage_p90", "pinball_tokens", "cut_share", "predicted_cut_share")
PREDICT_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """One recorded answer and its prediction."""

    raw: LengthDistribution
    tokens: int
    cut: bool


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a stream."""

    issued: list[LengthDistribution]
    """Calibrated, one an answer."""
    drifts: list[int]
    """Rows at which drift was detected."""


def replay(answers: Sequence[Answer], lag: int) -> Replayed:
    """Calibrate a stream as a profiler would."""
    state, issued, drifts, pending = CalibrationState(), [], [], []
    known = PredictorCalibration("replayed")
    for row, answer in enumerate(answers):
        calibration = known.calibration() if known.version else None
        issued.append(answer.raw if calibration is None else calibration.calibrate(answer.raw))
        version = "" if calibration is None else calibration.version
        pending.append(Observed(f"{row + 1}-0", "replayed", version, answer.raw, issued[-1], answer.tokens, answer.cut))
        if len(pending) > lag:
            state = fold(state, pending.pop(0))
            before, known = known.drifts, state.predictors[0]
            drifts += [row] * (known.drifts - before)
    return Replayed(issued, drifts)


def score(answers: Sequence[Answer], issued: Sequence[LengthDistribution]) -> dict[str, float]:
    """What the profiler would report of these answers."""
    flags, cuts, predicted = bytearray(), 0, 0.0
    losses: list[float] = []
    for answer, distribution in zip(answers, issued, strict=True):
        one = Quality().learn(distribution, answer.tokens, cut=answer.cut)
        flags += one.within
        losses += one.pinball
        cuts += answer.cut
        predicted += distribution.limit_probability
    shares = Quality(within=bytes(flags))
    values = [shares.coverage(flag) for flag in (P90_GIVEN_UNCUT, P99_GIVEN_UNCUT, P90)]
    return dict(
        zip(METRICS, (*values, statistics.mean(losses), cuts / len(answers), predicted / len(answers)), strict=True)
    )


def switched(families: Mapping[str, Sequence[Answer]], seed: int, lag: int) -> dict[str, Any]:
    """One replay with a switch between two families."""
    generator = random.Random(seed)
    names = generator.sample(sorted(families), 2)
    lengths = (FIRST_WINDOW[1], SECOND_WINDOW[1])
    parts = [draw(families[name], rows, generator) for name, rows in zip(names, lengths, strict=True)]
    answers = [*parts[0], *parts[1]]
    replayed = replay(answers, lag)
    begin = lengths[0]
    windows = (slice(*FIRST_WINDOW), slice(begin + SECOND_WINDOW[0], begin + SECOND_WINDOW[1]))
    after = [row - begin for row in replayed.drifts if row >= begin]
    return {
        "families": names,
        "raw": [score(answers[window], [one.raw for one in answers[window]]) for window in windows],
        "calibrated": [score(answers[window], replayed.issued[window]) for window in windows],
        "detected_after": after[0] if after else None,
    }


def draw(pool: Sequence[Answer], rows: int, generator: random.Random) -> list[Answer]:
    """Answers in random order, with replacement where there are too few."""
    return generator.sample(list(pool), rows) if rows <= len(pool) else generator.choices(list(pool), k=rows)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the width of its 95 % interval over replays."""
    if len(values) < 2:
        return statistics.mean(values), float("nan")
    return statistics.mean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5


def load(options: argparse.Namespace) -> dict[str, list[Answer]]:
    """Labels with their predictions, by family of prompts."""
    prompts = [prompt for file in options.prompts for prompt in read_prompts(file)]
    labels = [label for file in options.labels for label in read_labels(file)]
    if options.adapter is not None:
        labels = [label for label in labels if part_of(label.prompt) == "test"]
        return by_family(prompts, *predicted(neural_reader(2)(options.adapter, options.base), prompts, labels))
    prior = {
        limit: LengthDistribution.from_cdf(log_normal_cdf(MU, SIGMA), limit)
        for limit in {label.max_tokens for label in labels}
    }
    return by_family(prompts, labels, [prior[label.max_tokens] for label in labels])


def predicted(
    model: LengthModel, prompts: Sequence[Prompt], labels: Sequence[Label]
) -> tuple[list[Label], list[LengthDistribution]]:
    """The labels whose prompt is known, and what a model predicts for them."""
    examples = join(prompts, labels)
    distributions: list[LengthDistribution] = []
    for begin in range(0, len(examples), PREDICT_AT_ONCE):
        distributions += model.predict([to_input(one) for one in examples[begin : begin + PREDICT_AT_ONCE]])
        print(f"\rpredicted {len(distributions):,} of {len(examples):,}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return [one.label for one in examples], distributions


def by_family(
    prompts: Sequence[Prompt], labels: Sequence[Label], distributions: Sequence[LengthDistribution]
) -> dict[str, list[Answer]]:
    """Answers by source and family of their prompt (by source alone where it is not at hand) and by decoding."""
    family_of = {prompt.key: prompt.family for prompt in prompts}
    families: defaultdict[str, list[Answer]] = defaultdict(list)
    for label, raw in zip(labels, distributions, strict=True):
        family = family_of.get(label.prompt)
        name = label.source if family in (None, label.source) else f"{label.source}/{family}"
        families[f"{name}, repetition penalty {label.repetition_penalty:g}"].append(
            Answer(raw, label.output_tokens, label.censored)
        )
    return dict(families)


def report(replays: Sequence[Mapping[str, Any]]) -> None:
    """Print means over replays."""
    print(f"\n{'':22}{'observations 200 to 1,200':^36}{'300 to 1,300 after the switch':^36}")
    print(f"{'':22}" + f"{'uncalibrated':>18}{'calibrated':>18}" * 2)
    for metric in METRICS:
        cells = []
        for window in range(2):
            for kind in ("raw", "calibrated"):
                mean, half = interval([one[kind][window][metric] for one in replays])
                cells.append(f"{mean:.1f} ± {half:.1f}" if "tokens" in metric else f"{mean:.3f} ± {half:.3f}")
        print(f"{metric:22}" + "".join(f"{cell:>18}" for cell in cells))
    delays = [one["detected_after"] for one in replays if one["detected_after"] is not None]
    median = f", after {statistics.median(delays):.0f} rows at the median" if delays else ""
    print(f"\ndrift detected after {len(delays)} of {len(replays)} switches{median}")


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, nargs="+", default=sorted(DATA.glob("lengths_*.jsonl")))
    parser.add_argument("--prompts", type=Path, nargs="+", default=sorted(DATA.glob("prompts_*.jsonl")))
    parser.add_argument("--adapter", type=Path, help="folder of a trained predictor; not given: the statistical prior")
    parser.add_argument("--base", type=Path, help="folder of its base model")
    parser.add_argument("--replays", type=int, default=30)
    parser.add_argument("--smallest-family", type=int, default=15, help="labels that a family must have")
    parser.add_argument("--lag", type=int, default=32, help="answers under way at once")
    parser.add_argument("--stationary-rows", type=int, default=3_000, help="rows of each stream without a switch")
    parser.add_argument("--json", type=Path, help="write the replays here, too")
    options = parser.parse_args()
    found = load(options)
    families = {name: answers for name, answers in found.items() if len(answers) >= options.smallest_family}
    print(f"{sum(map(len, families.values())):,} answers of {len(families)} families, lag {options.lag}")
    replays = []
    for seed in range(options.replays):
        replays.append(switched(families, seed, options.lag))
        print(f"\rreplayed {seed + 1} of {options.replays}", end="", file=sys.stderr)
    report(replays)
    everything = [answer for answers in families.values() for answer in answers]
    false = 0
    for seed in range(options.replays):
        stream = random.Random(seed).choices(everything, k=options.stationary_rows)
        false += len(replay(stream, options.lag).drifts)
    rows = options.replays * options.stationary_rows
    print(f"drift detected {false} times in {rows:,} rows of streams without a switch")
    if options.json is not None:
        options.json.write_text(json.dumps({"replays": replays, "false_alarms": false, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
