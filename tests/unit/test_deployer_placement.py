"""The planner where a model fits one device, the roofline, and the plan hash."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_deployer.domain.facts import model_shape
from uellm_deployer.domain.names import default_deployment_id, is_triton_model
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.plan import Objective, StepTime
from uellm_deployer.domain.roofline import FLOPS_EFFICIENCY, LAYER_SECONDS
from uellm_deployer.domain.topology import DeviceKind

from tests.support.deployer import CONFIG, CPU, GIB, SHAPE, a_spec, gpu, machine
from uellm.rpc.errors import InvalidArgumentError, ResourceExhaustedError


def place(*devices, **spec):
    return HelrPlanner().place(a_spec(**spec), SHAPE, machine(*devices))


def chosen(placed):
    return placed.plan.stages[0].device_ids


def test_a_plan_is_complete():
    plan = place(CPU).plan
    stage = plan.stages[0]
    assert (stage.first_layer, stage.layer_count, stage.embedding, stage.head) == (0, 30, True, True)
    assert plan.spec.dtype == "float32"
    assert plan.devices == ("cpu",)
    assert stage.weight_bytes == 134_515_008 * 4
    assert plan.kv_budget_bytes == 8 * 2048 * 46_080
    assert stage.kv_bytes == 8 * 2048 * 46_080 * 1.25 + 8 * 2048 * 1536  # with the buffers' room, one layer twice
    assert (plan.spec.context_tokens, plan.spec.max_output_tokens) == (2048, 1024)
    assert is_triton_model(plan.triton_model)
    assert f"{stage.weight_bytes:,}" in plan.explanation


def test_a_continuous_engine_takes_its_whole_cache_in_pages():
    plan = place(CPU, backend="vllm", max_batch_rows=32, context_tokens=2000).plan
    assert plan.spec.dtype == "bfloat16"
    assert plan.kv_budget_bytes == 32 * 2016 * 23_040  # whole pages of 32 tokens
    assert plan.stages[0].kv_bytes == plan.kv_budget_bytes + 32 * 23_040  # and one that vLLM keeps
    head = SHAPE.vocabulary_size * SHAPE.hidden_size
    assert plan.stages[0].weight_bytes == (134_515_008 + 2 * head) * 2  # packed for multiplying, and plain
    assert plan.plan_hash != place(CPU, dtype="bfloat16", max_batch_rows=32, context_tokens=2000).plan.plan_hash


def test_a_window_needs_no_memory_beyond_it():
    shape = model_shape(CONFIG | {"model_type": "mistral", "sliding_window": 256}, (), "")
    plan = HelrPlanner().place(a_spec(), shape, machine(CPU)).plan
    assert plan.kv_budget_bytes == 8 * 255 * 46_080
    assert plan.stages[0].kv_bytes == 8 * 256 * 46_080 + 8 * 2048 * 1536


def slowdown(placed):
    """Of the first alternative."""
    return placed.alternatives[0][0].objective_seconds / placed.plan.objective_seconds


def test_a_gpu_takes_half_precision_and_wins_by_speed():
    placed = place(gpu("GPU-b", bandwidth=2e12), gpu("GPU-a"), CPU)
    assert chosen(placed) == ("GPU-a",)
    assert placed.plan.spec.dtype == "float16"
    assert placed.plan.devices == ("cuda:1",)  # the ordinal is the place among the GPUs as listed
    assert [plan.stages[0].device_ids[0] for plan, _ in placed.alternatives] == ["GPU-b", "cpu0"]
    assert placed.alternatives[0][1].startswith(f"GPU-b: takes {slowdown(placed) - 1:.2%} longer")
    assert placed.plan.lower_bound_seconds == placed.plan.objective_seconds


def test_a_full_gpu_is_left_out_with_the_numbers():
    placed = place(gpu("GPU-a", free_gib=0.5), CPU)
    assert chosen(placed) == ("cpu0",)
    missing = place(gpu("GPU-a")).plan.needs["GPU-a"] - GIB // 2
    assert f"GPU-a is short of {missing:,} bytes" in placed.plan.explanation


def test_he_fills_the_fullest_device_that_has_room():
    devices = (gpu("GPU-a"), gpu("GPU-b", free_gib=10), gpu("GPU-c", free_gib=1))
    assert chosen(place(*devices, objective=Objective.HE)) == ("GPU-b",)
    assert chosen(place(*devices, objective=Objective.LR)) == ("GPU-a",)


def test_an_objective_for_time_comes_before_the_rest():
    slow, fast = gpu("GPU-a", free_gib=10, bandwidth=1e11), gpu("GPU-b")
    placed = place(slow, fast, objective=Objective.HE, output_token_slo_seconds=2e-3)
    assert chosen(placed) == ("GPU-b",)
    assert f"GPU-a: takes {slowdown(placed):.3g} times as long" in placed.alternatives[0][1]
    assert slowdown(placed) > 4
    with pytest.raises(ResourceExhaustedError, match=r"output token 0\.0\d+ s") as caught:
        place(slow, output_token_slo_seconds=2e-3)
    assert caught.value.reason == "SLO_UNREACHABLE"


def test_nothing_fits():
    with pytest.raises(ResourceExhaustedError) as caught:
        place(replace(CPU, free_memory_bytes=GIB), gpu("GPU-a", free_gib=0.5))
    needed = place(CPU).plan.needs["cpu0"]
    assert f"on one cpu in float32 {needed:,} bytes needed" in caught.value.message
    assert f"cpu0, the roomiest, has {GIB:,} free, {needed - GIB:,} short" in caught.value.message
    assert "on one gpu in float16" in caught.value.message
    assert "GPU-a, the roomiest, has 536,870,912 free" in caught.value.message


def test_exactly_enough_is_enough():
    needed = place(CPU).plan.needs["cpu0"]
    assert place(replace(CPU, free_memory_bytes=needed))
    with pytest.raises(ResourceExhaustedError, match=r"1 short"):
        place(replace(CPU, free_memory_bytes=needed - 1))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"device_ids": ("GPU-x",)}, "spec.device_ids"),
        ({"context_tokens": 8193}, "spec.context_tokens"),
        ({"context_tokens": 1}, "spec.context_tokens"),
        ({"context_tokens": 100, "max_output_tokens": 100}, "spec.max_output_tokens"),
    ],
)
def test_wishes_that_cannot_be(change, field):
    with pytest.raises(InvalidArgumentError) as caught:
        place(CPU, **change)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_devices_can_be_named():
    assert chosen(place(gpu("GPU-a"), CPU, device_ids=("cpu0",))) == ("cpu0",)


def test_memory_promised_to_others_is_not_free():
    topology = machine(CPU).with_promised({"cpu0": 23 * GIB, "gone": 5})
    assert topology.devices[0].free_memory_bytes == GIB
    assert machine(CPU).with_promised({"cpu0": 99 * GIB}).devices[0].free_memory_bytes == 0


@settings(deadline=None)
@given(free=st.integers(0, 64 * GIB), bandwidth=st.floats(1e9, 1e13))
def test_more_memory_or_bandwidth_never_hurts(free, bandwidth):
    device = replace(gpu("GPU-a"), free_memory_bytes=free, memory_bandwidth=bandwidth)
    better = replace(device, free_memory_bytes=2 * free, memory_bandwidth=2 * bandwidth)
    try:
        before = place(device).plan
    except ResourceExhaustedError:
        return
    assert place(better).plan.objective_seconds <= before.objective_seconds


def test_the_roofline():
    facts = SHAPE.facts(2)
    times = place(gpu("GPU-a")).plan.step_time
    read = facts.weight_bytes - 2 * SHAPE.layers.embedding.weights.parameters * (not SHAPE.layers.tied.parameters)
    assert times.base_seconds == pytest.approx(read / 2.4e12 + 30 * LAYER_SECONDS[DeviceKind.GPU])
    assert times.per_context_token_seconds == pytest.approx(facts.kv_bytes_per_token / 2.4e12)
    flops = FLOPS_EFFICIENCY * 900e12
    head = 2 * facts.vocabulary_size * facts.hidden_size
    assert times.per_row_seconds == pytest.approx(2 * facts.parameter_count / flops, rel=0.02)
    assert times.prefill_per_token_seconds == pytest.approx((2 * facts.parameter_count - head) / flops, rel=0.02)
    unknown = place(replace(gpu("GPU-a"), memory_bandwidth=0, flops=0)).plan.step_time
    assert unknown.base_seconds > times.base_seconds
    assert "assumed" in unknown.source


def test_a_measured_step_sets_the_base():
    times = StepTime(0.027, 0.003, 1e-6, 0.003, 0.0, "roofline")
    assert times.calibrated(0.09).step(1, 0) == pytest.approx(0.09)
    assert times.calibrated(0.0) == times


def test_the_plan_hash_tells_engines_apart_and_nothing_else():
    plan = place(CPU).plan
    faster = place(replace(CPU, memory_bandwidth=9e10, free_memory_bytes=20 * GIB)).plan
    assert plan.plan_hash == faster.plan_hash  # the speed of the machine is a measurement
    changes = ({"max_batch_rows": 4}, {"dtype": "bfloat16"}, {"context_tokens": 1024}, {"weights_path": "/other"})
    hashes = {place(CPU, **change).plan.plan_hash for change in changes}
    other = HelrPlanner().place(a_spec(), replace(SHAPE, fingerprint="other"), machine())
    assert len({plan.plan_hash, other.plan.plan_hash, *hashes}) == 6


def test_the_plan_hash_is_the_same_in_every_process():
    code = (
        "from tests.unit.test_deployer_placement import place, CPU, Objective\n"
        "print(place(CPU, objective=Objective.HE, device_ids=('cpu0',)).plan.plan_hash)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert hashes == {place(CPU, objective=Objective.HE, device_ids=("cpu0",)).plan.plan_hash}


@pytest.mark.parametrize(
    "name",
    [
        "smol",
        "smol--",
        "smol--0123456789a",
        "a--b--0123456789",
        "../x--0123456789",
        "a..b--0123456789",
        "A--0123456789",
    ],
)
def test_names_that_are_no_triton_models(name):
    assert not is_triton_model(name)


def test_default_ids_are_ids():
    assert default_deployment_id("smol-2.1", "0123456789") == "smol-2-1-0123456789"
    assert len(default_deployment_id("m" * 63, "0123456789")) == 63
