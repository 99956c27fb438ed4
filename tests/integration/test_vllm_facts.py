"""Facts from config.json and headers against what vLLM takes when it really loads the model. `make test-vllm`."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import uellm_deployer
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from uellm_deployer.adapters.model_folder import read_shape
from uellm_deployer.domain.engines import ENGINES, able_devices
from uellm_deployer.domain.helr.cost import Pricing, Span
from uellm_deployer.domain.helr.result import describe
from uellm_deployer.domain.placing import problem_of
from uellm_deployer.domain.sizing import Sizing
from uellm_deployer.domain.tensors import TensorInfo
from uellm_deployer.domain.topology import DeviceKind, Link, Topology

from tests.support.deployer import CPU, a_spec
from tests.support.quantised import SCHEMES, checkpoint
from uellm.local.engine import VllmNotInstalledError, vllm_environment

try:
    vllm_environment()
except VllmNotInstalledError as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

BASE: dict[str, Any] = {
    "vocab_size": 320,  # vLLM pads to multiples of 64
    "hidden_size": 128,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,  # of 32, the least that its kernels for a CPU take
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GATED = BASE | {"intermediate_size": 256, "num_key_value_heads": 2, "head_dim": 32}
DENSE = {
    "windows": ("gemma3_text", GATED | {"sliding_window": 64}),
    "shared heads": ("falcon", BASE | {"new_decoder_architecture": True, "num_kv_heads": 2}),
}
SERVED = ("gptq 4", "awq", "compressed 4", "compressed int8")
PROGRAM = """
import json, os, sys
from uellm_deployer.backends.vllm.options import EngineOptions, prepare
from uellm_deployer.backends.vllm.stages import parse_stages
options = EngineOptions(sys.argv[1], "bfloat16", 1, parse_stages(sys.argv[2]), 4, 256, 4 << 20, 32)
prepare(os.environ, options)
from uellm_deployer.backends.vllm.core import Core
core = Core(options)
core.add("row", [5, 6, 7], {"max_tokens": 3, "temperature": 0.0, "ignore_eos": True})
tokens = [token for _ in range(3) for row in core.step().news for token in row.tokens]
print("\\n" + json.dumps(core.facts | {"tokens": len(tokens)}))
core.close()
"""
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64}


def served(folder: Path, stages: str = "") -> dict[str, Any]:
    """What vLLM says of the model after it has answered."""
    environment = os.environ | {"PYTHONPATH": str(Path(uellm_deployer.__file__).parents[1])}
    command = [vllm_environment() / "bin" / "python", "-c", PROGRAM, folder, stages]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"')))  # among vLLM's own


@pytest.mark.parametrize("name", DENSE)
def test_a_cache_takes_what_the_facts_say(tmp_path: Path, name: str) -> None:
    kind, values = DENSE[name]
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values)).save_pretrained(tmp_path)
    facts = read_shape(str(tmp_path)).facts(2, cache_form=ENGINES["vllm"].cache_form)
    found = served(tmp_path)
    assert found["tokens"] == 3
    assert found["kv_bytes_per_token"] == facts.kv_bytes_per_token


SEVERAL = {
    "a group whose members repeat the one head of keys": ({"num_key_value_heads": 1}, [(("cpu", "cpu"), 7)]),
    "a pipeline with the tied head on both ends": ({"tie_word_embeddings": True}, [(("cpu",), 3), (("cpu",), 4)]),
    "a pipeline of groups": ({"attention_bias": True}, [(("cpu", "cpu"), 4), (("cpu", "cpu"), 3)]),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_devices_hold_what_is_planned(tmp_path: Path, name: str) -> None:
    changes, stages = SEVERAL[name]
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **GATED | changes)).save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path))
    sizing = Sizing.of(a_spec(backend="vllm", context_tokens=256), shape, DeviceKind.CPU)
    size = len(stages[0][0])
    assert size in sizing.tensor_sizes
    devices = [replace(CPU, id=str(number)) for number in range(size * len(stages))]
    links = tuple(Link(a.id, b.id, "SYS", 1e9, 1e-6, peer_access=True) for a, b in combinations(devices, 2))
    problem = problem_of(sizing, devices, Topology(tuple(devices), links, "test"))
    first, spans = 0, []
    for number, (_, layers) in enumerate(stages):
        spans.append(Span(tuple(range(number * size, (number + 1) * size)), first, first + layers))
        first += layers
    (planned,) = describe(Pricing(problem), [spans]).copies
    weights = sum(stage.weight_bytes * stage.tensor_size for stage in planned.stages)
    found = served(tmp_path, json.dumps(stages))
    assert found["tokens"] == 3
    assert found["kv_bytes_per_token"] == sizing.facts.kv_bytes_per_token
    tables = len(devices) * BASE["max_position_embeddings"] * 32 * 2  # of rotations, which are in no checkpoint
    assert found["weight_bytes"] - tables == pytest.approx(weights, rel=0.002)


def filled(tensor: TensorInfo, found: dict[str, torch.Tensor]) -> torch.Tensor:
    if tensor.name.endswith(".g_idx"):
        return torch.arange(tensor.shape[0], dtype=torch.int32) // 128
    if tensor.name.endswith(".weight_shape"):
        rows, words = found[tensor.name.replace("weight_shape", "weight_packed")].shape
        return torch.tensor([rows, words * 8])
    if tensor.dtype == "I32":
        return torch.randint(-(2**31), 2**31 - 1, tensor.shape, dtype=torch.int32)
    if tensor.dtype == "I8":
        return torch.randint(-127, 127, tensor.shape, dtype=torch.int8)
    return (0.001 + 0.02 * torch.rand(tensor.shape)).to(DTYPES[tensor.dtype])


@pytest.mark.parametrize("name", SERVED)
def test_quantised_weights_that_the_planner_lets_through_are_served(tmp_path: Path, name: str) -> None:
    section, stored = SCHEMES[name]
    config = json.loads(AutoConfig.for_model("llama", **GATED).to_json_string())
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    config["quantization_config"] = section | {"sym": True, "desc_act": False, "zero_point": True}
    weights: dict[str, torch.Tensor] = {}
    for tensor in checkpoint(config, stored):
        weights[tensor.name.replace("_norm", "_layernorm").replace("post_", "post_attention_")] = filled(
            tensor, weights
        )
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = read_shape(str(tmp_path))
    assert able_devices("vllm", shape.quantisation, [CPU]) == [CPU]
    found = served(tmp_path)
    assert found["tokens"] == 3
    assert found["kv_bytes_per_token"] == shape.facts(2).kv_bytes_per_token
    copies = ENGINES["vllm"].head_copies_on_cpu[False]
    assert found["weight_bytes"] <= 1.02 * shape.facts(2, head_copies=copies).weight_bytes + (1 << 20)
