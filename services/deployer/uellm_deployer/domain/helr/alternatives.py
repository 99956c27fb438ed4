"""Plans that are best in another respect, and what they lost by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from uellm_deployer.domain.helr.cost import INFINITE, LONGEST, Pricing
from uellm_deployer.domain.helr.goals import Found, evened
from uellm_deployer.domain.helr.problem import Goal
from uellm_deployer.domain.helr.realise import copies_of
from uellm_deployer.domain.helr.result import Alternative, Plan, describe
from uellm_deployer.domain.helr.search import Search

MOST = 4


def alternatives(true: Pricing, search: Search, goal: Goal, best: Plan) -> tuple[Alternative, ...]:
    """Best first: one copy on each other number of devices, by LR; the pipeline with the least bottleneck."""
    plans = dict.fromkeys(describe(true, copies_of(search, found)) for found in _candidates(search, goal))
    shape = _shape(best)
    others = [plan for plan in plans if _shape(plan) != shape]
    others.sort(key=lambda plan: _rank(plan, goal))
    return tuple(Alternative(plan, _lost(plan, best)) for plan in others[:MOST])


def _candidates(search: Search, goal: Goal) -> Iterator[Found]:
    latency = search.latencies()
    for devices in sorted(set(search.devices[latency < LONGEST].tolist())):
        of_number = np.flatnonzero(search.devices == devices)
        yield Found((((int(of_number[latency[of_number].argmin()])),),), INFINITE, 0)
    if goal is Goal.HELR and search.in_flight > 1:
        interval = search.least_interval(1, INFINITE, LONGEST - 1)
        choices = np.flatnonzero(search.allowed(interval))
        ranked = np.lexsort((search.devices[choices], search.latencies(interval)[choices]))
        yield evened(search, ((int(choices[ranked[0]]),),), interval)


def _shape(plan: Plan) -> tuple[tuple[tuple[str, ...], int], ...]:
    return tuple((stage.device_ids, stage.first_layer) for copy in plan.copies for stage in copy.stages)


def _rank(plan: Plan, goal: Goal) -> tuple[float, ...]:
    if goal is Goal.HE:
        return plan.device_count, -plan.fill, plan.latency_seconds
    if goal is Goal.LR:
        return plan.latency_seconds, plan.device_count
    return plan.bottleneck_seconds, plan.latency_seconds, plan.device_count


def _lost(plan: Plan, best: Plan) -> str:
    """In the figures that goals are about."""
    times = (
        ("LR", plan.latency_seconds, best.latency_seconds),
        ("bottleneck", plan.bottleneck_seconds, best.bottleneck_seconds),
    )
    counts = (("copies", len(plan.copies), len(best.copies)), ("devices", plan.device_count, best.device_count))
    parts = [f"{what} {theirs / ours - 1:+.3%}" for what, theirs, ours in times if ours > 0]
    parts += [f"{theirs} {what} instead of {ours}" for what, theirs, ours in counts if theirs != ours]
    return ", ".join(parts)
