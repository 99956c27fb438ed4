"""The monitor around the deployer's use cases, with what it sees set by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from uellm_deployer.app.advising import Adviser
from uellm_deployer.app.monitor import Monitor
from uellm_deployer.app.signals import DeploymentStatus, DeviceUsage, Feedback, QueueStatus
from uellm_deployer.domain.deployment import Deployment
from uellm_deployer.domain.performance import Measurement, Performance, reference_point
from uellm_deployer.domain.plan import StepTime

from tests.support.deployer import DeployerWorld
from uellm.rpc.errors import UnavailableError

WINDOW = 300.0


def times_slower(predicted: StepTime, factor: float) -> StepTime:
    return replace(
        predicted,
        base_seconds=factor * predicted.base_seconds,
        per_row_seconds=factor * predicted.per_row_seconds,
        per_context_token_seconds=factor * predicted.per_context_token_seconds,
    )


def measured(deployment: Deployment, factor: float, batches: int = 60, sure: float = 0.95) -> Measurement:
    """Every coefficient so many times as large as predicted; `sure`: the interval's lower end over the mean."""
    times = times_slower(Performance(deployment).predicted, factor)
    return Measurement(times, batches, sure * times.step(*reference_point(deployment.plan.spec)))


@dataclass
class SetFeedback:
    """What the scheduler would publish."""

    factors: dict[str, float] = field(default_factory=dict)
    """By resource name: measured over predicted."""
    states: dict[tuple[str, int], QueueStatus] = field(default_factory=dict)
    away: bool = False

    async def measurements(self, deployments: Collection[Deployment]) -> Mapping[str, Measurement]:
        if self.away:
            raise UnavailableError("Redis is away")
        return {one.name: measured(one, self.factors[one.name]) for one in deployments if one.name in self.factors}

    async def queues(self, names: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], QueueStatus]:
        return {name: self.states[name] for name in names if name in self.states}


@dataclass
class ShownGauges:
    """The newest figures."""

    devices: Sequence[DeviceUsage] = ()
    deployments: Sequence[DeploymentStatus] = ()
    loads: Mapping[tuple[str, int], float] = field(default_factory=dict)

    def show(
        self,
        devices: Sequence[DeviceUsage],
        deployments: Sequence[DeploymentStatus],
        loads: Mapping[tuple[str, int], float],
    ) -> None:
        self.devices, self.deployments, self.loads = devices, deployments, loads


class MonitorWorld:
    """A deployer that is watched."""

    def __init__(self, world: DeployerWorld, feedback: Feedback | None = None) -> None:
        """Without feedback it is set by hand."""
        self.world = world
        self.feedback, self.gauges = SetFeedback(), ShownGauges()
        adviser = Adviser(world.book, world.planning)
        told = feedback or self.feedback
        self.monitor = Monitor(
            world.book, world.operations, adviser, self, world.triton, told, self.gauges, world.clock, WINDOW
        )

    async def usage(self) -> Sequence[DeviceUsage]:
        return [DeviceUsage(device, 0.5) for device in self.world.machine.topology.devices]

    async def looks(self, seconds: float, *, growth: float = 0.0, waiting: int | None = None) -> None:
        """Look again and again while time passes; the work of the queue `smol` grows by so much a second."""
        end = self.world.clock.time + seconds
        while self.world.clock.time < end:
            state = self.feedback.states.get(("smol", 0))
            if waiting is not None:
                work = (state.work_seconds if state else 100.0) + growth * self.monitor.interval_seconds
                self.feedback.states["smol", 0] = QueueStatus(waiting, max(0.0, work))
            await self.monitor.look()
            await asyncio.sleep(0)  # who watches has a turn
            self.world.clock.time += self.monitor.interval_seconds
