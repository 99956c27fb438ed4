"""One task of the sweep: what a worker computes, as plain JSON."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from uellm_simulator.fates import Fate
from uellm_simulator.metrics import Window
from uellm_simulator.runs import Source, capacity
from uellm_simulator.scenario import Scenario
from uellm_simulator.simulate import Result, simulate
from uellm_simulator.timeline import events_of

from benchmarks.evaluation.grid import CLAIRVOYANT

MICRO = 1e6
CDF = (*(number / 20 for number in range(20)), 0.97, 0.99, 1.0)
"""At these shares of the completed requests a distribution is kept."""
SHOWN_BATCHES = 6
"""A timeline is as long as the arrivals of so many full batches."""


def measure_capacity(source: Source, scenario: Scenario, _: float) -> float:
    """Requests a second when full."""
    return capacity(source, scenario)


def measure_run(source: Source, scenario: Scenario, full: float) -> dict[str, Any]:
    """Every figure of a run; times in seconds, distributions at `CDF`."""
    result = _play(source, scenario, full)
    fates = Window(scenario.warm_up).of(result.fates)
    completed = [fate for fate in fates if fate.completed]
    refused = [fate for fate in fates if fate.refused]
    return {
        **result.metrics.to_json(),
        "bound": bound_of(result) if scenario.policy == CLAIRVOYANT else None,
        "rate": result.rate,
        "latency_cdf": _quantiles([fate.latency for fate in completed], CDF),
        "first_token_cdf": _quantiles([fate.first_token for fate in completed], CDF),
        "refused_after_cdf": _quantiles([_share_waited(fate) for fate in refused], (0.5, 0.95)),
    }


def measure_timeline(source: Source, scenario: Scenario, full: float) -> dict[str, Any]:
    """What is on the first engine in the middle of the arrivals, the same time under every policy; from its begin."""
    result = _play(source, scenario, full)
    arrivals = [fate.request.arrival.seconds for fate in result.fates]
    middle = len(arrivals) // 2
    last = min(len(arrivals) - 1, middle + SHOWN_BATCHES * scenario.engine.rows)
    begin, length = arrivals[middle] * MICRO, (arrivals[last] - arrivals[middle]) * MICRO
    events = events_of(result.fates)
    slices = [event for event in events if event["ph"] == "X" and event["pid"] == 1]
    shown = [one for one in slices if one["ts"] < begin + length and one["ts"] + one["dur"] > begin]
    refused = [one["ts"] for one in events if one["ph"] == "i" and begin <= one["ts"] < begin + length]
    return {
        "seconds": length / MICRO,
        "places": scenario.engine.rows,
        "slices": [
            [one["tid"], (one["ts"] - begin) / MICRO, (one["ts"] + one["dur"] - begin) / MICRO, one["cat"]]
            for one in shown
        ],
        "refused": [(at - begin) / MICRO for at in refused],
    }


Task = Callable[[Source, Scenario, float], Any]
TASKS: Mapping[str, Task] = {"capacity": measure_capacity, "run": measure_run, "timeline": measure_timeline}


def bound_of(result: Result) -> float | None:
    """Goodput that no schedule can exceed, of the same requests; None where the simulator proves none."""
    name = "uellm_simulator.bound"
    if importlib.util.find_spec(name) is None:
        return None
    return float(importlib.import_module(name).bound_of(result))


def _play(source: Source, scenario: Scenario, full: float) -> Result:
    return simulate(source.window(scenario.count or 0, scenario.seed), scenario, capacity=full)


def _share_waited(fate: Fate) -> float:
    """From arrival to refusal, as a share of the time there was."""
    return fate.latency / (fate.request.completion_seconds or fate.request.first_token_seconds or math.inf)


def _quantiles(values: Sequence[float], at: Sequence[float]) -> list[float]:
    return [float(value) for value in np.quantile(values, at)] if values else []
