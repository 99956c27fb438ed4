"""GPUs and their links by NVML. What a driver does not tell is unknown or the catalogue's, never an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import pynvml
import structlog

from uellm_deployer.adapters.gpu_catalogue import catalogue
from uellm_deployer.adapters.nvml_links import NvLinks, nominal_bandwidth
from uellm_deployer.domain.gpus import GpuModel
from uellm_deployer.domain.interconnect import UNKNOWN_ATTACHMENT, Attachment, LinkRates, pcie_bandwidth
from uellm_deployer.domain.topology import Device, DeviceKind, Link

log = structlog.get_logger(__name__)
T = TypeVar("T")

_P2P_READ = 0  # the module's constant of that name is a tuple
_LEVELS = {
    pynvml.NVML_TOPOLOGY_INTERNAL: "PIX",
    pynvml.NVML_TOPOLOGY_SINGLE: "PIX",
    pynvml.NVML_TOPOLOGY_MULTIPLE: "PXB",
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: "PHB",
    pynvml.NVML_TOPOLOGY_NODE: "NODE",
    pynvml.NVML_TOPOLOGY_SYSTEM: "SYS",
}
_NODE_WORDS = 16
"""Of 64 bits, in a mask of NUMA nodes: Linux has at most 1,024."""

_MIG_SLICES = 7
"""Compute slices of a GPU that can be divided."""

# By compute capability: cores of a multiprocessor, and its dense half-precision operations in a clock.
_MULTIPROCESSOR = {
    (7, 0): (64, 1024),
    (7, 5): (64, 1024),
    (8, 0): (64, 2048),
    (8, 6): (128, 1024),
    (8, 9): (128, 1024),
    (9, 0): (128, 4096),
    (10, 0): (128, 8192),
}


def ask(default: T, call: Callable[..., T], *arguments: Any) -> T:
    """What NVML answers; `default` where the driver does not support the question, or does not know it."""
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return default


@dataclass(frozen=True, slots=True)
class _Gpu:
    """A GPU that holds layers as a whole, or in parts."""

    handle: Any
    parts: tuple[Device, ...]
    bus_id: str
    attachment: Attachment
    pcie_told: bool
    """Whether the driver told how fast its PCIe is."""


class Nvml:
    """An initialised NVML."""

    def __init__(self, sysfs: Path) -> None:
        self._sysfs = sysfs

    @staticmethod
    def open(sysfs: Path = Path("/sys")) -> Nvml | None:
        """Initialise; None if there is no driver."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            log.info("no NVIDIA driver", reason=str(error))
            return None
        return Nvml(sysfs)

    def read(self) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
        """The GPUs in PCI order, or the MIG devices of one that is divided, and a link for each pair."""
        gpus = self._gpus()
        nvlinks = NvLinks({gpu.bus_id: gpu.handle for gpu in gpus})
        links = [link for gpu in gpus for link in _links_within(gpu)]
        for a, b in combinations(gpus, 2):
            link = _link(a, b, nvlinks)
            links += [replace(link, device_a=one.id, device_b=other.id) for one in a.parts for other in b.parts]
        return tuple(device for gpu in gpus for device in gpu.parts), tuple(links)

    def utilisation(self) -> tuple[tuple[Device, float | None], ...]:
        """The same devices, with the share of the driver's last sample period (1/6 to 1 s) in which each computed.

        None where it does not tell: of MIG devices.
        """
        return tuple((part, _utilisation(part, gpu.handle)) for gpu in self._gpus() for part in gpu.parts)

    def _gpus(self) -> list[_Gpu]:
        found = (self._gpu(index) for index in range(ask(0, pynvml.nvmlDeviceGetCount)))
        return [gpu for gpu in found if gpu is not None and gpu.parts]

    def _gpu(self, index: int) -> _Gpu | None:
        """None if it fell off the bus, or another container has it."""
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
            bus_id = _text(pynvml.nvmlDeviceGetPciInfo(handle).busId)
        except pynvml.NVMLError as error:
            log.warning("a GPU does not answer", index=index, reason=str(error))
            return None
        name = _text(ask("", pynvml.nvmlDeviceGetName, handle))
        model = catalogue().find(name)
        total, free = _memory(handle, model)
        device = Device(
            id=uuid,
            kind=DeviceKind.GPU,
            model=name,
            memory_bytes=total,
            free_memory_bytes=free,
            memory_bandwidth=_memory_bandwidth(handle) or (model.memory_bandwidth if model else 0.0),
            flops=model.flops if model else _flops(handle),
            numa_node=self._numa_node(handle, bus_id),
            pci_bus_id=bus_id,
            cpu_affinity=self._sysfs_text(bus_id, "local_cpulist"),
        )
        # The greatest generation and width: the current ones drop when the link is idle.
        generation = ask(0, pynvml.nvmlDeviceGetMaxPcieLinkGeneration, handle)
        told = pcie_bandwidth(generation, ask(0, pynvml.nvmlDeviceGetMaxPcieLinkWidth, handle))
        nvlink = nominal_bandwidth(handle) or UNKNOWN_ATTACHMENT.nvlink_bandwidth
        known = model.attachment if model else replace(UNKNOWN_ATTACHMENT, nvlink_bandwidth=nvlink)
        attachment = replace(known, pcie_bandwidth=told or known.pcie_bandwidth)
        parts = _mig_devices(handle, device)
        return _Gpu(handle, (device,) if parts is None else parts, bus_id, attachment, told > 0)

    def _numa_node(self, handle: Any, bus_id: str) -> int:
        """The node of the host that is near, as NVML has it if that is one; -1: unknown.

        `nvmlDeviceGetNumaNodeId` is of the GPU's own memory, on hosts where that is a node, too.
        """
        mask: Sequence[int] = ask(
            (), pynvml.nvmlDeviceGetMemoryAffinity, handle, _NODE_WORDS, pynvml.NVML_AFFINITY_SCOPE_NODE
        )
        nodes = [64 * word + bit for word, bits in enumerate(mask) for bit in range(64) if bits >> bit & 1]
        if len(nodes) == 1:
            return nodes[0]
        text = self._sysfs_text(bus_id, "numa_node")
        node = int(text) if text.isdecimal() else -1
        return node if node >= 0 or not nodes else nodes[0]

    def _sysfs_text(self, bus_id: str, attribute: str) -> str:
        """What the kernel says of the device, whose domain it writes with four digits; empty: nothing."""
        domain, _, rest = bus_id.lower().partition(":")
        try:
            return (self._sysfs / "bus/pci/devices" / f"{domain[-4:]}:{rest}" / attribute).read_text().strip()
        except OSError:
            return ""


