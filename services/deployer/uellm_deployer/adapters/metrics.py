"""What the deployer shows to Prometheus: the newest figures of the monitor, whatever they were before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from uellm.messaging.keys import queue_name
from uellm_deployer.app.signals import DeploymentStatus, DeviceUsage
from uellm_deployer.domain.advice import Cause
from uellm_deployer.domain.deployment import State

Samples = Iterable[tuple[Sequence[str], float | None]]
"""Label values with the value; None is left out."""

_DEVICE = ("device", "kind", "model")
_DEPLOYMENT = ("deployment", "model")


class Metrics(Collector):
    """To be registered once a process; asked at each scrape, by the thread of the endpoint."""

    def __init__(self) -> None:
        self._families: tuple[GaugeMetricFamily, ...] = ()

    def show(
        self,
        devices: Sequence[DeviceUsage],
        deployments: Sequence[DeploymentStatus],
        loads: Mapping[tuple[str, int], float],
    ) -> None:
        """Show these figures from now on."""
        offered = [([queue_name(*queue)], load) for queue, load in loads.items()]
        self._families = (
            *_of_devices(devices),
            *_of_deployments(deployments),
            _gauge("queue_offered_load_ratio", "Work that came over what can be done.", ["queue"], offered),
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The figures as they were shown last."""
        yield from self._families


def _of_devices(devices: Sequence[DeviceUsage]) -> Iterator[GaugeMetricFamily]:
    def family(name: str, text: str, values: Iterable[float | None]) -> GaugeMetricFamily:
        labels = [(one.device.id, one.device.kind.value, one.device.model) for one in devices]
        return _gauge(f"device_{name}", text, _DEVICE, zip(labels, values, strict=True))

    total = [one.device.memory_bytes for one in devices]
    free = [one.device.free_memory_bytes for one in devices]
    yield family("memory_bytes", "Memory of the device.", total)
    yield family("memory_free_bytes", "Memory that is free.", free)
    yield family("memory_used_bytes", "Memory in use, by whomever.", [a - b for a, b in zip(total, free, strict=True)])
    promised = [one.promised_bytes for one in devices]
    yield family("memory_promised_bytes", "Memory that deployments need by their plans, loaded or not yet.", promised)
    shares = [one.utilisation for one in devices]
    yield family("utilisation_ratio", "Share of the time lately in which it computed.", shares)


def _of_deployments(statuses: Sequence[DeploymentStatus]) -> Iterator[GaugeMetricFamily]:
    named = [((one.performance.deployment.name, one.performance.plan.spec.model), one) for one in statuses]

    def family(name: str, text: str, label: str, samples: Samples) -> GaugeMetricFamily:
        return _gauge(f"deployment_{name}", text, (*_DEPLOYMENT, *filter(None, [label])), samples)

    states = (
        ((*labels, state.value.lower()), float(one.performance.deployment.state is state))
        for labels, one in named
        for state in State
    )
    yield family("state", "1 for the state that it is in.", "state", states)
    serves = ((labels, float(one.serves)) for labels, one in named)
    yield family("serves", "1 if it is ready, and Triton has it loaded.", "", serves)
    shares = ((labels, one.performance.deployment.traffic_share) for labels, one in named)
    yield family("traffic_share", "Share of its queue's traffic.", "", shares)
    point = "of a full batch whose rows are half way through their context"
    predicted = ((labels, one.performance.predicted_seconds) for labels, one in named)
    yield family("predicted_step_seconds", f"Planned time of a step {point}.", "", predicted)
    measured = ((labels, one.performance.measured_seconds) for labels, one in named)
    yield family("measured_step_seconds", f"Learnt time of a step {point}.", "", measured)
    troubles = (((*labels, cause.value), float(cause in one.troubles)) for labels, one in named for cause in Cause)
    yield family("off_plan", "1 while its steps take longer than planned, or the load outgrows it.", "cause", troubles)
    recommended = ((labels, float(one.recommended)) for labels, one in named)
    yield family("recommendation", "1 while another plan would be better (WatchDeployment).", "", recommended)


def _gauge(name: str, text: str, labels: Sequence[str], samples: Samples) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"uellm_{name}", text, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family
