"""The devices that Triton's process sees, in its own order: CUDA's ordinals count within `CUDA_VISIBLE_DEVICES`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from uellm_deployer.domain.topology import Device, DeviceKind, Topology

VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
PCI_ORDER = "PCI_BUS_ID"


def visible(topology: Topology, environment: Mapping[str, str]) -> Topology:
    """The same without the GPUs that a process with this environment does not see, the others in its order."""
    if VARIABLE not in environment:
        return topology
    gpus = [device for device in topology.devices if device.kind is DeviceKind.GPU]
    entries = [entry.strip() for entry in environment[VARIABLE].split(",")]
    seen = tuple(dict.fromkeys(_named(entries, gpus)))
    devices = (*seen, *(device for device in topology.devices if device.kind is not DeviceKind.GPU))
    ids = {device.id for device in devices}
    return replace(
        topology,
        devices=devices,
        links=tuple(link for link in topology.links if {link.device_a, link.device_b} <= ids),
        warnings=(*topology.warnings, *_unsure(entries, gpus, environment)),
    )


def _named(entries: Iterable[str], gpus: Sequence[Device]) -> Iterator[Device]:
    """As CUDA reads the list: ordinals, or beginnings of UUIDs; the first entry that names none ends it."""
    for entry in entries:
        if entry.isdecimal():
            found = gpus[int(entry) :][:1]
        else:
            found = [gpu for gpu in gpus if entry and gpu.id.startswith(entry)]
        if len(found) != 1:
            return
        yield found[0]


def _unsure(entries: Iterable[str], gpus: Sequence[Device], environment: Mapping[str, str]) -> Iterator[str]:
    numbered = any(entry.isdecimal() for entry in entries)
    if numbered and environment.get(ORDER) != PCI_ORDER and len({gpu.model for gpu in gpus}) > 1:
        yield (
            f"{VARIABLE} of Triton has numbers, and its GPUs differ: CUDA numbers the fastest first unless {ORDER} is "
            f"{PCI_ORDER}, which was taken for granted. Set it, or name the GPUs by UUID"
        )
