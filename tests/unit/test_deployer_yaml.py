"""Machines described in YAML."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import pytest
from uellm_deployer.adapters.topology_file import read_topology
from uellm_deployer.domain.topology import Device, DeviceKind, Link, Topology

from tests.support.topologies import cube_mesh, gpus, matrix
from uellm.rpc.errors import InvalidArgumentError

EXAMPLE = Path(__file__).parents[2] / "examples" / "topology.yaml"
TWO = "devices: [{id: a, memory: 8GiB}, {id: b, memory: 8GiB}]\n"


def link(topology: Topology, a: str, b: str) -> Link:
    return next(one for one in topology.links if {one.device_a, one.device_b} == {a, b})


def device(topology: Topology, name: str) -> Device:
    return next(one for one in topology.devices if one.id == name)


def test_the_example():
    topology = read_topology(EXAMPLE.read_text())
    kinds = [device.kind for device in topology.devices]
    assert (kinds.count(DeviceKind.GPU), kinds.count(DeviceKind.NIC), kinds.count(DeviceKind.CPU)) == (8, 1, 1)
    assert len(topology.links) == 10 * 9 // 2
    a0, l3, cpu0 = (device(topology, one) for one in ("a0", "l3", "cpu0"))
    assert (a0.model, a0.memory_bytes, a0.flops, a0.numa_node) == ("NVIDIA A100-SXM4-80GB", 80 << 30, 312e12, 0)
    assert (l3.free_memory_bytes, l3.memory_bandwidth) == (20 << 30, 864e9)
    assert (cpu0.memory_bytes, cpu0.flops) == (512 << 30, 5e12)
    bridged, node, measured, given = (
        link(topology, *pair) for pair in (("a0", "a1"), ("a0", "a2"), ("a0", "l0"), ("a3", "l0"))
    )
    assert (bridged.link_class, bridged.bandwidth, bridged.peer_access, bridged.assumed) == ("NV12", 300e9, True, True)
    assert (node.link_class, node.assumed) == ("NODE", True)
    assert (measured.link_class, measured.bandwidth, measured.assumed) == ("SYS", 14e9, False)
    assert (given.bandwidth, given.latency_seconds, given.assumed) == (11.5e9, 14e-6, False)


def test_a_matrix_with_other_gpus_in_it_and_measured_links():
    text = f"""
gpu_model: V100
matrix: |
{indent(cube_mesh(), "  ")}
devices:
  - {{id: GPU7, model: T4, free_memory: 4GiB}}
links:
  - {{devices: [GPU0, GPU4], bandwidth: 47 GB/s}}
  - {{devices: [GPU0, GPU5], class: PHB, peer_access: true}}
