"""The planner over several devices: stages, sums, links, what an engine can realise, what it says."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from uellm_deployer.domain.engines import ENGINES
from uellm_deployer.domain.facts import model_shape
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.placing import problem_of
from uellm_deployer.domain.plan import Objective
from uellm_deployer.domain.sizing import Sizing
from uellm_deployer.domain.topology import Device, DeviceKind, Link, Topology

from tests.support.deployer import CONFIG, CPU, GIB, SHAPE, a_spec, gpu, machine
from uellm.rpc.errors import ResourceExhaustedError

TIED = model_shape(CONFIG, (), "f" * 64)
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}


def linked(*devices: Device, bandwidth: float = 25e9, link_class: str = "PHB") -> Topology:
    links = [Link(a.id, b.id, link_class, bandwidth, 1e-5, peer_access=True) for a, b in combinations(devices, 2)]
    return Topology(devices, tuple(links), "test")


def place(topology, shape=SHAPE, **spec):
    return HelrPlanner().place(a_spec(**spec), shape, topology)


def ranges(plan):
    return [
        (stage.device_ids, stage.first_layer, stage.layer_count, stage.embedding, stage.head) for stage in plan.stages
    ]


def test_a_model_that_fits_no_device_alone_is_spread():
    halves = [gpu("GPU-a", free_gib=2.5), gpu("GPU-b", free_gib=2.5)]
    plan = place(linked(*halves), max_batch_rows=32).plan
    assert [stage.device_ids for stage in plan.stages] == [("GPU-a",), ("GPU-b",)]
    assert plan.devices == ("cuda:0", "cuda:1")
    first, last = plan.stages
    assert (first.first_layer, last.first_layer) == (0, first.layer_count)
    assert first.layer_count + last.layer_count == 30
    assert (first.embedding, first.head, last.embedding, last.head) == (True, False, False, True)
    assert all(plan.needs[device.id] <= device.free_memory_bytes for device in halves)
    assert "GPU-a (layers 0 to" in plan.explanation
    assert "bounded by stage" in plan.explanation
    assert plan.step_time.base_seconds > place(linked(gpu("GPU-a")), max_batch_rows=32).plan.step_time.base_seconds


def test_without_a_link_nothing_is_spread():
    halves = [gpu("GPU-a", free_gib=2.5), gpu("GPU-b", free_gib=2.5)]
    with pytest.raises(ResourceExhaustedError) as caught:
        place(Topology(tuple(halves), (), "test"), max_batch_rows=32)
    assert "spread" not in caught.value.message
    with pytest.raises(ResourceExhaustedError, match=r"spread over the 2 of them, each lacks [\d,]+ bytes"):
        place(linked(*halves), max_batch_rows=100)


@pytest.mark.parametrize("objective", list(Objective))
def test_eight_gpus_and_a_model_that_fits_one_are_no_pipeline(objective: Objective):
    eight = [gpu(f"GPU-{number}") for number in range(8)]
    plan = place(linked(*eight, bandwidth=300e9, link_class="NV12"), objective=objective).plan
    assert ranges(plan) == [(("GPU-0",), 0, 30, True, True)]
    assert "by " + objective.value + " over 8 devices: no placement is better" in plan.explanation


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        (backend, kind)
        for backend in sorted(set(ENGINES) - {"tensorrtllm"})  # that one serves built engines
        for kind in ENGINES[backend].default_dtype
    ],
)
@pytest.mark.parametrize(
    "shape",
    [
        SHAPE,
        TIED,
        model_shape(MIXTRAL, (), "m"),
        model_shape(CONFIG | {"model_type": "mistral", "sliding_window": 256}, (), "w"),
    ],
)
def test_the_parts_of_a_problem_sum_to_the_model(backend, kind, shape):
    sizing = Sizing.of(a_spec(backend=backend), shape, kind)
    device = replace(CPU, kind=kind, free_memory_bytes=1 << 40)
    problem = problem_of(sizing, [device], Topology((device,), (), "test"))
    model, whole = problem.model, sizing.on_one_device
    parts = (*model.layers, model.embedding, model.head)
    assert sum(part.weight_bytes for part in parts) - model.shared_bytes == whole.weights == sizing.facts.weight_bytes
    assert sum(part.kv_bytes for part in parts) + sizing.copied_kv_bytes == whole.kv_cache
    assert (
        model.activation_bytes + problem.devices[0].reserve_bytes
        == whole.total - whole.weights - whole.kv_cache + sizing.copied_kv_bytes
    )
    plan = HelrPlanner().place(a_spec(backend=backend), shape, Topology((device,), (), "test")).plan
    assert plan.needs == {device.id: whole.total}


def test_rows_of_a_mixture_of_experts_read_more_of_it_until_all():
    sizing = Sizing.of(a_spec(), model_shape(MIXTRAL, (), "m"), DeviceKind.GPU)
    layer = sizing.parts.layers[0]
    read = [sizing.read_bytes(layer, rows) for rows in (1, 2, 8, 1_000)]
    assert read[0] == layer.active_weight_bytes
    assert read == sorted(read)
    assert read[-1] == layer.weight_bytes
    # Of the other six experts, two rows that choose two each are expected to take 1.5 more.
    one = (layer.weight_bytes - layer.active_weight_bytes) / 6
    assert read[1] == pytest.approx(layer.active_weight_bytes + 1.5 * one)


def test_a_tied_head_counts_at_both_ends():
    halves = [gpu("GPU-a", free_gib=2.5), gpu("GPU-b", free_gib=2.5)]
    plan = place(linked(*halves), shape=TIED, max_batch_rows=32).plan
    matrix = TIED.vocabulary_size * TIED.hidden_size * 2
    assert sum(stage.weight_bytes for stage in plan.stages) == TIED.facts(2).weight_bytes + matrix


def test_two_nodes_of_memory_hold_what_neither_does():
    nodes = [replace(CPU, id=f"cpu{node}", free_memory_bytes=2 * GIB, numa_node=node) for node in range(2)]
    plan = place(linked(*nodes, link_class="SYS")).plan
    assert plan.devices == ("cpu", "cpu")
    assert plan.spec.dtype == "float32"


def test_a_copy_keeps_to_one_kind_of_device():
    small = gpu("GPU-a", free_gib=1.5)
    roomy = replace(CPU, free_memory_bytes=40 * GIB)
    placed = place(linked(small, roomy), max_batch_rows=16)
    assert [stage.device_ids for stage in placed.plan.stages] == [("cpu0",)]


def test_what_an_objective_for_time_needs_is_taken_and_no_more():
    eight = [gpu(f"GPU-{number}", bandwidth=5e11) for number in range(8)]
    plan = place(linked(*eight), output_token_slo_seconds=5e-3).plan
    assert [stage.device_ids for stage in plan.stages] == [("GPU-0",)]
    assert plan.objective_seconds <= 5e-3


def test_what_other_machines_would_give_is_told_beside_the_plan():
    halves = [gpu("GPU-a", free_gib=2.5), gpu("GPU-b", free_gib=2.4)]
    more, faster = HelrPlanner().what_if(place(linked(*halves), max_batch_rows=32))
    assert more == "one more like GPU-a: no change"
    assert faster.startswith("links twice as fast: -")
    assert HelrPlanner().what_if(place(machine(CPU))) == ()


def test_the_second_best_is_told_with_what_it_lost_by():
    placed = place(linked(gpu("GPU-a"), gpu("GPU-b", bandwidth=2e11), CPU))
    reasons = [reason for _, reason in placed.alternatives]
    slow = next(plan for plan, _ in placed.alternatives if plan.needs.keys() == {"GPU-b"})
    ratio = slow.objective_seconds / placed.plan.objective_seconds
    assert f"GPU-b: takes {ratio:.3g} times as long per step" in reasons
    assert any(reason.startswith("cpu0: takes") for reason in reasons)
    assert any(" then " in reason for reason in reasons), "two devices are an alternative"
    assert all(plan.plan_hash != placed.plan.plan_hash for plan, _ in placed.alternatives)
