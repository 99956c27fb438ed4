"""NVML against nvidia-smi, where there are GPUs."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from uellm_deployer.adapters.gpu_catalogue import catalogue
from uellm_deployer.adapters.nvml import Nvml
from uellm_deployer.adapters.smi_topology import parse_topology
from uellm_deployer.domain.topology import Device, DeviceKind, Link

Found = tuple[tuple[Device, ...], tuple[Link, ...]]


@pytest.fixture(scope="module")
def found() -> Found:
    nvml = Nvml.open()
    if nvml is None or shutil.which("nvidia-smi") is None:
        pytest.skip("no NVIDIA driver here")
    devices, links = nvml.read()
    if any(device.parent_id for device in devices):
        pytest.skip("the GPUs are divided: nvidia-smi shows them whole")
    return devices, links


def ask(*arguments: str) -> str:
    return subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout


def test_devices_are_what_nvidia_smi_lists(found: Found) -> None:
    listed = ask("--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits").splitlines()
    assert [device.id for device in found[0]] == [line.split(", ")[0] for line in listed]
    for device, line in zip(found[0], listed, strict=True):
        _, name, mebibytes = line.split(", ")
        assert device.model == name
        assert device.memory_bytes >> 20 == int(mebibytes)
        assert 0 < device.free_memory_bytes <= device.memory_bytes
        assert device.memory_bandwidth > 0
        assert device.flops > 0


def test_the_catalogue_is_near_what_the_driver_tells(found: Found) -> None:
    """Memory depends on whether ECC is on; clocks of a product vary a little."""
    for device in found[0]:
        if model := catalogue().find(device.model):
            assert device.memory_bytes == pytest.approx(model.memory_bytes, rel=0.08)
            assert device.memory_bandwidth == pytest.approx(model.memory_bandwidth, rel=0.08)


def test_links_are_those_of_the_matrix(found: Found) -> None:
    devices, links = found
    matrix = parse_topology(ask("topo", "-m"))
    numbered = [device for device in matrix.devices if device.kind is DeviceKind.GPU]
    uuids = {numbered[n].id: device.id for n, device in enumerate(devices)}
    shown = {
        (uuids[link.device_a], uuids[link.device_b]): link.link_class
        for link in matrix.links
        if {link.device_a, link.device_b} <= set(uuids)
    }
    assert {(link.device_a, link.device_b): link.link_class for link in links} == shown
    assert [device.numa_node for device in devices] == [device.numa_node for device in numbered]
