"""What the monitor sees, and whom it shows it: its ports."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from uellm_deployer.domain.advice import Cause
from uellm_deployer.domain.deployment import Deployment
from uellm_deployer.domain.performance import Measurement, Performance
from uellm_deployer.domain.topology import Device


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """A device that holds layers, with the memory that is free now."""

    device: Device
    utilisation: float | None
    """Share of the time lately in which it computed, 0 to 1; None: the driver does not tell."""
    promised_bytes: int = 0
    """What deployments need of its memory by their plans."""


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """How a deployment does."""

    performance: Performance
    serves: bool
    """Whether it is ready, and Triton has it loaded."""
    troubles: frozenset[Cause] = frozenset()
    recommended: bool = False
    """Whether there is a plan that would be better."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """What a queue's owner published of it."""

    waiting: int
    work_seconds: float
    """Predicted time until all that waits and runs is done, with all engines full."""


class UsageSource(Protocol):
    """Reads how the machine is used."""

    async def usage(self) -> Sequence[DeviceUsage]:
        """Of every device that can hold layers; promises are left open."""


class Feedback(Protocol):
    """What the scheduler has learnt and sees. All methods raise UnavailableError if it cannot be read."""

    async def measurements(self, deployments: Collection[Deployment]) -> Mapping[str, Measurement]:
        """By resource name, of those of whose present plan something was learnt."""

    async def queues(self, names: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], QueueStatus]:
        """By model and shard, of those that have an owner."""


class Gauges(Protocol):
    """Shows the newest figures; what is not among them any more vanishes."""

    def show(
        self,
        devices: Sequence[DeviceUsage],
        deployments: Sequence[DeploymentStatus],
        loads: Mapping[tuple[str, int], float],
    ) -> None:
        """`loads` are the offered loads of queues whose engines are full."""
