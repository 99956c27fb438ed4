"""What a deployment is wanted to be, and the placement that realises it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from itertools import islice
from typing import Any

from uellm_deployer.domain.facts import ModelFacts
from uellm_deployer.domain.names import HASH_DIGITS, triton_model


class Objective(StrEnum):
    """How layers are placed."""

    HELR = "HELR"
    """Least latency among plans whose bottleneck is near the best."""
    LR = "LR"
    """Least latency."""
    HE = "HE"
    """Fewest devices, fullest first, then least latency."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Parameters for queries that leave them open; None: left open here too."""

    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """What is wanted. Numbers of 0 and empty texts are filled in by the planner."""

    model: str
    weights_path: str
    backend: str = "hf"
    objective: Objective = Objective.HELR
    max_batch_rows: int = 8
    context_tokens: int = 0
    max_output_tokens: int = 0
    default_generation: Generation = field(default_factory=Generation)
    dtype: str = ""
    device_ids: tuple[str, ...] = ()
    first_token_slo_seconds: float = 0.0
    output_token_slo_seconds: float = 0.0
    queue_shard: int = 0
    stage_layers: tuple[int, ...] = ()
    """Layers of each stage, the stages on `device_ids` in order; empty: the planner divides them."""

    @property
    def queue(self) -> tuple[str, int]:
        """What it serves: a shard of the model's queue."""
        return self.model, self.queue_shard


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers on one device, or on one group that shares them. Sizes in bytes per device."""

    device_ids: tuple[str, ...]
    first_layer: int
    layer_count: int
    embedding: bool
    head: bool
    weight_bytes: int
    kv_bytes: int
    reserve_bytes: int

    @property
    def total_bytes(self) -> int:
        """All that it needs on each device."""
        return self.weight_bytes + self.kv_bytes + self.reserve_bytes


@dataclass(frozen=True, slots=True)
class StepTime:
    """Step time `t(B, C) = base + per_row * B + per_context_token * C`, prefill and start-up; in seconds."""

    base_seconds: float
    per_row_seconds: float
    per_context_token_seconds: float
    prefill_per_token_seconds: float
    startup_seconds: float
    source: str

    def step(self, rows: int, context_tokens: int) -> float:
        """Seconds of a decode step with so many rows and context tokens over all of them."""
        return self.base_seconds + self.per_row_seconds * rows + self.per_context_token_seconds * context_tokens

    def calibrated(self, step_seconds: float) -> StepTime:
        """The same with its base such that a step of one row takes what was measured; 0: nothing was measured.

        The base holds what a roofline does not know: the framework's own work in every step.
        """
        if step_seconds <= 0:
            return self
        base = max(0.0, step_seconds - self.per_row_seconds)
        return replace(self, base_seconds=base, source=f"{self.source}, base measured")

    def first_token(self, prompt_tokens: int) -> float:
        """Seconds to the first token of one prompt, alone: its prefill, but at least one step."""
        prefill = max(self.prefill_per_token_seconds * prompt_tokens, self.step(1, prompt_tokens))
        return self.startup_seconds + prefill


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """A placement, with what it is predicted to do. Times in seconds, sizes in bytes."""

    spec: DeploymentSpec
    stages: tuple[Stage, ...]
    facts: ModelFacts
    fingerprint: str
    """Of the model's config and weights."""
    devices: tuple[str, ...]
    """Of all stages in order, those of a group side by side, as the engine names them: `cpu`, `cuda:0`."""
    kv_budget_bytes: int
    step_time: StepTime
    first_token_seconds: float
    output_token_seconds: float
    lower_bound_seconds: float
    objective_seconds: float
    explanation: str
    plan_hash: str = ""
    memory_share: float = 1.0
    """The largest share of a device's memory that is needed of any."""

    @property
    def memory_utilization(self) -> float:
        """The same as it is told to an engine: rounded up, at most 1."""
        return min(1.0, math.ceil(10_000 * self.memory_share) / 10_000)

    @property
    def triton_model(self) -> str:
        """Name of the Triton model that serves it."""
        return triton_model(self.spec.model, self.plan_hash)

    @property
    def stage_devices(self) -> tuple[tuple[str, ...], ...]:
        """`devices`, stage by stage."""
        names = iter(self.devices)
        return tuple(tuple(islice(names, len(stage.device_ids))) for stage in self.stages)

    @property
    def weight_bytes(self) -> int:
        """Of the weights on all devices together: what a group or two stages repeat counts as often as it is there."""
        return sum(stage.weight_bytes * len(stage.device_ids) for stage in self.stages)

    @property
    def needs(self) -> dict[str, int]:
        """Bytes needed, by device id."""
        needs: dict[str, int] = {}
        for stage in self.stages:
            for device in stage.device_ids:
                needs[device] = needs.get(device, 0) + stage.total_bytes
        return needs

    def hashed(self) -> DeploymentPlan:
        """The same with its hash filled in."""
        return replace(self, plan_hash=plan_hash(self))


# Not the predictions: they vary with the measured speed of the machine, and the same engine must get the same name.
_HASHED = ("spec", "stages", "facts", "fingerprint", "devices", "kv_budget_bytes")


def plan_hash(plan: DeploymentPlan) -> str:
    """First digits of the SHA-256 of what the plan makes of the engine, as canonical JSON."""
    content: dict[str, Any] = asdict(plan)
    canonical = json.dumps(
        {key: content[key] for key in _HASHED}, sort_keys=True, separators=(",", ":"), ensure_ascii=True
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:HASH_DIGITS]