"""
    topology = read_topology(text)
    changed, same = device(topology, "GPU7"), device(topology, "GPU6")
    assert (changed.model, changed.free_memory_bytes, changed.cpu_affinity) == ("Tesla T4", 4 << 30, "10-19,30-39")
    assert same.model == "Tesla V100-SXM2-32GB"
    assert [device.id for device in topology.devices] == [*gpus(8), "mlx5_0"]
    known, moved, kept = (link(topology, "GPU0", other) for other in ("GPU4", "GPU5", "GPU1"))
    assert (known.link_class, known.bandwidth, known.assumed, known.peer_access) == ("NV2", 47e9, False, True)
    assert (moved.link_class, moved.peer_access, moved.assumed) == ("PHB", True, True)
    assert (kept.link_class, kept.bandwidth) == ("NV1", 25e9)


def test_peer_access_comes_with_a_matrix():
    host, peers = (matrix(gpus(2), {("GPU0", "GPU1"): cell}) for cell in ("PHB", "OK"))
    topology = read_topology(f"matrix: |\n{indent(host, '  ')}\npeer_access: |\n{indent(peers, '  ')}")
    assert link(topology, "GPU0", "GPU1").peer_access


def test_the_command_line_names_gpus_that_the_file_does_not():
    devices = read_topology("devices: [{id: a}, {id: b, model: L4}]", "H100").devices
    assert [device.model for device in devices] == ["NVIDIA H100 80GB HBM3", "NVIDIA L4"]


def test_a_gpu_that_the_catalogue_does_not_know():
    text = "devices: [{id: x, model: Next, memory: 96GiB, memory_bandwidth: 4 TB/s, flops: 1e15}]"
    (device,) = read_topology(text).devices
    assert (device.model, device.memory_bytes, device.memory_bandwidth, device.flops) == ("Next", 96 << 30, 4e12, 1e15)


def test_pairs_that_nobody_names_have_the_default_class():
    assert link(read_topology(TWO), "a", "b").link_class == "SYS"
    assert link(read_topology(TWO + "default_class: PHB\n"), "a", "b").link_class == "PHB"
    near = "devices: [{id: a, memory: 1, numa_node: 1}, {id: b, memory: 1, numa_node: 1}]"
    assert link(read_topology(near), "a", "b").link_class == "NODE"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("devices: [{id: a, memory: 3 parsecs}]", ["devices[0].memory"]),
        ("devices: [{id: a, memory: yes}]", ["devices[0].memory"]),
        ("devices: [{id: a, memory: -1}]", ["devices[0].memory"]),
        ("devices: [{id: a, memory: 1, memmory: 1}, {memory: 1}]", ["devices[0].memmory", "devices[1].id"]),
        ("devices: [{id: a, memory: 1, free_memory: 2}]", ["devices[0].free_memory"]),
        ("devices: [{id: a, kind: tpu, memory: 1}]", ["devices[0].kind"]),
        ("devices: [{id: a}, {id: c, kind: cpu}]", ["devices[0].memory", "devices[1].memory"]),
        ("devices: [{id: a, model: H1000}]", ["devices[0].model"]),
        ("gpu_model: H1000\ndevices: [{id: a, memory: 1}]", ["gpu_model"]),
        ("devices: [{id: a, memory: 1}, {id: a, memory: 1}]", ["devices[0].id", "devices[1].id"]),
        ("devices: [{id: a, memory: 1, count: 0}]", ["devices[0].count"]),
        ("devices: [{id: a, memory: 1, count: 600}, {id: b, memory: 1, count: 600}]", ["devices"]),
        ("devices: []", ["devices"]),
        ("devices: 3", ["devices"]),
        ("devices: [{id: a, memory: 1e30}]", ["devices[0].memory"]),
        ("devices: [{id: a, memory: 1, numa_node: 3000000000}]", ["devices[0].numa_node"]),
        ("devices: [{id: a, memory: 1}]\n3: 4", ["[3]"]),
        (TWO + "links: [{devices: [a], class: NV2}]", ["links[0].devices"]),
        (TWO + "links: [{devices: [a, z], class: NV2}]", ["links[0].devices"]),
        (TWO + "links: [{devices: [a, a]}]", ["links[0].devices"]),
        (TWO + "links: [{devices: [a, b], class: NV0}]", ["links[0].class"]),
        (TWO + "links: [{devices: [a, b]}, {devices: [b, a]}]", ["links[1].devices"]),
        (TWO + "bandwidths: {FAST: 1}", ["bandwidths.FAST"]),
        (TWO + "bandwidths: {SYS: .nan}", ["bandwidths.SYS"]),
        (TWO + "default_class: NEAR", ["default_class"]),
        (TWO + "peer_access: OK", ["peer_access"]),
        ("matrix: |\n  GPU0 GPU1\n  GPU0 X NV4\n", ["matrix, line 1", "devices"]),
        ("devices:\n  - id: a\n    id: b\n", ["line 3, column 5"]),
        ("devices: [{id: a", ["line 1, column 17"]),
    ],
)
def test_what_is_wrong_is_said_with_its_path(text, fields):
    with pytest.raises(InvalidArgumentError) as refused:
        read_topology(text)
    assert [violation.field for violation in refused.value.violations] == fields


def test_peer_access_goes_into_the_file():
    with pytest.raises(InvalidArgumentError, match="peer_access"):
        read_topology(TWO, peer_text=matrix(gpus(2), {}, default="OK"))
