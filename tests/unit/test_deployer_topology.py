"""NVML and the processor as devices, with a fake of the functions of `pynvml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from uellm_deployer.adapters.cpu import measured_rates, read_cpu
from uellm_deployer.adapters.machine import Machine
from uellm_deployer.adapters.nvml import Nvml


class NVMLError(Exception):
    """As pynvml's."""


@dataclass
class FakeGpu:
    uuid: str
    bus_id: str
    free: int = 70 << 30
    nvlinks: dict[int, str] = field(default_factory=dict)
    """Bus id at the other end by link number; empty: unknown."""


class FakeNvml:
    """Answers as the module does: bus ids with eight digits of domain, errors where something is not supported."""

    NVMLError = NVMLError
    NVML_NVLINK_MAX_LINKS = 36
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def __init__(self, *gpus: FakeGpu, ancestor: int = 30, peer: int = 0, bare: bool = False) -> None:
        self.gpus, self.ancestor, self.peer, self.bare = gpus, ancestor, peer, bare

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> bytes:
        return b"NVIDIA H100 80GB HBM3"  # older releases answer with bytes

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> Any:
        return SimpleNamespace(total=80 << 30, free=gpu.free)

    def nvmlDeviceGetPciInfo(self, gpu: FakeGpu) -> Any:
        return SimpleNamespace(busId=gpu.bus_id)

    def _tell(self, value: Any) -> Any:
        if self.bare:
            raise NVMLError("Not Supported")
        return value

    def nvmlDeviceGetMemoryBusWidth(self, gpu: FakeGpu) -> int:
        return self._tell(5120)

    def nvmlDeviceGetMaxClockInfo(self, gpu: FakeGpu, clock: int) -> int:
        return self._tell({1: 1980, 2: 2619}[clock])

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> list[int]:
        return self._tell([9, 0])

    def nvmlDeviceGetNumGpuCores(self, gpu: FakeGpu) -> int:
        return self._tell(16896)

    def nvmlDeviceGetNumaNodeId(self, gpu: FakeGpu) -> int:
        raise NVMLError("Not Supported")

    def nvmlDeviceGetMaxPcieLinkGeneration(self, gpu: FakeGpu) -> int:
        return self._tell(5)

    def nvmlDeviceGetMaxPcieLinkWidth(self, gpu: FakeGpu) -> int:
        return self._tell(16)

    def nvmlDeviceGetNvLinkState(self, gpu: FakeGpu, link: int) -> int:
        if link >= 18:
            raise NVMLError("Invalid Argument")
        return self._tell(int(link in gpu.nvlinks))

    def nvmlDeviceGetNvLinkRemotePciInfo(self, gpu: FakeGpu, link: int) -> Any:
        if not gpu.nvlinks[link]:
            raise NVMLError("Not Supported")
        return SimpleNamespace(busId=gpu.nvlinks[link])

    def nvmlDeviceGetNvLinkVersion(self, gpu: FakeGpu, link: int) -> int:
        return 6

    def nvmlDeviceGetTopologyCommonAncestor(self, a: FakeGpu, b: FakeGpu) -> int:
        return self._tell(self.ancestor)

    def nvmlDeviceGetP2PStatus(self, a: FakeGpu, b: FakeGpu, index: int) -> int:
        assert index == 0
        return self._tell(self.peer)


A, B = "00000000:07:00.0", "00000000:0A:00.0"


def read(*gpus, tmp_path=None, **options):
    nvml = Nvml.open(FakeNvml(*gpus, **options), *([tmp_path] if tmp_path else []))
    assert nvml is not None
    return nvml.read()


def test_two_gpus_over_pcie(tmp_path):
    numa = tmp_path / "bus/pci/devices/0000:0a:00.0/numa_node"
    numa.parent.mkdir(parents=True)
    numa.write_text("1\n")
    (a, b), (link,) = read(FakeGpu("GPU-a", A), FakeGpu("GPU-b", B, free=1 << 30), tmp_path=tmp_path)
    assert (a.id, a.model, a.pci_bus_id) == ("GPU-a", "NVIDIA H100 80GB HBM3", A)
    assert (b.memory_bytes, b.free_memory_bytes) == (80 << 30, 1 << 30)
    assert a.memory_bandwidth == pytest.approx(3.35e12, rel=0.01)  # an H100's data sheet
    assert a.flops == pytest.approx(989e12, rel=0.1)
    assert (a.numa_node, b.numa_node) == (-1, 1)
    assert (link.link_class, link.peer_access) == ("PHB", True)
    assert link.bandwidth == pytest.approx(63e9, rel=0.01)


@pytest.mark.parametrize(
    ("ancestor", "name"), [(0, "PIX"), (10, "PIX"), (20, "PXB"), (30, "PHB"), (40, "NODE"), (50, "SYS")]
)
def test_link_classes(ancestor, name):
    _, (link,) = read(FakeGpu("GPU-a", A), FakeGpu("GPU-b", B), ancestor=ancestor, peer=5)
    assert (link.link_class, link.peer_access) == (name, False)
    assert (link.bandwidth < 60e9) == (name == "SYS")


@pytest.mark.parametrize("other_end", ["0000:0a:00.0", "0000000A:00:00.0", ""])
def test_nvlinks_lead_to_the_peer_or_to_a_switch(other_end):
    """Bus ids vary in form; an unknown end, as in a virtual machine, counts as a switch."""
    back = A if other_end.startswith("0000:0a") else other_end
    a = FakeGpu("GPU-a", A, nvlinks=dict.fromkeys(range(4), other_end))
    b = FakeGpu("GPU-b", B, nvlinks=dict.fromkeys(range(6), back))
    _, (link,) = read(a, b)
    assert link.link_class == "NV4"
    assert link.bandwidth == 4 * 25e9


def test_what_a_driver_does_not_tell_is_unknown():
    (a, _), (link,) = read(FakeGpu("GPU-a", A), FakeGpu("GPU-b", B), bare=True)
    assert (a.memory_bandwidth, a.flops) == (0, 0)
    assert (link.link_class, link.bandwidth, link.peer_access) == ("SYS", 0, False)


def test_no_driver_is_no_error():
    class Absent(FakeNvml):
        def nvmlInit(self) -> None:
            raise NVMLError("NVML Shared Library Not Found")

    assert Nvml.open(Absent()) is None


async def test_a_machine_has_its_gpus_and_its_processor():
    topology = await Machine(Nvml.open(FakeNvml(FakeGpu("GPU-a", A)))).read()
    assert [device.id for device in topology.devices] == ["GPU-a", "cpu0"]
    assert (topology.source, topology.framework_name("GPU-a"), topology.framework_name("cpu0")) == (
        "nvml",
        "cuda:0",
        "cpu",
    )
    assert (await Machine(None).read()).source == "cpu"


def test_the_processor_is_measured():
    bandwidth, flops = measured_rates()
    assert 1e8 < bandwidth < 5e12
    assert 1e8 < flops < 1e15


def test_a_control_group_limits_the_memory(tmp_path):
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("700000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    device = read_cpu(tmp_path)
    assert (device.memory_bytes, device.free_memory_bytes) == (1_000_000, 400_000)
    (group / "memory.max").write_text("max\n")
    assert read_cpu(tmp_path).memory_bytes > 1_000_000
    assert device.numa_node == -1
