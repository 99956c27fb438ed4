"""An experiment as data: what is asked, of which engines, under which policy. Equal scenarios give equal results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from uellm.cost.steps import StepTime
from uellm.v1.stream_pb2 import (
    DEPLOYMENT_STATE_READY,
    ENGINE_KIND_CONTINUOUS,
    ENGINE_KIND_STATIC,
    DeploymentRecord,
    EngineLimits,
    ModelFacts,
)
from uellm_simulator.workload import Predictions, Rules
from uellm_simulator.world import TICK_SECONDS

MODEL = "simulated"


@dataclass(frozen=True, slots=True)
class Engine:
    """A deployment's engine."""

    continuous: bool
    rows: int
    context_tokens: int
    step: StepTime
    kv_tokens: int = 10**7
    """Room of the cache."""
    page_tokens: int = 16
    believed: float = 1.0
    """What the scheduler believes of the step time at first, as a multiple of the truth; it learns."""

    def record(self, name: str, share: float) -> DeploymentRecord:
        """As the deployer would publish it."""
        step = self.step
        believed = StepTime(
            *(
                self.believed * second
                for second in (step.base, step.per_row, step.per_context_token, step.prefill_per_token, step.startup)
            )
        )
        record = DeploymentRecord(
            name=name,
            model=MODEL,
            plan_hash="simulated",
            state=DEPLOYMENT_STATE_READY,
            engine_kind=ENGINE_KIND_CONTINUOUS if self.continuous else ENGINE_KIND_STATIC,
            facts=ModelFacts(kv_bytes_per_token=1),
            limits=EngineLimits(
                context_tokens=self.context_tokens,
                max_output_tokens=self.context_tokens - 1,
                max_batch_rows=self.rows,
                max_concurrent_batches=self.rows if self.continuous else 1,
                kv_budget_bytes=self.kv_tokens,
                kv_page_tokens=self.page_tokens if self.continuous else 0,
                resumable=True,
            ),
            traffic_share=share,
        )
        record.step_time_prior.CopyFrom(believed.to_prior("simulated"))
        return record


STATIC = Engine(
    continuous=False,
    rows=16,
    context_tokens=8_192,
    step=StepTime(base=0.025, per_row=0.0005, per_context_token=2e-7, prefill_per_token=6e-5, startup=0.01),
)
CONTINUOUS = Engine(
    continuous=True,
    rows=64,
    context_tokens=8_192,
    step=StepTime(base=0.02, per_row=0.0002, per_context_token=1e-7, prefill_per_token=5e-5, startup=0.0),
    kv_tokens=200_000,
)
ENGINES = {"static": STATIC, "continuous": CONTINUOUS}
"""Of the size of a 7B model in half precision on one A100; what it says is of ratios."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that a run depends on, besides the arrivals."""

    engine: Engine = STATIC
    deployments: int = 1
    policy: str = "uellm"
    rules: Rules = field(default_factory=Rules)
    load: float = 0.0
    """Arrivals as a share of what the engines serve when full; 0: as quick as the trace."""
    seed: int = 0
    dispatch_seconds: float = 0.002
    tick_seconds: float = TICK_SECONDS
    warm_up: int = 0
    count: int | None = None
    """Requests of the trace that are played, with the warm-up; None: all."""

    def records(self) -> list[tuple[DeploymentRecord, StepTime]]:
        """The deployments, with their true step times."""
        share = 1.0 / self.deployments
        names = [f"deployments/{number}" for number in range(self.deployments)]
        return [(self.engine.record(name, share), self.engine.step) for name in names]

    def with_changes(self, changes: Sequence[tuple[str, str]]) -> Scenario:
        """Another scenario; raises ValueError for what can't be changed, or not so."""
        changed = self
        for key, value in changes:
            changed = _changed(changed, key, value)
        return changed

    def digest(self, trace: str) -> str:
        """Of the scenario and its arrivals: equal ones have equal results."""
        content: dict[str, Any] = {"trace": trace, **asdict(self)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _predicted(scenario: Scenario, predictions: Predictions) -> Scenario:
    return replace(scenario, rules=replace(scenario.rules, predictions=predictions))


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


CHANGES: dict[str, Callable[[Scenario, str], Scenario]] = {
    "policy": lambda one, value: replace(one, policy=value),
    "gpus": lambda one, value: replace(one, deployments=_at_least_one(value)),
    "rows": lambda one, value: replace(one, engine=replace(one.engine, rows=_at_least_one(value))),
    "engine": lambda one, value: replace(one, engine=ENGINES[value]),
    "load": lambda one, value: replace(one, load=float(value)),
    "tightness": lambda one, value: replace(one, rules=replace(one.rules, tightness=float(value))),
    "noise": lambda one, value: _predicted(one, replace(one.rules.predictions, noise=float(value))),
    "spread": lambda one, value: _predicted(one, replace(one.rules.predictions, spread=float(value), table=None)),
    "seed": lambda one, value: replace(one, seed=int(value)),
}
"""What can be changed in a scenario, by name; KeyError or ValueError for a value that can't be."""


def _changed(scenario: Scenario, key: str, value: str) -> Scenario:
    if key not in CHANGES:
        raise ValueError(f"{key!r} can't be changed; there are {', '.join(CHANGES)}")
    try:
        return CHANGES[key](scenario, value)
    except (KeyError, ValueError):
        raise ValueError(f"{key} can't be {value!r}") from None
