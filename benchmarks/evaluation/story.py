"""The report's content; every sentence with a number is computed from the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from uellm_scheduler.policies import POLICIES

from benchmarks.evaluation.content import Block, Figures, Heading, Points, Table, Text
from benchmarks.evaluation.goals import LEAD_FROM, OVERLOAD, best_rival, goals
from benchmarks.evaluation.grid import CLAIRVOYANT, OURS, Point, Size
from benchmarks.evaluation.plots import distribution_plot, load_plot, timeline_plot
from benchmarks.evaluation.results import (
    PLACES,
    Figure,
    Results,
    goodput,
    of_class,
    plain,
    quantile,
    refused_after,
    share,
)
from benchmarks.evaluation.svg import percent, show
from benchmarks.evaluation.traces import TENANTS

CLASSES = ("interactive", "standard", "relaxed")


def introduction(size: Size, runs: int, sources: Sequence[str]) -> list[Block]:
    """What this is."""
    told = f"{runs} runs of {size.requests:,} requests each, after {size.warm_up} that warm up; {size.seeds} seeds."
    return [
        Text(
            "What the scheduler's own core and policies do with the same traffic, under a virtual clock and with "
            f"engines of formulas ([simulator.md](simulator.md)). {told} Written by `make evaluation`; "
            "[evaluation.html](evaluation.html) is the same with plots, [evaluation.json](evaluation.json) has "
            "every run. What was measured live is in [benchmarks.md](benchmarks.md)."
        ),
        Points(sources),
    ]


def goal_list(results: Results) -> list[Block]:
    """Goals, measured values, kept or not."""
    found = goals(results)
    asked = [goal for goal in found if goal.kept is not None]
    kept = sum(bool(goal.kept) for goal in asked)
    rows = [goal.row() for goal in found]
    return [
        Heading("Goals"),
        Text(f"Of `{OURS}`; {kept} of {len(asked)} are kept. Loads are shares of the capacity."),
        Table(["goal", "where", "measured", ""], rows, words=True),
    ]


def load_sweep(results: Results) -> list[Block]:
    """Goodput against load."""
    blocks: list[Block] = [
        Heading("Goodput against load"),
        Text(
            "Answers in time a second, mean of the seeds; upright lines on the page are 95 % intervals of the mean. "
            "Every policy faces the same arrivals, deadlines and predictions, so that differences are paired."
        ),
        Figures([load_plot(results, trace, engine) for trace, engine in results.combinations]),
    ]
    for trace, engine in results.combinations:
        blocks += _loads_of(results, trace, engine)
    return blocks


def _loads_of(results: Results, trace: str, engine: str) -> list[Block]:
    loads = results.loads(trace, engine)
    by_load = {load: results.policies(trace=trace, engine=engine, load=load) for load in loads}
    policies = list(dict.fromkeys(name for load in loads[::-1] for name in by_load[load]))
    policies.sort(key=lambda name: (name != OURS, name == CLAIRVOYANT))
    base = Point(trace, engine)
    means = [[f"`{name}`", *(_goodput(results, base, name, load) for load in loads)] for name in policies]
    sure = [load for load in loads if load >= LEAD_FROM]
    rivals = [name for name in policies if name not in (OURS, CLAIRVOYANT)]
    against = [[f"`{name}`", *(_difference(results, base, name, load) for load in sure)] for name in rivals]
    blocks: list[Block] = [
        Heading(f"{trace}, {engine} engine".capitalize(), 3),
        Text(" ".join(filter(None, (lead(results, replace(base, load=load)) for load in sure)))),
        Table(["in time a second", *(f"{load:g}" for load in loads)], means),
    ]
    if rivals:
        blocks += [
            Text(f"`{OURS}` against each: ratio of goodput, and the 95 % interval of the paired difference a second."),
            Table(["against", *(f"{load:g}" for load in sure)], against),
        ]
    return blocks


def lead(results: Results, ours: Point) -> str:
    """Ours against the best other at a load, in a sentence; nothing where only one was played."""
    rival = best_rival(results, ours)
    if not rival or ours not in results.cells:
        return ""
    paired = results.paired(ours, replace(ours, policy=rival))
    if paired.low > 0:
        verdict = "ahead"
    elif paired.high < 0:
        verdict = "behind"
    else:
        verdict = "not told apart"
    return f"At {ours.load:g}: {paired.ratio:.2f} times the best other, `{rival}` ({verdict})."


def _goodput(results: Results, base: Point, policy: str, load: float) -> str:
    return show(results.mean(replace(base, policy=policy, load=load), goodput))


def _difference(results: Results, base: Point, policy: str, load: float) -> str:
    ours = replace(base, load=load)
    other = replace(ours, policy=policy)
    if ours not in results.cells or other not in results.cells:
        return ""
    paired = results.paired(ours, other)
    return f"{paired.ratio:.2f} x, {paired.low:+.3f} to {paired.high:+.3f}"


Column = tuple[Figure, Callable[[float], str]]
"""A figure, and how it is shown."""


FATES: Mapping[str, Column] = {
    "in time": (share("in_time"), percent),
    "late": (share("late"), percent),
    "refused": (share("refused"), percent),
    "refused after": (refused_after, percent),
    **{name: (of_class(name), percent) for name in CLASSES},
    "useful tokens/s": (plain("useful_tokens"), show),
}
TIMES: Mapping[str, Column] = {
    **{f"first token {place}": (quantile("first_token", place), show) for place in PLACES},
    **{f"completion {place}": (quantile("latency", place), show) for place in PLACES},
    "longest wait": (plain("longest_wait"), show),
    "Jain": (plain("jain"), show),
    "engine busy": (plain("utilisation"), percent),
}


def outcomes(results: Results) -> list[Block]:
    """What became of the requests in overload."""
    blocks: list[Block] = [
        Heading("What became of the requests"),
        Text(
            f"At {OVERLOAD:g} of capacity, as shares of what was submitted with a deadline; by class, the share in "
            "time. *Refused after*: the median time from arrival to refusal, as a share of the time there was."
        ),
    ]
    for trace, engine in results.combinations:
        blocks += _by_policy(results, Point(trace, engine, OVERLOAD), FATES)
    return blocks


def times(results: Results) -> list[Block]:
    """Latencies, fairness and waiting in overload."""
    base = Point(load=OVERLOAD)
    blocks: list[Block] = [
        Heading("Times and fairness"),
        Text(
            f"At {OVERLOAD:g} of capacity; seconds, of completed requests: a policy that refuses what it can't keep "
            "has fewer of them. The longest wait is the mean of the seeds'. Jain's index is of useful tokens by "
            "tenant, as shares of what each asked for: 1 is equal."
        ),
    ]
    if base in results.cells:
        titles = {"first_token_cdf": "time to first token", "latency_cdf": "time to completion"}
        blocks.append(Figures([distribution_plot(results, base, name, title) for name, title in titles.items()]))
    for trace, engine in results.combinations:
        blocks += _by_policy(results, Point(trace, engine, OVERLOAD), TIMES)
    return blocks


def _by_policy(results: Results, base: Point, columns: Mapping[str, Column]) -> list[Block]:
    policies = results.policies(trace=base.trace, engine=base.engine, load=base.load)
    rows = [
        [f"`{name}`", *(shown(results.mean(replace(base, policy=name), figure)) for figure, shown in columns.values())]
        for name in policies
    ]
    heading = f"{base.trace}, {base.engine} engine".capitalize()
    return [Heading(heading, 3), Table(["", *columns], rows)] if rows else []


def timelines(shown: Mapping[Point, Any]) -> list[Block]:
    """The same short time under two policies; on the page only."""
    if not shown:
        return []
    ordered = sorted(shown, key=lambda point: point.policy != OURS)
    told = (
        "The rows of one engine in the middle of a run: each bar is a request from dispatch to end. "
        "`uellm simulate --trace-out` writes a whole run for ui.perfetto.dev; the plot is on the page."
    )
    return [
        Heading("Batches over time"),
        Text(told),
        Figures([timeline_plot(point, shown[point]) for point in ordered]),
    ]


METHOD = (
    """Load is a share of the capacity: what the same engines serve a second, first come first served, while 1,000
    requests wait at once. The trace is sped up or slowed down to it; its bursts stay.""",
    """A seed plays another window of the trace, with other classes and predictions. Where a trace is shorter than all
    windows together they overlap, and its intervals are somewhat too narrow.""",
    f"""The traces name no tenants: each request belongs to one of {TENANTS}, half by the rank of its answer's
    length and half at random.""",
    """Equal answers for all policies, from the trace; nothing is cut. Late answers count as not kept, and so do
    refusals. Requests without a deadline (10 %) count in tokens and times only.""",
    """Intervals are Student's t over the seeds, 95 %, each by itself.""",
    """Engines are about those of a 7B model in half precision on one A100: ratios mean more than seconds. Time that a
    policy itself takes is not played; [benchmarks.md](benchmarks.md) has it.""",
)


def method(results: Results, capacities: Mapping[Point, float]) -> list[Block]:
    """How, and what it does not say."""
    rates = [
        [f"{point.trace}, {point.engine}, {point.gpus} GPU", show(rate)] for point, rate in sorted(capacities.items())
    ]
    names = dict.fromkeys(cell.policy for cell in results.cells)
    policies = [[f"`{name}`", POLICIES[name].info.description] for name in names if name in POLICIES]
    return [
        Heading("How it was measured"),
        Points([" ".join(part.split()) for part in METHOD]),
        Table(["capacity", "requests a second"], rates),
        Table(["policy", "what it is"], policies, words=True),
    ]
