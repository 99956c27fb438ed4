"""`uellm fleet`: for a machine in a file and for that of a deployer; table, JSON, the drawing, and what is refused."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from uellm_deployer import decoding, encoding
from uellm_deployer.domain.fleet.fleet import Member, plan_fleet
from uellm_deployer.domain.placement import HelrPlanner

from tests.support.deployer import CONFIG, SHAPE, gpu, machine
from tests.support.topologies import switched
from uellm.cli.main import main
from uellm.client import AsyncClient, Client, Endpoints
from uellm.v1 import deployer_pb2 as pb
from uellm.v1.deployer_pb2_grpc import DeployerServiceServicer, add_DeployerServiceServicer_to_server

ROOT = Path(__file__).parents[2]
HERE = machine(gpu("GPU-a"), gpu("GPU-b"))
MEMBERS = """
members:
  - {weights: smol, share: 0.75, copies: 2, concurrency: 4, context: 1024, output_token_slo: 50ms}
  - {weights: smol/config.json, model: other, share: 0.25, context: 2048, dtype: bfloat16}
"""
Run = Callable[..., tuple[int, str, str]]


class Deployer(DeployerServiceServicer):
    """Answers as the real one does, of a machine that is not there."""

    def PlanFleet(self, request: pb.PlanFleetRequest, context: grpc.ServicerContext) -> object:
        members = [Member(one, SHAPE) for one in decoding.fleet(request)]
        return encoding.fleet_message(plan_fleet(HelrPlanner(), members, HERE))

    def GetTopology(self, request: pb.GetTopologyRequest, context: grpc.ServicerContext) -> object:
        return pb.GetTopologyResponse(topology=encoding.topology_message(HERE))


@pytest.fixture
def deployer(monkeypatch: pytest.MonkeyPatch):
    server = grpc.server(ThreadPoolExecutor(2))
    add_DeployerServiceServicer_to_server(Deployer(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    for name in ("UELLM_PROFILER", "UELLM_SCHEDULER", "UELLM_DEPLOYER"):
        monkeypatch.setenv(name, address)
    yield address
    server.stop(None).wait()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.setenv("UELLM_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uellm", "fleet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def members(tmp_path: Path) -> Path:
    (tmp_path / "smol").mkdir()
    (tmp_path / "smol" / "config.json").write_text(json.dumps(CONFIG))
    file = tmp_path / "fleet.yaml"
    file.write_text(MEMBERS)
    return file


def test_a_fleet_to_come_on_a_machine_to_come(run: Run, members: Path, tmp_path: Path) -> None:
    topology, drawing = tmp_path / "topo.txt", tmp_path / "fleet.svg"
    topology.write_text(switched())
    code, out, _ = run(members, "--file", topology, "--gpu-model", "H100", "--svg", drawing)
    assert code == 0
    rows = [line.split()[:2] for line in out.splitlines() if "GiB" in line]
    assert [model for model, _ in rows] == ["smol", "smol", "other"]
    assert rows[0][1] != rows[1][1], "copies differ"
    assert "2 models in 3 deployments" in out
    drawn = "".join(ET.fromstring(drawing.read_text()).itertext())
    assert "smol" in drawn
    assert "other" in drawn


def test_json_has_what_the_service_answers(run: Run, members: Path, tmp_path: Path) -> None:
    code, out, _ = run(members, "--file", ROOT / "examples" / "topology.yaml", "--json")
    assert code == 0
    answer = json.loads(out)
    specs = [plan["spec"] for plan in answer["plans"]]
    assert [spec["max_batch_rows"] for spec in specs] == [4, 4, 8]
    assert (specs[0]["output_token_slo"], specs[2]["dtype"]) == ("0.050s", "bfloat16")
    assert all(spec["device_ids"] for spec in specs)
    assert answer["tokens_per_second"] <= answer["tokens_per_second_bound"] * 1.0001


def test_the_machine_of_a_deployer(run: Run, members: Path, deployer: str) -> None:
    code, out, _ = run(members)
    assert code == 0
    assert "GPU-a" in out
    assert "GPU-b" in out


async def test_clients_plan_fleets(deployer: str) -> None:
    spec = pb.DeploymentSpec(model="smol", weights_path="/models/smol", context_tokens=2048)
    wanted = [pb.FleetMember(spec=spec, copies=2)]
    endpoints = Endpoints(profiler=deployer, scheduler=deployer, deployer=deployer)
    with Client(endpoints, model="smol") as client:
        planned = client.plan_fleet(wanted)
    assert [one.spec.device_ids for one in planned.plans] == [["GPU-a"], ["GPU-b"]]
    async with AsyncClient(endpoints, model="smol") as client:
        assert await client.plan_fleet(wanted) == planned


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("members: [{weights: smol, copys: 2}]", "members.0.copys"),
        ("members: [{weights: smol, output_token_slo: soon}]", "must be a duration"),
        ("members: [{weights: smol, copies: 0}]", "members.0.copies"),
        ("members: [{weights: smol, share: 0.5}]", "sum to 0.5"),
        ("members: [{weights: smol}, {weights: nowhere}]", "members[1]"),
        ("members: [{weights: smol}, {weights: smol, model: two, concurrency: 1024}]", "members[1], two"),
        ("members: []", "must be 1 to 64 copies"),
        ("[", "is no YAML"),
        ("", "fleet.yaml"),
    ],
)
def test_what_cannot_be_is_said(run: Run, members: Path, tmp_path: Path, text: str, said: str) -> None:
    members.write_text(text)
    topology = tmp_path / "small.yaml"
    topology.write_text("gpu_model: L4\ndevices: [{id: g, count: 2}]\n")
    code, out, err = run(members, "--file", topology)
    assert (code, out) == (1, "")
    assert said in " ".join(err.split())


def test_options_of_a_file_need_one(run: Run, members: Path) -> None:
    code, _, err = run(members, "--gpu-model", "H100")
    assert code == 2
    assert "go with --file" in " ".join(err.split())


def test_the_example_of_the_documentation(run: Run) -> None:
    examples = ROOT / "examples"
    code, out, _ = run(examples / "fleet.yaml", "--file", examples / "topology.yaml")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if "GiB" in line] == ["llama-70b", "chat", "chat", "draft"]
