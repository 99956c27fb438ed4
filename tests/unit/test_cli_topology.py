"""`uellm topology`: tables, JSON and the drawing; of files and of a deployer."""

from __future__ import annotations

import io
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from uellm_deployer.adapters.topology_file import read_topology
from uellm_deployer.encoding import topology_message

from tests.support.command_line import Run, answering
from tests.support.topologies import cube_mesh, gpus, matrix, switched
from uellm.cli.topology.drawing import draw
from uellm.cli.topology.layout import Joint, arrange, leaves
from uellm.cli.topology.machine import Machine, Placed
from uellm.cli.topology.svg import text_width
from uellm.client import AsyncClient, Client
from uellm.client.endpoints import Endpoints
from uellm.v1 import deployer_pb2 as pb
from uellm.v1.deployer_pb2_grpc import DeployerServiceServicer

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
TEXT = "{http://www.w3.org/2000/svg}text"


@pytest.fixture
def run(uellm: Run) -> Run:
    return partial(uellm, "topology")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    file = tmp_path / "topo.txt"
    file.write_text(switched())
    return file


def test_the_matrix_of_a_file(run: Run, saved: Path) -> None:
    status, out, err = run("--file", saved, "--gpu-model", "H100")
    assert (status, err) == (0, "")
    assert re.search(r"GPU7 +gpu +NVIDIA H100 80GB HBM3 +79.6 GiB / 79.6 GiB +3,350 GB/s +989 T +1", out)
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("GPU", "NIC"))}
    assert rows["GPU2"] == ["NV18", "NV18", "X", *["NV18"] * 5, "NODE", "PIX", "SYS", "SYS"]
    assert re.search(r"NV18 +28 +450 GB/s +assumed +28", out)


