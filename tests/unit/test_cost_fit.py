"""The fit of the cost model on batches whose coefficients are known."""

from __future__ import annotations

import math
import random
from dataclasses import astuple
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.costs import PRIOR, TRUTH, measure, measured_deployment, random_batch, times
from uellm.cost.fit import CostFit
from uellm.cost.linear import (
    WORST_CONDITION,
    condition_number,
    inverse,
    non_negative_minimum,
    product,
    quadratic,
)
from uellm.cost.model import CostModel
from uellm.cost.regression import PASSES, SURPRISES_BELIEVED, Regression, Sample
from uellm.cost.steps import StepTime, Work, batch_work
from uellm.v1.stream_pb2 import (
    ENGINE_KIND_CONTINUOUS,
    CostModelState,
    StepAggregates,
    StepTimePrior,
)

FULL = batch_work([200] * 16, [200] * 16, padded=True)
ALONE = batch_work([200], [200], padded=True)


def fitted(batches: int = 60, seed: int = 1, prior: StepTime = PRIOR, **how: object) -> CostFit:
    choice, fit = random.Random(seed), CostFit(measured_deployment(prior))
    for number in range(batches):
        assert fit.fold(random_batch(choice, **how), f"b-{number}")
    return fit


def off(model: CostModel, work: Work, truth: StepTime = TRUTH) -> float:
    return abs(model.seconds(work) / truth.seconds(work) - 1)


def test_it_recovers_the_coefficients():
    model = fitted(80).model
    found = model.step_time
    assert found.base == pytest.approx(TRUTH.base, rel=0.03)
    assert found.per_row == pytest.approx(TRUTH.per_row, rel=0.1)
    assert found.prefill_per_token == pytest.approx(TRUTH.prefill_per_token, rel=0.03)
    assert found.per_context_token == pytest.approx(TRUTH.per_context_token, abs=1.5e-6)
    assert off(model, FULL) < 0.02
    assert off(model, ALONE) < 0.02
    for value, truth, deviation in zip(astuple(found), astuple(TRUTH), model.standard_deviation, strict=True):
        assert abs(value - truth) < 4 * deviation
    assert model.version == "fit/80"
    assert model.relative_error is not None
    assert model.relative_error < 0.03


def test_an_engine_without_padding_is_fitted_on_true_contexts():
    choice = random.Random(2)
    truth = StepTime(0.01, 0.0005, 2e-5, 0.0001, 0.02)
    fit = CostFit(measured_deployment(times(0.5, truth), kind=ENGINE_KIND_CONTINUOUS))
    for _ in range(40):
        fit.fold(random_batch(choice, truth=truth, padded=False))
    assert fit.model.step_time.per_context_token == pytest.approx(2e-5, rel=0.05)
    prompts, outputs = [10, 300, 20], [50, 60, 200]
    work = batch_work(prompts, outputs, padded=False)
    assert fit.model.seconds(work) == pytest.approx(truth.seconds(work), rel=0.03)


@pytest.mark.parametrize("factor", [0.1, 0.2, 1.0, 5.0, 20.0])
def test_one_batch_corrects_a_prior_that_is_far_off(factor: float):
    fit = fitted(1, prior=times(factor), rows=8)
    assert off(fit.model, batch_work([150] * 8, [60] * 8, padded=True)) < 0.25
    fit = fitted(10, prior=times(factor))
    assert off(fit.model, FULL) < 0.15


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.3])
def test_a_lasting_change_of_speed_is_followed_within_four_batches(factor: float):
    fit, choice, changed = fitted(50), random.Random(9), times(factor)
    for _ in range(SURPRISES_BELIEVED - 1):
        fit.fold(random_batch(choice, truth=changed))
    assert off(fit.model, FULL) < 0.1, "one or two batches are no proof"
    for _ in range(2):
        fit.fold(random_batch(choice, truth=changed))
    assert off(fit.model, FULL, changed) < 0.1
    assert off(fit.model, ALONE, changed) < 0.1
    for _ in range(10):
        fit.fold(random_batch(choice, truth=changed))
    assert off(fit.model, FULL, changed) < 0.05


def test_a_slow_drift_is_followed_by_forgetting():
    fit, choice = fitted(60, rows=4), random.Random(3)
    for number in range(240):
        fit.fold(random_batch(choice, rows=4, truth=times(1 + number / 1_600)))
    # With a memory of 50 batches it is about 4 % behind; without forgetting it would be 9 %.
    assert off(fit.model, batch_work([150] * 4, [60] * 4, padded=True), times(1.15)) < 0.06


