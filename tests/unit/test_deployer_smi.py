"""Saved outputs of `nvidia-smi topo`: what is read, what is refused, and back."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_deployer import decoding, encoding
from uellm_deployer.adapters.gpu_catalogue import catalogue
from uellm_deployer.adapters.smi_matrix import MatrixError
from uellm_deployer.adapters.smi_topology import parse_topology, render_topology
from uellm_deployer.adapters.topology_file import read_topology
from uellm_deployer.domain.topology import Device, DeviceKind, Link, Topology

from tests.support.topologies import CAPTURES, cube_mesh, gpus, matrix, switched
from uellm.rpc.errors import InvalidArgumentError

PAIR = matrix(gpus(2), {("GPU0", "GPU1"): "NV4"})
PEERS = matrix(gpus(2), {("GPU0", "GPU1"): "OK"})
A100 = catalogue().get("A100", "-")


def classes(topology: Topology) -> dict[tuple[str, str], str]:
    return {(link.device_a, link.device_b): link.link_class for link in topology.links}


@pytest.mark.parametrize("file", sorted(CAPTURES.glob("*.txt")) or [None], ids=lambda file: file and file.stem)
def test_every_capture_is_read(file):
    """Square and symmetric over its GPUs, with the numbers that its name gives; written again it is the same."""
    if file is None:
        pytest.skip("no captures here")
    topology = read_topology(file.read_text(), "H100")
    count = int(file.stem.partition("x_")[0])
    of_kind = [
        [device.id for device in topology.devices if device.kind is kind] for kind in (DeviceKind.GPU, DeviceKind.NIC)
    ]
    assert of_kind[0] == gpus(count)
    assert f"{len(of_kind[1])}nic" in file.stem or "nic" not in file.stem or len(of_kind[1]) == 1
    assert set(classes(topology)) == set(combinations([*of_kind[0], *of_kind[1]], 2))
    assert all(link.bandwidth > 0 and link.assumed for link in topology.links)
    assert replace(read_topology(render_topology(topology), "H100"), warnings=()) == replace(topology, warnings=())


def test_a_machine_with_switches_and_nics():
    topology = parse_topology(switched(), gpu=catalogue().get("H100", "-"))
    found = classes(topology)
    assert (found["GPU0", "GPU7"], found["GPU2", "NIC1"], found["GPU2", "NIC0"], found["NIC0", "NIC3"]) == (
        "NV18",
        "PIX",
        "NODE",
        "SYS",
    )
    first, last = topology.devices[0], topology.devices[-1]
    assert (first.memory_bytes, first.numa_node, first.cpu_affinity) == (81559 << 20, 0, "0-51,104-155")
    assert (last.kind, last.model) == (DeviceKind.NIC, "mlx5_3")
    fast = topology.links[0]
    assert (fast.bandwidth, fast.peer_access, fast.assumed) == (450e9, True, True)
    assert topology.warnings == ()


def test_a_cube_mesh():
    topology = parse_topology(cube_mesh())
    found = classes(topology)
    assert (found["GPU0", "GPU4"], found["GPU3", "GPU7"], found["GPU0", "GPU5"]) == ("NV2", "NV1", "SYS")
    assert {device.numa_node for device in topology.devices} == {-1}
    assert topology.devices[7].cpu_affinity == "10-19,30-39"
    assert topology.devices[0].memory_bytes == 0  # nobody said what GPUs these are


@pytest.mark.parametrize(
    "text",
    [
        "$ nvidia-smi topo -m\n```\n" + PAIR + "```\n",
        "\x1b[4m" + PAIR.replace("GPU1", "\x1b[4mGPU1\x1b[0m", 1),
        "   ".join(["GPU0", "GPU1"]) + "\n GPU0 X NV4\n\t GPU1   NV4     X  \n",  # the header flush left, rows indented
        "     GPU0  GPU1  ...\nGPU0  X  NV4  ...\nGPU1  NV4  X  ...\n",
        "     GPU0  GPU1  CPU Affinity  NUMA Affinity\nGPU0  X  NV4\nGPU1  NV4  X\n",
        PAIR.replace("\n", "\r\n"),
    ],
    ids=["fences", "ansi", "indentation", "abbreviated", "blank affinity", "windows"],
)
def test_what_happens_to_pasted_text(text):
    topology = parse_topology(text)
    assert classes(topology) == {("GPU0", "GPU1"): "NV4"}
    assert all((device.numa_node, device.cpu_affinity) == (-1, "") for device in topology.devices)


@pytest.mark.parametrize(
    ("tail", "node", "cpus"),
    [
        ("0-23\t0\tN/A", 0, "0-23"),
        ("0-71\t0,5-11\t4", 0, "0-71"),
        ("72-143\t1,13-19\t12", 1, "72-143"),
        ("0-51, 104-155\t3 N/A", 3, "0-51,104-155"),
        ("0-23\tN/A", -1, "0-23"),
        ("N/A\t1", 1, ""),
        ("", -1, ""),
    ],
)
def test_affinities_are_read_as_far_as_they_go(tail, node, cpus):
    tails = {"": "CPU Affinity\tNUMA Affinity\tGPU NUMA ID", "GPU0": tail}
    device = parse_topology(matrix(gpus(1), {}, tails=tails)).devices[0]
    assert (device.numa_node, device.cpu_affinity) == (node, cpus)


def test_the_legacy_spelling_of_sys():
    topology = parse_topology(matrix([*gpus(2), "mlx4_0"], {("GPU0", "GPU1"): "SOC"}, default="PHB"))
    assert classes(topology) == {("GPU0", "GPU1"): "SYS", ("GPU0", "mlx4_0"): "PHB", ("GPU1", "mlx4_0"): "PHB"}


def test_legends_are_no_rows():
    legend = "\nLegend:\n\nX   = Self\nSYS  = far\nPIX  = near\nNV#  = # NVLinks\n"
    assert parse_topology(PAIR + legend) == parse_topology(PAIR)


def test_nics_without_rows_have_links_to_gpus_only():
    text = "GPU0 GPU1 NIC0 NIC1\nGPU0 X NV4 PIX SYS\nGPU1 NV4 X SYS PIX\n"
    topology = parse_topology(text)
    assert len(topology.links) == 5
    assert parse_topology(render_topology(topology)) == topology


def test_an_unknown_class_is_sys_and_said():
    topology = parse_topology(matrix(gpus(2), {("GPU0", "GPU1"): "C2C"}))
    assert classes(topology) == {("GPU0", "GPU1"): "SYS"}
    assert topology.warnings[0] == "line 2, column 10: unknown link class C2C, taken as SYS"


def test_more_nvlinks_than_the_gpu_has_are_said():
    (warning,) = parse_topology(PAIR, gpu=catalogue().get("L40S", "-")).warnings
    assert "NVIDIA L40S has 0 NVLinks" in warning


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("", 0, 0, "no line begins with GPU0"),
        ("GPU0 X NV4\nGPU1 NV4 X\n", 1, 1, "before the line that names the columns"),
        ("GPU0 GPU0\nGPU0 X X\n", 1, 6, "GPU0 twice"),
        ("GPU0 GPU1 ... GPU7\nGPU0 X NV4\nGPU1 NV4 X\n", 1, 15, "abbreviated"),
        ("GPU0 GPU1\nGPU0 X NV4\n", 1, 0, "GPU1: a column, but no row"),
        ("GPU0 GPU1\nGPU0 X NV4\nGPU0 X NV4\n", 3, 1, "a second row of GPU0"),
        ("GPU0 GPU1\nGPU0 X NV4\nGPU2 NV4 X\n", 3, 1, "GPU2 has no column"),
        ("GPU0 GPU1\nGPU0 X NV4\nGPU1 NV4\n", 3, 9, "1 of 2 cells"),
        ("GPU0 GPU1\nGPU0 X NV4\nGPU1 X NV4\n", 3, 6, "missing or misplaced"),
        ("GPU0 GPU1\nGPU0 X 0-23\nGPU1 NV4 X\n", 2, 8, "no link class"),
        ("GPU0 GPU1\nGPU0 X NV4\nGPU1 NV2 X\n", 2, 8, "GPU1 to GPU0 is NV2"),
        (PAIR + PAIR, 0, 0, "2 matrices"),
    ],
)
def test_damage_is_refused_with_its_place(text, line, column, words):
    with pytest.raises(MatrixError, match=words) as refused:
        parse_topology(text)
    assert (refused.value.line, refused.value.column) == (line, column)
    assert "nvidia-smi" in str(refused.value)  # what to do about it


def test_peer_access_beside_the_links_in_one_file_or_two():
    assert parse_topology(PAIR + "\n" + PEERS) == parse_topology(PAIR, PEERS)
    host = matrix(gpus(2), {("GPU0", "GPU1"): "PHB"})
    told = [parse_topology(host, peers).links[0].peer_access for peers in (PEERS, PEERS.replace("OK", "GNS"))]
    assert (told, parse_topology(host).links[0].peer_access) == ([True, False], False)


def test_peer_access_alone_leaves_the_classes_open():
    topology = parse_topology(PEERS)
    assert (topology.links[0].peer_access, classes(topology)) == (True, {("GPU0", "GPU1"): "SYS"})
    assert "topo -m" in topology.warnings[0]


def test_peer_access_one_way_only_is_none():
    topology = parse_topology(PAIR, "GPU0 GPU1\nGPU0 X OK\nGPU1 CNS X\n")
    assert not topology.links[0].peer_access
    assert "one way only" in topology.warnings[0]


@pytest.mark.parametrize(
    ("peers", "words"),
    [(matrix(gpus(3), {}, default="OK"), "peer access of GPU0, GPU1, GPU2"), (PAIR, "topo -p2p r")],
)
def test_peer_access_of_another_machine_is_refused(peers, words):
    with pytest.raises(MatrixError, match=words):
        parse_topology(PAIR, peers)


def test_an_unknown_gpu_is_refused():
    with pytest.raises(InvalidArgumentError, match="gpu_model: no GPU 'H1000'"):
        read_topology(PAIR, "H1000")


@st.composite
def topologies(draw) -> Topology:
    """Any machine that a matrix can tell, as the parser makes it."""
    count, nic_count = draw(st.integers(1, 5)), draw(st.integers(0, 3))
    names = [
        *gpus(count),
        *draw(st.sampled_from([[f"NIC{n}" for n in range(nic_count)], [f"mlx5_{n}" for n in range(nic_count)]])),
    ]
    devices = []
    for number, name in enumerate(names):
        node = draw(st.integers(-1, 9))
        cpus = draw(st.sampled_from(["", "0", "0-23", "0-51,104-155"]))
        model = draw(st.sampled_from(["", "mlx5_7"])) if name.startswith("NIC") else ""
        nic = Device(name, DeviceKind.NIC, model, 0, 0)
        devices.append(A100.device(name, node, cpus) if number < count else nic)
    some_class = st.sampled_from(["NV1", "NV4", "NV12", "PIX", "PXB", "PHB", "NODE", "SYS"])
    peers = draw(st.booleans())
    links: list[Link] = []
    base = parse_topology(matrix(names, {pair: draw(some_class) for pair in combinations(names, 2)}), gpu=A100)
    for link in base.links:
        among_gpus = {link.device_a, link.device_b} <= set(gpus(count))
        links.append(replace(link, peer_access=draw(st.booleans())) if peers and among_gpus else link)
    return Topology(tuple(devices), tuple(links), "file")


@settings(max_examples=60, deadline=None)
@given(topologies())
def test_what_is_written_is_read_again(topology):
    assert parse_topology(render_topology(topology), gpu=A100) == topology


STRANGE = ["GPU0", "GPU9", "NIC0", "X", "NV4", "NV0", "OK", "...", "N/A", "0-3", "CPU", "9" * 30, "\x1b[4m", "``"]


@st.composite
def damaged(draw) -> str:
    """Lines and cells lost, doubled or strange."""
    text = draw(st.sampled_from([switched(), cube_mesh(), PAIR + PEERS]))
    lines = [line.split("\t") for line in text.splitlines()]
    for _ in range(draw(st.integers(1, 4))):
        line = draw(st.integers(0, len(lines) - 1))
        cell = draw(st.integers(0, len(lines[line]) - 1))
        match draw(st.sampled_from(["drop line", "double line", "drop cell", "put cell"])):
            case "drop line":
                lines[line] = [""]
            case "double line":
                lines.insert(line, list(lines[line]))
            case "drop cell":
                lines[line][cell] = ""
            case "put cell":
                lines[line][cell] = draw(st.sampled_from(STRANGE))
    return "\n".join("\t".join(line) for line in lines)


@settings(max_examples=150, deadline=None)
@given(damaged())
def test_damage_ends_in_a_refusal_or_in_a_machine_that_can_be_sent(text):
    try:
        topology = parse_topology(text)
    except MatrixError as refused:
        said = str(refused)
    else:
        said = "nvidia-smi"
        assert decoding.topology(encoding.topology_message(topology)) == topology
    assert "nvidia-smi" in said


def test_devices_with_other_ids_are_numbered():
    uuids = Topology((A100.device("GPU-0a1b", 0), A100.device("GPU-2c3d", 0)), (), "nvml")
    assert [device.id for device in parse_topology(render_topology(uuids)).devices] == ["GPU0", "GPU1"]
