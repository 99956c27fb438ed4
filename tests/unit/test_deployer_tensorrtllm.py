"""Entries of TensorRT-LLM engines, and the front's requests to them."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup
from uellm_deployer.adapters.entries import InvalidEntryError
from uellm_deployer.adapters.repository import ModelRepository
from uellm_deployer.adapters.tensorrtllm_config import check_engine
from uellm_deployer.adapters.triton_config import TritonRenderer
from uellm_deployer.app.ports import RepositoryEntry
from uellm_deployer.backends.common.front import Engine, EngineError, facts_of
from uellm_deployer.backends.common.request import Row, SamplingParameters
from uellm_deployer.backends.common.rows import Limits, LiveRow
from uellm_deployer.backends.tensorrtllm.engine import TensorRtLlm
from uellm_deployer.backends.tensorrtllm.inputs import row_tensors, stop_tensors
from uellm_deployer.domain.built import built_shape
from uellm_deployer.domain.names import engine_model, is_engine_model, is_triton_model

from tests.unit.test_deployer_built import CONFIG, EIGHT, RANKS, place

PLAN = place(built_shape(CONFIG, RANKS, "f"), *EIGHT)
LIMITS = Limits(frozenset({2, 9}), 100)


def config_of(entry: RepositoryEntry) -> ModelConfig:
    return text_format.Parse(entry.files["config.pbtxt"].decode(), ModelConfig())


@pytest.fixture
def entry(tmp_path):
    return TritonRenderer(tmp_path).render(PLAN)


def test_the_engine_is_rendered_as_it_was_placed(entry):
    engine = entry.engine
    config = config_of(engine)
    assert engine.name == config.name == f"{entry.name}-engine"
    assert (config.backend, config.max_batch_size, config.model_transaction_policy.decoupled) == (
        "tensorrtllm",
        1,
        True,
    )
    assert [(group.kind, group.count, list(group.gpus)) for group in config.instance_group] == [
        (ModelInstanceGroup.KIND_CPU, 1, [])
    ]
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters["gpu_device_ids"] == "0,1,2,3"
    assert parameters["gpt_model_path"] == "/models/smol"
    assert parameters["gpt_model_type"] == "inflight_fused_batching"
    assert parameters["max_tokens_in_paged_kv_cache"] == str(16 * 4096)
    assert parameters["exclude_input_in_output"] == "true"
    inputs = {tensor.name: tensor for tensor in config.input}
    assert (inputs["input_ids"].data_type, list(inputs["input_ids"].dims)) == (DataType.TYPE_INT32, [-1])
    assert inputs["request_output_len"].HasField("reshape")
    assert not inputs["request_output_len"].reshape.shape
    assert {tensor.name: list(tensor.dims) for tensor in config.output} == {
        "output_ids": [-1, -1],
        "sequence_length": [-1],
    }
    assert any(path.startswith("1/") for path in engine.files), "Triton looks for the folder of its version"


def test_the_front_is_told_of_its_engine(entry):
    config = config_of(entry)
    assert (config.backend, config.max_batch_size) == ("python", 0)
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters["engine_model"] == entry.engine.name
    facts = facts_of(parameters["facts"])
    assert facts["kv_bytes_per_token"] == PLAN.facts.kv_bytes_per_token
    assert facts["device"] == "cuda:0 cuda:1 cuda:2 cuda:3"
    assert {"1/model.py", "1/uellm_backends/tensorrtllm/engine.py"} < set(entry.files)


def test_devices_are_named_by_their_place_in_the_machine(tmp_path):
    plan = place(built_shape(CONFIG, RANKS, "f"), *EIGHT, device_ids=tuple(f"GPU-{n}" for n in (7, 5, 3, 6)))
    config = config_of(TritonRenderer(tmp_path).render(plan).engine)
    assert config.parameters["gpu_device_ids"].string_value == "3,5,6,7"


def test_an_engine_in_the_repository_is_named_as_triton_sees_it(tmp_path):
    plan = replace(PLAN, spec=replace(PLAN.spec, weights_path=str(tmp_path / "engines" / "x")))
    config = config_of(TritonRenderer(tmp_path, tmp_path / "seen").render(plan).engine)
    assert config.parameters["gpt_model_path"].string_value == str(tmp_path / "seen" / "engines" / "x")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda config: config.instance_group[0].gpus.append(0), "KIND_CPU"),
        (lambda config: setattr(config.instance_group[0], "kind", ModelInstanceGroup.KIND_GPU), "KIND_CPU"),
        (lambda config: setattr(config.instance_group[0], "count", 2), "one instance"),
        (lambda config: setattr(config.model_transaction_policy, "decoupled", False), "decoupled"),
        (lambda config: config.dynamic_batching.SetInParent(), "leave batching"),
        (lambda config: setattr(config, "max_batch_size", 8), "leave batching"),
        (lambda config: setattr(config, "name", "smol--0123456789"), "name"),
        (lambda config: setattr(config.parameters["gpu_device_ids"], "string_value", "0,1,2"), "each rank"),
        (lambda config: setattr(config.parameters["gpu_device_ids"], "string_value", "0,1,2,2"), "none twice"),
        (lambda config: setattr(config.parameters["gpu_device_ids"], "string_value", "0,1,2,cpu"), "ordinal"),
        (lambda config: setattr(config.parameters["gpt_model_path"], "string_value", ""), "not empty"),
    ],
)
def test_rules_of_the_backend(entry, change, rule):
    config = config_of(entry.engine)
    change(config)
    files = entry.engine.files | {"config.pbtxt": text_format.MessageToString(config).encode()}
    with pytest.raises(InvalidEntryError, match=rule):
        check_engine(replace(entry.engine, files=files), ranks=4)


async def test_both_models_come_and_go_together(entry, tmp_path):
    repository = ModelRepository(tmp_path / "root")
    await repository.stage(entry)
    await repository.install(entry.name)
    assert {path.name for path in repository.models.iterdir()} == {entry.name, entry.engine.name}
    assert repository.entries() == {entry.name}, "one entry to the deployer"
    await repository.touch(entry.name)
    await repository.remove(entry.name)
    assert not any((*repository.models.iterdir(), *(repository.root / "staging").iterdir()))
    repository.close()


def test_names_of_engines():
    name = engine_model("smol--0123456789")
    assert is_engine_model(name)
    assert not is_triton_model(name)
    assert not is_engine_model("smol--0123456789")
    assert not is_engine_model("../x-engine")


# Requests.


def live(resume: tuple[int, ...] = (), **sampling: Any) -> LiveRow:
    row = Row("r", (5, 6, 7), resume, SamplingParameters(**{"max_tokens": 10, **sampling}))
    return LiveRow(row, LIMITS, lambda tokens: "".join(map(chr, tokens)))


def values(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: value.reshape(-1).tolist() for name, value in tensors.items()}


def test_a_greedy_row():
    tensors = row_tensors(live(), LIMITS.end_tokens)
    assert values(tensors) == {
        "input_ids": [5, 6, 7],
        "input_lengths": [3],
        "request_output_len": [10],
        "streaming": [True],
        "exclude_input_in_output": [True],
        "repetition_penalty": [1.0],
        "runtime_top_k": [1],
        "end_id": [2],
    }
    assert {value.shape[0] for value in tensors.values()} == {1}


def test_a_sampled_row_and_its_seeds():
    first, again, resumed, other = (
        row_tensors(row, ())
        for row in (
            live(temperature=0.5, seed=-1, top_p=0.9, top_k=3, repetition_penalty=1.2),
            live(temperature=0.5, seed=-1),
            live(temperature=0.5, seed=-1, resume=(40, 41)),
            live(temperature=0.5, seed=7),
        )
    )
    assert first["seed"].dtype == np.uint64
    assert first["seed"] == again["seed"] == 2**64 - 1
    assert len({int(one["seed"].item()) for one in (first, resumed, other)}) == 3
    assert values(resumed)["input_ids"] == [5, 6, 7, 40, 41]
    assert values(resumed)["request_output_len"] == [8]
    assert [round(float(first[name].item()), 6) for name in ("temperature", "runtime_top_p", "repetition_penalty")] == [
        0.5,
        0.9,
        1.2,
    ]
    assert first["runtime_top_k"].item() == 3


def test_no_end_where_it_is_ignored():
    assert "end_id" not in row_tensors(live(ignore_eos=True), LIMITS.end_tokens)


def test_a_stop_is_a_whole_request():
    assert values(stop_tensors()) == {
        "input_ids": [0],
        "input_lengths": [1],
        "request_output_len": [1],
        "stop": [True],
    }


@pytest.mark.parametrize("text", ["[]", "{}", json.dumps({"vocabulary": 1})])
def test_facts_are_checked(text):
    with pytest.raises(ValueError, match="facts"):
        facts_of(text)


# What ends a row that its tokens do not end.


class Collected:
    """A sink."""

    def __init__(self) -> None:
        import threading

        self.deltas: list[Any] = []
        self.closed = threading.Event()

    def send(self, deltas: Sequence[Any], step_aggregates: str | None) -> None:
        self.deltas += deltas

    def close(self) -> None:
        self.closed.set()

    def is_cancelled(self) -> bool:
        return False


def run(tokens: Sequence[int], error: str = "", **sampling: Any) -> tuple[list[int], str, str]:
    """Tokens, finish reason and error of a row whose engine answers so."""

    def ask(request_id: str, tensors: dict[str, Any]) -> Generator[dict[str, Any]]:
        if "stop" not in tensors:
            for token in tokens:
                yield {"output_ids": np.array([[[token, -1]]]), "sequence_length": np.array([[1]])}
            if error:
                raise EngineError(error)

    facts = {"kv_bytes_per_token": 4, "vocabulary": 300, "context_limit_tokens": 100}
    engine = Engine(LIMITS, lambda ids: "".join(map(chr, ids)), facts, 2, TensorRtLlm(ask, LIMITS.end_tokens))
    sink = Collected()
    row = Row("r", (5, 6), (), SamplingParameters(**{"max_tokens": 4, **sampling}))
    engine.submit("b", [row], sink, ("", 0))
    assert sink.closed.wait(20)
    engine.close()
    last = sink.deltas[-1]
    return [token for delta in sink.deltas for token in delta.token_ids], last.finish_reason, last.error


@pytest.mark.parametrize(
    ("tokens", "sampling", "expected"),
    [
        ([65, 66, 67, 68], {}, ([65, 66, 67, 68], "length", "")),
        ([65, 9], {}, ([65, 9], "stop", "")),  # an end token that the engine does not know
        ([65, 2], {}, ([65, 2], "stop", "")),
        ([65], {}, ([65, 2], "stop", "")),  # it kept its end token for itself
        ([65, 66, 67], {"stop": ("AB",)}, ([65, 66], "stop", "")),
        ([65], {"ignore_eos": True}, ([65], "error", "TensorRT-LLM has ended the row early")),
    ],
)
def test_ends(tokens, sampling, expected):
    assert run(tokens, **sampling) == expected


def test_what_the_engine_says_is_told():
    assert run([65], error="no room") == ([65], "error", "no room")
