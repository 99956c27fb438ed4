"""The same queries played through the simulator, and how far the two are apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy.optimize import nnls
from uellm_scheduler.app import events as on
from uellm_scheduler.app.core import SchedulerCore
from uellm_scheduler.policies import POLICIES
from uellm_simulator.fates import Fate
from uellm_simulator.workload import Arrival, Request
from uellm_simulator.world import World

from benchmarks.validation.live import LiveRun, Served
from uellm.cost.steps import StepTime
from uellm.v1.stream_pb2 import ENGINE_KIND_STATIC, DecodeAggregate, DeploymentRecord, StepAggregates


@dataclass(frozen=True, slots=True)
class Machine:
    """What the simulator is told of the engine and its surroundings, in seconds."""

    step: StepTime
    """As the engine measured its passes, with what passes between two of them."""
    between_seconds: float
    """From a pass to the next, part of the base."""
    dispatch_seconds: float
    """Of an idle stack, from acceptance to outcome, all that is not the engine's own time."""


def machine(record: DeploymentRecord, runs: Sequence[LiveRun], idle: LiveRun) -> Machine:
    """Fit the step time to the batches of some runs; what surrounds a batch is that of queries asked one by one."""
    dispatch = max(0.0, median(_around(idle)))
    costs = [cost for run in runs for cost in run.batches.values()]
    steps = sum(decode.steps for cost in costs for decode in cost.decode)
    periods = [period for run in runs for period in _busy(run.served)]
    unseen = sum(end - begin - dispatch for begin, end in periods) - sum(cost.total_seconds for cost in costs)
    between = max(0.0, unseen / steps)
    step = fitted(costs, padded=record.engine_kind == ENGINE_KIND_STATIC)
    return Machine(replace(step, base=step.base + between), between, dispatch)


def _around(idle: LiveRun) -> Iterator[float]:
    for one in idle.served:
        if one.batch_id in idle.batches:
            yield one.finished - one.accepted - idle.batches[one.batch_id].total_seconds


def _busy(served: Iterable[Served]) -> list[tuple[float, float]]:
    """When the engine had something, from dispatch to outcome; periods that overlap are one."""
    periods: list[tuple[float, float]] = []
    for begin, end in sorted((one.dispatched, one.finished) for one in served if not one.refused):
        if periods and begin < periods[-1][1]:
            first, last = periods.pop()
            periods.append((first, max(last, end)))
        else:
            periods.append((begin, end))
    return periods


def fitted(costs: Sequence[StepAggregates], *, padded: bool) -> StepTime:
    """Non-negative least squares; the variance of a run of steps grows with their number."""
    decode = [(_decode_work(run, padded=padded), run.seconds, run.steps) for cost in costs for run in cost.decode]
    start = []
    for cost in costs:
        own = cost.total_seconds - sum(run.seconds for run in cost.decode)
        passes = list(cost.prefill)
        rest = max(0.0, own - sum(one.seconds for one in passes)) / (len(passes) or 1)
        start += [((one.padded_tokens if padded else one.tokens, 1.0), one.seconds + rest, 1) for one in passes]
    return StepTime(*_least_squares(decode), *_least_squares(start))


def _decode_work(run: DecodeAggregate, *, padded: bool) -> tuple[float, float, float]:
    columns = run.steps * run.first_context + run.steps * (run.steps - 1) / 2
    return run.steps, run.steps * run.rows, run.rows * columns if padded else run.context_tokens


def _least_squares(samples: Sequence[tuple[Sequence[float], float, int]]) -> list[float]:
    weights = np.array([count for _, _, count in samples]) ** -0.5
    features = np.array([one for one, _, _ in samples]) * weights[:, None]
    scale = features.max(axis=0)
    found, _ = nnls(features / scale, np.array([seconds for _, seconds, _ in samples]) * weights)
    return [float(value) for value in found / scale]


