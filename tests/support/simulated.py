"""Small simulations whose times are whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uellm_scheduler.app.core import SchedulerCore
from uellm_scheduler.policies import POLICIES
from uellm_simulator.scenario import MODEL, Engine, Scenario
from uellm_simulator.workload import Arrival, Predictions, Request, Rules, SloClass, requests_of
from uellm_simulator.world import World

from uellm.cost.steps import StepTime

# A step takes 1 s, a row 0.5 s more of each, a prompt's token 0.1 s.
STEP = StepTime(base=1.0, per_row=0.5, per_context_token=0.0, prefill_per_token=0.1, startup=0.0)
STATIC = Engine(continuous=False, rows=2, context_tokens=1_000, step=STEP)
CONTINUOUS = Engine(continuous=True, rows=2, context_tokens=1_000, step=STEP, kv_tokens=10_000)
ORACLE = Rules(classes=(SloClass("none", 1.0),), predictions=Predictions())


def requests(lines: Sequence[tuple[float, int, int]], deadline: float = 0.0, rules: Rules = ORACLE) -> list[Request]:
    """Of (arrival, prompt tokens, answer tokens)."""
    made = requests_of([Arrival(*line) for line in lines], rules, STEP, 1_000, MODEL, seed=1)
    return [replace(one, completion_seconds=deadline) for one in made] if deadline else made


def world(engine: Engine, asked: Sequence[Request], policy: str = "fifo", deployments: int = 1) -> World:
    scenario = Scenario(engine=engine, deployments=deployments)
    return World(SchedulerCore(MODEL, 1, POLICIES[policy]), scenario.records(), asked)
