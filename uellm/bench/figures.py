"""What is said of runs: means over the rounds, and paired differences with intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from uellm_simulator.metrics import QUANTILES, Metrics
from uellm_simulator.runs import Paired

from uellm.bench.experiment import Results
from uellm.bench.processes import CLIENT
from uellm.bench.runs import Run

CLIENT_CORES = 0.8
"""From so much of a core on the client is taken for a bottleneck: one event loop runs on one core."""
LAG_SECONDS = 0.1
"""From such a 99th percentile of planned to sent on, arrivals are not what was planned."""

FIGURES: dict[str, Callable[[Metrics], float]] = {
    "goodput_per_second": lambda one: one.goodput,
    "in_time": lambda one: one.attainment.in_time,
    "late": lambda one: one.attainment.late,
    "refused": lambda one: one.attainment.refused,
    "refused_after": lambda one: one.refused_after,
    "useful_tokens_per_second": lambda one: one.useful_tokens,
    "tokens_per_second": lambda one: one.tokens,
    **{
        f"{name}_p{round(100 * level)}_seconds": (
            lambda one, name=name, at=at: getattr(one, name)[at] if getattr(one, name) else math.nan  # type: ignore[misc]
        )
        for name in ("first_token", "latency")
        for at, level in enumerate(QUANTILES)
    },
    "jain": lambda one: one.jain,
    "longest_wait_seconds": lambda one: one.longest_wait,
    "utilisation": lambda one: one.utilisation,
}
COMPARED = ("goodput_per_second", "in_time", "useful_tokens_per_second")

Servers = dict[str, list[Run]]
"""Runs by server, in the order of the rounds."""


def by_load(results: Results) -> dict[float, Servers]:
    """The runs of each load; servers in the order of the plan."""
    found: dict[float, Servers] = {load: {} for load in results.plan.loads or (0.0,)}
    for load, server in ((load, server) for load in found for server in results.plan.servers):
        runs = [run for run in results.runs if (run.load, run.server) == (load, server)]
        if runs:
            found[load][server] = runs
    return {load: servers for load, servers in found.items() if servers}


def means(runs: Sequence[Run]) -> dict[str, float]:
    """Of each figure, over the rounds in which it is known; nan where in none."""
    metrics = [run.metrics for run in runs]
    return {name: _mean(map(figure, metrics)) for name, figure in FIGURES.items()}


def class_attainment(runs: Sequence[Run]) -> dict[str, float]:
    """Share in time of those submitted, by class, over all rounds."""
    asked: dict[str, int] = defaultdict(int)
    kept: dict[str, float] = defaultdict(float)
    for name, share in ((name, share) for run in runs for name, share in run.metrics.by_class.items()):
        asked[name] += share.requests
        kept[name] += share.requests * share.in_time
    return {name: kept[name] / asked[name] for name in sorted(asked)}


def paired(first: Sequence[Run], other: Sequence[Run]) -> dict[str, Paired]:
    """How the first compares with another server, over the rounds that both have."""
    ours, theirs = ({run.round: run.metrics for run in runs} for runs in (first, other))
    rounds = sorted(ours.keys() & theirs.keys())
    return {
        name: Paired.of([FIGURES[name](ours[at]) for at in rounds], [FIGURES[name](theirs[at]) for at in rounds])
        for name in COMPARED
        if rounds
    }


def processor(runs: Sequence[Run]) -> dict[str, float]:
    """Cores that each process used, in the mean over the rounds."""
    names = dict.fromkeys(name for run in runs for name in run.processor)
    return {name: _mean(run.processor[name] for run in runs if name in run.processor) for name in names}


def lag(runs: Sequence[Run]) -> tuple[float, float, float]:
    """Seconds from planned to sent: the worst median, 99th percentile and maximum of a round."""
    p50, p99, most = (max(run.lag[at] for run in runs) for at in range(3))
    return p50, p99, most


def warnings(results: Results) -> list[str]:
    """What speaks against the figures."""
    found = []
    for run in results.runs:
        where = f"round {run.round + 1}, {run.server}"
        cores, (_, p99, _) = run.processor.get(CLIENT, 0.0), run.lag
        if cores >= CLIENT_CORES:
            found.append(f"{where}: the client used {cores:.2f} cores, so that it may be the bottleneck")
        if p99 >= LAG_SECONDS:
            found.append(
                f"{where}: the last 1 % of queries were sent {p99:.2f} s late or more: arrivals are not as planned"
            )
        if run.failures:
            found.append(
                f"{where}: {len(run.failures)} of {len(run.records)} queries failed; the first: {run.failures[0]}"
            )
    return found


def summary(results: Results) -> dict[str, Any]:
    """All figures, plain, without the queries."""
    loads = []
    for load, servers in by_load(results).items():
        first = next(iter(servers.values()))
        loads.append(
            {
                "load": load,
                "rate": _mean(run.rate for run in first),
                "servers": {name: _of_server(runs) for name, runs in servers.items()},
                "first_against": {
                    name: {key: _of_pair(one) for key, one in paired(first, runs).items()}
                    for name, runs in servers.items()
                    if runs is not first
                },
            }
        )
    whole = {key: value for key, value in results.to_json().items() if key != "runs"}
    found: dict[str, Any] = finite({**whole, "loads": loads, "warnings": warnings(results)})
    return found


def finite(value: Any) -> Any:
    """The same with None for what is no number or infinite, which JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def _of_server(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "rounds": len(runs),
        **means(runs),
        "in_time_by_class": class_attainment(runs),
        "processor_cores": processor(runs),
        "send_lag_seconds": dict(zip(("p50", "p99", "most"), lag(runs), strict=True)),
    }


def _of_pair(one: Paired) -> dict[str, float]:
    return {"ratio": one.ratio, "difference": one.mean - one.other, "low": one.low, "high": one.high}


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else math.nan
