"""The card's metrics against scipy, scikit-learn, numpy and cases worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from sklearn.metrics import accuracy_score, f1_score, recall_score
from uellm_profiler.learning.report.forecasts import Forecasts, Outcomes
from uellm_profiler.learning.report.metrics import BUCKET_EDGES, METRICS, Scorer, pinball, weighted_median
from uellm_profiler.learning.report.ranks import PairOrder, top_recall
from uellm_profiler.learning.report.resampling import resample

from tests.support.answers import LIMIT, make_entrant, make_examples, make_label
from uellm.cost.lengths import LengthDistribution, log_normal_cdf

rows = st.lists(
    st.tuples(st.integers(1, 12), st.booleans(), st.integers(1, 12), st.integers(0, 3)), min_size=2, max_size=25
)


def outcomes_of(tokens, cut=None, limit=LIMIT):
    cut = cut if cut is not None else [False] * len(tokens)
    return Outcomes.of_labels(
        [make_label(i, t, cut=c, limit=limit) for i, (t, c) in enumerate(zip(tokens, cut, strict=True))]
    )


def repeated(values, weights):
    """The rows as often as they are there."""
    return np.repeat(np.array(values), np.array(weights, dtype=int))


@given(rows)
@settings(max_examples=60, deadline=None)
def test_tau_is_that_of_scipy_on_rows_repeated_by_their_weights(drawn):
    tokens, _, scores, weights = zip(*drawn, strict=True)
    order = PairOrder(outcomes_of(tokens), np.array([weights], float))
    expected = kendalltau(repeated(tokens, weights), repeated(scores, weights)).statistic if sum(weights) > 1 else 0.0
    assert order.tau(np.array(scores, float))[0] == pytest.approx(np.nan_to_num(expected), abs=1e-12)


@given(rows)
@settings(max_examples=60, deadline=None)
def test_tau_changes_its_sign_with_the_scores_and_stays_within_one(drawn):
    tokens, cut, scores, weights = zip(*drawn, strict=True)
    order = PairOrder(outcomes_of(tokens, cut), np.array([weights], float))
    for tau in (order.tau, order.tau_known):
        forward, backward = tau(np.array(scores, float))[0], tau(-np.array(scores, float))[0]
        assert forward == -backward
        assert -1 - 1e-12 <= forward <= 1 + 1e-12


@given(rows)
@settings(max_examples=60, deadline=None)
def test_known_order_is_that_of_the_pairs_counted_one_by_one(drawn):
    tokens, cut, scores, _ = zip(*drawn, strict=True)
    agreement = untied = untied_scores = 0
    for i in range(len(tokens)):
        for j in range(i):
            (short, short_cut), (long, long_cut) = sorted([(tokens[i], cut[i]), (tokens[j], cut[j])])
            if short_cut:
                continue
            truth = int((long, long_cut) > (short, short_cut))
            if (tokens[i], cut[i]) < (tokens[j], cut[j]):
                truth = -truth
            said = np.sign(scores[i] - scores[j])
            agreement += truth * said
            untied += abs(truth)
            untied_scores += abs(said)
    scale = math.sqrt(untied * untied_scores)
    order = PairOrder(outcomes_of(tokens, cut), np.ones((1, len(tokens))))
    assert order.tau_known(np.array(scores, float))[0] == pytest.approx(agreement / scale if scale else 0.0)


def test_a_cut_answer_is_known_to_be_longer_but_two_cut_ones_are_not_compared():
    outcomes = outcomes_of([50, 100, 100, 100], [False, False, True, True])
    order = PairOrder(outcomes, np.ones((1, 4)))
    assert order.tau_known(np.array([1.0, 2.0, 3.0, 4.0]))[0] == pytest.approx(1.0)
    assert order.tau_known(np.array([1.0, 4.0, 3.0, 2.0]))[0] == pytest.approx((3 - 2) / 5)


def test_recall_of_the_longest_counts_ties_at_the_border_in_part():
    lengths = np.arange(1.0, 21.0)
    weights = np.ones((1, 20))
    assert top_recall(lengths, lengths, weights)[0] == 1
    assert top_recall(lengths, -lengths, weights)[0] == 0
    assert top_recall(lengths, np.zeros(20), weights)[0] == pytest.approx(0.1)
    only_one = np.where(lengths == 20, 2.0, 0.0)  # 20 is in, 19 shares one place with 18 others
    assert top_recall(lengths, only_one, weights)[0] == pytest.approx((1 + 1 / 19) / 2)
    twice = np.ones((1, 20))
    twice[0, [0, 19]] = 0, 2  # now the two longest of 20 are both the last row's
    assert top_recall(lengths, only_one, twice)[0] == pytest.approx(1.0)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3)), min_size=1, max_size=30).filter(
        lambda x: any(w for _, w in x)
    )
)
@settings(max_examples=60, deadline=None)
def test_the_weighted_median_is_that_of_the_rows_repeated(drawn):
    values, weights = zip(*drawn, strict=True)
    expected = np.median(repeated(values, weights))
    assert weighted_median(np.array(values, float), np.array([weights], float))[0] == expected


def test_points_are_measured_as_scikit_learn_and_numpy_do():
    draw = np.random.RandomState(0)
    tokens, points = draw.randint(1, 700, 300), draw.randint(1, 700, 300).astype(float)
    weights = np.stack([np.ones(300), draw.randint(0, 3, 300)]).astype(float)
    scorer = Scorer(outcomes_of(tokens, limit=1_000), weights)
    measured = scorer.measure_points(points)
    for b, weight in enumerate(weights):
        truth, said = repeated(tokens, weight), repeated(points, weight)
        error = said - truth
        classes, named = np.searchsorted(BUCKET_EDGES, truth), np.searchsorted(BUCKET_EDGES, said)
        expected = {
            "tau": kendalltau(truth, said).statistic,
            "mae": np.abs(error).mean(),
            "median_error": np.median(np.abs(error)),
            "log_ratio": np.abs(np.log(said / truth)).mean(),
            "within_50": (np.abs(error) <= 50).mean(),
            "within_100": (np.abs(error) <= 100).mean(),
            "accuracy": accuracy_score(classes, named),
            "macro_f1": f1_score(classes, named, average="macro"),
            "tail_recall": recall_score(classes, named, labels=[4], average="macro"),
            "under_share": (error < 0).mean(),
            "under_tokens": -error[error < 0].mean(),
            "over_share": (error > 0).mean(),
            "over_tokens": error[error > 0].mean(),
        }
        assert {name: measured[name][b] for name in expected} == pytest.approx(expected)
        assert scorer.majority()[b] == pytest.approx(np.bincount(classes).max() / len(classes))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.sampled_from([0.5, 0.9, 0.99]))
@settings(deadline=None)
def test_pinball_loss_is_least_at_the_quantile(tokens, level):
    lengths = np.array(tokens, float)
    losses = {q: pinball(np.full(len(lengths), float(q)), lengths, level).mean() for q in range(62)}
    best = np.quantile(lengths, level, method="inverted_cdf")
    assert losses[int(best)] == pytest.approx(min(losses.values()))


def test_a_distribution_is_scored_as_worked_by_hand():
    # 40 % evenly over 1 ... 10, 30 % over 11 ... 20, 30 % cut at 20.
    said = LengthDistribution((10, 20), (0.4, 0.6), 0.3)
    outcomes = outcomes_of([5, 20, 20], [False, False, True], limit=20)
    forecast = Forecasts.of([said] * 3, outcomes)
    assert forecast.p50.tolist() == [14] * 3  # 0.4 + 4 x 0.03 reaches a half, 0.4 + 3 x 0.03 does not
    assert forecast.p90.tolist() == [20] * 3
    assert forecast.p90_uncut.tolist() == [18] * 3  # 0.9 x 0.7 = 0.63 = 0.4 + 0.23, 0.23 / 0.03 = 7.7
    assert forecast.pit_low == pytest.approx([0.16, 0.67, 0.7])
    assert forecast.pit_high == pytest.approx([0.2, 0.7, 1.0])
    assert np.exp(forecast.log_likelihood) == pytest.approx([0.04, 0.03, 0.3])
    cdf = [min(x, 10) * 0.04 + max(0, x - 10) * 0.03 for x in range(20)]
    assert forecast.crps[0] == pytest.approx(sum((c - (x >= 5)) ** 2 for x, c in enumerate(cdf)))
    assert forecast.crps[2] == pytest.approx(sum(c**2 for c in cdf))


def test_an_impossible_length_costs_a_bounded_likelihood():
    said = LengthDistribution((10, 20), (1.0, 0.0), 0.0)
    forecast = Forecasts.of([said], outcomes_of([15], limit=20))
    assert forecast.log_likelihood[0] == pytest.approx(math.log(1e-6))


def test_a_distribution_for_another_limit_is_refused():
    said = LengthDistribution.from_cdf(log_normal_cdf(4, 1), 100)
    with pytest.raises(ValueError, match="100 tokens does not fit a limit of 400"):
        Forecasts.of([said], outcomes_of([15]))


def test_who_knows_the_law_covers_what_was_said_given_that_answers_are_not_cut():
    examples = make_examples(1_200)
    outcomes = Outcomes.of(examples)
    scorer = Scorer(outcomes, np.ones((1, len(examples))))
    measured = scorer.measure(Forecasts.of(make_entrant("law", examples).distributions, outcomes))
    # Quantiles are whole tokens, so they hold a little more than was asked.
    assert measured["coverage_p90_given_uncut"][0] == pytest.approx(0.9, abs=0.02)
    assert measured["coverage_p99_given_uncut"][0] == pytest.approx(0.99, abs=0.008)
    assert measured["coverage_p90"][0] > measured["coverage_p90_uncut"][0] > 0.9  # what is cut can't be beyond it


@given(st.floats(-3, 3), st.integers(0, 1_000))
@settings(max_examples=15, deadline=None)
def test_shares_stay_in_0_to_1_whatever_is_predicted(error, seed):
    examples = make_examples(60, seed=seed)
    outcomes = Outcomes.of(examples)
    scorer = Scorer(outcomes, resample(outcomes.clusters, 5))
    measured = scorer.measure(Forecasts.of(make_entrant("e", examples, error=error).distributions, outcomes))
    assert measured.keys() == METRICS.keys()
    for name in ("coverage_p90", "coverage_p99", "coverage_p90_given_uncut", "accuracy", "under_share", "within_50"):
        assert ((measured[name] >= 0) & (measured[name] <= 1)).all()