def test_a_paused_machine_does_not_spoil_what_is_known():
    fit, choice = fitted(40), random.Random(4)
    before = fit.model
    for number in range(30):
        fit.fold(random_batch(choice, pause_seconds=60.0 if number % 3 == 0 else 0.0))
    assert off(fit.model, FULL) < 0.03
    assert fit.model.step_time.base == pytest.approx(before.step_time.base, rel=0.05)


def test_batches_of_one_row_leave_the_price_of_a_row_unknown_and_say_so():
    alone, mixed = fitted(60, rows=1).model, fitted(60).model
    low, high = alone.interval(ALONE)
    assert low < TRUTH.seconds(ALONE) < high
    assert alone.relative_interval(ALONE) < 0.1
    assert alone.relative_interval(FULL) > 3 * mixed.relative_interval(FULL)
    low, high = alone.interval(FULL)
    assert low < TRUTH.seconds(FULL) < high
    assert alone.condition_number == pytest.approx(WORST_CONDITION)
    assert mixed.condition_number < 30
    # What was never seen apart is as uncertain as a prior.
    assert alone.standard_deviation[1] > 0.3 * alone.step_time.per_row
    assert mixed.standard_deviation[1] < 0.1 * mixed.step_time.per_row


def test_nothing_is_ever_negative():
    choice = random.Random(5)
    # No price of a row or of context at all: least squares would go below 0 half of the time.
    flat = StepTime(0.05, 0.0, 0.0, 0.001, 0.0)
    fit = CostFit(measured_deployment(PRIOR))
    for _ in range(60):
        fit.fold(random_batch(choice, truth=flat, noise=0.1))
        assert min(astuple(fit.model.step_time)) >= 0
    assert off(fit.model, FULL, flat) < 0.1


def test_ninety_percent_of_batches_lie_within_their_interval():
    inside = []
    for seed in range(3):
        choice, fit = random.Random(seed), CostFit(measured_deployment(PRIOR))
        for number in range(170):
            # Whole batches are faster or slower, too: runs share their noise.
            made = random_batch(choice, truth=times(choice.gauss(1, 0.06)), rows=choice.randint(1, 3))
            work = Work(
                *(sum(f) for f in zip(*[(r.steps, r.steps * r.rows, r.rows * (r.steps * r.first_context
                  + r.steps * (r.steps - 1) / 2)) for r in made.decode], strict=True)),
                made.prefill[0].padded_tokens, 1.0,
            )  # fmt: skip
            low, high = fit.model.interval(work)
            if number >= 20:
                inside.append(low <= made.total_seconds <= high)
            fit.fold(made)
    assert sum(inside) / len(inside) == pytest.approx(0.9, abs=0.03)


def test_the_error_is_out_of_sample():
    fit = fitted(1)
    assert fit.model.relative_error is None, "the first batch was predicted by the prior"
    assert fit.model.coverage is None
    before, made = fit.model, measure([100], [50], random.Random(0))
    fit.fold(made)
    said = before.seconds(batch_work([100], [50], padded=True))
    assert fit.model.relative_error == pytest.approx(abs(said / made.total_seconds - 1))


def test_a_state_goes_on_as_if_nothing_had_happened():
    choice = random.Random(6)
    more = [random_batch(choice) for _ in range(5)]
    fit, again = fitted(30), CostFit(measured_deployment(PRIOR))
    state = CostModelState.FromString(fit.to_state().SerializeToString())
    assert (state.deployment, state.plan_hash, state.observations) == ("deployments/a", "plan-1", 30)
    assert (state.version, state.last_batch_id) == ("fit/30", "b-29")
    assert again.restore(state)
    for made in more:
        fit.fold(made)
        again.fold(made)
    assert again.to_state() == fit.to_state()
    assert CostModel.from_state(fit.to_state()) == fit.model


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: setattr(state, "plan_hash", "plan-2"),
        lambda state: setattr(state, "deployment", "deployments/b"),
        lambda state: setattr(state, "observations", 0),
        lambda state: state.decode.information.pop(),
        lambda state: state.decode.moment.append(1.0),
        lambda state: state.start.information.__setitem__(0, math.nan),
        lambda state: state.start.prior_deviation.__setitem__(0, 0.0),
        lambda state: state.ClearField("start"),
    ],
)
def test_a_state_that_does_not_fit_is_not_taken(spoil):
    state = fitted(3).to_state()
    spoil(state)
    fit = CostFit(measured_deployment(PRIOR))
    untouched = fit.to_state()
    assert not fit.restore(state)
    assert fit.to_state() == untouched
    if state.observations:
        assert CostModel.of(measured_deployment(PRIOR), state).version == "prior/roofline"


