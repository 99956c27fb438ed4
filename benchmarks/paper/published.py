"""The experiment as it was published, many times over; and what each of its confounders is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from uellm_simulator.runs import Paired

from benchmarks.paper.fitting import Fitted
from benchmarks.paper.section import Cell, Section
from benchmarks.paper.systems import (
    MORPHLING,
    S3_SYSTEM,
    SYSTEMS,
    UELLM_ALL,
    UELLM_BATCH,
    UELLM_DEPLOY,
    Outcome,
    System,
    run,
    uncut,
)
from benchmarks.paper.workload import answers, queries

RUNS = 5
"""Of each system, as the authors made."""
EXPERIMENTS = 12
"""Each with other queries."""


@dataclass(frozen=True, slots=True)
class Published:
    """What the logs of five runs say; mean, least and largest."""

    seconds: tuple[float, float, float]
    missed: tuple[float, float, float]
    padded_tokens: tuple[float, float, float]
    """A second."""
    steps: float
    load: float
    """Percent, of the GPUs in use while active."""


PUBLISHED = {
    "UELLM-all": Published((65.2, 62.0, 71.5), (0.0, 0.0, 0.0), (363, 357, 367), 2368, 83.8),
    "UELLM-deploy": Published((129.1, 121.6, 136.9), (0.234, 0.21, 0.30), (339, 298, 351), 4379, 84.9),
    "UELLM-batch": Published((254.4, 193.0, 312.5), (0.126, 0.01, 0.25), (177, 165, 197), 4457, 21.4),
    "Morphling": Published((339.2, 224.7, 437.5), (0.296, 0.21, 0.52), (147, 99.5, 186), 4807, 32.6),
    "S3": Published((533.6, 267.3, 668.9), (0.462, 0.39, 0.56), (98.9, 73, 165), 6472, 53.1),
}
"""Recomputed from the logs of HYIUYOU/UELLM at 521d043."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which the systems are compared."""

    name: str
    change: Callable[[System], System] = lambda system: system
    foreign_load: bool = True
    same_answers: bool = False


def _undisturbed(system: System) -> System:
    return replace(system, foreign_load=False)


def _one_gpu(system: System) -> System:
    return replace(_undisturbed(system), gpus=1, stress_batches=0)


def _uncut(system: System) -> System:
    policy = system.policy
    if system.name == S3_SYSTEM.name:
        policy = replace(S3_SYSTEM.policy, max_batch_rows=10)  # type: ignore[type-var]
    return replace(_one_gpu(system), cap=uncut, rows=10, policy=policy)


AS_PUBLISHED = Conditions("as published")
LADDER = (
    AS_PUBLISHED,
    Conditions("no other process on S3's GPUs", _undisturbed),
    Conditions("one GPU each, no stress test", _one_gpu),
    Conditions("answers not cut, batches of ten each", _uncut),
    Conditions("the same answers for each", _uncut, same_answers=True),
)
"""Each with what stands above it."""

Runs = dict[str, list[Outcome]]
"""Outcomes of five runs by system."""


def experiment(conditions: Conditions, number: int, fitted: Mapping[int, Fitted], foreign: float) -> Runs:
    """Five runs of each system, with queries of their own by number."""
    asked, found = queries(number), Runs()
    for system in SYSTEMS:
        changed = conditions.change(system)
        found[system.name] = []
        for repeat in range(RUNS):
            who = "" if conditions.same_answers else system.name
            slowness = foreign if changed.foreign_load and repeat else 1.0
            lengths = answers(asked, f"{who}/{number}/{repeat}")
            found[system.name].append(run(changed, asked, lengths, fitted, slowness=slowness))
    return found


def _step(level: int, number: int, fitted: Mapping[int, Fitted], foreign: float) -> Runs:
    return experiment(LADDER[level], number, fitted, foreign)


def ladder(
    pool: Executor, fitted: Mapping[int, Fitted], foreign: float, experiments: int = EXPERIMENTS
) -> list[list[Runs]]:
    """All experiments at each step of the ladder."""
    futures = [
        [pool.submit(_step, level, number, fitted, foreign) for number in range(experiments)]
        for level in range(len(LADDER))
    ]
    return [[future.result() for future in level] for level in futures]


def means(experiments: Sequence[Runs], system: str, figure: str) -> list[float]:
    """Of five runs each."""
    return [fmean(getattr(outcome, figure) for outcome in runs[system]) for runs in experiments]


