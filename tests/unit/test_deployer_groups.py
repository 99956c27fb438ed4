"""Tensor-parallel groups: which an engine can form for a model, what each device holds, and what a step takes."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from uellm_deployer.adapters.triton_config import CONFIG as CONFIG_FILE
from uellm_deployer.adapters.triton_config import TritonRenderer
from uellm_deployer.backends.vllm.options import EngineOptions
from uellm_deployer.domain.engines import ENGINES
from uellm_deployer.domain.facts import model_shape
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.placing import problem_of
from uellm_deployer.domain.plan import Objective
from uellm_deployer.domain.quantisation import quantisation
from uellm_deployer.domain.roofline import LAYER_SECONDS
from uellm_deployer.domain.sizing import Sizing
from uellm_deployer.domain.topology import Device, DeviceKind, Link, Topology

from tests.support.deployer import CPU, GIB, SHAPE, a_spec, gpu
from uellm.rpc.errors import ResourceExhaustedError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
LATENT = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "num_key_value_heads": 32,
    "first_k_dense_replace": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 1408,
    "n_shared_experts": 1,
}


def linked(*devices: Device, link_class: str = "NV12", bandwidth: float = 250e9, latency: float = 2e-6) -> Topology:
    links = [Link(a.id, b.id, link_class, bandwidth, latency, peer_access=True) for a, b in combinations(devices, 2)]
    return Topology(devices, tuple(links), "test")


def gpus(count: int, free_gib: float = 80) -> list[Device]:
    return [gpu(f"GPU-{number}", free_gib) for number in range(count)]


def plan_of(topology: Topology, shape=None, **spec):
    wanted = a_spec(**{"backend": "vllm", "objective": Objective.LR, **spec})
    return HelrPlanner().place(wanted, shape or model_shape(LLAMA, (), "l"), topology).plan


def sizing_of(config: dict[str, object], backend: str = "vllm", kind: DeviceKind = DeviceKind.GPU) -> Sizing:
    return Sizing.of(a_spec(backend=backend, context_tokens=1024), model_shape(config, (), "l"), kind)


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, (1, 2, 4, 8)),
        ({"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}, (1,)),  # whole heads
        ({"num_attention_heads": 24, "num_key_value_heads": 6, "hidden_size": 3072}, (1, 2)),  # of keys and values, too
        ({"num_attention_heads": 24, "num_key_value_heads": 3, "hidden_size": 3072}, (1,)),
        ({"num_key_value_heads": 1}, (1, 2, 4, 8)),  # each has a copy of the one head
        ({"num_key_value_heads": 2}, (1, 2, 4, 8)),
        ({"intermediate_size": 11010}, (1, 2)),
        ({"quantization_config": GPTQ}, (1, 2)),  # 11008 / 4 is no whole number of groups of 128
        ({"quantization_config": GPTQ | {"group_size": 64}}, (1, 2, 4)),
        ({"quantization_config": GPTQ | {"group_size": -1}}, (1, 2, 4, 8)),
        ({"quantization_config": FP8}, (1, 2)),
        ({"quantization_config": FP8, "intermediate_size": 14336, "head_dim": 64}, (1, 2, 4)),  # one head: half a block
        ({"quantization_config": GPTQ | {"dynamic": {"x": {}}}}, (1,)),  # of sizes that are not known
        (LATENT, (1, 2, 4, 8)),
    ],
)
def test_groups_divide_the_model(changes: dict[str, object], sizes: tuple[int, ...]) -> None:
    shape = model_shape(LLAMA | changes | {"quantization_config": None}, (), "l")
    if section := changes.get("quantization_config"):
        shape = replace(shape, quantisation=quantisation({"quantization_config": section}))
    for kind in (DeviceKind.GPU, DeviceKind.CPU):
        sizing = Sizing.of(a_spec(backend="vllm", context_tokens=1024), shape, kind)
        assert problem_of(sizing, (), Topology((), (), "test")).constraints.tensor_sizes == sizes
    assert Sizing.of(a_spec(context_tokens=1024), shape, DeviceKind.GPU).tensor_sizes == (1,), "transformers has none"


def test_of_a_model_that_only_transformers_knows_nothing_is_shared() -> None:
    shape = replace(model_shape(LLAMA, (), "l"), division=None)
    assert Sizing.of(a_spec(backend="vllm"), shape, DeviceKind.GPU).tensor_sizes == (1,)


def test_an_architecture_without_stages_is_not_spread() -> None:
    halves = [gpu("GPU-a", free_gib=3), gpu("GPU-b", free_gib=3)]
    spread = plan_of(linked(*halves), SHAPE, max_batch_rows=24)
    assert [stage.device_ids for stage in spread.stages] == [("GPU-a",), ("GPU-b",)]
    (without, *_) = sorted(ENGINES["vllm"].without_stages)
    with pytest.raises(ResourceExhaustedError) as caught:
        plan_of(linked(*halves), replace(SHAPE, architecture=without), max_batch_rows=24)
    assert "spread" not in caught.value.message


def test_a_group_is_formed_where_links_are_quick_and_named() -> None:
    plan = plan_of(linked(*gpus(4)))
    (stage,) = plan.stages
    assert stage.device_ids == ("GPU-0", "GPU-1", "GPU-2", "GPU-3")
    assert plan.devices == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    assert plan.stage_devices == (plan.devices,)
    assert "on GPU-0 and GPU-1 and GPU-2 and GPU-3: " in plan.explanation
    assert [one.device_ids for one in plan_of(linked(*gpus(4), link_class="PHB")).stages] == [("GPU-0",)]
    assert len(plan_of(linked(*gpus(4)), backend="hf").stages[0].device_ids) == 1


def test_what_lost_counts_devices_of_groups() -> None:
    wanted = a_spec(backend="vllm", objective=Objective.HE)
    placed = HelrPlanner().place(wanted, model_shape(LLAMA, (), "l"), linked(*gpus(2)))
    assert [stage.device_ids for stage in placed.plan.stages] == [("GPU-0",)]
    quicker = next(reason for plan, reason in placed.alternatives if len(plan.devices) == 2)
    assert quicker.startswith("GPU-0 and GPU-1: takes ")
    assert quicker.endswith("less time per step, on 1 more of them")


def test_processors_of_one_machine_form_a_group() -> None:
    nodes = [replace(CPU, id=f"cpu{node}", numa_node=node) for node in range(2)]
    plan = plan_of(linked(*nodes, link_class="SYS", bandwidth=20e9), max_batch_rows=2, context_tokens=1024)
    assert plan.stages[0].device_ids == ("cpu0", "cpu1")
    assert plan.devices == ("cpu", "cpu")


def test_a_plan_of_several_groups_reaches_vllm_in_its_order(tmp_path) -> None:
    # Links between the pairs are slow: two groups of two, one behind the other.
    devices = gpus(4, free_gib=6)
    links = [
        Link(
            a.id,
            b.id,
            "NV12" if i // 2 == j // 2 else "PHB",
            250e9 if i // 2 == j // 2 else 10e9,
            2e-6,
            peer_access=True,
        )
        for (i, a), (j, b) in combinations(enumerate(devices), 2)
    ]
    plan = plan_of(Topology(tuple(devices), tuple(links), "test"), max_batch_rows=4)
    assert [len(stage.device_ids) for stage in plan.stages] == [2, 2]
    config = text_format.Parse(TritonRenderer(tmp_path).render(plan).files[CONFIG_FILE].decode(), ModelConfig())
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert json.loads(parameters["stages"]) == [
        [[f"cuda:{device.removeprefix('GPU-')}" for device in stage.device_ids], stage.layer_count]
        for stage in plan.stages
    ]
    options = EngineOptions.from_parameters(parameters)
    assert options.devices == plan.devices
    assert sum(stage.layers for stage in options.stages) == 32
    assert options.kv_bytes == max(stage.kv_bytes for stage in plan.stages)
    assert all(plan.needs[device.id] <= device.free_memory_bytes for device in devices)


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}, {"attention_bias": True}, LATENT])
def test_what_the_devices_of_a_group_hold_is_the_model_and_what_they_repeat(
    size: int, changes: dict[str, object]
) -> None:
    sizing = sizing_of(LLAMA | changes)
    model = problem_of(sizing, (), Topology((), (), "test")).model
    split = min(size, sizing.kv_heads)
    for layer, facts in zip(model.layers, sizing.parts.layers, strict=True):
        together = size * layer.weights_on(size, split)
        repeated = (size - 1) * layer.whole_bytes + (size // split - 1) * layer.kv_weight_bytes
        assert 0 <= together - layer.weight_bytes - repeated < 2 * size
        assert layer.weights_on(1, 1) == facts.weight_bytes
    (first, *_) = model.layers
    norms, biases = 2 * 4096, 0
    keys = 2 * 4096 * 128 * sizing.kv_heads
    if changes == LATENT:
        norms += 512 + 0
        keys, biases = 0, 4096 * (512 + 64)
    if "attention_bias" in changes:
        biases = 4096 + 2 * 1024 + 4096
    assert (first.whole_bytes, first.kv_weight_bytes) == (2 * (norms + biases), 2 * keys)


def test_a_step_of_a_group_is_that_of_its_share_and_of_what_is_exchanged() -> None:
    shape, spec = model_shape(LLAMA, (), "l"), {"max_batch_rows": 16, "context_tokens": 1024}
    free = plan_of(linked(*gpus(2), bandwidth=1e18, latency=0.0), shape, **spec)
    slow = plan_of(linked(*gpus(2), bandwidth=100e9, latency=3e-6), shape, **spec)
    alone = plan_of(Topology((gpu("GPU-0"),), (), "test"), shape, **spec)
    assert len(free.stages[0].device_ids) == len(slow.stages[0].device_ids) == 2
    # Norms are read by both, and each layer begins on both; all else is halved.
    begun = 32 * LAYER_SECONDS[DeviceKind.GPU]
    read = alone.step_time.base_seconds - begun
    assert free.step_time.base_seconds == pytest.approx(begun + read / 2, rel=1e-3)
    assert free.step_time.per_context_token_seconds == pytest.approx(alone.step_time.per_context_token_seconds / 2)
    exchanges = 2 * 32 + 2
    for rows in (1, 16):
        one = 3e-6 + rows * 4096 * 2 / 100e9  # two devices read each other's part
        assert slow.step_time.step(rows, 0) - free.step_time.step(rows, 0) == pytest.approx(exchanges * one, rel=1e-6)
    assert slow.objective_seconds > free.objective_seconds


def test_a_plan_on_one_device_is_what_it_was() -> None:
    plan = plan_of(Topology((gpu("GPU-0"),), (), "test"), context_tokens=1024)
    assert plan.weight_bytes == plan.facts.weight_bytes
    page = ENGINES["vllm"].page_tokens * plan.facts.kv_bytes_per_token
    assert plan.stages[0].kv_bytes == plan.kv_budget_bytes + page
    assert plan.devices == ("cuda:0",)


def test_a_group_that_no_memory_is_missing_for_has_room_on_each() -> None:
    pair = gpus(2, free_gib=12)
    with pytest.raises(ResourceExhaustedError):
        plan_of(Topology(tuple(pair), (), "test"), context_tokens=1024)
    plan = plan_of(linked(*pair), context_tokens=1024)
    assert all(stage.total_bytes <= 12 * GIB for stage in plan.stages)
