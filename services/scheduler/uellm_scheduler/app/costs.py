"""What the core knows of the cost of its deployments, and learns from every batch."""

from __future__ import annotations

from collections.abc import Iterable

from uellm.cost.fit import CostFit
from uellm.cost.model import CostModel
from uellm.cost.steps import StepTime
from uellm.messaging.clock import timestamp
from uellm.v1.scheduler_pb2 import CostModelStatus
from uellm.v1.stream_pb2 import CostModelState, DeploymentRecord, StepAggregates

PUBLISH_MS = 1_000
"""What changed is published at most this often; the first of a deployment at once."""


class CostModels:
    """One fit a deployment, for as long as its plan stands."""

    def __init__(self) -> None:
        self._fits: dict[str, CostFit] = {}
        self._stored: dict[str, CostModelState] = {}
        """As an earlier owner left them."""
        self._changed: set[str] = set()
        self._published_ms: dict[str, int] = {}

    def of(self, deployment: DeploymentRecord) -> CostModel:
        """What is known of a deployment's cost now."""
        return self._fit(deployment).model

    def state_of(self, deployment: DeploymentRecord) -> CostModelState | None:
        """What was learnt, as it is stored; None while there is only the deployment's prior."""
        fit = self._fit(deployment)
        return fit.to_state() if fit.model.observations else None

    def remember(self, states: Iterable[CostModelState]) -> None:
        """Go on from what an earlier owner stored, where nothing was learnt yet. Other plans' states are void."""
        self._stored = {state.deployment: state for state in states}
        for name, state in self._stored.items():
            fit = self._fits.get(name)
            if fit is not None and not fit.model.observations:
                fit.restore(state)

    def learn(self, deployment: DeploymentRecord, batch_id: str, aggregates: StepAggregates) -> None:
        """Learn from a batch."""
        if self._fit(deployment).fold(aggregates, batch_id):
            self._changed.add(deployment.name)

    def keep(self, deployments: Iterable[str]) -> None:
        """Forget all others. Who comes back with the same plan is remembered by the store."""
        kept = set(deployments)
        for name in [name for name in self._fits if name not in kept]:
            if (fit := self._fits.pop(name)).model.observations:
                self._stored[name] = fit.to_state()
            self._changed.discard(name)

    def to_publish(self, now_ms: int, *, at_once: bool) -> tuple[CostModelState, ...]:
        """What is to be published now, or all that changed; it counts as published from here on."""
        due = [
            name
            for name in sorted(self._changed)
            if at_once or now_ms - self._published_ms.get(name, now_ms - PUBLISH_MS) >= PUBLISH_MS
        ]
        states = []
        for name in due:
            self._changed.discard(name)
            self._published_ms[name] = now_ms
            state = self._fits[name].to_state()
            state.update_time.CopyFrom(timestamp(now_ms))
            states.append(state)
        return tuple(states)

    def _fit(self, deployment: DeploymentRecord) -> CostFit:
        fit = self._fits.get(deployment.name)
        if fit is None or not fit.begins_as(deployment):
            fit = self._fits[deployment.name] = CostFit(deployment)
            if (stored := self._stored.get(deployment.name)) is not None:
                fit.restore(stored)
        return fit


def cost_model_status(state: CostModelState) -> CostModelStatus:
    """What is told of a stored cost model. Raises ValueError if it can't be read."""
    model = CostModel.from_state(state)
    return CostModelStatus(
        deployment=state.deployment,
        version=model.version,
        observations=model.observations,
        step_time=state.step_time,
        standard_deviation=StepTime(*model.standard_deviation).to_prior(""),
        relative_error=model.relative_error,
        interval_coverage=model.coverage or 0.0,
        interval_ratio=model.interval_ratio,
        condition_number=model.condition_number,
    )
