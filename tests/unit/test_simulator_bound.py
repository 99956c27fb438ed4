"""What no schedule can exceed, and the policy that knows all lengths."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from uellm_scheduler.policies import POLICIES
from uellm_simulator.bound import Need, _shares, bound_of, most_in_time, need_of
from uellm_simulator.scenario import ENGINES, Engine, Scenario
from uellm_simulator.simulate import CLAIRVOYANT, KNOWING, simulate
from uellm_simulator.workload import Arrival, Predictions, Rules, SloClass

from tests.support.simulated import CONTINUOUS, STATIC, requests, world
from uellm.cost.steps import StepTime

TOUCHY = StepTime(base=0.4, per_row=0.2, per_context_token=0.004, prefill_per_token=0.03, startup=0.3)
TIGHT = (SloClass("tight", 0.4, completion=1.5), SloClass("first", 0.2, completion=4.0, first_token=1.0))
LOOSE = (SloClass("loose", 0.3, completion=6.0), SloClass("none", 0.1))


def drawn(seed: int, count: int) -> list[Arrival]:
    """Also equal ones at once, for which the bound is what full batches do."""
    draw = random.Random(seed)
    gap = draw.choice([0.0, 0.0, 0.5, 2.0])
    prompts, answers = draw.choice([range(1, 61), [10]]), draw.choice([[1, 2, 4, 9, 15], [4]])
    times = np.cumsum([0.0, *(draw.expovariate(1.0) * gap for _ in range(count - 1))])
    return [Arrival(float(now), draw.choice(prompts), draw.choice(answers)) for now in times]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 4), st.integers(1, 2))
def test_no_policy_keeps_more(seed: int, continuous: bool, rows: int, deployments: int):
    engine = Engine(continuous=continuous, rows=rows, context_tokens=200, step=TOUCHY)
    rules = Rules(classes=TIGHT + LOOSE, predictions=Predictions(spread=0.3))
    scenario = Scenario(engine=engine, deployments=deployments, rules=rules, seed=seed, dispatch_seconds=0.01)
    for policy in (*POLICIES, CLAIRVOYANT):
        result = simulate(drawn(seed, 10), replace(scenario, policy=policy))
        kept = sum(fate.in_time for fate in result.fates if fate.has_objective)
        asked = [fate.request for fate in result.fates]
        assert kept <= most_in_time(asked, scenario), policy
        assert result.metrics.goodput <= bound_of(result) + 1e-9


def test_one_that_is_alone_needs_what_it_takes_in_the_largest_batch_that_is_in_time():
    """A step takes 1 + 0.5 * rows; 10 tokens of prompt take 1 s, and 3 tokens come in 2 steps."""
    scenario = Scenario(engine=replace(STATIC, rows=16), dispatch_seconds=0.0)

    def seconds(deadline: float) -> float:
        (request,) = requests([(0, 10, 3)], deadline)
        need = need_of(request, scenario.engine)
        return need.seconds if need else 0.0

    assert seconds(3.99) == 0  # alone it takes 4
    assert seconds(4.0) == pytest.approx(1 + 2 * 1.5, rel=1e-4)
    assert seconds(6.0) == pytest.approx(1 + 2 * (0.5 + 0.5), rel=1e-4)  # two rows: 2 s of prompts, 2 steps of 2 s
    assert seconds(1e6) == pytest.approx(1 + 2 * (1 / 16 + 0.5))


def test_what_does_not_fit_together_is_not_counted_twice():
    """Each takes 1 s of prompt and half of two steps of 2 s: 3 s of the engine's time, in 6.4 s that all have."""
    scenario = Scenario(engine=STATIC, dispatch_seconds=0.0)
    assert most_in_time(requests([(0, 10, 3)] * 5, 6.4), scenario) == 2
    assert most_in_time(requests([(0, 10, 3)] * 5, 6.4), replace(scenario, deployments=2)) == 4
    assert most_in_time(requests([(0, 10, 3)] * 5, 9.1), scenario) == 3
    # Two of them come when there is no time left but their own.
    assert most_in_time(requests([(0, 10, 3)] * 3 + [(20, 10, 3)] * 2, 6.4), scenario) == 4
    assert most_in_time(requests([(0, 10, 3)]), scenario) == 0  # nothing to keep


@pytest.mark.parametrize("engine", [STATIC, CONTINUOUS])
def test_equal_ones_in_full_batches_are_what_it_says(engine: Engine):
    """Two rows take 2 s of prompts and two steps of 2 s: in 12 s four are served, first come, first served."""
    scenario = Scenario(engine=engine, dispatch_seconds=0.0)
    asked = requests([(0, 10, 3)] * 6, 12.5)
    fates = world(engine, asked).run()
    assert sum(fate.in_time for fate in fates) == most_in_time(asked, scenario) == 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=8),
    st.integers(1, 3),
)
def test_the_greedy_shares_are_the_best_of_the_linear_program(jobs: list[tuple[int, int, int]], engines: int):
    needs = sorted((Need(begin, begin + span, work) for begin, span, work in jobs), key=lambda need: need.seconds)
    pairs = [(a.release, b.deadline) for a in needs for b in needs if a.release < b.deadline]
    inside = [[(a <= n.release and n.deadline <= b) * n.seconds for n in needs] for a, b in pairs]
    best = linprog([-1.0] * len(needs), inside, [engines * (b - a) for a, b in pairs], bounds=(0, 1))
    assert _shares(needs, engines) == pytest.approx(-best.fun)


@pytest.mark.parametrize("moments", [4, 16])
def test_moments_that_are_merged_only_raise_it(moments: int, monkeypatch: pytest.MonkeyPatch):
    draw = random.Random(3)
    begins = [draw.uniform(0, 50) for _ in range(60)]
    needs = [Need(begin, begin + draw.uniform(2, 9), work) for work, begin in enumerate(begins, 1)]
    exact = _shares(needs, 1)
    monkeypatch.setattr("uellm_simulator.bound.MOMENTS", moments)
    assert _shares(needs, 1) >= exact > 0


@pytest.mark.parametrize("engine", [STATIC, CONTINUOUS])
def test_clairvoyant_is_told_the_truth(engine: Engine):
    """Whatever is predicted, it decides alike; predictions of other policies stay as they were."""
    arrivals = drawn(1, 20)
    runs = [
        simulate(arrivals, Scenario(engine=engine, policy=CLAIRVOYANT, rules=Rules(predictions=Predictions(spread))))
        for spread in (0.0, 0.9)
    ]
    assert [fate.finish_seconds for fate in runs[0].fates] == [fate.finish_seconds for fate in runs[1].fates]
    told = simulate(
        arrivals, Scenario(engine=engine, policy="uellm", rules=Rules(predictions=KNOWING[engine.continuous]))
    )
    assert [fate.finish_seconds for fate in told.fates] == [fate.finish_seconds for fate in runs[0].fates]


def test_the_engines_of_an_experiment_have_a_bound_in_seconds_of_computing():
    arrivals = [Arrival(0.2 * number, 300, 20 + number % 200) for number in range(300)]
    for engine in ENGINES.values():
        result = simulate(arrivals, Scenario(engine=engine, policy="fifo"))
        assert 0 < result.metrics.goodput <= bound_of(result)
