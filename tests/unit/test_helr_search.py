"""The search against every plan, one by one."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_deployer.domain.helr.cost import PER_SECOND, CopyPrice, Pricing, Span
from uellm_deployer.domain.helr.errors import DoesNotFitError, SloUnreachableError
from uellm_deployer.domain.helr.problem import Device, Goal, Link, Model, Part, Problem, Slo, Workload
from uellm_deployer.domain.helr.solve import solve

from tests.support.helr import Plan, best_he, best_helr, best_kept, best_lr, every_plan, problems

SLACK = Fraction(1, 8)
searched = settings(max_examples=60, deadline=None)


def found(problem: Problem, goal: Goal, slo: Slo | None = None) -> tuple[list[CopyPrice], set[int]]:
    """Prices of the copies that the search finds, which keep every rule, and their devices."""
    placement = solve(problem, goal, slack=float(SLACK), slo=slo)
    assert placement.exact
    index = {device.id: number for number, device in enumerate(problem.devices)}
    copies = [
        [
            Span(tuple(index[name] for name in s.device_ids), s.first_layer, s.first_layer + s.layer_count)
            for s in copy.stages
        ]
        for copy in placement.plan.copies
    ]
    pricing, used = Pricing(problem), [d for copy in copies for span in copy for d in span.devices]
    assert len(set(used)) == len(used)
    for copy in copies:
        assert pricing.missing_bytes(copy) == 0
        assert [span.first for span in copy[1:]] == [span.last for span in copy[:-1]]
        assert (copy[0].first, copy[-1].last) == (0, len(problem.model.layers))
        assert all(span.last - span.first >= problem.constraints.min_layers for span in copy)
        assert all(span.last - span.first <= (problem.constraints.max_layers or 99) for span in copy)
        assert all(pricing.can_group(span.devices) for span in copy)
    return [pricing.price(copy) for copy in copies], set(used)


def plans_of(problem: Problem) -> list[Plan]:
    """All plans; if there is none, the search says so too."""
    plans = every_plan(problem)
    if not plans:
        for goal in Goal:
            with pytest.raises(DoesNotFitError):
                solve(problem, goal)
    return plans


@searched
@given(problems())
def test_least_latency(problem: Problem) -> None:
    if plans := plans_of(problem):
        (price,), used = found(problem, Goal.LR)
        assert (price.latency, len(used), price.bottleneck) == best_lr(plans)


@searched
@given(problems())
def test_fewest_devices_filled_most(problem: Problem) -> None:
    if plans := plans_of(problem):
        (price,), used = found(problem, Goal.HE)
        free = sum(problem.devices[device].free_bytes for device in used)
        assert (len(used), free, price.latency, price.bottleneck) == best_he(problem, plans)


@searched
@given(problems())
def test_least_latency_near_the_least_bottleneck(problem: Problem) -> None:
    if plans := plans_of(problem):
        prices, used = found(problem, Goal.HELR)
        bottleneck = Fraction(max(price.interval for price in prices), len(prices))
        best = (max(price.latency for price in prices), bottleneck, len(used))
        assert best == best_helr(problem, plans, SLACK)


@searched
@given(
    problems(), st.integers(0, 1 << 20), st.sampled_from([0.9, 1.0, 1.0, 1.1]), st.sampled_from([0.9, 1.0, 1.0, 1.1])
)
def test_cheapest_that_keeps_both_promises(problem: Problem, which: int, first: float, output: float) -> None:
    """Promises that one of the plans just keeps, or just does not."""
    if not (plans := plans_of(problem)):
        return
    plan = plans[which % len(plans)]
    token = max(plan.latency, problem.workload.micro_batches * plan.bottleneck)
    slo = Slo(first * (plan.prefill + 1) / PER_SECOND, output * (token + 1) / PER_SECOND)
    assert slo.first_token_seconds is not None
    assert slo.output_token_seconds is not None
    limits = int(slo.first_token_seconds * PER_SECOND), int(slo.output_token_seconds * PER_SECOND)
    expected = best_kept(problem, plans, *limits)
    if expected is None:
        with pytest.raises(SloUnreachableError):
            solve(problem, Goal.LR, slo=slo)
        return
    (price,), used = found(problem, Goal.LR, slo)
    assert (len(used), price.latency, price.bottleneck) == expected
    assert price.prefill <= limits[0]
    assert price.output_token <= limits[1]


rates = st.lists(st.integers(1, 9), min_size=5, max_size=5)


@searched
@given(rates, rates, rates, rates, st.integers(0, 119))
def test_promises_where_each_device_has_one_layer(
    bandwidth: list[int], flops: list[int], reads: list[int], operations: list[int], which: int
) -> None:
    """Many orders, each with another trade between the two times."""
    devices = tuple(Device(f"d{n}", 1, b * 1e9, f * 1e9) for n, (b, f) in enumerate(zip(bandwidth, flops, strict=True)))
    links = tuple(Link(a.id, b.id, 1e12, 0.0) for a, b in combinations(devices, 2))
    layers = [Part(1, 0, read, 0, float(some)) for read, some in zip(reads, operations, strict=True)][:4]
    problem = Problem(Model(tuple(layers)), Workload(prompt_tokens=9), devices, links)
    plans = every_plan(problem)
    plan = plans[which % len(plans)]
    slo = Slo((plan.prefill + 0.5) / PER_SECOND, (plan.latency + 0.5) / PER_SECOND)
    (price,), used = found(problem, Goal.LR, slo)
    expected = best_kept(problem, plans, plan.prefill, plan.latency)
    assert (len(used), price.latency, price.bottleneck) == expected
