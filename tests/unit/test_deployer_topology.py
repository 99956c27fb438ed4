"""The processor as a device, and a topology as a message."""

from __future__ import annotations

import pytest
from uellm_deployer import decoding, encoding
from uellm_deployer.adapters.cpu import measured_rates, read_cpu
from uellm_deployer.domain.topology import Device, DeviceKind, Link, Topology

from uellm.rpc.errors import InvalidArgumentError
from uellm.v1 import deployer_pb2 as pb


def test_a_topology_there_and_back():
    mig = Device(
        id="MIG-1",
        kind=DeviceKind.GPU,
        model="NVIDIA A100",
        memory_bytes=10,
        free_memory_bytes=9,
        memory_bandwidth=1e9,
        flops=2e9,
        numa_node=1,
        pci_bus_id="00000000:07:00.0",
        cpu_affinity="0-23",
        parent_id="GPU-a",
    )
    nic = Device("NIC0", DeviceKind.NIC, "mlx5_0", 0, 0)
    link = Link("MIG-1", "NIC0", "PIX", 32e9, 10e-6, peer_access=True, assumed=True)
    topology = Topology((mig, nic), (link,), "file", ("line 3, column 9: unknown link class C2C, taken as SYS",))
    assert decoding.topology(encoding.topology_message(topology)) == topology


def test_rates_of_a_described_machine_are_numbers():
    device = pb.Device(id="a", kind="gpu", flops_per_second=float("nan"), memory_bandwidth_bytes_per_second=-1)
    other = pb.Device(id="b", kind="gpu")
    link = pb.Link(device_a="a", device_b="b", bandwidth_bytes_per_second=float("inf"))
    with pytest.raises(InvalidArgumentError) as refused:
        decoding.topology(pb.Topology(devices=[device, other], links=[link]))
    assert [violation.field for violation in refused.value.violations] == [
        "topology.devices[0].memory_bandwidth_bytes_per_second",
        "topology.devices[0].flops_per_second",
        "topology.links[0].bandwidth_bytes_per_second",
    ]


def test_two_devices_have_one_link_and_none_has_one_to_itself():
    devices = [pb.Device(id=name, kind="gpu") for name in "abc"]
    pairs = [("a", "b"), ("b", "a"), ("c", "c"), ("a", "c"), ("a", "d")]
    links = [pb.Link(device_a=a, device_b=b, bandwidth_bytes_per_second=1e9) for a, b in pairs]
    with pytest.raises(InvalidArgumentError) as refused:
        decoding.topology(pb.Topology(devices=devices, links=links))
    assert [violation.field for violation in refused.value.violations] == [
        "topology.links[1]",
        "topology.links[2]",
        "topology.links[4]",
    ]


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
