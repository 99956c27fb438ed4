"""How a calibration is scored, and how it finds that lengths have moved."""

from __future__ import annotations

import math
import random

import pytest
from uellm_profiler.domain.calibration import (
    LEARNING_ROWS,
    ROWS_KEPT_AT_DRIFT,
    Observed,
)
from uellm_profiler.domain.drift import DriftTest, draw_of, pit_of
from uellm_profiler.domain.quality import P90, P90_GIVEN_UNCUT, WINDOW, Quality
from uellm_profiler.domain.recalibration import Feedback

from tests.support.answer_streams import (
    LAG,
    SHIFTS,
    coverage,
    log_normal,
    run,
    source,
    stream,
)
from uellm.cost.lengths import LengthDistribution


def test_quality_keeps_a_window_of_uncut_answers() -> None:
    raw, quality = log_normal(100, 0.7, 256), Quality()
    for _ in range(WINDOW):
        quality = quality.learn(raw, 256, cut=True).learn(raw, 200, cut=False)
    assert len(quality.within) == len(quality.pinball) == WINDOW
    assert quality.coverage(P90_GIVEN_UNCUT) == 0
    for _ in range(WINDOW // 2):
        quality = quality.learn(raw, 20, cut=False)
    assert quality.coverage(P90_GIVEN_UNCUT) == 0.5
    assert quality.cut_share < 0.5
    assert quality.predicted_cut_share == pytest.approx(raw.limit_probability)
    assert Quality().coverage(P90) == Quality().pinball_loss == Quality().cut_share == 0


def test_pinball_loss_is_the_mean_over_the_three_quantiles() -> None:
    raw = LengthDistribution((100,), (1.0,), 0.0)  # quantiles 50, 90, 99
    expected = (0.5 * 20 + 0.1 * 20 + 0.01 * 29) / 3
    assert Quality().learn(raw, 70, cut=False).pinball_loss == pytest.approx(expected)
    cut = Quality().learn(raw, 100, cut=True)  # it came to 100 tokens, whatever it would have been
    assert cut.pinball_loss == pytest.approx((0.5 * 50 + 0.9 * 10 + 0.99 * 1) / 3)
    assert cut.within == b""


def test_randomised_pits_are_uniform_where_predictions_are_right() -> None:
    right = source(true=(12, 0.8), predicted=(12, 0.8), limits=(8, 16, 64))
    generator = random.Random(10)
    pits = sorted(
        pit_of(raw, tokens, draw_of(f"{row}-0"), cut=cut)
        for row, (raw, tokens, cut) in enumerate(right(generator) for _ in range(4_000))
    )
    distance = max(abs(pit - (rank + 0.5) / len(pits)) for rank, pit in enumerate(pits))
    # Within a bucket lengths are taken as uniform, which those of a log-normal are not quite.
    assert distance < 1.63 / math.sqrt(len(pits)) + 0.01


def test_the_drift_test_is_silent_on_uniform_numbers_and_hears_a_change() -> None:
    generator, test = random.Random(11), DriftTest()
    for _ in range(20_000):
        test = test.learn(generator.random())
        assert test.statistic < 1
    for change in (lambda u: u**0.5, lambda u: 1 - u**0.5, lambda u: 0.25 + u / 2, lambda u: (u < 0.5) * 0.9 + u / 10):
        changed, rows = DriftTest(), 0
        while changed.statistic < 1:
            changed, rows = changed.learn(change(generator.random())), rows + 1
            assert rows < 400


def test_drift_is_found_shown_while_it_is_learnt_and_forgotten() -> None:
    before, after = SHIFTS["longer"]
    known, seen = run(stream(12, (before, 800)), lag=0)
    assert (known.drifts, known.drift_detected) == (0, False)
    found = learnt = 0
    for row, (raw, tokens, cut) in enumerate(stream(13, (after, 300)), 801):
        issued = known.calibration().calibrate(raw)
        known = known.learn(Observed(f"{row}-0", "p/1", known.version, raw, issued, tokens, cut))
        if known.drift_detected and not found:
            found = row
            assert known.ratios.rows == pytest.approx(ROWS_KEPT_AT_DRIFT)
            assert known.feedback == Feedback()
        learnt = learnt or row * (found > 0 and not known.drift_detected)
    assert 0 < found < 840
    assert learnt == found + LEARNING_ROWS
    assert coverage(seen[200:]) == pytest.approx(0.9, abs=0.04)


def test_rows_predicted_before_the_drift_was_found_raise_no_second_alarm() -> None:
    before, after = SHIFTS["longer"]
    known, seen = run(stream(13, (before, 800), (after, 60)), lag=0)
    assert known.drift_detected
    late = stream(14, (after, 150))
    for number, (raw, tokens, cut) in enumerate(late):  # all still issued under the calibration from before
        old = Observed(f"{2_000 + number}-0", "p/1", seen[700].calibration_version, raw, raw, tokens, cut)
        known = known.learn(old)
    assert known.drifts == 1
    assert known.observations > known.learning_until
    assert known.test == DriftTest()


def test_nothing_is_drift_while_it_learns() -> None:
    wrong = source(true=(400, 0.4), predicted=(40, 0.4))
    known, _ = run(stream(15, (wrong, LEARNING_ROWS + LAG - 1)))
    assert known.trusted_from == ""
    assert (known.drifts, known.test) == (0, DriftTest())
