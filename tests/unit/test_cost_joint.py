"""Joint distributions of times and of sums: against exact enumeration in small cases, against Monte Carlo in others."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.costs import PRIOR, TRUTH, measured_deployment, random_batch
from uellm.cost.fit import CostFit
from uellm.cost.joint import (
    BatchTime,
    JointRow,
    kv_exceeds,
    padded_kv_exceeds,
    remaining,
    sum_exceeds,
)
from uellm.cost.lengths import LengthDistribution, log_normal_cdf
from uellm.cost.linear import diagonal, quadratic
from uellm.cost.model import CostModel, Part
from uellm.cost.service import service_time
from uellm.cost.steps import StepTime, Work, batch_work
from uellm.cost.times import TimeDistribution


def certain(steps: StepTime) -> CostModel:
    """A cost model without uncertainty and noise."""
    decode, start = (Part(diagonal([0.0] * size), diagonal([1.0] * size), 0.0, 0.0) for size in (3, 2))
    return CostModel("exact", steps, decode, start)


def learnt(batches: int = 40) -> CostModel:
    choice, fit = random.Random(1), CostFit(measured_deployment(PRIOR))
    for _ in range(batches):
        fit.fold(random_batch(choice))
    return fit.model


def chances(length: LengthDistribution) -> list[float]:
    """Probability of each whole length, from 1 on."""
    return [length.cdf(tokens) - length.cdf(tokens - 1) for tokens in range(1, length.limit + 1)]


def draw(length: LengthDistribution, count: int, generator: np.random.Generator) -> np.ndarray:
    where = generator.random(count)
    below = np.ceil(np.interp(where, length.below, (0, *length.edges)))
    return np.maximum(1, np.where(where > length.below[-1], length.limit, below)).astype(int)


def log_normal(median: float, sigma: float = 0.8, limit: int = 1_024) -> LengthDistribution:
    return LengthDistribution.from_cdf(log_normal_cdf(math.log(median), sigma), limit)


tiny_lengths = st.builds(
    lambda masses, atom: LengthDistribution(
        tuple(range(1, len(masses) + 1)), tuple(m / sum(masses) for m in masses), atom * masses[-1] / sum(masses)
    ),
    st.lists(st.floats(0.05, 1), min_size=1, max_size=5),
    st.floats(0, 1),
)


# --- one query ---


@settings(deadline=None, max_examples=60)
@given(tiny_lengths, st.integers(1, 50))
def test_alone_equals_the_enumeration(length, prompt):
    time = service_time(certain(TRUTH), prompt, length)
    for tokens in range(2, length.limit + 1):
        seconds = TRUTH.alone_seconds(prompt, tokens)
        assert time.cdf(seconds * (1 + 1e-9)) == pytest.approx(length.cdf(tokens), abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(tiny_lengths, st.integers(1, 50), st.integers(2, 3))
def test_in_a_batch_the_mean_time_of_a_length_equals_the_enumeration(length, prompt, rows):
    """Others enter with their mean: for each own length, the time is the mean over what they do."""
    time = service_time(certain(TRUTH), prompt, length, rows=rows)
    own = length.limit
    expected = 0.0
    for others in itertools.product(range(1, length.limit + 1), repeat=rows - 1):
        chance = math.prod(chances(length)[tokens - 1] for tokens in others)
        cut = [own, *(min(tokens, own) for tokens in others)]
        expected += chance * TRUTH.batch_seconds([prompt] * rows, cut, padded=True)
    assert time._seconds[-1] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("known", [True, False])
def test_service_time_agrees_with_monte_carlo(rows, known):
    model = learnt() if known else CostModel.from_prior(PRIOR.to_prior("roofline"))
    length, generator = log_normal(250), np.random.default_rng(0)
    lengths = np.stack([draw(length, 4_000, generator) for _ in range(rows)], axis=1)
    works = [batch_work([100] * rows, np.minimum(row, row[0]).tolist(), padded=True) for row in lengths]
    simulated = simulate(model, works, generator)
    time = service_time(model, 100, length, rows=rows)
    for probability in (0.5, 0.9, 0.99):
        assert time.quantile(probability) == pytest.approx(np.quantile(simulated, probability), rel=0.06)
        assert time.cdf(time.quantile(probability)) == pytest.approx(probability, abs=1e-3)


def simulate(model: CostModel, works: list[Work], generator: np.random.Generator) -> np.ndarray:
    """Times of batches, with coefficients and noise drawn for each."""
    wide, count = max(1.0, model.scale) ** 2, len(works)
    steps = model.step_time
    decode = generator.multivariate_normal(
        [steps.base, steps.per_row, steps.per_context_token], wide * np.array(model.decode.covariance), count
    )
    start = generator.multivariate_normal(
        [steps.prefill_per_token, steps.startup], wide * np.array(model.start.covariance), count
    )
    seconds = []
    for at, work in enumerate(works):
        known = quadratic(model.decode.covariance, work.decode) + quadratic(model.start.covariance, work.start)
        noise = math.sqrt(max(0.0, model.variance(work) - wide * known))
        seconds.append(decode[at] @ work.decode + start[at] @ work.start + generator.normal(0, noise))
    return np.array(seconds)


# --- batches ---


def test_all_of_sixteen_rows_stay_under_their_p90_in_19_percent_of_batches():
    length = LengthDistribution((90, 100), (0.9, 0.1), 0.0)
    batch = BatchTime(certain(TRUTH), [JointRow(10, length)] * 16, padded=True)
    row, end = batch.row(0), batch.end()
    at_p90 = end._seconds[end._below.index(pytest.approx(0.9**16))]
    assert end.cdf(at_p90) == pytest.approx(0.185, abs=0.001)
    assert row.cdf(row.quantile(0.9)) == pytest.approx(0.9, abs=1e-3)
    assert end.quantile(0.9) > row.quantile(0.9)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 40), tiny_lengths), min_size=1, max_size=3), st.booleans())
def test_the_end_of_a_tiny_batch_is_that_of_the_enumeration(drawn, padded):
    prompts, lengths = [prompt for prompt, _ in drawn], [length for _, length in drawn]
    batch = BatchTime(certain(TRUTH), [JointRow(*one) for one in drawn], padded=padded)
    end, mean, total = batch.end(), 0.0, 0.0
    later = dict.fromkeys(range(1, 6), 0.0)
    for outcome in itertools.product(*(range(1, length.limit + 1) for length in lengths)):
        chance = math.prod(chances(length)[n - 1] for length, n in zip(lengths, outcome, strict=True))
        mean += chance * TRUTH.batch_seconds(prompts, outcome, padded=padded)
        total += chance
        for tokens in later:
            later[tokens] += chance * (max(outcome) > tokens)
    assert total == pytest.approx(1)
    masses = [*(high - low for low, high in itertools.pairwise(end._below)), end._atom]
    found = sum(mass * seconds for mass, seconds in zip(masses, [*end._seconds[1:], end._seconds[-1]], strict=True))
    # Exact but for the padding to the longest prompt alive, of which only the mean enters.
    assert found == pytest.approx(mean, rel=1e-3 if padded else 1e-6)
    last = max(length.limit for length in lengths)
    knots = {round(knot): below for knot, below in zip(batch._grid, end._below[1:], strict=True)}
    for tokens in range(1, last):
        assert 1 - knots[tokens] == pytest.approx(later[tokens], abs=1e-6)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("mixed_limits", [True, False])
def test_batches_agree_with_monte_carlo(padded, mixed_limits):
    generator, choice, model = np.random.default_rng(3), random.Random(3), learnt()
    rows = [
        JointRow(
            choice.randint(10, 300),
            log_normal(choice.uniform(50, 300), limit=choice.choice([64, 200, 700]) if mixed_limits else 1_024),
        )
        for _ in range(8)
    ]
    batch = BatchTime(model, rows, padded=padded)
    lengths = np.stack([draw(row.length, 3_000, generator) for row in rows], axis=1)
    prompts = [row.prompt_tokens for row in rows]
    ends = simulate(model, [batch_work(prompts, one.tolist(), padded=padded) for one in lengths], generator)
    first = simulate(
        model, [batch_work(prompts, np.minimum(one, one[0]).tolist(), padded=padded) for one in lengths], generator
    )
    for probability in (0.1, 0.5, 0.9, 0.99):
        assert batch.end().quantile(probability) == pytest.approx(np.quantile(ends, probability), rel=0.05)
        assert batch.row(0).quantile(probability) == pytest.approx(np.quantile(first, probability), rel=0.05)
    assert batch.first_token_seconds() == pytest.approx(
        model.step_time.first_token_seconds(8 * max(prompts) if padded else sum(prompts))
    )


def test_like_rows_agree_with_the_query_in_a_batch_of_like_queries():
    model, length = learnt(), log_normal(200)
    batch = BatchTime(model, [JointRow(80, length)] * 16, padded=True)
    time = service_time(model, 80, length, rows=16)
    for probability in (0.3, 0.5, 0.9, 0.99):
        assert batch.row(3).quantile(probability) == pytest.approx(time.quantile(probability), rel=0.01)


def test_a_batch_that_has_begun_goes_on_from_where_it_stands():
    model, length = certain(TRUTH), LengthDistribution((10, 20), (0.5, 0.5), 0.5)
    left = remaining(length, 10)
    assert (left.edges, left.probabilities, left.limit_probability) == ((10,), (1.0,), 1.0)
    ends = BatchTime(model, [JointRow(110, left)], padded=True, begun=True).end()
    whole, done = TRUTH.alone_seconds(100, 20), TRUTH.alone_seconds(100, 10)
    # Ten more tokens are ten more steps, of which a new batch's prefill would have been one.
    assert ends.quantile(0.5) == pytest.approx(whole - done, rel=0.15)
    with pytest.raises(ValueError, match="at least one row"):
        BatchTime(model, [], padded=True)


@settings(deadline=None)
@given(st.integers(0, 200), st.floats(20, 200), st.integers(30, 150))
def test_what_remains_is_the_conditional_distribution(delivered, median, limit):
    length = log_normal(median, limit=limit)
    left = remaining(length, delivered)
    if delivered >= limit:
        assert left.limit == 1
        return
    assert left.limit == limit - delivered
    for tokens in range(1, left.limit + 1, 7):
        expected = (length.cdf(delivered + tokens) - length.cdf(delivered)) / (1 - length.cdf(delivered))
        assert left.cdf(tokens) == pytest.approx(expected, abs=1e-6)
    assert left.limit_probability == pytest.approx(length.limit_probability / (1 - length.cdf(delivered)), rel=1e-6)


# --- sums ---


@settings(deadline=None, max_examples=60)
@given(st.lists(tiny_lengths, min_size=1, max_size=4), st.integers(0, 20))
def test_the_tail_of_a_tiny_sum(lengths, tokens):
    exact = sum(
        math.prod(chances(length)[n - 1] for length, n in zip(lengths, outcome, strict=True))
        for outcome in itertools.product(*(range(1, length.limit + 1) for length in lengths))
        if sum(outcome) > tokens
    )
    found = sum_exceeds(lengths, tokens)
    assert found == pytest.approx(exact, abs=1e-9 if len(lengths) == 1 or exact in (0.0, 1.0) else 0.12)


@pytest.mark.parametrize("rows", [4, 16])
def test_the_tail_of_a_sum_agrees_with_monte_carlo(rows):
    generator, choice = np.random.default_rng(5), random.Random(5)
    lengths = [log_normal(choice.uniform(50, 400)) for _ in range(rows)]
    sums = sum(draw(length, 100_000, generator) for length in lengths)
    for probability, tolerance in ((0.5, 0.03), (0.1, 0.03), (0.01, 0.08), (0.001, 0.25)):
        tokens = int(np.quantile(sums, 1 - probability))
        assert sum_exceeds(lengths, tokens) == pytest.approx((sums > tokens).mean(), rel=tolerance)


def test_the_probability_of_too_much_cache():
    rows = [JointRow(100, log_normal(200, limit=512))] * 8
    assert kv_exceeds(rows, 1_000, 8 * 612 * 1_000) == 0
    assert padded_kv_exceeds(rows, 1_000, 8 * 612 * 1_000) == 0
    assert kv_exceeds(rows, 1_000, 700_000) == 1
    budget = 3_200 * 1_000
    assert kv_exceeds(rows, 1_000, budget) == pytest.approx(sum_exceeds([row.length for row in rows], 2_400))
    assert padded_kv_exceeds(rows, 1_000, budget) == pytest.approx(1 - rows[0].length.cdf(300) ** 8)
    assert sum_exceeds([], 0) == 0


# --- the distribution of a time ---


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 5), min_size=2, max_size=12), st.floats(0, 0.5), st.floats(0, 0.6), st.integers(0, 99))
def test_quantiles_invert_the_distribution_function(gaps, relative, atom, seed):
    seconds = list(itertools.accumulate(gaps))
    masses = [random.Random(seed + i).random() for i in range(len(seconds) - 1)]
    share = (1 - atom) / sum(masses)
    below = [0.0, *itertools.accumulate(mass * share for mass in masses)]
    time = TimeDistribution(seconds, [relative * s for s in seconds], below, atom)
    points = time.quantiles(0.05, 0.3, 0.5, 0.9, 0.99)
    assert points == sorted(points)
    for probability, point in zip((0.05, 0.3, 0.5, 0.9, 0.99), points, strict=True):
        assert time.cdf(point * 1.001) >= probability - 1e-5
        if point > 0:  # what the normal tails put below zero seconds counts as none
            assert time.cdf(point * 0.999 - 1e-9) <= probability + 1e-5
    for wrong in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="quantile"):
            time.quantile(wrong)


def test_reading_a_model_needs_no_numpy():
    code = "import sys, uellm.cost.service, uellm.messaging.costs; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_uncertain_coefficients_widen_both_ends():
    length = log_normal(100)
    sure = service_time(certain(TRUTH), 50, length)
    unsure = service_time(CostModel.from_prior(TRUTH.to_prior("x")), 50, length)
    assert unsure.quantile(0.95) > sure.quantile(0.95)
    assert unsure.quantile(0.05) < sure.quantile(0.05)
