"""Residuals, baselines, noise floor, simulated serving."""

import numpy as np
import pytest
from uellm_profiler.learning.examples import to_input
from uellm_profiler.learning.report import baselines
from uellm_profiler.learning.report.baselines import fit_baselines, prior_entrant
from uellm_profiler.learning.report.features import SIMPLE, simple
from uellm_profiler.learning.report.floor import ANOTHER, GREEDY, OTHERS, find_samples, measure_floor
from uellm_profiler.learning.report.forecasts import Forecasts, Outcomes
from uellm_profiler.learning.report.metrics import Scorer
from uellm_profiler.learning.report.regressors import boosting_candidates, ridge_candidates
from uellm_profiler.learning.report.residuals import Residuals
from uellm_profiler.learning.report.serving import Load, simulate

from tests.support.answers import LIMIT, SIGMA, TOPICS, make_entrant, make_examples


def test_residuals_without_cuts_are_the_empirical_distribution():
    residuals = Residuals.of(np.array([0.3, -0.1, 0.2, 0.2]), np.zeros(4, bool))
    assert residuals.knots[1:].tolist() == [-0.1, 0.2, 0.3]
    assert residuals.probabilities.tolist() == pytest.approx([0, 0.25, 0.75, 1])


def test_a_cut_residual_passes_its_share_on_to_what_is_longer():
    # Kaplan-Meier by hand: 1/4 end first; the second is cut; of the two left one ends, then the other.
    residuals = Residuals.of(np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, True, False, False]))
    assert residuals.probabilities.tolist() == pytest.approx([0, 0.25, 0.625, 1])
    last_is_cut = Residuals.of(np.array([0.1, 0.2]), np.array([False, True]))
    assert last_is_cut.probabilities[-1] == 0.5  # nobody knows where the other half ends


def test_nothing_is_said_where_every_answer_was_cut():
    with pytest.raises(ValueError, match="no answer ended by itself"):
        Residuals.of(np.array([1.0]), np.array([True]))


def test_residuals_recover_the_law_from_cut_answers():
    examples = make_examples(2_000)
    outcomes = Outcomes.of(examples)
    centre = np.array([TOPICS[example.prompt.family] for example in examples])
    residuals = Residuals.of(np.log(outcomes.tokens) - centre, outcomes.cut)
    said = residuals.distribution(5.0, 10_000)
    assert np.log(said.quantile(0.5)) == pytest.approx(5.0, abs=0.05)
    assert np.log(said.quantile(0.9)) == pytest.approx(5.0 + 1.2816 * SIGMA, abs=0.1)


@pytest.fixture(scope="module")
def trained():
    """The baselines, tuned among few candidates."""
    few = {
        **baselines._CONTENDERS,
        "TF-IDF + ridge": ("ridge", lambda: list(ridge_candidates())[:2]),
        "TF-IDF + boosting": ("boosting", lambda: list(boosting_candidates())[:2]),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_CONTENDERS", few)
        seen = []
        fitted = fit_baselines(make_examples(240), lambda *progress: seen.append(progress))
        return fitted, seen


def test_baselines_find_in_the_words_what_is_there(trained):
    fitted, seen = trained
    tau = {baseline.name: baseline.cross_validated_tau for baseline in fitted}
    assert tau["constant"] == 0
    assert abs(tau["prompt length"]) < 0.15
    assert tau["TF-IDF + ridge"] > 0.5
    assert tau["TF-IDF + boosting"] > 0.5
    assert ("TF-IDF + boosting", 2, 2) in seen


def test_baselines_cover_what_they_say_on_other_prompts(trained):
    examples = make_examples(400, first=1_000, seed=1)
    outcomes = Outcomes.of(examples)
    scorer = Scorer(outcomes, np.ones((1, len(examples))))
    for baseline in trained[0]:
        entrant = baseline.enter(examples)
        assert entrant.baseline
        assert entrant.parameters == baseline.parameters > 0
        covered = scorer.measure(Forecasts.of(entrant.distributions, outcomes))["coverage_p90"][0]
        assert 0.85 <= covered <= 1.0


def test_all_candidates_can_be_fitted():
    inputs = [to_input(example) for example in make_examples(60)]
    targets = np.linspace(1, 3, 60)
    for candidate in [*list(ridge_candidates())[::6], *list(boosting_candidates())[::6]]:
        regressor = candidate.make()
        regressor.fit(inputs, targets)
        assert np.isfinite(regressor.predict(inputs)).all()


def test_features_have_the_width_that_is_stated():
    inputs = [to_input(example) for example in make_examples(2)]
    assert simple(inputs).shape == (2, SIMPLE)
    assert simple([]).shape == (0, SIMPLE)


def test_the_prior_says_the_same_for_every_prompt():
    entrant = prior_entrant(make_examples(3))
    assert entrant.distributions[0] == entrant.distributions[2]
    assert entrant.distributions[0].limit == LIMIT


def test_the_floor_compares_all_on_the_same_prompts_and_answers():
    examples = make_examples(150, samples=3)
    labels = [example.label for example in examples]
    samples = find_samples(labels)
    assert samples.rows.shape == (150, 3)
    assert all(
        labels[row].prompt == labels[greedy].prompt
        for row, greedy in zip(samples.rows[:, 2], samples.greedy, strict=True)
    )
    points = Forecasts.of(make_entrant("law", examples).distributions, Outcomes.of(examples)).p50
    measured = measure_floor(labels, samples, {"law": points}, resamples=50)
    tau = {name: values["tau"][0] for name, values in measured.items()}
    # Answers to a prompt are drawn alike, greedy ones among them; the law says more than one draw.
    assert tau[GREEDY] == pytest.approx(tau[ANOTHER], abs=0.06)
    assert tau[ANOTHER] < tau[OTHERS] < tau["law"]
    assert measured[ANOTHER]["mae"].shape == (51,)


def test_there_is_no_floor_without_two_samples():
    assert find_samples([example.label for example in make_examples(5)]) is None
    assert find_samples([example.label for example in make_examples(5, samples=1)]) is None


def test_prompts_that_lack_a_sample_are_left_out_of_the_floor():
    labels = [example.label for example in make_examples(5, samples=3)][:-1]
    assert find_samples(labels).rows.shape == (4, 3)


def test_one_row_serves_as_worked_by_hand():
    load = Load(rows=1, utilisations=(50.0,), deadline=100.0, runs=1)  # all arrive nearly at once
    lengths = np.array([100, 1, 1, 1])
    shortest_first = simulate(lengths, lengths.astype(float), 50.0, load).wait[0] * lengths.mean() * 4
    longest_first = simulate(lengths, -lengths.astype(float), 50.0, load).wait[0] * lengths.mean() * 4
    # Whoever comes first to an idle row is served at once, whatever is known.
    assert shortest_first < longest_first
    assert longest_first > 100


def test_knowing_the_lengths_keeps_more_deadlines_in_a_rush_than_knowing_nothing():
    outcomes = Outcomes.of(make_examples(400))
    load = Load(runs=5)
    known = simulate(outcomes.tokens, outcomes.tokens.astype(float), 1.3, load)
    unknown = simulate(outcomes.tokens, np.zeros(400), 1.3, load)
    assert known.on_time.mean() > unknown.on_time.mean() + 0.05
    assert known.wait.mean() < unknown.wait.mean()