def test_aggregates_that_say_nothing_are_not_counted():
    fit = CostFit(measured_deployment(PRIOR))
    empty = StepAggregates(total_seconds=1.0)
    broken = StepAggregates(total_seconds=math.nan)
    broken.decode.add(rows=2, first_context=3, steps=4, seconds=math.inf)
    broken.decode.add(rows=2, first_context=3, steps=0, seconds=1.0)
    broken.prefill.add(rows=2, tokens=4, padded_tokens=4, seconds=-1.0)
    assert not fit.fold(empty)
    assert not fit.fold(broken)
    assert fit.model.version == "prior/roofline"
    assert fit.to_state().observations == 0


def test_without_a_prior_the_first_batches_say_all():
    nothing = CostModel.from_prior(StepTimePrior())
    assert nothing.version == "prior"
    assert nothing.seconds(FULL) == 0
    assert nothing.interval(FULL)[1] > 100
    assert CostModel.from_prior(StepTimePrior(base_seconds=math.nan, per_row_seconds=-1)).step_time.base == 0
    fit = fitted(40, prior=StepTime(0, 0, 0, 0, 0))
    assert off(fit.model, FULL) < 0.1


def test_a_prior_says_how_little_it_knows():
    model = CostModel.from_prior(PRIOR.to_prior("roofline"))
    assert model.step_time == PRIOR
    assert 0.3 < model.relative_interval(ALONE) < 1.0
    low, high = model.interval(ALONE)
    assert 0 <= low < PRIOR.seconds(ALONE) < high


matrices = st.integers(0, 10**6).map(
    lambda seed: (lambda choice: tuple(
        tuple(sum(a * b for a, b in zip(x, y, strict=True)) + (0.1 if i == j else 0) for j, y in enumerate(rows))
        for rows in [[[choice.gauss(0, 1) for _ in range(4)] for _ in range(3)]]
        for i, x in enumerate(rows)
    ))(random.Random(seed))
)  # fmt: skip


@settings(deadline=None)
@given(matrices, st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_the_minimum_keeps_the_optimality_conditions(matrix, vector):
    found = non_negative_minimum(matrix, vector)
    slope = [a - b for a, b in zip(product(matrix, found), vector, strict=True)]
    for value, gradient in zip(found, slope, strict=True):
        assert value >= 0
        assert gradient == pytest.approx(0, abs=1e-8) if value > 0 else gradient >= -1e-8


@settings(deadline=None)
@given(matrices)
def test_an_inverse_is_one(matrix):
    found = inverse(matrix)
    for i, row in enumerate(matrix):
        assert product(found, row) == pytest.approx([float(i == j) for j in range(3)], abs=1e-6)
    assert quadratic(matrix, (1.0, -2.0, 0.5)) > 0


def test_condition_numbers_by_hand():
    assert condition_number(((4.0, 0.0), (0.0, 9.0))) == pytest.approx(1)
    # Correlation 0.8: eigenvalues 1.8 and 0.2.
    assert condition_number(((1.0, 1.6), (1.6, 4.0))) == pytest.approx(3)
    assert condition_number(((1.0, 1.0), (1.0, 1.0))) == WORST_CONDITION
    assert condition_number(((1.0, 0.0), (0.0, 0.0))) == WORST_CONDITION


def test_reweighting_settles_within_its_passes():
    regression = Regression((1.0, 1.0), (0.5, 0.5))
    seconds = [2.0, 3.1, 4.0, 40.0, 5.9]
    for _ in range(30):
        regression.fold([Sample((1.0, float(x)), y, 1.0) for x, y in enumerate(seconds)])
    assert PASSES >= 3
    assert regression.posterior.mean[0] == pytest.approx(2.0, abs=0.15)
    assert regression.posterior.mean[1] == pytest.approx(1.0, abs=0.05)


def test_the_noise_of_short_and_of_long_runs_is_told_apart():
    choice = random.Random(8)
    regression = Regression((0.01,), (0.005,))
    for _ in range(300):
        steps = choice.choice([1, 1, 2, 400])
        seconds = 0.01 * steps * choice.gauss(1, 0.02) + math.sqrt(steps) * choice.gauss(0, 0.002)
        regression.fold([Sample((float(steps),), max(seconds, 1e-4), float(steps))])
    short, long = math.sqrt(regression.noise(0.01, 1)), math.sqrt(regression.noise(4, 400))
    assert 0.5 * 0.002 < short < 1.5 * 0.002
    assert 0.5 * math.hypot(0.08, 0.04) < long < 1.5 * math.hypot(0.08, 0.04)
    assert short / 0.01 > 3 * long / 4


def test_intervals_grow_with_the_work():
    model = fitted(20).model
    widths = [high - low for low, high in (model.interval(batch_work([50] * n, [100] * n, padded=True))
                                           for n in (1, 4, 16))]  # fmt: skip
    assert all(a < b for a, b in pairwise(widths))
