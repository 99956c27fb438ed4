"""A fake of the driver library `libnvidia-ml.so.1`: its C functions, called by the real `pynvml` through ctypes.

They take the same arguments, fill in the same structs and return the same codes; a function that the class lacks, or
that `missing` names, is not found, as in an older driver.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest

GIB = 1 << 30
OK = pynvml.NVML_SUCCESS
INVALID, NOT_SUPPORTED, NOT_FOUND = 2, 3, 6

LINK_TO_GPU, LINK_TO_NPU, LINK_TO_SWITCH, LINK_TO_UNKNOWN = 0, 1, 2, 255


@dataclass
class NvLink:
    """An NVLink of a GPU; `kind` None: this driver does not tell, `bus_id` empty: nor what is there."""

    kind: int | None = LINK_TO_SWITCH
    bus_id: str = ""
    active: bool = True
    wired: bool = True


@dataclass
class Mig:
    uuid: str
    total: int
    free: int
    slices: int
    name: str = "NVIDIA A100-SXM4-80GB MIG 3g.40gb"


@dataclass
class Gpu:
    uuid: str
    bus_id: str
    name: str = "NVIDIA H100 80GB HBM3"
    total: int = 80 * GIB
    free: int = 70 * GIB
    capability: tuple[int, int] = (9, 0)
    cores: int = 16896
    clocks: dict[int, int] = field(default_factory=lambda: {1: 1980, 2: 2619})
    bus_width: int = 5120
    pcie: tuple[int, int] = (5, 16)
    current_pcie: tuple[int, int] = (1, 4)
    """What the link is at while nothing happens."""
    affinity: tuple[int, ...] | None = None
    """NUMA nodes of the host; None: not supported."""
    own_node: int | None = None
    """NUMA node that the GPU's memory is."""
    nvlinks: list[NvLink] = field(default_factory=list)
    nvlink_version: int = 6
    nvlink_speed: int = 0
    """MB/s; 0: not supported."""
    migs: list[Mig] | None = None
    """None: not in MIG mode."""
    busy: int = 0
    """Percent of the time."""
    lost: bool = False
    unsupported: set[str] = field(default_factory=set)
    """Functions that answer "not supported" of this GPU."""


