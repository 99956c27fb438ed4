"""GPUs and links as the driver tells them, through the real `pynvml` and a fake driver library."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from uellm_deployer.adapters.machine import Machine
from uellm_deployer.adapters.nvml import Nvml
from uellm_deployer.domain.topology import Device, Link

from tests.support.nvml_driver import (
    GIB,
    LINK_TO_GPU,
    LINK_TO_NPU,
    LINK_TO_SWITCH,
    LINK_TO_UNKNOWN,
    Gpu,
    Mig,
    NvLink,
    NvmlDriver,
    install,
)

A, B = "00000000:07:00.0", "00000000:0A:00.0"
TELLS_NOTHING = {
    "nvmlDeviceGetName",
    "nvmlDeviceGetMemoryBusWidth",
    "nvmlDeviceGetMaxClockInfo",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetNumGpuCores",
    "nvmlDeviceGetMaxPcieLinkGeneration",
    "nvmlDeviceGetMaxPcieLinkWidth",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetTopologyCommonAncestor",
    "nvmlDeviceGetP2PStatus",
    "nvmlDeviceGetMemoryInfo",
}


@pytest.fixture
def read(monkeypatch, tmp_path):
    def read(*gpus: Gpu, **options) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
        install(monkeypatch, NvmlDriver(*gpus, **options))
        nvml = Nvml.open(tmp_path)
        assert nvml is not None
        return nvml.read()

    return read


def sysfs(root: Path, bus_id: str, **attributes: str) -> None:
    folder = root / "bus/pci/devices" / bus_id
    folder.mkdir(parents=True)
    for name, text in attributes.items():
        (folder / name).write_text(text + "\n")


async def test_how_the_machine_is_used(monkeypatch, tmp_path):
    """A MIG device's utilisation is not told; the GPU that it is a part of is no device."""
    part = Mig("MIG-1", 40 * GIB, 30 * GIB, 3)
    silent = Gpu("GPU-c", "00000000:0B:00.0", unsupported={"nvmlDeviceGetUtilizationRates"})
    driver = NvmlDriver(Gpu("GPU-a", A, busy=37, free=GIB), Gpu("GPU-b", B, migs=[part]), silent)
    install(monkeypatch, driver)
    *gpus, cpu = await Machine(Nvml.open(tmp_path)).usage()
    assert [(one.device.id, one.utilisation) for one in gpus] == [("GPU-a", 0.37), ("MIG-1", None), ("GPU-c", None)]
    assert [one.device.free_memory_bytes for one in gpus] == [GIB, 30 * GIB, 70 * GIB]
    assert (cpu.device.id, cpu.device.memory_bandwidth) == ("cpu0", 0.0)
    assert 0 <= cpu.utilisation <= 1
    assert 0 < cpu.device.free_memory_bytes < cpu.device.memory_bytes


async def test_the_processors_utilisation_is_that_since_the_last_look():
    machine = Machine(None)
    await machine.usage()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    (cpu,) = await machine.usage()
    assert cpu.utilisation > 0.02, "this process alone took a core for the while"


def test_two_gpus_over_pcie(read, tmp_path):
    sysfs(tmp_path, "0000:0a:00.0", numa_node="1", local_cpulist="24-47,72-95")
    (a, b), (link,) = read(Gpu("GPU-a", A), Gpu("GPU-b", B, free=GIB))
    assert (a.id, a.model, a.pci_bus_id) == ("GPU-a", "NVIDIA H100 80GB HBM3", A)
    assert (b.memory_bytes, b.free_memory_bytes) == (80 * GIB, GIB)
    assert a.memory_bandwidth == pytest.approx(3.35e12, rel=0.01)  # an H100's data sheet
    assert a.flops == pytest.approx(989e12, rel=0.01)
    assert (a.numa_node, b.numa_node) == (-1, 1)
    assert (a.cpu_affinity, b.cpu_affinity) == ("", "24-47,72-95")
    assert (link.link_class, link.peer_access, link.assumed) == ("PHB", True, False)
    assert link.bandwidth == pytest.approx(63e9, rel=0.01)  # not that of the idle link


