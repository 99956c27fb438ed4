"""A deployment's step time: as planned, as its batches show it, and as another plan's would then be.

Steps are compared at the plan's point of reference: a full batch whose rows are half way through their context.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from uellm_deployer.domain.deployment import Deployment
from uellm_deployer.domain.plan import DeploymentPlan, DeploymentSpec, StepTime

ENOUGH_BATCHES = 10
"""Behind a measurement that anything is concluded from."""
OFF_PLAN = 1.5
"""Measured over predicted time beyond which, with 90 % confidence, a deployment is off its plan."""
ON_PLAN = 1.25
"""Measured over predicted time below which it is on its plan again."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was learnt of a deployment's step time."""

    step_time: StepTime
    batches: int
    """Learnt from."""
    least_seconds: float
    """Of a step at the point of reference: lower end of the 90 % interval."""


def reference_point(spec: DeploymentSpec) -> tuple[int, int]:
    """Rows, and tokens of context over all of them."""
    return spec.max_batch_rows, spec.max_batch_rows * spec.context_tokens // 2


@dataclass(frozen=True)
class Performance:
    """What was predicted of a deployment, and what was measured, if it was measured enough."""

    deployment: Deployment
    measurement: Measurement | None = None

    @property
    def plan(self) -> DeploymentPlan:
        """The deployment's."""
        return self.deployment.plan

    @cached_property
    def predicted(self) -> StepTime:
        """The plan's step time with the base that its trial measured."""
        return self.plan.step_time.calibrated(self.deployment.measured_step_seconds)

    @cached_property
    def measured(self) -> StepTime | None:
        """What the batches show; None: too few."""
        known = self.measurement
        return known.step_time if known is not None and known.batches >= ENOUGH_BATCHES else None

    @property
    def predicted_seconds(self) -> float:
        """Of a step at the point of reference."""
        return self.predicted.step(*reference_point(self.plan.spec))

    @property
    def measured_seconds(self) -> float | None:
        """Of a step at the point of reference."""
        return None if self.measured is None else self.measured.step(*reference_point(self.plan.spec))

    @property
    def seconds(self) -> float:
        """Of a step at the point of reference: as measured, else as predicted."""
        return self.predicted_seconds if self.measured_seconds is None else self.measured_seconds

    @property
    def rate(self) -> float:
        """Tokens a second of full batches."""
        return rate(self.plan, self.seconds)

    @property
    def ratio(self) -> float:
        """Time of a step over what was predicted."""
        return self.seconds / self.predicted_seconds if self.predicted_seconds > 0 else 1.0

    def off_plan(self, *, before: bool) -> bool:
        """Whether steps take much longer than planned, or longer than promised; `before`: whether they did already."""
        if self.measurement is None or self.measured_seconds is None:
            return False
        promised = self.plan.spec.output_token_slo_seconds or float("inf")
        if before:
            return self.measured_seconds > min(ON_PLAN * self.predicted_seconds, promised)
        return self.measurement.least_seconds > min(OFF_PLAN * self.predicted_seconds, promised)

    @property
    def device_slowness(self) -> float:
        """How many times as long as in its trial a step of one row takes: the devices have become slower; at least 1.

        Without a trial all of the deviation is laid to them.
        """
        if self.measured is None:
            return 1.0
        if not self.deployment.measured_step_seconds:
            return max(1.0, self.ratio)
        one_row = self.measured.base_seconds + self.measured.per_row_seconds
        return max(1.0, one_row / self.deployment.measured_step_seconds)

    @property
    def engine_slowness(self) -> float:
        """What is left of the deviation: time that grows more with rows and context than predicted, on any device."""
        return max(1.0, self.ratio / self.device_slowness)

    def expected_seconds(self, plan: DeploymentPlan, slowness: Mapping[str, float]) -> float:
        """Of a step of another plan for the same model, at its own point of reference.

        Placed alike it goes by what is known of the deployment. Elsewhere by its own prediction, with the framework's
        part as the deployment's trial measured it, on devices that are so many times slower than they say.
        """
        point = reference_point(plan.spec)
        if _placing(plan) == _placing(self.plan):
            return (self.measured or self.predicted).step(*point)
        framework = max(0.0, self.predicted.base_seconds - self.plan.step_time.base_seconds)
        slowest = max(slowness.get(device, 1.0) for device in plan.needs)
        return (plan.step_time.step(*point) + framework) * slowest * self.engine_slowness


def rate(plan: DeploymentPlan, step_seconds: float) -> float:
    """Tokens a second of full batches whose steps take so long."""
    return plan.spec.max_batch_rows / step_seconds if step_seconds > 0 else float("inf")


def slow_devices(performances: Iterable[Performance]) -> dict[str, float]:
    """By device id, how many times slower than they say those are on which a deployment has become slower."""
    slowness: dict[str, float] = {}
    for one in performances:
        if one.device_slowness >= ON_PLAN:
            for device in one.plan.needs:
                slowness[device] = max(slowness.get(device, 1.0), one.device_slowness)
    return slowness


def _placing(plan: DeploymentPlan) -> tuple[object, ...]:
    where = tuple((stage.device_ids, stage.first_layer, stage.layer_count) for stage in plan.stages)
    return plan.spec.backend, plan.spec.dtype, where
