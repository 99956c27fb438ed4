"""The calibration's statistics: pure, on synthetic streams."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_profiler.adapters.calibration_codec import decode_state, encode_state
from uellm_profiler.domain.calibration import (
    PREDICTORS_KEPT,
    CalibrationState,
    Observed,
    fold,
    skip,
)
from uellm_profiler.domain.drift import pit_of
from uellm_profiler.domain.quality import P90
from uellm_profiler.domain.recalibration import KNOTS, TAIL_WEIGHT, Calibration, Feedback, HazardRatios, level_of

from tests.support.answer_streams import (
    PROPERTY,
    SHIFTS,
    Answer,
    calibration_after,
    calibration_of_short_predictions,
    coverage,
    distributions,
    folded,
    log_normal,
    observations,
    run,
    source,
    stream,
)
from uellm.cost.lengths import LengthDistribution


@PROPERTY
@given(st.lists(observations(), min_size=1, max_size=12), distributions())
def test_whatever_was_seen_what_is_issued_is_a_distribution(seen: list[Observed], raw: LengthDistribution) -> None:
    for known in folded(CalibrationState(), seen).predictors:
        issued = known.calibration().calibrate(raw)  # the constructor checks the masses
        assert issued.edges == raw.edges
        assert 0 < issued.quantile(0.5) <= issued.quantile(0.9) <= issued.quantile(0.99) <= raw.limit
        assert all(low <= high for low, high in pairwise(known.ratios.levels()))


@PROPERTY
@given(st.lists(observations(), min_size=2, max_size=10), st.data())
def test_a_restart_between_any_two_observations_changes_nothing(seen: list[Observed], data: st.DataObject) -> None:
    stop = data.draw(st.integers(0, len(seen)))
    first = folded(CalibrationState(gaps=2), seen[:stop])
    read = decode_state(encode_state(first).SerializeToString())
    assert read == first
    assert folded(read, seen[stop:], stop + 1) == folded(CalibrationState(gaps=2), seen)


@PROPERTY
@given(distributions(), st.integers(1, 4096))
def test_cutting_before_and_after_calibration_is_the_same(raw: LengthDistribution, limit: int) -> None:
    calibration = replace(calibration_of_short_predictions(), feedback=Feedback())
    limit = max(edge for edge in (raw.edges[0], *raw.edges) if edge <= max(limit, raw.edges[0]))
    cut_first = calibration.calibrate(raw.truncate(limit))
    cut_last = calibration.calibrate(raw).truncate(limit)
    assert cut_first.edges == cut_last.edges
    assert cut_first.below == pytest.approx(cut_last.below, abs=1e-9)


@PROPERTY
@given(distributions())
def test_without_observations_it_is_nearly_the_identity(raw: LengthDistribution) -> None:
    issued = Calibration("", HazardRatios().levels(), Feedback()).calibrate(raw)
    assert HazardRatios().levels() == pytest.approx(KNOTS)
    assert issued.below == pytest.approx(raw.below, abs=TAIL_WEIGHT)


def test_few_observations_move_little() -> None:
    raw = log_normal(100, 0.7, 1024)
    issued = calibration_after([(raw, 400, False)] * 2).calibrate(raw)
    assert raw.quantile(0.5) < issued.quantile(0.5) < 150


def test_right_predictions_stay() -> None:
    raw = log_normal(150, 0.8, 512)
    right = source(true=(150, 0.8), predicted=(150, 0.8), limits=(512,))
    issued = calibration_after(stream(3, (right, 1_500))).calibrate(raw)
    assert issued.below == pytest.approx(raw.below, abs=0.05)


@pytest.mark.parametrize(
    ("predicted", "true"), [((40, 0.5), (300, 0.4)), ((900, 0.5), (20, 0.4)), ((300, 1.5), (60, 0.2))]
)
def test_wrong_predictions_are_corrected(predicted: tuple[float, float], true: tuple[float, float]) -> None:
    wrong = source(true=true, predicted=predicted, limits=(2048,))
    issued = calibration_after(stream(4, (wrong, 1_000))).calibrate(log_normal(*predicted, 2048))
    expected = log_normal(*true, 2048)
    for probability in (0.1, 0.5, 0.9):
        assert issued.quantile(probability) == pytest.approx(expected.quantile(probability), rel=0.25)


def test_mass_moves_to_where_the_prediction_had_none() -> None:
    edges = (16, 32, 64, 128, 256, 512, 1024)
    raw = LengthDistribution(edges, (0.5, 0.5, 0, 0, 0, 0, 0), 0)
    generator = random.Random(5)
    answers = [(raw, generator.randint(129, 512), False) for _ in range(600)]
    issued = calibration_after(answers).calibrate(raw)
    assert issued.below[4] < 0.08  # up to 128
    assert issued.below[6] > 0.92  # up to 512
    assert issued.below[5] == pytest.approx(128 / 384, abs=0.08)


def test_what_was_cut_counts_as_longer() -> None:
    cut_half = source(true=(100, 0.7), predicted=(50, 0.7), limits=(100,))
    known, _ = run(stream(6, (cut_half, 1_500)))
    issued = known.calibration().calibrate(log_normal(50, 0.7, 100))
    assert issued.limit_probability == pytest.approx(0.5, abs=0.06)
    # With a later limit, the same holds below the cut, and what lies above is still longer than 100.
    longer = known.calibration().calibrate(log_normal(50, 0.7, 1024))
    assert longer.ended_by(100) == pytest.approx(0.5, abs=0.1)


def test_an_answer_that_was_cut_early_is_exposed_up_to_there() -> None:
    generator = random.Random(7)
    raw, true = log_normal(50, 0.7, 1024), source(true=(100, 0.7), predicted=(50, 0.7))
    answers: list[Answer] = []
    for _, tokens, cut in stream(7, (true, 2_000)):
        stopped = generator.randint(20, 400)
        answers.append((raw, stopped, True) if tokens > stopped else (raw, tokens, cut))
    known, _ = run(answers)
    assert known.calibration().calibrate(raw).quantile(0.5) == pytest.approx(100, rel=0.2)
    assert known.quality.cuts == 0


@pytest.mark.parametrize("name", SHIFTS)
def test_coverage_is_kept_when_the_traffic_changes(name: str) -> None:
    before, after = SHIFTS[name]
    first, second, cuts = [], [], []
    for seed in range(3):
        _, seen = run(stream(seed, (before, 1_200), (after, 1_300)))
        first.append(coverage(seen[200:1_200]))
        second.append(coverage(seen[1_500:]))
        cuts.append(
            statistics.mean(one.cut - one.issued.limit_probability for one in [*seen[200:1_200], *seen[1_500:]])
        )
    assert statistics.mean(first) == pytest.approx(0.9, abs=0.02)
    assert statistics.mean(second) == pytest.approx(0.9, abs=0.02)
    assert statistics.mean(cuts) == pytest.approx(0, abs=0.03)
    uncalibrated = [replace(one, issued=one.raw) for one in seen[1_500:]]
    assert abs(coverage(uncalibrated) - 0.9) > 0.1  # the test would not pass by itself


def test_feedback_alone_brings_coverage_back() -> None:
    """Long-run coverage of adaptive conformal inference, without any map."""
    generator, feedback = random.Random(8), Feedback()
    raw = log_normal(100, 0.7, 4096)
    within = []
    for _ in range(4_000):
        issued = Calibration("", KNOTS, feedback).calibrate(raw)
        tokens = max(1, round(100 * math.exp(generator.gauss(0, 0.8))))
        within.append(tokens <= issued.quantile(0.9))
        feedback = feedback.learn(issued, pit_of(issued, tokens, generator.random(), cut=False), cut=False)
    assert statistics.mean(within[1_000:]) == pytest.approx(0.9, abs=0.01)


def test_plain_coverage_is_too_high_where_answers_are_cut() -> None:
    right = source(true=(150, 0.8), predicted=(150, 0.8), limits=(300,))
    generator = random.Random(9)
    seen = [
        Observed("1-0", "p", "", raw, raw, tokens, cut) for raw, tokens, cut in (right(generator) for _ in range(3_000))
    ]
    assert coverage(seen, P90) == 1  # the p90 is the limit
    assert coverage(seen) == pytest.approx(0.9, abs=0.02)


def test_each_predictor_has_a_calibration_of_its_own() -> None:
    one, other = log_normal(50, 0.5, 512), log_normal(200, 0.5, 512)
    state = CalibrationState()
    for number in range(1, 201):
        state = fold(state, Observed(f"{2 * number}-0", "a/1", "", one, one, 60, cut=False))
        state = fold(state, Observed(f"{2 * number + 1}-0", "b/1", "", other, other, 190, cut=False))
    known = state.of("a/1")
    assert known is not None
    assert known.observations == 200
    assert known.version == "400-0"
    alone = folded(CalibrationState(), [Observed("", "a/1", "", one, one, 60, cut=False)] * 200).predictors[0]
    assert known.calibration().levels == pytest.approx(alone.calibration().levels, abs=1e-3)
    for number in range(PREDICTORS_KEPT):
        state = fold(state, Observed(f"{500 + number}-0", f"c/{number}", "", one, one, 60, cut=False))
    assert state.of("a/1") is None
    assert len(state.predictors) == PREDICTORS_KEPT


def test_an_entry_that_cannot_be_read_is_counted_and_passed() -> None:
    state = skip(CalibrationState(last_entry_id="4-0"), "5-0")
    assert (state.last_entry_id, state.unreadable, state.predictors) == ("5-0", 1, ())


@PROPERTY
@given(distributions(), st.integers(1, 4096), st.integers(1, 4096))
def test_levels_increase_strictly(raw: LengthDistribution, one: int, other: int) -> None:
    low, high = sorted((one, other))
    if low < high:
        assert 0 < level_of(raw, low) < level_of(raw, high) < 1
