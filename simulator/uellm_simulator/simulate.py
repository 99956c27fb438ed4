"""Play a scenario."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from uellm_scheduler.app.core import SchedulerCore
from uellm_scheduler.policies import POLICIES

from uellm.v1.stream_pb2 import DecisionRecord
from uellm_simulator.fates import Fate
from uellm_simulator.metrics import Metrics, Window, metrics_of, served_per_second
from uellm_simulator.scenario import MODEL, Scenario
from uellm_simulator.workload import Arrival, Predictions, Rules, SloClass, rate_of, requests_of, scaled
from uellm_simulator.world import World

CAPACITY_REQUESTS = 1_000
"""Of the trace, of which the capacity is measured."""
CLAIRVOYANT = "clairvoyant"
"""A scenario's policy that knows all true lengths, but no arrivals to come: `uellm`, told the truth."""
KNOWING = {False: Predictions(), True: Predictions(stated=0.3)}
"""What it is told, by whether the engine is continuous: a row there is slowed by what comes after it, so that a
deadline just kept now is often lost. With a stated spread it keeps more (conversation at 1.2: 96 instead of 89 %)."""
PLAYED = (*POLICIES, CLAIRVOYANT)
"""Policies that a scenario may name."""


@dataclass(frozen=True, slots=True)
class Result:
    """A run."""

    scenario: Scenario
    rate: float
    """Arrivals a second."""
    fates: list[Fate]
    metrics: Metrics


def simulate(
    arrivals: Sequence[Arrival],
    scenario: Scenario,
    *,
    capacity: float = 0.0,
    on_decision: Callable[[str, DecisionRecord], None] | None = None,
) -> Result:
    """Play the arrivals.

    Args:
        arrivals: in order.
        scenario: with a load, they come at that share of the capacity instead of at their own pace.
        capacity: of the engines, if it is known; else it is measured where it is needed.
        on_decision: told of every entry of the flight recorder.

    Raises ValueError if the policy is not known.
    """
    if scenario.policy not in PLAYED:
        raise ValueError(f"policy {scenario.policy!r} is not known; choose {', '.join(sorted(PLAYED))}")
    played = list(arrivals[: scenario.count])
    if scenario.load:
        rate = scenario.load * (capacity or capacity_of(arrivals, scenario))
        played = scaled(played, rate / rate_of(played))
    world = world_of(played, scenario, on_decision)
    fates = world.run()
    busy = sum(deployed.engine.busy_seconds for deployed in world.deployed.values())
    utilisation = busy / (world.now * len(world.deployed)) if world.now else 0.0
    metrics = metrics_of(Window(scenario.warm_up).of(fates), utilisation)
    return Result(scenario, rate_of(played), fates, metrics)


def world_of(
    arrivals: Sequence[Arrival],
    scenario: Scenario,
    on_decision: Callable[[str, DecisionRecord], None] | None = None,
) -> World:
    """A world in which nothing has happened yet."""
    engine, rules, policy = scenario.engine, scenario.rules, scenario.policy
    if policy == CLAIRVOYANT:
        rules, policy = replace(rules, predictions=KNOWING[engine.continuous]), "uellm"
    requests = requests_of(arrivals, rules, engine.step, engine.context_tokens, MODEL, scenario.seed)
    recording = on_decision is not None
    core = SchedulerCore(MODEL, 1, POLICIES[policy], seed=scenario.seed, recording=recording)
    return World(
        core,
        scenario.records(),
        requests,
        dispatch_seconds=scenario.dispatch_seconds,
        tick_seconds=scenario.tick_seconds,
        on_decision=on_decision,
    )


def capacity_of(arrivals: Sequence[Arrival], scenario: Scenario) -> float:
    """Requests a second that full engines serve first come, first served, without an objective: the trace's first."""
    some = [replace(one, seconds=0.0) for one in arrivals[:CAPACITY_REQUESTS]]
    rules = Rules(classes=(SloClass("none", 1.0),), predictions=Predictions())
    world = world_of(some, replace(scenario, policy="fifo", rules=rules))
    return served_per_second(world.run())