@pytest.mark.parametrize(
    ("level", "name"), [(0, "PIX"), (10, "PIX"), (20, "PXB"), (30, "PHB"), (40, "NODE"), (50, "SYS")]
)
def test_link_classes(read, level, name):
    _, (link,) = read(Gpu("GPU-a", A), Gpu("GPU-b", B), level=level, peer=2)
    assert (link.link_class, link.peer_access) == (name, False)
    assert (link.bandwidth < 60e9, link.assumed) == (name == "SYS", name == "SYS")


def test_the_numa_node_is_the_hosts_and_not_the_gpus_own(read, tmp_path):
    """A Grace host: the GPU's memory is node 4, the nodes near it are 0 and the empty ones of its MIG devices."""
    sysfs(tmp_path, "0000:0a:00.0", numa_node="-1")
    (a, b), _ = read(Gpu("GPU-a", A, own_node=4, affinity=(65,)), Gpu("GPU-b", B, own_node=12, affinity=(1, 13, 14)))
    assert (a.numa_node, b.numa_node) == (65, 1)


def links(count: int, kind: int | None, bus_id: str = "") -> list[NvLink]:
    return [NvLink(kind, bus_id) for _ in range(count)]


@pytest.mark.parametrize("to_b", ["0000:0a:00.0", "00000000:0A:00.0"])
@pytest.mark.parametrize("kind", [LINK_TO_GPU, None])
def test_links_to_the_peer_count_as_they_are(read, to_b, kind):
    """Bus ids vary in form; old drivers don't tell what kind of device is there."""
    others = [NvLink(kind, to_b, active=False), NvLink(wired=False)]
    a = Gpu("GPU-a", A, nvlinks=[*others, *links(2, kind, to_b)])
    _, (link,) = read(a, Gpu("GPU-b", B, nvlinks=links(2, kind, A)))
    assert (link.link_class, link.bandwidth, link.assumed) == ("NV2", 2 * 25e9, True)


def test_links_to_switches_count_as_many_as_both_have(read):
    a = Gpu("GPU-a", A, nvlinks=links(18, LINK_TO_SWITCH, "00000000:C1:00.0"), nvlink_speed=26562)
    b = Gpu("GPU-b", B, nvlinks=links(16, LINK_TO_SWITCH), nvlink_speed=26562)
    _, (link,) = read(a, b)
    assert (link.link_class, link.assumed) == ("NV16", False)
    assert link.bandwidth == pytest.approx(16 * 26.562e9)


def test_a_switch_that_a_virtual_machine_hides_is_assumed(read):
    hidden = links(12, LINK_TO_UNKNOWN)
    _, (link,) = read(Gpu("a", A, nvlinks=hidden, nvlink_speed=25000), Gpu("b", B, nvlinks=hidden, nvlink_speed=25000))
    assert (link.link_class, link.bandwidth, link.assumed) == ("NV12", 300e9, True)


@pytest.mark.parametrize(("kind", "bus_id"), [(LINK_TO_GPU, "00000000:FF:00.0"), (LINK_TO_NPU, "")])
def test_links_to_gpus_that_are_not_here_or_to_a_processor_link_nobody(read, kind, bus_id):
    """Two GPUs of a cube mesh, the others masked: no link of theirs leads to the other."""
    elsewhere = links(6, kind, bus_id)
    _, (link,) = read(Gpu("GPU-a", A, nvlinks=elsewhere), Gpu("GPU-b", B, nvlinks=elsewhere), level=50)
    assert link.link_class == "SYS"


def test_the_catalogue_knows_bridges_that_the_version_does_not(read):
    """NVLink 3, but of 14 GB/s a link."""
    a40 = {"name": "NVIDIA A40", "nvlink_version": 5}
    pair = (Gpu("a", A, nvlinks=links(4, LINK_TO_GPU, B), **a40), Gpu("b", B, nvlinks=links(4, LINK_TO_GPU, A), **a40))
    assert read(*pair)[1][0].bandwidth == 4 * 14.0625e9


def test_a_gpu_that_the_catalogue_does_not_know(read):
    new = {"name": "NVIDIA Next", "nvlink_version": 7}
    a, b = Gpu("a", A, nvlinks=links(2, 0, B), **new), Gpu("b", B, nvlinks=links(2, 0, A), **new)
    (device, _), (link,) = read(a, b)
    assert device.flops == pytest.approx(1071e12, rel=0.01)  # 132 multiprocessors of 4,096 at 1.98 GHz
    assert link.bandwidth == 2 * 50e9


