"""Engines of TensorRT-LLM: read without TensorRT-LLM, and placed as they were built."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_deployer.adapters.model_folder import read_shape
from uellm_deployer.domain.built import built_shape, even_split
from uellm_deployer.domain.fixed_split import folded
from uellm_deployer.domain.fleet.fleet import Member, Wanted, plan_fleet
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.topology import Link, Topology

from tests.support.deployer import CPU, GIB, SHAPE, a_spec, gpu
from uellm.rpc.errors import InvalidArgumentError, ResourceExhaustedError

CONFIG: dict[str, Any] = {
    "version": "0.20.0",
    "pretrained_config": {
        "architecture": "LlamaForCausalLM",
        "dtype": "float16",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 30,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_size": 128,
        "vocab_size": 32000,
        "max_position_embeddings": 8192,
        "mapping": {"world_size": 4, "tp_size": 2, "pp_size": 2},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None},
    },
    "build_config": {
        "max_batch_size": 64,
        "max_seq_len": 4096,
        "max_num_tokens": 2048,
        "plugin_config": {"tokens_per_block": 32},
    },
}
"""The fields that are read of what `trtllm-build` writes."""

RANKS = (3 * GIB, 3 * GIB + 7, 4 * GIB, 4 * GIB)


def changed(*path: str, **values: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    inner = config
    for name in path:
        inner = inner[name]
    inner.update(values)
    return config


def spec(**changes: Any):
    return a_spec(backend="tensorrtllm", max_batch_rows=16, context_tokens=0, **changes)


def nvlinked(*devices) -> Topology:
    links = [Link(a.id, b.id, "NV12", 300e9, 2e-6, peer_access=True) for a, b in combinations(devices, 2)]
    return Topology((*devices, CPU), tuple(links), "test")


def place(shape, *devices, **changes):
    return HelrPlanner().place(spec(**changes), shape, nvlinked(*devices)).plan


EIGHT = [gpu(f"GPU-{n}") for n in range(8)]


@given(st.integers(1, 200), st.integers(1, 16))
def test_layers_are_divided_evenly_the_first_get_more(layers, stages):
    split = even_split(layers, stages)
    assert (sum(split), len(split)) == (layers, stages)
    assert sorted(split, reverse=True) == list(split)
    assert max(split) - min(split) <= 1


def test_the_plan_is_the_one_that_was_built():
    plan = place(built_shape(CONFIG, RANKS, "f"), *EIGHT)
    assert [(stage.first_layer, stage.layer_count) for stage in plan.stages] == [(0, 15), (15, 15)]
    assert [(stage.embedding, stage.head) for stage in plan.stages] == [(True, False), (False, True)]
    assert [stage.weight_bytes for stage in plan.stages] == [3 * GIB + 7, 4 * GIB], "of the largest rank"
    assert plan.devices == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    assert plan.facts.weight_bytes == 2 * (3 * GIB + 7) + 8 * GIB
    assert (plan.spec.dtype, plan.spec.context_tokens) == ("float16", 4096)
    assert plan.facts.kv_bytes_per_token == 30 * 2 * 8 * 128 * 2
    assert plan.kv_budget_bytes == 16 * 4096 * plan.facts.kv_bytes_per_token
    assert len(set(plan.needs)) == 4


def test_stages_that_do_not_divide_evenly():
    config = changed("pretrained_config", num_hidden_layers=7, mapping={"world_size": 3, "tp_size": 1, "pp_size": 3})
    plan = place(built_shape(config, (GIB, GIB, GIB), "f"), *EIGHT[:3])
    assert [(stage.first_layer, stage.layer_count) for stage in plan.stages] == [(0, 3), (3, 2), (5, 2)]


@pytest.mark.parametrize("algorithm", ["FP8", "INT8"])
def test_a_narrow_cache_takes_half(algorithm):
    config = changed("pretrained_config", "quantization", kv_cache_quant_algo=algorithm)
    wide, narrow = (built_shape(one, RANKS, "f") for one in (CONFIG, config))
    assert 2 * place(narrow, *EIGHT).facts.kv_bytes_per_token == place(wide, *EIGHT).facts.kv_bytes_per_token


def test_too_few_devices_are_refused_even_if_they_have_room():
    with pytest.raises(ResourceExhaustedError):
        place(built_shape(CONFIG, RANKS, "f"), *EIGHT[:3])


def test_devices_that_cannot_share_layers_are_refused():
    machine = replace(nvlinked(*EIGHT[:4]), links=())
    with pytest.raises(ResourceExhaustedError):
        HelrPlanner().place(spec(), built_shape(CONFIG, RANKS, "f"), machine)


def test_the_slow_devices_are_left_out():
    slow = [gpu(f"SLOW-{n}", bandwidth=1e12) for n in range(2)]
    plan = place(built_shape(CONFIG, RANKS, "f"), *slow, *EIGHT[:4])
    assert not any(device.startswith("SLOW") for device in plan.needs)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"max_batch_rows": 65}, "spec.max_batch_rows", "at most 64 rows"),
        ({"context_tokens": 4097}, "spec.context_tokens", "4096"),
        ({"dtype": "bfloat16"}, "spec.dtype", "built for float16"),
        ({"backend": "vllm"}, "spec.backend", "its backend is tensorrtllm"),
    ],
)
def test_what_the_build_does_not_allow_is_refused(changes, field, words):
    shape = built_shape(CONFIG, RANKS, "f")
    with pytest.raises(InvalidArgumentError) as refused:
        HelrPlanner().place(replace(spec(), **changes), shape, nvlinked(*EIGHT))
    (violation,) = refused.value.violations
    assert violation.field == field
    assert words in violation.description


def test_a_checkpoint_is_not_for_this_backend_and_a_processor_is_not_either():
    with pytest.raises(InvalidArgumentError, match="trtllm-build"):
        HelrPlanner().place(spec(), SHAPE, nvlinked(*EIGHT))
    with pytest.raises(InvalidArgumentError, match="on a gpu only"):
        HelrPlanner().place(spec(), built_shape(CONFIG, RANKS, "f"), Topology((CPU,), (), "test"))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (changed("pretrained_config", architecture="GPTForCausalLM"), "known are LlamaForCausalLM"),
        (changed("pretrained_config", moe={"num_experts": 8, "top_k": 2}), "without experts"),
        (changed("pretrained_config", mapping={"world_size": 8, "tp_size": 2, "pp_size": 2}), "context parallelism"),
        (changed("pretrained_config", mapping={"world_size": "4"}), "world_size"),
        (changed("pretrained_config", dtype="int3"), "dtype"),
        (changed("pretrained_config", "quantization", kv_cache_quant_algo="NVFP4"), "kv_cache_quant_algo"),
        (changed("build_config", max_seq_len=None), "max_seq_len"),
        (changed("build_config", max_batch_size=0), "max_batch_size"),
    ],
)
def test_engines_that_are_not_understood_are_refused(config, words):
    with pytest.raises(InvalidArgumentError, match=words):
        built_shape(config, RANKS, "f")


def test_qwen_is_known_by_its_type():
    config = changed("pretrained_config", architecture="QWenForCausalLM", qwen_type="qwen2")
    assert built_shape(config, RANKS, "f").architecture == "Qwen2ForCausalLM"
    with pytest.raises(InvalidArgumentError):
        built_shape(changed("pretrained_config", architecture="QWenForCausalLM", qwen_type="qwen"), RANKS, "f")


def write(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    for rank in range(4):
        (folder / f"rank{rank}.engine").write_bytes(bytes(1000 + rank))
    return folder


def test_a_folder_is_read_by_its_config_and_the_sizes_of_its_files(tmp_path):
    shape = read_shape(str(write(tmp_path)))
    assert shape.built is not None
    assert shape.built.rank_bytes == (1000, 1001, 1002, 1003)
    before = shape.fingerprint
    (tmp_path / "rank3.engine").write_bytes(bytes(2000))
    assert read_shape(str(tmp_path)).fingerprint != before


@pytest.mark.parametrize("missing", ["rank3.engine", "tokenizer.json"])
def test_a_folder_that_lacks_something_is_refused(tmp_path, missing):
    (write(tmp_path) / missing).unlink()
    with pytest.raises(InvalidArgumentError, match=f"without {missing}"):
        read_shape(str(tmp_path))


def test_stages_that_a_spec_states_are_those_of_the_build():
    built = built_shape(CONFIG, RANKS, "f").built
    assert folded((15, 15), built) == (1, 1)
    assert folded((4, 1), None) == (4, 1)
    with pytest.raises(ValueError, match="must be 15, 15"):
        folded((20, 10), built)


def test_two_copies_of_an_engine_are_planned_as_a_fleet():
    """By specs that give the same plans again."""
    shape, machine = built_shape(CONFIG, RANKS, "f"), nvlinked(*EIGHT)
    fleet = plan_fleet(HelrPlanner(), [Member(Wanted(spec(), 1.0, copies=2), shape)], machine)
    one, other = fleet.plans
    assert one.plan_hash != other.plan_hash
    assert len(one.needs) == len(other.needs) == 4
    for plan in fleet.plans:
        again = HelrPlanner().place(plan.spec, shape, machine).plan
        assert (again.stages, again.plan_hash) == (plan.stages, plan.plan_hash)
        assert plan.spec.stage_layers == (15, 15)


def test_parts_of_a_gpu_have_no_numbers():
    part = replace(gpu("MIG-a"), parent_id="GPU-x")
    with pytest.raises(InvalidArgumentError, match="takes GPUs by number"):
        HelrPlanner().place(spec(), built_shape(CONFIG, RANKS, "f"), nvlinked(part, *EIGHT))
