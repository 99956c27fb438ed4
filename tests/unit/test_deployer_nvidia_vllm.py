"""Entries of NVIDIA's vLLM backend, and the front's requests to it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup
from uellm_deployer.adapters.entries import InvalidEntryError
from uellm_deployer.adapters.nvidia_vllm_config import check_engine, engine_arguments, environment
from uellm_deployer.adapters.triton_config import TritonRenderer
from uellm_deployer.app.ports import RepositoryEntry
from uellm_deployer.backends.common.engine_model import EngineModel, server_address
from uellm_deployer.backends.common.front import EngineError
from uellm_deployer.backends.common.request import Row, SamplingParameters
from uellm_deployer.backends.common.rows import Limits, LiveRow
from uellm_deployer.backends.common.text import Text
from uellm_deployer.backends.nvidia_vllm.requests import new_tokens, row_tensors
from uellm_deployer.backends.nvidia_vllm.spelling import Speller
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.plan import DeploymentPlan
from uellm_deployer.domain.topology import Topology

from tests.support.deployer import CPU, SHAPE, a_spec
from tests.support.tiny_model import make_tokenizer
from tests.unit.test_deployer_built import EIGHT, nvlinked
from uellm.local.process import free_port
from uellm.rpc.errors import InvalidArgumentError


def place(**changes: Any) -> DeploymentPlan:
    return HelrPlanner().place(a_spec(backend="nvidia_vllm", **changes), SHAPE, nvlinked(*EIGHT)).plan


PLAN = place(device_ids=("GPU-5", "GPU-2"), stage_layers=(20, 10))


def config_of(entry: RepositoryEntry) -> ModelConfig:
    return text_format.Parse(entry.files["config.pbtxt"].decode(), ModelConfig())


@pytest.fixture
def engine(tmp_path) -> RepositoryEntry:
    entry = TritonRenderer(tmp_path).render(PLAN)
    assert {"1/model.py", "1/uellm_backends/nvidia_vllm/engine.py"} < set(entry.files)
    assert entry.engine is not None
    return entry.engine


def test_the_engine_is_rendered_as_it_was_placed(engine):
    config, arguments = config_of(engine), json.loads(engine.files["1/model.json"])
    assert (config.backend, config.max_batch_size, config.model_transaction_policy.decoupled) == ("vllm", 0, True)
    assert [(group.kind, group.count) for group in config.instance_group] == [(ModelInstanceGroup.KIND_MODEL, 1)]
    inputs = {tensor.name: tensor for tensor in config.input}
    assert (inputs["text_input"].data_type, list(inputs["text_input"].dims)) == (DataType.TYPE_STRING, [1])
    assert not inputs["text_input"].optional
    assert not inputs["stream"].HasField("reshape")
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (1, 2)
    assert (arguments["max_num_seqs"], arguments["max_model_len"], arguments["dtype"]) == (8, 2048, "bfloat16")
    assert arguments["kv_cache_memory_bytes"] == max(stage.kv_bytes for stage in PLAN.stages)
    assert arguments["trust_remote_code"] is False


def test_the_share_of_memory_is_that_of_the_fullest_device():
    total = {device.id: device.memory_bytes for device in EIGHT}
    share = max(needed / total[device] for device, needed in PLAN.needs.items())
    assert PLAN.memory_share == share
    told = engine_arguments(PLAN, "/w")["gpu_memory_utilization"]
    assert share <= told <= share + 1e-4


def test_the_same_engine_has_the_same_name_on_fuller_devices():
    """The share is not what the plan makes of the engine."""
    assert replace(PLAN, memory_share=0.9).hashed().plan_hash == PLAN.plan_hash


def shell(plan: DeploymentPlan, outer: Mapping[str, str]) -> dict[str, str]:
    """The variables that a process has which a shell starts with that environment."""
    script = environment(plan) + "env -0"
    path = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", script], env=path | dict(outer), capture_output=True, check=True, text=True)
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if line)


@pytest.mark.parametrize(
    ("outer", "seen"),
    [
        ({}, "5,2"),
        ({"CUDA_VISIBLE_DEVICES": "7,6,5,4,3,2,1,0"}, "2,5"),
        ({"CUDA_VISIBLE_DEVICES": "9, 8,GPU-c,4,3,GPU-f"}, "GPU-f,GPU-c"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "none,none"),
    ],
)
def test_numbers_of_devices_count_within_what_triton_sees(outer, seen):
    variables = shell(PLAN, outer)
    assert variables["CUDA_VISIBLE_DEVICES"] == seen
    assert variables["VLLM_PP_LAYER_PARTITION"] == "20,10"


def test_one_stage_has_no_partition_whatever_triton_has():
    variables = shell(place(device_ids=("GPU-3",)), {"VLLM_PP_LAYER_PARTITION": "20,10"})
    assert "VLLM_PP_LAYER_PARTITION" not in variables
    assert variables["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_part_of_a_gpu_is_named():
    part = replace(PLAN, devices=("cuda:MIG-1-a", "cuda:MIG-2"))
    assert shell(part, {"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == "MIG-1-a,MIG-2"


def changed(entry: RepositoryEntry, **arguments: Any) -> RepositoryEntry:
    told = json.loads(entry.files["1/model.json"]) | arguments
    return replace(entry, files={**entry.files, "1/model.json": json.dumps(told).encode()})


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda config: config.instance_group[0].gpus.append(0), "KIND_MODEL"),
        (lambda config: setattr(config.instance_group[0], "kind", ModelInstanceGroup.KIND_GPU), "KIND_MODEL"),
        (lambda config: setattr(config.instance_group[0], "count", 2), "one instance"),
        (lambda config: setattr(config.model_transaction_policy, "decoupled", False), "decoupled"),
        (lambda config: config.dynamic_batching.SetInParent(), "leave batching"),
        (lambda config: setattr(config, "max_batch_size", 8), "leave batching"),
        (lambda config: setattr(config, "name", "smol--0123456789"), "name"),
        (lambda config: setattr(config.parameters["EXECUTION_ENV_PATH"], "string_value", "/opt"), "environment"),
    ],
)
def test_rules_of_the_config(engine, change, rule):
    config = config_of(engine)
    change(config)
    files = {**engine.files, "config.pbtxt": text_format.MessageToString(config).encode()}
    with pytest.raises(InvalidEntryError, match=rule):
        check_engine(replace(engine, files=files), 2)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"trust_remote_code": True}, "must not run code"),
        ({"gpu_memory_utilization": 1.2}, "at most 1"),
        ({"tensor_parallel_size": 2}, "a device for each worker"),
    ],
)
def test_rules_of_the_arguments(engine, arguments, rule):
    with pytest.raises(InvalidEntryError, match=rule):
        check_engine(changed(engine, **arguments), 2)


def test_a_processor_is_refused():
    with pytest.raises(InvalidArgumentError, match="on a gpu only"):
        HelrPlanner().place(a_spec(backend="nvidia_vllm"), SHAPE, Topology((CPU,), (), "test"))


# Requests.

TOKENIZER = make_tokenizer()
LIMITS = Limits(frozenset({256}), 512)


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text)["input_ids"])


def test_a_row_in_the_tensors_of_the_backend():
    row = Row("r", ids("ab"), ids("c"), SamplingParameters(max_tokens=5, temperature=0.5, seed=3, stop=("X",)))
    tensors = row_tensors("abc", LiveRow(row, LIMITS, TOKENIZER.decode), LIMITS.end_tokens)
    sampling = json.loads(tensors.pop("sampling_parameters").item())
    assert tensors.pop("text_input").tolist() == [b"abc"]
    assert {name: value.tolist() for name, value in tensors.items()} == {name: [True] for name in tensors}
    assert (sampling["max_tokens"], sampling["logprobs"], sampling["stop"], sampling["detokenize"]) == (
        4,
        0,
        ["X"],
        True,
    )
    assert sampling["stop_token_ids"] == [256]
    assert sampling["seed"] != 3, "the numbers of the token before must not come again"


def response(told: Any, read: int = 3, count: int = 2, reason: str = "None") -> dict[str, Any]:
    return {
        "logprobs": np.array([json.dumps(told).encode()], dtype=np.object_),
        "finish_reason": np.array([reason.encode()], dtype=np.object_),
        "num_input_tokens": np.array(read, dtype=np.uint32),
        "num_output_tokens": np.array([count], dtype=np.uint32),
    }


TOLD = [{"7": {"logprob": -1.0}}, {"9": {"logprob": float("-inf")}, "4": {"logprob": -0.1}}]


def test_ids_are_read_off_the_logprobs():
    assert new_tokens(response(TOLD), read=3) == [7, 9]
    assert new_tokens(response([], count=0, reason="stop"), read=3) == []


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (response(TOLD, read=4), "has read 4 tokens where 3 were meant"),
        (response(None), "drawn 2 tokens and told the ids of 0"),
        (response(TOLD, count=3), "drawn 3 tokens and told the ids of 2"),
        (response([], count=0, reason="abort"), "ended the row: abort"),
    ],
)
def test_answers_that_cannot_be_trusted(outputs, words):
    with pytest.raises(EngineError, match=words):
        new_tokens(outputs, read=3)


@given(st.text(max_size=30), st.text(max_size=30))
def test_text_is_spelled_as_it_is_read(prompt, answer):
    text, read = SPELLER.spell(ids(prompt), ids(answer))
    assert (ids(text), read) == (ids(prompt) + ids(answer), len(ids(prompt) + ids(answer)))


SPELLER = Speller(Text(TOKENIZER))


def test_a_first_token_is_not_sent_twice():
    tokenizer = make_tokenizer()
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    template = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)])
    tokenizer.backend_tokenizer.post_processor = template
    assert Speller(Text(tokenizer)).spell((start, *ids("ab"))) == ("ab", 3)
    with pytest.raises(EngineError, match="none that is read as these prompt tokens"):
        Speller(Text(tokenizer)).spell(ids("ab"))


class Merging(Text):
    """Reads `a` and `b` as one token, 300, though an answer may come as two."""

    def encode(self, text: str, *, chat: bool) -> list[int]:
        parts = [[300] if part == "ab" else ids(part) for part in re.split("(ab)", text)]
        return [token for part in parts for token in part]

    def spelled(self, tokens: Any) -> str:
        return "".join("ab" if token == 300 else TOKENIZER.decode([token]) for token in tokens)


def test_an_answer_in_unusual_tokens_goes_on_after_its_text():
    speller = Speller(Merging(TOKENIZER))
    assert speller.spell(ids("x"), ids("ab")) == ("xab", 2)
    assert speller.spell(ids("x"), (300,)) == ("xab", 2)
    with pytest.raises(EngineError, match="prompt tokens"):
        speller.spell(ids("ab"))
    with pytest.raises(EngineError, match="cannot be resumed"):
        speller.spell(ids("x"), ids("\u20ac")[:1])


# The way to the engine.


@contextlib.contextmanager
def started_with(*arguments: str) -> Iterator[int]:
    """A process with this command line, which it has only once it runs."""
    command = [sys.executable, "-c", "print(flush=True); input()", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ((), "127.0.0.1:8001"),
        (("--grpc-port=9",), "127.0.0.1:9"),
        (("--grpc-address", "0.0.0.0", "--grpc-port", "9"), "127.0.0.1:9"),
        (("--grpc-address=10.0.0.7", "--grpc-use-ssl=false"), "10.0.0.7:8001"),
    ],
)
def test_a_front_finds_the_server_that_it_runs_in(arguments, address):
    with started_with(*arguments) as process:
        assert server_address(process) == address


def test_a_server_that_asks_for_tls_is_not_reached():
    with started_with("--grpc-use-ssl") as process, pytest.raises(ValueError, match="TLS"):
        server_address(process)


def test_an_engine_that_is_not_there_is_an_error_of_the_row():
    ask = EngineModel(f"127.0.0.1:{free_port()}", "m", ["A"])
    with pytest.raises(EngineError, match="broke off"):
        next(ask("r", {"text": np.array([b"x"], np.object_)}))