class NvmlDriver:
    """Some GPUs. `levels` and `peers` are by pair of UUIDs, in either order."""

    def __init__(
        self,
        *gpus: Gpu,
        level: int = 30,
        peer: int = 0,
        levels: dict[frozenset[str], int] | None = None,
        missing: set[str] | None = None,
        init: int = OK,
    ) -> None:
        self.gpus, self.level, self.peer, self.init = gpus, level, peer, init
        self.levels = levels or {}
        self.missing = missing or set()
        self._handles: dict[int, Gpu | Mig] = {}
        self._keep: dict[int, Any] = {}

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml"):
            if name in self.missing:
                raise AttributeError(name)
            return _Checked(self, name, super().__getattribute__(name))
        return super().__getattribute__(name)

    def nvmlInitWithFlags(self, flags):
        return self.init

    def nvmlDeviceGetCount_v2(self, count):
        return _put(count, len(self.gpus))

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        gpu = self.gpus[index.value]
        return 15 if gpu.lost else self._hand_out(gpu, handle)

    def nvmlDeviceGetUUID(self, device, buffer, size):
        buffer.value = device.uuid.encode()
        return OK

    def nvmlDeviceGetName(self, device, buffer, size):
        buffer.value = device.name.encode()
        return OK

    def nvmlDeviceGetMemoryInfo(self, device, memory):
        memory._obj.total, memory._obj.free = device.total, device.free
        return OK

    def nvmlDeviceGetUtilizationRates(self, device, rates):
        if isinstance(device, Mig) or device.migs is not None:
            return NOT_SUPPORTED
        rates._obj.gpu, rates._obj.memory = device.busy, 0
        return OK

    def nvmlDeviceGetPciInfo_v3(self, gpu, info):
        if isinstance(gpu, Mig):
            return INVALID
        info._obj.busId = gpu.bus_id.encode()
        return OK

    def nvmlDeviceGetMemoryBusWidth(self, gpu, width):
        return _put(width, gpu.bus_width)

    def nvmlDeviceGetMaxClockInfo(self, gpu, clock, megahertz):
        return _put(megahertz, gpu.clocks[clock.value])

    def nvmlDeviceGetCudaComputeCapability(self, gpu, major, minor):
        _put(major, gpu.capability[0])
        return _put(minor, gpu.capability[1])

    def nvmlDeviceGetNumGpuCores(self, gpu, cores):
        return _put(cores, gpu.cores)

    def nvmlDeviceGetMaxPcieLinkGeneration(self, gpu, generation):
        return _put(generation, gpu.pcie[0])

    def nvmlDeviceGetMaxPcieLinkWidth(self, gpu, width):
        return _put(width, gpu.pcie[1])

    def nvmlDeviceGetCurrPcieLinkGeneration(self, gpu, generation):
        return _put(generation, gpu.current_pcie[0])

    def nvmlDeviceGetCurrPcieLinkWidth(self, gpu, width):
        return _put(width, gpu.current_pcie[1])

    def nvmlDeviceGetNumaNodeId(self, gpu, node):
        return NOT_SUPPORTED if gpu.own_node is None else _put(node, gpu.own_node)

    def nvmlDeviceGetMemoryAffinity(self, gpu, words, mask, scope):
        if gpu.affinity is None:
            return NOT_SUPPORTED
        for node in gpu.affinity:
            mask._obj[node // 64] |= 1 << node % 64
        return OK

    def nvmlDeviceGetNvLinkState(self, gpu, link, active):
        if not gpu.nvlinks:
            return NOT_SUPPORTED
        if link >= len(gpu.nvlinks):
            return INVALID
        return _put(active, int(gpu.nvlinks[link].active)) if gpu.nvlinks[link].wired else NOT_SUPPORTED

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, gpu, link, kind):
        told = gpu.nvlinks[link].kind
        return NOT_SUPPORTED if told is None else _put(kind, told)

    def nvmlDeviceGetNvLinkRemotePciInfo_v2(self, gpu, link, info):
        if not gpu.nvlinks[link].bus_id:
            return NOT_SUPPORTED
        info._obj.busId = gpu.nvlinks[link].bus_id.encode()
        return OK

    def nvmlDeviceGetNvLinkVersion(self, gpu, link, version):
        return _put(version, gpu.nvlink_version) if link < len(gpu.nvlinks) else INVALID

    def nvmlDeviceGetFieldValues(self, gpu, count, values):
        """Succeeds as a whole; each value has a code of its own."""
        for value in values._obj:
            told = gpu.nvlink_speed and value.fieldId == pynvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON
            value.nvmlReturn = OK if told else NOT_SUPPORTED
            value.valueType, value.value.uiVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, gpu.nvlink_speed
        return OK

    def nvmlDeviceGetTopologyCommonAncestor(self, a, b, level):
        return _put(level, self.levels.get(frozenset((a.uuid, b.uuid)), self.level))

    def nvmlDeviceGetP2PStatus(self, a, b, index, status):
        assert index == pynvml.NVML_P2P_CAPS_INDEX_READ[0]
        return _put(status, self.peer)

    def nvmlDeviceGetMigMode(self, gpu, current, pending):
        _put(pending, int(gpu.migs is not None))
        return _put(current, int(gpu.migs is not None))

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu, count):
        return _put(count, 7)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu, index, handle):
        if index.value >= len(gpu.migs):
            return NOT_FOUND
        return self._hand_out(gpu.migs[index.value], handle)

    def nvmlDeviceGetAttributes_v2(self, mig, attributes):
        attributes._obj.computeInstanceSliceCount = mig.slices
        return OK

    def _hand_out(self, device: Gpu | Mig, handle: Any) -> int:
        target = pynvml.struct_c_nvmlDevice_t()
        self._keep[ctypes.addressof(target)] = target
        self._handles[ctypes.addressof(target)] = device
        handle._obj.contents = target
        return OK

    def device(self, argument: Any) -> Any:
        """What a handle stands for; other arguments are handed on."""
        if isinstance(argument, pynvml.c_nvmlDevice_t):
            return self._handles[ctypes.addressof(argument.contents)]
        return argument


class _Checked:
    """A function of the library: resolves handles, and refuses what a GPU does not support."""

    def __init__(self, driver: NvmlDriver, name: str, function: Callable[..., int]) -> None:
        self._driver, self._name, self._function = driver, name, function

    def __call__(self, *arguments: Any) -> int:
        resolved = [self._driver.device(argument) for argument in arguments]
        if any(isinstance(one, Gpu) and self._name in one.unsupported for one in resolved):
            return NOT_SUPPORTED
        return self._function(*resolved)


def _put(reference: Any, value: int) -> int:
    reference._obj.value = value
    return OK


def install(monkeypatch: pytest.MonkeyPatch, driver: NvmlDriver | None) -> None:
    """Have `pynvml` call this driver; None: there is none on this machine."""
    monkeypatch.setattr(pynvml, "nvmlLib", driver)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    if driver is None:

        def absent(*_: object) -> None:
            raise OSError("libnvidia-ml.so.1: cannot open shared object file")

        monkeypatch.setattr(pynvml, "CDLL", absent)
