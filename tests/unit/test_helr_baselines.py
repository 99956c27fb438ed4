"""Rules of others, priced alike, never beat the search."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from uellm_deployer.domain.helr.cost import PER_SECOND, Pricing, Span
from uellm_deployer.domain.helr.problem import Constraints, Goal, Problem, Workload
from uellm_deployer.domain.helr.solve import solve

from benchmarks.placement.baselines import BASELINES, even_split, petals, pipedream, proportional
from tests.support.helr import machine, model, problems

LOAD = Workload(rows=8, micro_batches=8, decode_hop_bytes=1 << 17)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_no_rule_beats_the_search(problem: Problem) -> None:
    problem = replace(problem, constraints=Constraints())
    pricing = Pricing(problem)
    for rule in BASELINES.values():
        plan = rule(pricing)
        if plan is None or pricing.missing_bytes(plan) or (price := pricing.price(plan)).latency > 1 << 58:
            continue
        assert [span.last for span in plan] == [span.first for span in plan[1:]] + [len(problem.model.layers)]
        best, balanced = (
            solve(problem, goal, slack=0.0, with_alternatives=False).plan for goal in (Goal.LR, Goal.HELR)
        )
        assert best.latency_seconds <= price.latency / PER_SECOND
        assert balanced.bottleneck_seconds <= price.interval / PER_SECOND


def counts(plan: list[Span] | None) -> list[int]:
    assert plan is not None
    return [span.last - span.first for span in plan]


def test_rules_as_described() -> None:
    devices, links = machine(4, gib=30)
    pricing = Pricing(Problem(model(30), LOAD, devices, links))
    assert counts(even_split(pricing)) == [8, 8, 7, 7]
    assert counts(proportional(pricing)) == [30]
    assert max(counts(pipedream(pricing))) == 8
    assert counts(petals(pricing)) == [30]
    uneven = (replace(devices[0], free_bytes=10 << 30), *devices[1:3])
    mixed = Pricing(Problem(model(65), LOAD, uneven, links[:2] + links[3:4]))
    assert counts(proportional(mixed)) == [9, 28, 28]
    assert counts(petals(mixed)) in ([10, 30, 25], [10, 25, 30], [5, 30, 30])


@pytest.mark.parametrize("rule", BASELINES)
def test_a_rule_that_ignores_memory_is_found_out(rule: str) -> None:
    devices, links = machine(2, gib=10)
    small = (replace(devices[0], free_bytes=2 << 30), devices[1])
    pricing = Pricing(Problem(model(12), LOAD, small, links))
    plan = BASELINES[rule](pricing)
    assert (plan is not None and pricing.missing_bytes(plan) == 0) == (rule != "even split")
