"""The cost model and what a plan tells of itself, against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from uellm_deployer.domain.helr.cost import PER_SECOND, Pricing, Span, all_reduce_seconds
from uellm_deployer.domain.helr.errors import SloUnreachableError
from uellm_deployer.domain.helr.problem import (
    Constraints,
    Device,
    Goal,
    Link,
    Model,
    Part,
    Problem,
    Slo,
    Workload,
)
from uellm_deployer.domain.helr.result import describe
from uellm_deployer.domain.helr.solve import solve

LAYER = Part(weight_bytes=1000, kv_bytes=300, read_bytes=800, kv_read_bytes=200, flops_per_token=50.0, all_reduces=2)
MODEL = Model(
    layers=(LAYER,) * 4,
    embedding=Part(weight_bytes=400, read_bytes=10),
    head=Part(weight_bytes=400, read_bytes=400, flops_per_token=20.0),
    shared_bytes=400,
    activation_bytes=70,
    kv_heads=1,
)
LOAD = Workload(rows=2, prompt_tokens=100, micro_batches=3, decode_hop_bytes=40, prefill_hop_bytes=2000)
FAST = Device("fast", 8000, bandwidth=2000.0, flops=1000.0, reserve_bytes=30, bandwidth_efficiency=0.5)
SLOW = Device("slow", 8000, bandwidth=500.0, flops=100.0, reserve_bytes=10, flops_efficiency=0.5)
LINK = Link("fast", "slow", bandwidth=100.0, latency_seconds=0.5, groups=True)
PROBLEM = Problem(MODEL, LOAD, (FAST, SLOW), (LINK,))


def test_a_pipeline_by_hand() -> None:
    price = Pricing(PROBLEM).price([Span((0,), 0, 3), Span((1,), 3, 4)])
    # A layer on the fast one: 1000 bytes / 1000 against 2 * 50 operations / 1000; on the slow one both by 500 and 50.
    first, second = 3 * 1.0 + 10 / 1000, 2.0 + max(400 / 500, 2 * 20 / 50)
    hop = 0.5 + 40 / 100
    assert price.stages == (round(first * PER_SECOND), round(second * PER_SECOND))
    assert price.hops == (round(hop * PER_SECOND),)
    assert price.latency == round((first + second + hop) * PER_SECOND)
    assert price.bottleneck == round(first * PER_SECOND)
    assert price.interval == round(first * PER_SECOND)
    assert price.output_token == round(3 * first * PER_SECOND)
    # Prefill: 100 * 50 / 1000 s on the fast one, 100 * 50 / 50 s and the head's 100 * 20 / 50 s on the slow one.
    prefill = 3 * 5.0 + 10 / 1000 + 100.0 + 40.0 + 0.5 + 2000 / 100
    assert price.prefill == round(prefill * PER_SECOND)


def test_a_pass_has_its_start_and_the_head_sees_one_token_of_a_prompt() -> None:
    head = replace(MODEL.head, last_token_only=True, all_reduces=1)
    model = replace(MODEL, layers=(replace(LAYER, start_seconds=0.25),) * 4, head=head)
    before, after = (Pricing(replace(PROBLEM, model=one)).price([Span((0,), 0, 4)]) for one in (MODEL, model))
    assert after.latency - before.latency == 4 * PER_SECOND // 4
    # The head: 400 bytes / 1000 against 100 * 20 operations / 1000, and then against 20 / 1000.
    assert after.prefill - before.prefill == round((4 * 0.25 - (2.0 - 0.4)) * PER_SECOND)
    shared = Pricing(replace(PROBLEM, model=model)).price([Span((0, 1), 0, 4)])
    by_token, by_prompt = (all_reduce_seconds(2, size, 100.0, 0.5) for size in (40, 2000))
    prefill = 4 * (0.25 + 100 * 50 / 2 / 50 + 2 * by_prompt) + 5 / 500 + 200 / 500 + by_token
    assert shared.prefill == round(prefill * PER_SECOND)


def test_with_one_step_in_flight_the_interval_is_the_latency() -> None:
    alone = replace(PROBLEM, workload=replace(LOAD, micro_batches=1))
    price = Pricing(alone).price([Span((0,), 0, 3), Span((1,), 3, 4)])
    assert price.interval == price.output_token == price.latency


def test_a_group_by_hand() -> None:
    pricing = Pricing(PROBLEM)
    price = pricing.price([Span((0, 1), 0, 4)])
    # As fast as the slower: half the weights, but the whole cache, for there is one head of it.
    reduce = min(0.5 + 40 / 100, 2 * 0.5 + 40 / 100)
    layer = max((400 + 200) / 500, 2 * 50 / 2 / 50) + 2 * reduce
    ends = 5 / 500 + max(200 / 500, 2 * 20 / 2 / 50)
    assert price.latency == round((4 * layer + ends) * PER_SECOND)
    (stage,) = describe(pricing, [[Span((0, 1), 0, 4)]]).copies[0].stages
    assert (stage.weight_bytes, stage.kv_bytes, stage.activation_bytes, stage.reserve_bytes) == (2200, 1200, 70, 30)
    assert stage.tensor_size == 2
    assert pricing.missing_bytes([Span((0, 1), 0, 4)]) == 0


def test_what_the_members_of_a_group_repeat_by_hand() -> None:
    layer = replace(LAYER, whole_bytes=100, kv_weight_bytes=200)
    pricing = Pricing(replace(PROBLEM, model=replace(MODEL, layers=(layer,) * 4)))
    whole = [Span((0, 1), 0, 4)]
    (stage,) = describe(pricing, [whole]).copies[0].stages
    # Each has the 100, the one head's 200, and half of the other 700.
    assert stage.weight_bytes == 4 * (100 + 200 + 350) + 400 - 200
    once = Pricing(PROBLEM).price(whole)
    assert pricing.price(whole).latency - once.latency == round(4 * (300 / 2) / 500 * PER_SECOND)
    two_heads = Pricing(replace(PROBLEM, model=replace(MODEL, layers=(layer,) * 4, kv_heads=2)))
    (stage,) = describe(two_heads, [whole]).copies[0].stages
    assert (stage.weight_bytes, stage.kv_bytes) == (4 * (100 + 450) + 400 - 200, 600)
    alone = [Span((0,), 0, 4)]
    assert describe(pricing, [alone]) == describe(Pricing(PROBLEM), [alone])
    with pytest.raises(ValueError, match="repeats"):
        replace(PROBLEM, model=replace(MODEL, layers=(replace(layer, whole_bytes=900),)))


def test_all_reduce_takes_the_quicker_way() -> None:
    small, large = all_reduce_seconds(8, 1e3, 1e9, 1e-5), all_reduce_seconds(8, 1e9, 1e9, 1e-5)
    assert small == pytest.approx(1e-5 + 7e-6)
    assert large == pytest.approx(2e-5 + 1.75)


def test_a_tied_head_counts_on_both_ends_but_once_where_they_meet() -> None:
    room = 4 * 1300 + 400
    for free, stages in ((room + 100, 1), (room + 99, 2)):
        devices = tuple(replace(device, free_bytes=free, reserve_bytes=30) for device in PROBLEM.devices)
        (copy,) = solve(replace(PROBLEM, devices=devices), Goal.HE).plan.copies
        assert len(copy.stages) == stages
        assert sum(stage.weight_bytes for stage in copy.stages) == 4000 + 400 * stages


def test_a_plan_explains_itself() -> None:
    devices = tuple(replace(device, free_bytes=4600) for device in PROBLEM.devices)
    placement = solve(replace(PROBLEM, devices=devices), Goal.LR)
    (copy,) = placement.plan.copies
    assert [(s.device_ids, s.first_layer, s.layer_count, s.embedding, s.head) for s in copy.stages] == [
        (("slow",), 0, 1, True, False),
        (("fast",), 1, 3, False, True),
    ]
    assert copy.bottleneck == "stage 1 on fast"
    assert copy.latency_seconds == pytest.approx(sum(s.decode_seconds + s.hop_seconds for s in copy.stages))
    assert placement.plan.fill == pytest.approx((1300 * 4 + 800 + 2 * 70 + 40) / 9200)
    assert placement.exact
    assert placement.gap == 0
    assert placement.bounds.latency_seconds == placement.objective_seconds
    wide = replace(PROBLEM, devices=devices, links=(replace(LINK, latency_seconds=60.0),))
    assert solve(wide, Goal.LR).plan.copies[0].bottleneck == "the hop after stage 0"


def test_the_cheapest_that_keeps_the_promises() -> None:
    devices = tuple(Device(f"d{n}", 6000, bandwidth=1000.0, flops=1000.0) for n in range(4))
    links = tuple(Link(a.id, b.id, 1e6, 0.01, groups=True) for n, a in enumerate(devices) for b in devices[n + 1 :])
    model, rules = replace(MODEL, kv_heads=4), Constraints(tensor_sizes=(1, 2, 4))
    problem = Problem(model, replace(LOAD, micro_batches=1), devices, links, rules)
    counts = {
        seconds: solve(problem, slo=Slo(output_token_seconds=seconds)).plan.device_count for seconds in (5.0, 3.0, 1.5)
    }
    assert counts == {5.0: 1, 3.0: 2, 1.5: 4}
    assert solve(problem, slo=Slo(first_token_seconds=8.0)).plan.device_count == 4
    with pytest.raises(SloUnreachableError, match="output token") as error:
        solve(problem, slo=Slo(output_token_seconds=0.5))
    assert error.value.output_token_seconds == solve(problem, Goal.LR).plan.copies[0].output_token_seconds


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"links": (replace(LINK, device_b="none"),)}, "not there"),
        ({"links": (LINK, replace(LINK, device_a="slow", device_b="fast"))}, "one link"),
        ({"devices": (FAST, FAST)}, "differ"),
        ({"devices": (replace(FAST, flops=0.0), SLOW)}, "above 0"),
        ({"model": replace(MODEL, shared_bytes=401)}, "at most what each holds"),
        ({"model": replace(MODEL, layers=())}, "at least one layer"),
        ({"constraints": Constraints(tensor_sizes=())}, "start at 1"),
    ],
)
def test_figures_that_make_no_sense(change: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(PROBLEM, **change)  # type: ignore[arg-type]


def test_times_beyond_64_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        solve(replace(PROBLEM, devices=(replace(FAST, bandwidth=1e-6),), links=()))
