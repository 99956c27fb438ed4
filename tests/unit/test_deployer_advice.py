"""When a deployment is off its plan, when a load outgrows it, and which other plan is chosen: laws and sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_deployer.domain.advice import HEADROOM, STILL_WORTH, WORTH, Candidate, Cause, Situation, choose
from uellm_deployer.domain.deployment import Deployment, State, Strategy
from uellm_deployer.domain.load import Load, Look, load_of
from uellm_deployer.domain.performance import (
    ENOUGH_BATCHES,
    OFF_PLAN,
    ON_PLAN,
    Measurement,
    Performance,
    reference_point,
    slow_devices,
)
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.plan import DeploymentPlan, StepTime
from uellm_deployer.domain.recommendation import nothing_better, recommend

from tests.support.deployer import SHAPE, a_spec, gpu, machine
from tests.support.monitoring import measured

TRIAL = 0.02

untimed = settings(deadline=None)


def plan_on(*devices: str, **spec: object) -> DeploymentPlan:
    return HelrPlanner().place(a_spec(dtype="float32", **spec), SHAPE, machine(*map(gpu, devices))).plan


PLANS = {name: plan_on(name) for name in ("gpu0", "gpu1")} | {"16 rows": plan_on("gpu0", max_batch_rows=16)}


def deployed(device: str = "gpu0", name: str = "one", trial: float = TRIAL, **spec: object) -> Deployment:
    plan = replace(PLANS[device], spec=replace(PLANS[device].spec, **spec))
    return Deployment(f"deployments/{name}", State.READY, plan, 0.0, measured_step_seconds=trial)


def performance(factor: float, device: str = "gpu0", **measurement: object) -> Performance:
    one = deployed(device)
    return Performance(one, measured(one, factor, **measurement))


# --- off the plan ---


@untimed
@given(st.floats(0.2, ON_PLAN), st.booleans(), st.integers(0, 500))
def test_while_the_prediction_holds_nothing_is_off(factor, before, batches):
    assert not performance(0.999 * factor, batches=batches).off_plan(before=before)


@untimed
@given(st.floats(0.2, 20), st.floats(1, 5), st.booleans(), st.floats(0.5, 1))
def test_more_deviation_never_ends_it(factor, more, before, sure):
    if performance(factor, sure=sure).off_plan(before=before):
        assert performance(factor * more, sure=sure).off_plan(before=before)


@untimed
@given(st.lists(st.floats(ON_PLAN + 0.01, OFF_PLAN - 0.01), min_size=1, max_size=20), st.booleans())
def test_between_the_limits_it_stays_what_it_was(factors, before):
    state = before
    for factor in factors:
        state = performance(factor).off_plan(before=state)
    assert state is before


def test_little_or_unsure_evidence_says_nothing():
    assert performance(3, sure=0.9).off_plan(before=False)
    assert not performance(3, sure=0.4).off_plan(before=False), "it may be 1.2 times"
    assert not performance(3, batches=ENOUGH_BATCHES - 1).off_plan(before=False)
    assert not Performance(deployed()).off_plan(before=True)


def test_a_promise_is_broken_before_the_plan_is_left():
    predicted = Performance(deployed()).predicted_seconds
    one = deployed(output_token_slo_seconds=1.1 * predicted)
    assert not Performance(one, measured(one, 1.05)).off_plan(before=False)
    assert Performance(one, measured(one, 1.2)).off_plan(before=False)


def test_what_is_laid_to_the_device_and_what_to_the_engine():
    all_of_it = performance(3)
    assert (all_of_it.device_slowness, all_of_it.engine_slowness) == (pytest.approx(3), pytest.approx(1))
    one = deployed()
    predicted, (rows, context) = Performance(one).predicted, reference_point(one.plan.spec)
    # A row alone takes what the trial took; a full batch three times what was predicted.
    extra = 2 * predicted.step(rows, context) / context
    steep = replace(predicted, per_context_token_seconds=predicted.per_context_token_seconds + extra)
    grows = Performance(one, Measurement(steep, 60, 2.9 * predicted.step(rows, context)))
    assert (grows.device_slowness, grows.engine_slowness) == (pytest.approx(1), pytest.approx(3))
    assert grows.off_plan(before=False)
    elsewhere = grows.expected_seconds(PLANS["gpu1"], {})
    assert elsewhere == pytest.approx(grows.seconds), "another device of the same sort is no help"
    assert Performance(deployed(trial=0), measured(deployed(trial=0), 3)).device_slowness == pytest.approx(3)


@untimed
@given(st.floats(0.2, 20), st.floats(1, 20))
def test_the_same_place_is_expected_to_be_as_it_was_measured(factor, slow):
    """And another device to be as planned, with what the framework took in the trial, as slow as it is known to be."""
    one = performance(factor)
    assert one.expected_seconds(one.plan, {"gpu0": slow}) == one.seconds
    planned = PLANS["gpu1"].step_time.step(*reference_point(PLANS["gpu1"].spec))
    framework = TRIAL - one.plan.step_time.step(1, 0)
    expected = (planned + framework) * one.engine_slowness
    assert one.expected_seconds(PLANS["gpu1"], {}) == pytest.approx(expected)
    assert one.expected_seconds(PLANS["gpu1"], {"gpu1": slow}) == pytest.approx(slow * expected)


def test_more_rows_in_the_same_place_go_by_what_was_learnt():
    one = deployed()
    learnt = StepTime(0.02, 0.005, 0.0, 0.0, 0.0, "fit")
    known = Performance(one, Measurement(learnt, 60, 0.05))
    assert known.seconds == pytest.approx(0.06)
    assert known.expected_seconds(PLANS["16 rows"], {}) == pytest.approx(0.10)


def test_a_device_is_as_slow_as_the_slowest_on_it_says():
    assert slow_devices([performance(3), performance(2), performance(1.2, "gpu1")]) == {"gpu0": pytest.approx(3)}


# --- load ---


def looks(offered: float, waiting: int = 20, seconds: int = 400, begin: float = 100.0) -> list[Look]:
    return [Look(at, waiting, max(0.0, begin + at * (offered - 1))) for at in range(0, seconds, 5)]


@untimed
@given(st.floats(0.7, 4))
def test_the_slope_of_the_work_is_the_offered_load(offered):
    load = load_of(looks(offered, begin=1000), 8, 300)
    assert load.offered == pytest.approx(offered)
    assert load.outgrown(before=False) == (load.offered >= 0.95)


@untimed
@given(st.floats(0.7, 4), st.floats(0, 4))
def test_more_load_never_ends_it(offered, more):
    if load_of(looks(offered, begin=1000), 8, 300).outgrown(before=False):
        assert load_of(looks(offered + more, begin=1000), 8, 300).outgrown(before=False)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (looks(2, seconds=200), "not for a whole window"),
        (looks(2, waiting=7), "the engine takes all that wait"),
        (looks(0.3, begin=1000), "a bulk of work is being done"),
        (looks(2)[::20], "too few looks"),
        ([], "nobody says"),
    ],
)
def test_what_is_no_load_that_outgrows(seen, why):
    load = load_of(seen, 8, 300)
    assert load is None or not load.outgrown(before=False), why


def test_it_stays_until_the_queue_has_relaxed_for_a_window():
    full, relaxed = looks(1.5), [Look(400 + at, 0, 1.0) for at in range(0, 400, 5)]
    state, states = False, []
    for end in range(1, len(full) + len(relaxed) + 1):
        state = load_of([*full, *relaxed][:end], 8, 300).outgrown(before=state)
        states.append(state)
    changes = [at for at in range(1, len(states)) if states[at] is not states[at - 1]]
    assert len(changes) == 2, "no flapping"
    assert changes[0] * 5 == 300, "after a window"
    assert 700 <= changes[1] * 5 <= 710, "a window after the last full look"


# --- the choice ---


def situation(factor: float = 3, *causes: Cause, offered: float = 1.5) -> Situation:
    load = Load(offered, relaxed=False, waiting=40, work_seconds=90.0)
    return Situation(performance(factor), (), frozenset(causes or {Cause.STEP_TIME}), load)


def candidate(rate: float, plan: str = "gpu1", devices: int = 1) -> Candidate:
    return Candidate(PLANS[plan], Strategy.BLUE_GREEN, 0.1, rate, devices)


@untimed
@given(st.floats(1.5, 20), st.floats(1, 5), st.lists(st.floats(1, 500), max_size=5))
def test_more_deviation_never_removes_a_recommendation(factor, more, rates):
    """What the others do does not depend on it; the same place gets slower with it."""
    candidates = [candidate(rate, devices=at) for at, rate in enumerate(rates)]
    before, after = situation(factor), situation(factor * more)
    same = [candidate(one.rate, "gpu0") for one in (before, after)]
    if choose(before, [*candidates, same[0]]) is not None:
        assert choose(after, [*candidates, same[1]]) is not None


@untimed
@given(st.lists(st.floats(0.1, 3), max_size=5))
def test_what_is_chosen_is_worth_it_and_the_best_there_is(gains):
    now = situation()
    candidates = [candidate(gain * now.rate, devices=at + 1) for at, gain in enumerate(gains)]
    chosen = choose(now, candidates)
    assert (chosen is None) == all(gain * now.rate < WORTH * now.rate for gain in gains)
    if chosen is not None:
        assert chosen.rate >= WORTH * now.rate
        fewer = [one for one in candidates if one.devices < chosen.devices and now.set_right_by(one)]
        assert not fewer
        assert now.set_right_by(chosen) or chosen.rate == max(one.rate for one in candidates)


@untimed
@given(st.lists(st.floats(1.15, 1.3), min_size=2, max_size=30))
def test_no_flapping_between_plans_that_are_as_good(gains):
    """Two plans whose rates move by less than what another must be better by: the first that was chosen stays."""
    now, standing, chosen = situation(1.6), None, []
    for at, gain in enumerate(gains):
        pair = [candidate(gain * now.rate), candidate(gain * now.rate * (1.05 if at % 2 else 0.96), "16 rows")]
        standing = choose(now, pair, standing)
        chosen.append(standing.plan.plan_hash if standing else None)
    first = next((one for one in chosen if one), None)
    began = chosen.index(first) if first else len(chosen)
    assert set(chosen[began:]) <= {first}


def test_a_recommendation_stands_until_it_is_hardly_worth_it():
    now = situation()
    standing = candidate(2 * now.rate)
    for gain, kept in ((WORTH - 0.05, True), (STILL_WORTH + 0.01, True), (STILL_WORTH - 0.01, False)):
        one = candidate(gain * now.rate)
        assert (choose(now, [one], standing) is one) is kept
        assert choose(now, [one]) is None


def test_the_fewest_devices_and_rows_that_carry_the_load():
    now = situation(1, Cause.LOAD)
    assert now.wanted_rate == pytest.approx(1.5 * now.rate / HEADROOM)
    rows, copy, weak = (
        candidate(1.9 * now.rate, "16 rows"),
        candidate(2 * now.rate, devices=2),
        candidate(1.4 * now.rate),
    )
    assert choose(now, [copy, weak, rows]) is rows
    assert choose(now, [copy, weak]) is copy
    assert choose(now, [weak]) is weak, "better than nothing"


def test_the_words_have_the_numbers_and_what_to_do():
    now = situation(3)
    text = recommend(now, candidate(3 * now.rate), ["deployments/two"]).reason
    for part in ("deployments/one", "3 times the", "60 batches", "on gpu1, beside deployments/two", "BLUE_GREEN"):
        assert part in text
    load = situation(1, Cause.LOAD)
    copy = replace(candidate(1.5 * load.rate, devices=2), strategy=Strategy.BESIDE)
    text = recommend(load, copy).reason
    for part in ("150%", "40 queries wait", "a copy on gpu1", "90% of what would", "BESIDE", "SetTraffic with 33%"):
        assert part in text
    assert "no other device" in nothing_better(now, [candidate(now.rate)], ["no other device is free"])