def _memory(handle: Any, model: GpuModel | None) -> tuple[int, int]:
    """Total and free bytes; where the driver does not tell, what the model has, and nothing free to plan with."""
    memory = ask(None, pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is None:
        return (model.memory_bytes if model else 0), 0
    return int(memory.total), int(memory.free)


def _utilisation(device: Device, handle: Any) -> float | None:
    rates = None if device.parent_id else ask(None, pynvml.nvmlDeviceGetUtilizationRates, handle)
    return None if rates is None else float(rates.gpu) / 100


def _memory_bandwidth(handle: Any) -> float:
    """Bus width times clock, two transfers a cycle; 0: unknown."""
    bits = ask(0, pynvml.nvmlDeviceGetMemoryBusWidth, handle)
    megahertz = ask(0, pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_MEM)
    return bits / 8 * megahertz * 1e6 * 2


def _flops(handle: Any) -> float:
    """Of a GPU that the catalogue does not have: by cores and clock; 0: unknown."""
    major, minor = ask((0, 0), pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    cores = ask(0, pynvml.nvmlDeviceGetNumGpuCores, handle)
    megahertz = ask(0, pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM)
    cores_each, operations = _MULTIPROCESSOR.get((major, minor), (1, 0))
    return cores / cores_each * operations * megahertz * 1e6


def _mig_devices(handle: Any, gpu: Device) -> tuple[Device, ...] | None:
    """The parts of a GPU in MIG mode, which runs nothing itself then; None: it is not in that mode."""
    mode, _ = ask([pynvml.NVML_DEVICE_MIG_DISABLE] * 2, pynvml.nvmlDeviceGetMigMode, handle)
    if mode != pynvml.NVML_DEVICE_MIG_ENABLE:
        return None
    found = (
        ask(None, pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        for index in range(ask(0, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle))
    )
    parts = (_mig_device(part, gpu) for part in found if part is not None)
    return tuple(part for part in parts if part is not None)


def _mig_device(part: Any, gpu: Device) -> Device | None:
    """Its share of the GPU: of bandwidth by memory, of arithmetic by slices. None if it is gone meanwhile."""
    uuid, memory = ask("", pynvml.nvmlDeviceGetUUID, part), ask(None, pynvml.nvmlDeviceGetMemoryInfo, part)
    if not uuid or memory is None:
        return None
    attributes = ask(None, pynvml.nvmlDeviceGetAttributes, part)
    slices = attributes.computeInstanceSliceCount if attributes else 0
    return replace(
        gpu,
        id=_text(uuid),
        model=_text(ask(gpu.model, pynvml.nvmlDeviceGetName, part)),
        memory_bytes=int(memory.total),
        free_memory_bytes=int(memory.free),
        memory_bandwidth=gpu.memory_bandwidth * memory.total / gpu.memory_bytes if gpu.memory_bytes else 0.0,
        flops=gpu.flops * slices / _MIG_SLICES,
        parent_id=gpu.id,
    )


def _links_within(gpu: _Gpu) -> list[Link]:
    """Of the parts of one GPU, which reach each other through the host only."""
    rates, attachments = LinkRates(), {part.id: gpu.attachment for part in gpu.parts}
    return [rates.link(a.id, b.id, "PHB", attachments, peer_access=False) for a, b in combinations(gpu.parts, 2)]


def _link(a: _Gpu, b: _Gpu, nvlinks: NvLinks) -> Link:
    """The link of two GPUs. MIG turns peer access off, and NVLink with it."""
    whole = not (a.parts[0].parent_id or b.parts[0].parent_id)
    status = ask(None, pynvml.nvmlDeviceGetP2PStatus, a.handle, b.handle, _P2P_READ)
    peers = whole and status == pynvml.NVML_P2P_STATUS_OK
    attachments = {a.bus_id: a.attachment, b.bus_id: b.attachment}
    if whole and (found := nvlinks.between(a.bus_id, b.bus_id)):
        link = LinkRates().link(a.bus_id, b.bus_id, f"NV{found.count}", attachments, peers)
        told = found.bandwidth > 0
        return replace(
            link,
            bandwidth=found.count * found.bandwidth if told else link.bandwidth,
            assumed=found.assumed or not told,
        )
    level = ask(None, pynvml.nvmlDeviceGetTopologyCommonAncestor, a.handle, b.handle)
    link_class = _LEVELS.get(level, "SYS")
    link = LinkRates().link(a.bus_id, b.bus_id, link_class, attachments, peers)
    return replace(link, assumed=level is None or link_class == "SYS" or not (a.pcie_told and b.pcie_told))


def _text(value: str | bytes) -> str:
    """Older releases answer with bytes."""
    return value.decode() if isinstance(value, bytes) else value