def published_section(experiments: Sequence[Runs]) -> Section:
    """Theirs beside ours."""
    rows: list[tuple[Cell, ...]] = []
    for name, theirs in PUBLISHED.items():
        for what, figure, told in (
            ("latency, s", "makespan", theirs.seconds),
            ("SLO missed", "missed", theirs.missed),
            ("padded tokens/s", "padded_tokens", theirs.padded_tokens),
            ("decode steps", "steps", (theirs.steps, None, None)),
            ("busy, GPUs in use", "busy", (theirs.load / 100, None, None)),
            ("busy, all four", "busy_of_four", (None, None, None)),
        ):
            ours = means(experiments, name, figure)
            low, high = map(float, np.quantile(ours, (0.025, 0.975)))
            spread = None if told[1] is None else f"{_text(told[1], what)} to {_text(told[2], what)}"
            inside = None if told[0] is None or "busy" in what else ("yes" if low <= told[0] <= high else "no")
            rows.append(
                (
                    name,
                    what,
                    None if told[0] is None else _text(told[0], what),
                    spread,
                    _text(fmean(ours), what),
                    f"{_text(low, what)} to {_text(high, what)}",
                    inside,
                )
            )
    notes = (
        (
            "A hundred queries at once, the SLO rule by position in the file, batches, caps on answers and GPUs as "
            "the "
            f"authors' scripts have them; a batch ends with its longest row. {len(experiments)} experiments of five "
            "runs, "
            "each with queries of its own, played by the scheduler's core and policies on the step times fitted to "
            "their "
            "runs. Latency is theirs: until the last answer. 'Inside': whether their mean lies between the 2.5th and "
            "the "
            "97.5th percentile of our means of five runs."
        ),
        (
            "Fitted to these systems' own logs are step times, answer lengths (UELLM-deploy), predicted lengths (S3's "
            "batch "
            "sizes), the foreign load on S3, and the seconds of Morphling's reload, which nothing else tells; not "
            "fitted are "
            "all other latencies, steps, misses and throughputs. Their load counts a GPU's kernels (84 % when it "
            "computes "
            "without a pause); ours counts the time in which it computes, a split over G GPUs as 1/G."
        ),
    )
    header = ("system", "figure", "published", "min to max", "replica", "95 % of experiments", "inside")
    return Section("As published: their figures and the replica's", notes, header, tuple(rows))


def _text(value: float | None, what: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if what.startswith(("SLO", "busy")) else f"{value:,.0f}"


BASELINES = (S3_SYSTEM, MORPHLING, UELLM_BATCH, UELLM_DEPLOY)


def reduction(experiments: Sequence[Runs], other: str) -> Paired:
    """Of UELLM-all's latency to another's, less 1: each experiment's means of five runs against each other."""
    ours, theirs = (means(experiments, name, "makespan") for name in (UELLM_ALL.name, other))
    return Paired.of([a / b - 1 for a, b in zip(ours, theirs, strict=True)], [0.0] * len(ours))


def by_index(experiments: Sequence[Runs], other: str, figure: str) -> tuple[float, float]:
    """Least and largest ratio of UELLM-all's run to the other's of the same number; the mean over experiments of each.

    As the paper's headline is made: from the pair of runs that shows most, and the one that shows least.
    """
    least, most = [], []
    for runs in experiments:
        pairs = zip(runs[UELLM_ALL.name], runs[other], strict=True)
        ratios = [getattr(ours, figure) / getattr(theirs, figure) for ours, theirs in pairs]
        least.append(min(ratios))
        most.append(max(ratios))
    return fmean(least), fmean(most)


def percent(pair: Paired) -> str:
    """With its interval."""
    return f"{100 * pair.mean:+.1f} % ({100 * pair.low:+.1f} to {100 * pair.high:+.1f})"


def ladder_sections(steps: Sequence[Sequence[Runs]]) -> list[Section]:
    """What is left of the advantage over each, as conditions become equal."""
    latency: list[tuple[Cell, ...]] = []
    tokens: list[tuple[Cell, ...]] = []
    for conditions, experiments in zip(LADDER, steps, strict=True):
        latency.append(
            (
                conditions.name,
                *(percent(reduction(experiments, other.name)) for other in BASELINES),
                f"{100 * fmean(means(experiments, UELLM_ALL.name, 'cut')):.0f} %",
                f"{100 * fmean(means(experiments, UELLM_ALL.name, 'missed')):.1f} %",
            )
        )
        tokens.append((conditions.name, *(_both_ratios(experiments, other.name) for other in BASELINES)))
    names = tuple(other.name for other in BASELINES)
    return [
        Section(
            "What each confounder is worth: latency",
            (("UELLM-all's latency against each system's, with the paired 95 % interval over experiments; each row "
             "keeps the changes above it. On the last rung all four are the same engine with another order: Morphling "
             "and "
             "UELLM-deploy are first come, first served."),),
            ("conditions", *names, "UELLM-all's answers cut", "UELLM-all misses"),
            tuple(latency),
        ),
        Section(
            "What each confounder is worth: throughput",
            (("Throughput of UELLM-all over each system's: padded tokens as the paper counts them / useful tokens, "
             "those that the answers have."),),
            ("conditions", *names),
            tuple(tokens),
        ),
    ]  # fmt: skip


def _both_ratios(experiments: Sequence[Runs], other: str) -> str:
    padded, useful = (
        fmean(means(experiments, UELLM_ALL.name, figure)) / fmean(means(experiments, other, figure))
        for figure in ("padded_tokens", "useful_tokens")
    )
    return f"{padded:.2f} / {useful:.2f}"
