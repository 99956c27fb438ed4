"""Devices of one machine and the links between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class DeviceKind(StrEnum):
    """What a device is."""

    GPU = "gpu"
    CPU = "cpu"
    NIC = "nic"


@dataclass(frozen=True, slots=True)
class Device:
    """A device that can hold layers, or that links such devices. Sizes in bytes; a rate of 0 is unknown."""

    id: str
    kind: DeviceKind
    model: str
    memory_bytes: int
    free_memory_bytes: int
    memory_bandwidth: float = 0.0
    """Bytes a second, peak."""
    flops: float = 0.0
    """Operations a second, peak: dense half precision, on a CPU single precision."""
    numa_node: int = -1
    """Node of the host's memory that it is near; -1: unknown."""
    pci_bus_id: str = ""
    cpu_affinity: str = ""
    """Processors of the host that it is near, as ranges: `0-23,48-71`; empty: unknown."""
    parent_id: str = ""
    """Of a MIG device: the GPU that it is a part of, which is no device itself then."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link between two devices, the same in both directions."""

    device_a: str
    device_b: str
    link_class: str
    """As nvidia-smi names it: `NV{n}`, `PIX`, `PXB`, `PHB`, `NODE`, `SYS`."""
    bandwidth: float
    """Bytes a second in one direction."""
    latency_seconds: float
    peer_access: bool
    assumed: bool = False
    """Whether the bandwidth is a default of the class, and neither told by the driver nor measured."""


@dataclass(frozen=True, slots=True)
class Topology:
    """One machine."""

    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    source: str
    """Where it was read from: `nvml`, `cpu`, `file`."""
    warnings: tuple[str, ...] = ()
    """What was not understood, and what was taken instead."""

    def device(self, device_id: str) -> Device | None:
        """The device of that id."""
        return next((device for device in self.devices if device.id == device_id), None)

    def framework_name(self, device_id: str) -> str:
        """What an engine calls the device: `cpu`, or `cuda:{ordinal}` among the GPUs as they are listed.

        Parts of a GPU have no ordinals: on a machine with MIG devices it is `cuda:{UUID}` for all.
        """
        gpus = [device for device in self.devices if device.kind is DeviceKind.GPU]
        ids = [gpu.id for gpu in gpus]
        if device_id not in ids:
            return "cpu"
        return f"cuda:{device_id}" if any(gpu.parent_id for gpu in gpus) else f"cuda:{ids.index(device_id)}"

    def with_promised(self, promised: Mapping[str, int]) -> Topology:
        """The same, its free memory less what other deployments may still grow into (bytes by device id)."""
        devices = tuple(
            replace(device, free_memory_bytes=max(0, device.free_memory_bytes - promised.get(device.id, 0)))
            for device in self.devices
        )
        return replace(self, devices=devices)


def with_twin(topology: Topology, device_id: str) -> Topology:
    """With one more device like one that is there: linked as it is, and to it by the best link that it has."""
    (device,) = (one for one in topology.devices if one.id == device_id)
    name = device_id + "+"
    own = [link for link in topology.links if device_id in (link.device_a, link.device_b)]
    links = [
        replace(link, device_a=name) if link.device_a == device_id else replace(link, device_b=name) for link in own
    ]
    if own:
        best = max(own, key=lambda link: (link.bandwidth, -link.latency_seconds, link.peer_access))
        links.append(replace(best, device_a=device_id, device_b=name))
    return replace(topology, devices=(*topology.devices, replace(device, id=name)), links=(*topology.links, *links))