def play(record: DeploymentRecord, run: LiveRun, lengths: dict[str, int], told: Machine) -> list[Fate]:
    """The run's queries with their measured times of acceptance, predictions and deadlines.

    `lengths`, by prompt, are for those that the live run refused; a query that was refused at `Submit` came as long
    after it was sent as the others.
    """
    late = median([one.accepted - one.sent for one in run.served if one.accepted] or [0.0])
    came = [one.accepted or one.sent + late for one in run.served]
    begin = min(came)
    requests = [
        Request(
            name=f"tenants/validation/models/{record.model}/queries/{number}",
            arrival=Arrival(at - begin, one.prompt_tokens, _length(one, lengths), "validation"),
            slo_class=one.wanted.slo_class,
            completion_seconds=one.wanted.slo_seconds,
            first_token_seconds=0.0,
            confidence=0.9,
            predicted=one.predicted,
        )
        for number, (one, at) in enumerate(zip(run.served, came, strict=True))
    ]
    core = SchedulerCore(record.model, 1, POLICIES[run.policy])
    if run.known is not None:
        core.step(on.CostModelsFound((run.known,)), World.EPOCH_MS)
    deployed = with_all_traffic(record)
    world = World(core, [(deployed, told.step)], requests, dispatch_seconds=told.dispatch_seconds)
    world.run()
    return [world.fates[request.name] for request in requests]


def with_all_traffic(record: DeploymentRecord) -> DeploymentRecord:
    """The record as published, all traffic its own."""
    copy = DeploymentRecord()
    copy.CopyFrom(record)
    copy.traffic_share = 1.0
    return copy


def _length(one: Served, lengths: dict[str, int]) -> int:
    return lengths[one.wanted.prompt] if one.refused else one.output_tokens


def compared(run: LiveRun, fates: Sequence[Fate]) -> dict[str, Any]:
    """Live and simulated side by side; errors are (simulated - live) / live."""
    pairs = list(zip(run.served, fates, strict=True))
    both = [(one, fate) for one, fate in pairs if not one.refused and fate.completed]
    begin = min(one.accepted for one in run.served if one.accepted)
    live_end = max(one.finished for one in run.served) - begin
    end = max(fate.finish_seconds for fate in fates if math.isfinite(fate.finish_seconds))
    due = [(one, fate) for one, fate in pairs if one.wanted.slo_seconds]
    return {
        "queries": len(pairs),
        "completed_by_both": len(both),
        "same_fate": fmean(one.refused == fate.refused and one.in_time == fate.in_time for one, fate in pairs),
        "makespan_s": _beside(live_end, end),
        "completion": _errors([(one.finished - one.accepted, fate.latency) for one, fate in both]),
        "first_token": _errors([(one.first_token - one.accepted, fate.first_token) for one, fate in both]),
        "attainment": _both(fmean(one.in_time for one, _ in due), fmean(fate.in_time for _, fate in due)),
        "refused": _both(fmean(one.refused for one, _ in due), fmean(fate.refused for _, fate in due)),
    }


def _errors(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    live, played = (np.array(side) for side in zip(*pairs, strict=True))
    errors = played / live - 1
    return {
        "median_abs_error": float(np.median(np.abs(errors))),
        "p95_abs_error": float(np.quantile(np.abs(errors), 0.95)),
        "bias": float(np.mean(errors)),
        **{
            f"{name}_s": _beside(float(np.quantile(live, level)), float(np.quantile(played, level)))
            for name, level in (("p50", 0.5), ("p95", 0.95))
        },
        "mean_s": _beside(float(live.mean()), float(played.mean())),
    }


def _both(live: float, played: float) -> dict[str, float]:
    return {"live": live, "simulated": played}


def _beside(live: float, played: float) -> dict[str, float]:
    return {**_both(live, played), "error": played / live - 1}


def rounded(content: Any) -> Any:
    """Floats to four significant digits, for a file that people read."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value) for value in content]
    return float(f"{content:.4g}") if isinstance(content, float) else content


def told(one: Machine) -> dict[str, float]:
    """Plain."""
    surroundings = {"between_seconds": one.between_seconds, "dispatch_seconds": one.dispatch_seconds}
    return {**asdict(one.step), **surroundings}
