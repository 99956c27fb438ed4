"""GPUs and their links by NVML. What a driver does not tell is unknown, never an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import pynvml
import structlog

from uellm_deployer.domain.topology import Device, DeviceKind, Link

log = structlog.get_logger(__name__)
T = TypeVar("T")

LATENCY_SECONDS = 10e-6
"""Of a transfer between two devices: AIConfigurator's point-to-point latency."""

CROSS_SOCKET_SHARE = 0.6
"""Share of a PCIe link's bandwidth left across sockets, where the socket link is shared."""

_ACTIVE = 1
_P2P_READ = 0  # the module's constant of that name is a tuple
_P2P_OK = 0
_LEVELS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}

# Bytes a second and direction: of one lane by PCIe generation, of one NVLink by NVML's version number.
_PCIE_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
_NVLINK = {1: 20e9, 2: 25e9, 3: 25e9, 4: 25e9, 5: 25e9, 6: 25e9, 7: 50e9, 8: 50e9}

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


@dataclass(frozen=True, slots=True)
class _Gpu:
    handle: Any
    device: Device
    pcie_bandwidth: float


class Nvml:
    """An initialised NVML."""

    def __init__(self, nvml: Any, sysfs: Path) -> None:
        self._nvml = nvml
        self._sysfs = sysfs

    @staticmethod
    def open(nvml: Any = None, sysfs: Path = Path("/sys")) -> Nvml | None:
        """Initialise; None if there is no driver. `nvml` is the module `pynvml`."""
        if nvml is None:
            nvml = pynvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            log.info("no NVIDIA driver", reason=str(error))
            return None
        return Nvml(nvml, sysfs)

    def read(self) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
        """The GPUs in PCI order, and a link for each pair."""
        gpus = [self._gpu(index) for index in range(self._nvml.nvmlDeviceGetCount())]
        nvlinks = self._nvlinks(gpus)
        links = tuple(self._link(a, b, nvlinks) for a, b in combinations(gpus, 2))
        return tuple(gpu.device for gpu in gpus), links

    def _ask(self, default: T, call: Callable[..., T], *arguments: Any) -> T:
        try:
            return call(*arguments)
        except self._nvml.NVMLError:
            return default

    def _gpu(self, index: int) -> _Gpu:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        bus_id = _text(nvml.nvmlDeviceGetPciInfo(handle).busId)
        device = Device(
            id=_text(nvml.nvmlDeviceGetUUID(handle)),
            kind=DeviceKind.GPU,
            model=_text(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=int(memory.total),
            free_memory_bytes=int(memory.free),
            memory_bandwidth=self._memory_bandwidth(handle),
            flops=self._flops(handle),
            numa_node=self._numa_node(handle, bus_id),
            pci_bus_id=bus_id,
        )
        # The greatest generation and width: the current ones drop when the link is idle.
        generation = self._ask(0, nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle)
        width = self._ask(0, nvml.nvmlDeviceGetMaxPcieLinkWidth, handle)
        return _Gpu(handle, device, _PCIE_LANE.get(generation, 0.0) * width)

    def _memory_bandwidth(self, handle: Any) -> float:
        """Bus width times clock, two transfers a cycle."""
        bits = self._ask(0, self._nvml.nvmlDeviceGetMemoryBusWidth, handle)
        megahertz = self._ask(0, self._nvml.nvmlDeviceGetMaxClockInfo, handle, self._nvml.NVML_CLOCK_MEM)
        return bits / 8 * megahertz * 1e6 * 2

    def _flops(self, handle: Any) -> float:
        major, minor = self._ask((0, 0), self._nvml.nvmlDeviceGetCudaComputeCapability, handle)
        cores = self._ask(0, self._nvml.nvmlDeviceGetNumGpuCores, handle)
        megahertz = self._ask(0, self._nvml.nvmlDeviceGetMaxClockInfo, handle, self._nvml.NVML_CLOCK_SM)
        cores_each, operations = _MULTIPROCESSOR.get((major, minor), (1, 0))
        return cores / cores_each * operations * megahertz * 1e6

    def _numa_node(self, handle: Any, bus_id: str) -> int:
        node = self._ask(-1, self._nvml.nvmlDeviceGetNumaNodeId, handle)
        if node >= 0:
            return node
        domain, _, rest = bus_id.lower().partition(":")
        try:
            return int((self._sysfs / "bus/pci/devices" / f"{domain[-4:]}:{rest}" / "numa_node").read_text())
        except (OSError, ValueError):
            return -1

    def _nvlinks(self, gpus: list[_Gpu]) -> dict[str, Counter[str]]:
        """Active NVLinks of each GPU, by the bus id at the other end; those that end at no GPU under `switch`.

        In a virtual machine the switch may be invisible, so an unknown end counts as one.
        """
        nvml, bus_ids = self._nvml, {_bus_key(gpu.device.pci_bus_id) for gpu in gpus}
        found: dict[str, Counter[str]] = {}
        for gpu in gpus:
            ends: Counter[str] = Counter()
            for number in range(nvml.NVML_NVLINK_MAX_LINKS):
                if self._ask(0, nvml.nvmlDeviceGetNvLinkState, gpu.handle, number) != _ACTIVE:
                    continue
                remote = self._ask(None, nvml.nvmlDeviceGetNvLinkRemotePciInfo, gpu.handle, number)
                key = _bus_key(_text(remote.busId)) if remote else ""
                ends[key if key in bus_ids else "switch"] += 1
            found[gpu.device.id] = ends
        return found

    def _link(self, a: _Gpu, b: _Gpu, nvlinks: dict[str, Counter[str]]) -> Link:
        nvml = self._nvml
        ends_a, ends_b = nvlinks[a.device.id], nvlinks[b.device.id]
        count = ends_a[_bus_key(b.device.pci_bus_id)] or min(ends_a["switch"], ends_b["switch"])
        peer = self._ask(None, nvml.nvmlDeviceGetP2PStatus, a.handle, b.handle, _P2P_READ) == _P2P_OK
        if count:
            version = self._ask(0, nvml.nvmlDeviceGetNvLinkVersion, a.handle, 0)
            link_class, bandwidth = f"NV{count}", count * _NVLINK.get(version, _NVLINK[1])
        else:
            level = self._ask(50, nvml.nvmlDeviceGetTopologyCommonAncestor, a.handle, b.handle)
            link_class = _LEVELS.get(level, "SYS")
            bandwidth = min(a.pcie_bandwidth, b.pcie_bandwidth) * (CROSS_SOCKET_SHARE if link_class == "SYS" else 1)
        return Link(a.device.id, b.device.id, link_class, bandwidth, LATENCY_SECONDS, peer)


def _text(value: str | bytes) -> str:
    """Older releases answer with bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _bus_key(bus_id: str) -> str:
    """Bus ids come with four or eight digits of domain, in either case."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain or '0', 16):x}:{rest}"
