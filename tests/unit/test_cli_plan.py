"""`uellm plan`: for a machine in a file and for that of a deployer; tables, JSON, the drawing, and what is refused."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import grpc
import pytest
from uellm_deployer import decoding, encoding
from uellm_deployer.domain.placement import HelrPlanner

from tests.support.command_line import Run, answering
from tests.support.deployer import CONFIG, SHAPE, gpu, machine
from tests.support.topologies import switched
from uellm.v1 import deployer_pb2 as pb
from uellm.v1.deployer_pb2_grpc import DeployerServiceServicer

ROOT = Path(__file__).parents[2]
LLAMA_70B = CONFIG | {
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


@pytest.fixture
def run(uellm: Run) -> Run:
    return partial(uellm, "plan")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "Llama_70B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_70B))
    return folder / "config.json"


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    file = tmp_path / "topo.txt"
    file.write_text(switched())
    return file


def test_a_model_to_come_on_a_machine_to_come(run: Run, config: Path, topology: Path, tmp_path: Path) -> None:
    drawing = tmp_path / "plan.svg"
    code, out, _ = run(config, "--file", topology, "--gpu-model", "H100", "--svg", drawing)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("llama-70b: LlamaForCausalLM, ")
    assert "80 layers, float16, on hf; 8 rows of 4,096 tokens" in lines[0]
    stages = [line for line in lines if "GiB" in line]
    assert len(stages) == 2, "131 GiB of weights fit two of 80 GiB each"
    assert "embedding + 0 to" in stages[0]
    assert "79 + head" in stages[1]
    assert any(line.startswith("step of a full batch") and "no placement is better" in line for line in lines)
    assert any(line.startswith("what lost") for line in lines)
    assert any(line.startswith("what if") and "one more like" in line for line in lines)
    assert "llama-70b" in "".join(ET.fromstring(drawing.read_text()).itertext())


def test_a_group_is_named_in_table_and_drawing(run: Run, config: Path, tmp_path: Path) -> None:
    machine = tmp_path / "machine.yaml"
    machine.write_text("devices: [{id: a, model: H100}, {id: b, model: H100}]\nlinks: [{devices: [a, b], class: NV18}]")
    drawing = tmp_path / "plan.svg"
    code, out, _ = run(config, "--file", machine, "--backend", "vllm", "--svg", drawing)
    assert code == 0
    (stage,) = [line for line in out.splitlines() if "GiB" in line]
    assert "embedding + 0 to 79 + head" in stage
    assert " a + b " in stage
    assert "weights on each" in out
    text = " ".join(ET.fromstring(drawing.read_text()).itertext())
    assert text.count("1/2 of layers 0-79") == 2


def test_json_has_what_the_service_answers(run: Run, config: Path, topology: Path) -> None:
    code, out, _ = run(
        config, "--topology", topology, "--gpu-model", "H100", "--json", "--concurrency", 4, "--context", 2048,
        "--objective", "he", "--model", "big",
    )  # fmt: skip
    assert code == 0
    answer = json.loads(out)
    spec = answer["plan"]["spec"]
    assert (spec["model"], spec["max_batch_rows"], spec["context_tokens"]) == ("big", 4, 2048)
    assert spec["objective"] == "PLACEMENT_OBJECTIVE_HE"
    assert sum(stage["layer_count"] for stage in answer["plan"]["stages"]) == 80
    assert {"alternatives", "what_if", "plan"} == set(answer)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--objective", "fastest"], "must be one of HELR, LR, HE; got 'fastest'"),
        (["--concurrency", 1000], "does not fit"),
        (["--output-token-slo", "1ms"], "no plan keeps"),
        (["--device", "GPU9"], "no device GPU9 here"),
        (["--context", 8192], "must be at most the model's limit, 4096"),
        (["--dtype", "int3"], "must be one of float32"),
    ],
)
def test_what_cannot_be_is_said(run: Run, config: Path, topology: Path, arguments: list[object], said: str) -> None:
    code, out, err = run(config, "--file", topology, "--gpu-model", "H100", *arguments)
    assert (code, out) == (1, "")
    assert said in " ".join(err.split())


def test_options_of_a_file_need_one(run: Run, config: Path) -> None:
    code, _, err = run(config, "--gpu-model", "H100")
    assert code == 2
    assert "go with --file" in " ".join(err.split())
    code, _, err = run(config)
    assert code == 1
    assert "uellm up" in err, "no stack runs"


def test_the_machine_of_a_deployer(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(gpu("GPU-a"), gpu("GPU-b", bandwidth=1.5e12))

    class Deployer(DeployerServiceServicer):
        def PlanDeployment(self, request: pb.PlanDeploymentRequest, context: grpc.ServicerContext) -> object:
            return encoding.planned_message(HelrPlanner().place(decoding.spec(request.spec), SHAPE, here), ())

        def GetTopology(self, request: pb.GetTopologyRequest, context: grpc.ServicerContext) -> object:
            return pb.GetTopologyResponse(topology=encoding.topology_message(here))

    with answering(Deployer(), monkeypatch):
        code, out, _ = run(config)
    assert code == 0
    assert "embedding + 0 to 29 + head" in out
    assert "GPU-a" in out
    assert "GPU-b: takes 1.32 times as long per step" in out


def test_the_example_of_the_documentation(run: Run, config: Path) -> None:
    code, out, _ = run(config, "--file", ROOT / "examples" / "topology.yaml", "--context", 2048)
    assert code == 0
    assert "a0" in out