def test_json_tells_kinds_apart(run: Run, saved: Path) -> None:
    found = json.loads(run("--file", saved, "--gpu-model", "H100", "--json")[1])
    kinds = [device["kind"] for device in found["devices"]]
    assert (kinds.count("gpu"), kinds.count("nic"), len(found["links"])) == (8, 4, 12 * 11 // 2)
    assert found["devices"][0]["memory_bytes"] == 81559 << 20
    first = found["links"][0]
    assert (first["device_a"], first["device_b"], first["link_class"], first["assumed"]) == (
        "GPU0",
        "GPU1",
        "NV18",
        True,
    )
    assert (found["source"], found["placed"], found["warnings"]) == ("file", [], [])


def test_stdin_peer_access_and_warnings(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    peers = tmp_path / "p2p.txt"
    peers.write_text(matrix(gpus(2), {}, default="OK"))
    text = matrix(gpus(2), {("GPU0", "GPU1"): "C2C"})
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    status, out, err = run("--file", "-", "--p2p", peers)
    assert status == 0
    assert re.search(r"SYS +1 +\S+ GB/s +assumed +1", out)
    assert "unknown link class C2C" in err


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("nothing", [], "no line begins with GPU0"),
        ("GPU0 GPU1\nGPU0 X NV4\nGPU1 NV2 X\n", [], "line 2, column 8"),
        (switched(), ["--gpu-model", "H1000"], "did you mean NVIDIA H100"),
        ("devices: [{id: a}]", [], "devices[0].memory"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(
    run: Run, tmp_path: Path, text: str, options: list[str], words: str
) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    status, out, err = run("--file", file, *options)
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert words in err


def test_options_of_files_need_one(run: Run, saved: Path) -> None:
    status, _, err = run("--gpu-model", "H100")
    assert (status, "--file" in err) == (2, True)
    status, _, err = run("--file", saved.with_name("absent.txt"))
    assert (status, "absent.txt" in err) == (1, True)


class Deployer(DeployerServiceServicer):
    """One GPU with an id as drivers give it, and the processor; one deployment there, one failed."""

    def GetTopology(self, request: Any, context: Any) -> pb.GetTopologyResponse:
        topology = pb.Topology(source="nvml")
        topology.devices.add(
            id="GPU-0a1b2c3d", kind="gpu", model="NVIDIA L4", memory_bytes=23 * GIB, free_memory_bytes=3 * GIB
        )
        topology.devices.add(
            id="cpu0", kind="cpu", model="a processor", memory_bytes=64 * GIB, free_memory_bytes=60 * GIB
        )
        return pb.GetTopologyResponse(topology=topology)

    def ListDeployments(self, request: Any, context: Any) -> pb.ListDeploymentsResponse:
        stage = pb.Stage(
            device_ids=["GPU-0a1b2c3d"], layer_count=32, weight_bytes=15 * GIB, kv_bytes=GIB, reserve_bytes=GIB
        )
        plan = pb.DeploymentPlan(spec=pb.DeploymentSpec(model="llama"), stages=[stage])
        response = pb.ListDeploymentsResponse()
        response.deployments.add(name="deployments/one", state="DEPLOYMENT_STATE_READY", plan=plan)
        response.deployments.add(name="deployments/two", state="DEPLOYMENT_STATE_FAILED", plan=plan)
        return response


@pytest.fixture
def deployer(uellm: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with answering(Deployer(), monkeypatch):
        yield


@pytest.mark.usefixtures("deployer")
def test_of_the_deployer_with_what_is_placed(run: Run, tmp_path: Path) -> None:
    drawing = tmp_path / "out.svg"
    status, out, _ = run("--svg", drawing)
    assert status == 0
    assert re.search(r"GPU0 +gpu +NVIDIA L4 +3.0 GiB / 23.0 GiB .* GPU-0a1b2c3d +llama layers 0-31", out)
    texts = [element.text for element in ET.parse(drawing).iter(TEXT)]
    assert {"GPU0", "cpu0", "layers 0-31, llama", "3 of 23 GiB free", "memory planned for deployments/one"} <= set(
        texts
    )
    placed = json.loads(run("--json")[1])["placed"]
    assert placed == [
        {
            "deployment": "deployments/one",
            "model": "llama",
            "device": "GPU-0a1b2c3d",
            "first_layer": 0,
            "layer_count": 32,
            "planned_bytes": 17 * GIB,
            "group_size": 1,
        }
    ]


@pytest.mark.usefixtures("deployer")
async def test_both_clients_ask_for_it() -> None:
    endpoints = Endpoints.from_environment()
    async with AsyncClient(endpoints) as client:
        found = await client.topology()
    with Client(endpoints) as blocking:
        assert blocking.topology() == found
    assert found.source == "nvml"


def message(text: str, gpu: str = "") -> pb.Topology:
    return topology_message(read_topology(text, gpu))


BOXES = {"start": 0.0, "middle": 0.5}


def text_boxes(svg: str) -> list[tuple[str, float, float, float, float]]:
    """Text, left, top, right, bottom; none of them is wider than this."""
    boxes = []
    for element in ET.fromstring(svg).iter(TEXT):
        size, text = float(element.get("font-size", "0")), element.text or ""
        width = text_width(text, size)
        left = float(element.get("x", "0")) - width * BOXES[element.get("text-anchor", "start")]
        baseline = float(element.get("y", "0"))
        boxes.append((text, left, baseline - 0.76 * size, left + width, baseline + 0.24 * size))
    return boxes


CROWDED = """
devices: [{id: g, count: 6, memory: 1GiB}]
links: [{devices: [g0, g1], class: PIX}, {devices: [g1, g2], class: PIX}]
"""
"""No tree: g0 and g2 each share a bridge with g1, but are far from each other."""


@pytest.mark.parametrize(
    "topology",
    [
        message(matrix(gpus(1), {}), "H100"),
        message(matrix(gpus(2), {("GPU0", "GPU1"): "NV2"}, tails={"": "CPU Affinity", "GPU0": "0-9,20-29"}), "V100"),
        message(switched(), "H100"),
        message(cube_mesh(), "V100"),
        message(CROWDED),
        message((ROOT / "examples" / "topology.yaml").read_text()),
    ],
    ids=["one", "pair", "switched", "cube mesh", "no tree", "example"],
)
def test_no_text_lies_over_another_or_outside(topology: pb.Topology) -> None:
    first = topology.devices[0].id
    placed = tuple(Placed(f"deployments/{n}", "a-model-with-a-long-name-70b", first, 8 * n, 8, GIB) for n in range(6))
    svg = draw(Machine(topology, placed))
    root = ET.fromstring(svg)
    boxes = text_boxes(svg)
    assert len(boxes) > 2 * len(topology.devices)
    for _, left, top, right, bottom in boxes:
        assert left >= 0
        assert top >= 0
        assert right <= float(root.get("width", "0"))
        assert bottom <= float(root.get("height", "0"))
    for (a, left, top, right, bottom), (b, *other) in combinations(boxes, 2):
        apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
        assert apart, f"{a!r} lies over {b!r}"


def test_the_page_shows_the_example() -> None:
    """If it fails: `uellm topology --file examples/topology.yaml --svg docs/topology.svg`, and look at it."""
    drawn = draw(Machine(message((ROOT / "examples" / "topology.yaml").read_text())))
    assert drawn == (ROOT / "docs" / "topology.svg").read_text()


def test_names_are_escaped() -> None:
    topology = pb.Topology(source="file")
    topology.devices.add(id="<a&b>", kind="gpu", model='"<script>', memory_bytes=GIB)
    texts = [text for text, *_ in text_boxes(draw(Machine(topology)))]
    assert "<a&b>" in texts


def pairs_below(joint: Joint) -> dict[frozenset[str], str]:
    found = {
        frozenset((a, b)): joint.link_class
        for x, y in combinations(joint.children, 2)
        for a in leaves(x)
        for b in leaves(y)
    }
    for child in joint.children:
        found |= pairs_below(child) if isinstance(child, Joint) else {}
    return found


@pytest.mark.parametrize("text", [switched(), cube_mesh(), CROWDED], ids=["switched", "cube mesh", "no tree"])
def test_the_drawing_shows_every_link_once_and_as_it_is(text: str) -> None:
    """By the tree, by a bar between all of a clique, or by a line of its own."""
    topology = message(text)
    layout = arrange(topology)
    tree = {pair: name for joint in layout.joints for pair, name in pairs_below(joint).items()}
    cliques = {frozenset(pair): one.link_class for one in layout.cliques for pair in combinations(one.devices, 2)}
    direct = {frozenset((link.device_a, link.device_b)): link.link_class for link in layout.direct}
    for link in topology.links:
        pair = frozenset((link.device_a, link.device_b))
        shown = direct.get(pair) or cliques.get(pair) or tree[pair]
        assert shown == link.link_class
    assert not direct.keys() & cliques.keys()


def test_a_switch_is_one_bar_and_a_mesh_is_lines() -> None:
    switch, mesh = arrange(message(switched())), arrange(message(cube_mesh()))
    assert [(one.link_class, len(one.devices)) for one in switch.cliques] == [("NV18", 8)]
    assert (switch.direct, mesh.cliques, len(mesh.direct)) == ((), (), 16)
    assert [group.label for group in switch.groups] == ["NUMA node 0", "NUMA node 1"]
    # NICs stand with the GPUs that share a bridge with them.
    order = [device.id for device in switch.groups[0].devices]
    assert order == ["GPU0", "GPU1", "NIC0", "GPU2", "GPU3", "NIC1"]
    assert [device.id for device in mesh.groups[0].devices] == ["GPU0", "GPU1", "GPU2", "GPU3", "mlx5_0"]