def test_what_a_driver_does_not_tell_is_the_catalogues(read):
    silent = {
        "nvmlDeviceGetMemoryBusWidth",
        "nvmlDeviceGetMaxPcieLinkGeneration",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetNumGpuCores",
    }
    (a, _), (link,) = read(Gpu("a", A, unsupported=silent), Gpu("b", B, unsupported=silent))
    assert (a.memory_bandwidth, a.memory_bytes, a.free_memory_bytes) == (3350e9, 81559 << 20, 0)
    assert (link.bandwidth, link.assumed) == (pytest.approx(63e9, rel=0.01), True)


def test_what_nobody_knows_is_unknown(read):
    (a, _), (link,) = read(Gpu("a", A, unsupported=TELLS_NOTHING), Gpu("b", B, unsupported=TELLS_NOTHING))
    assert (a.model, a.memory_bandwidth, a.flops, a.memory_bytes, a.numa_node) == ("", 0, 0, 0, -1)
    assert (link.link_class, link.peer_access, link.assumed) == ("SYS", False, True)
    assert 0 < link.bandwidth < 10e9


def test_an_old_driver_lacks_functions(read):
    lacking = {"nvmlDeviceGetMemoryAffinity", "nvmlDeviceGetFieldValues", "nvmlDeviceGetNvLinkRemoteDeviceType"}
    a, b = Gpu("a", A, nvlinks=links(4, 0, B)), Gpu("b", B, nvlinks=links(4, 0, A))
    _, (link,) = read(a, b, missing=lacking)
    assert link.link_class == "NV4"


def test_a_lost_gpu_is_left_out(read):
    devices, found = read(Gpu("a", A, lost=True), Gpu("b", B))
    assert ([device.id for device in devices], found) == (["b"], ())


def test_mig_devices_stand_for_their_gpu(read):
    half, small = Mig("MIG-1", 40 * GIB, 39 * GIB, 3), Mig("MIG-2", 10 * GIB, 10 * GIB, 1)
    divided = Gpu("GPU-a", A, "NVIDIA A100-SXM4-80GB", migs=[half, small], affinity=(1,), nvlinks=links(12, 2))
    whole = Gpu("GPU-b", B, nvlinks=links(12, 2))
    (one, two, other), found = read(divided, whole, level=20)
    assert [one.id, two.id, other.id] == ["MIG-1", "MIG-2", "GPU-b"]
    assert (one.parent_id, other.parent_id, one.pci_bus_id, one.numa_node) == ("GPU-a", "", A, 1)
    assert (one.memory_bytes, one.free_memory_bytes) == (40 * GIB, 39 * GIB)
    assert one.memory_bandwidth == pytest.approx(3.35e12 / 2, rel=0.01)
    assert two.flops == pytest.approx(312e12 / 7)
    classes = {(link.device_a, link.device_b): (link.link_class, link.peer_access) for link in found}
    assert classes == {
        ("MIG-1", "MIG-2"): ("PHB", False),
        ("MIG-1", "GPU-b"): ("PXB", False),
        ("MIG-2", "GPU-b"): ("PXB", False),
    }


def test_mig_mode_without_instances_leaves_nothing_to_run_on(read):
    devices, found = read(Gpu("GPU-a", A, migs=[]), Gpu("GPU-b", B))
    assert ([device.id for device in devices], found) == (["GPU-b"], ())


@pytest.mark.parametrize("driver", [None, NvmlDriver(init=9)])
def test_no_driver_is_no_error(monkeypatch, driver):
    install(monkeypatch, driver)
    assert Nvml.open() is None


async def test_a_machine_has_its_gpus_and_its_processor(monkeypatch):
    install(monkeypatch, NvmlDriver(Gpu("GPU-a", A)))
    topology = await Machine(Nvml.open()).read()
    assert [device.id for device in topology.devices] == ["GPU-a", "cpu0"]
    assert topology.source == "nvml"
    assert (topology.framework_name("GPU-a"), topology.framework_name("cpu0")) == ("cuda:0", "cpu")
    assert (await Machine(None).read()).source == "cpu"
