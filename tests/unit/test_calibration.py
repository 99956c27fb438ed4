"""The calibration's statistics: pure, on synthetic streams."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_profiler.adapters.calibration_codec import decode_observation, decode_state, describe, encode_state
from uellm_profiler.domain.calibration import (
    LEARNING_ROWS,
    PREDICTORS_KEPT,
    ROWS_KEPT_AT_DRIFT,
    CalibrationState,
    Observed,
    PredictorCalibration,
    fold,
    skip,
)
from uellm_profiler.domain.drift import DriftTest, draw_of, pit_of
from uellm_profiler.domain.quality import P90, P90_GIVEN_UNCUT, WINDOW, Quality
from uellm_profiler.domain.recalibration import KNOTS, TAIL_WEIGHT, Calibration, Feedback, HazardRatios, level_of

from uellm.cost.lengths import LengthDistribution, log_normal_cdf
from uellm.v1.query_pb2 import ResourceProfile
from uellm.v1.stream_pb2 import Observation

LAG = 16
PROPERTY = settings(deadline=None, max_examples=60)
Answer = tuple[LengthDistribution, int, bool]
Source = Callable[[random.Random], Answer]


def log_normal(median: float, sigma: float, limit: int) -> LengthDistribution:
    return LengthDistribution.from_cdf(log_normal_cdf(math.log(median), sigma), limit)


def source(
    *, true: tuple[float, float], predicted: tuple[float, float], limits: Sequence[int] = (1024,), known: float = 0.0
) -> Source:
    """Log-normal answers (median, sigma). Of the median's logarithm, normal with deviation `known`, the prediction sees
    all and overrates it by a half: it is too sure of itself."""
    cache: dict[tuple[float, int], LengthDistribution] = {}

    def draw(generator: random.Random) -> Answer:
        feature = round(generator.gauss(0, 1), 1) * known
        limit = generator.choice(limits)
        tokens = max(1, round(true[0] * math.exp(feature + generator.gauss(0, true[1]))))
        key = (feature, limit)
        if key not in cache:
            cache[key] = log_normal(predicted[0] * math.exp(1.5 * feature), predicted[1], limit)
        return cache[key], min(tokens, limit), tokens > limit

    return draw


def run(answers: Iterable[Answer], lag: int = LAG) -> tuple[PredictorCalibration, list[Observed]]:
    """Fold a stream; predictions are calibrated with what is known `lag` answers earlier."""
    state, seen, known = CalibrationState(), [], PredictorCalibration("p/1")
    for row, (raw, tokens, cut) in enumerate(answers):
        issued = known.calibration().calibrate(raw) if known.version else raw
        seen.append(Observed(f"{row + 1}-0", "p/1", known.version, raw, issued, tokens, cut))
        if row >= lag:
            state = fold(state, seen[row - lag])
            known = state.predictors[0]
    return known, seen


def stream(seed: int, *parts: tuple[Source, int]) -> list[Answer]:
    generator = random.Random(seed)
    return [draw(generator) for draw, rows in parts for _ in range(rows)]


def coverage(rows: Sequence[Observed], flag: int = P90_GIVEN_UNCUT) -> float:
    flags = b"".join(Quality().learn(one.issued, one.tokens, cut=one.cut).within for one in rows)
    return Quality(within=flags).coverage(flag)


def calibration_after(answers: Iterable[Answer]) -> Calibration:
    return run(answers, lag=0)[0].calibration()


@cache
def calibration_of_short_predictions() -> Calibration:
    return calibration_after(stream(1, (source(true=(90, 0.6), predicted=(40, 0.4)), 120)))


@st.composite
def distributions(draw: st.DrawFn) -> LengthDistribution:
    edges = sorted(draw(st.sets(st.integers(1, 4096), min_size=1, max_size=12)))
    masses = draw(st.lists(st.integers(0, 100), min_size=len(edges) + 1, max_size=len(edges) + 1).filter(any))
    total = sum(masses)
    shares = [mass / total for mass in masses[:-1]]
    cut = masses[-1] / total
    return LengthDistribution(tuple(edges), (*shares[:-1], shares[-1] + cut), cut)


@st.composite
def observations(draw: st.DrawFn) -> Observed:
    issued = draw(distributions())
    raw = draw(distributions())
    raw = log_normal(draw(st.floats(1, 2000)), 0.7, issued.limit) if raw.edges != issued.edges else raw
    tokens = draw(st.integers(0, issued.limit + 3))
    version = draw(st.sampled_from(["", "1-0", "200-0"]))
    return Observed("0-0", draw(st.sampled_from(["a/1", "b/2"])), version, raw, issued, tokens, draw(st.booleans()))


def folded(state: CalibrationState, seen: Iterable[Observed], first: int = 1) -> CalibrationState:
    for number, one in enumerate(seen, first):
        state = fold(state, replace(one, entry_id=f"{number}-0"))
    return state


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


SHIFTS = {
    "longer": (source(true=(60, 0.5), predicted=(60, 0.8)), source(true=(250, 0.5), predicted=(60, 0.8))),
    "too sure, many cut": (
        source(true=(300, 0.8), predicted=(300, 0.5), known=0.8),
        source(true=(800, 0.8), predicted=(300, 0.5), known=0.8),
    ),
    "several limits": (
        source(true=(120, 0.5), predicted=(120, 0.7), limits=(128, 512, 2048), known=0.5),
        source(true=(180, 0.9), predicted=(120, 0.7), limits=(128, 512, 2048), known=0.5),
    ),
}


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


def test_observations_are_decoded_with_what_was_predicted_before_calibration() -> None:
    raw, issued = log_normal(50, 0.5, 300), log_normal(80, 0.5, 300)
    profile = ResourceProfile(
        output_length=issued.to_proto(),
        predictor_version="lora/3",
        calibration_version="17-2",
        uncalibrated_probabilities=[*raw.probabilities, raw.limit_probability],
    )
    observation = Observation(profile=profile, output_tokens=300, censored=True)
    observed = decode_observation("20-1", observation.SerializeToString())
    assert observed is not None
    assert observed.issued == issued
    assert observed.raw.probabilities == pytest.approx(raw.probabilities, abs=1e-6)
    assert observed.raw.limit_probability == pytest.approx(raw.limit_probability, abs=1e-6)
    assert (observed.entry_id, observed.predictor_version, observed.calibration_version) == ("20-1", "lora/3", "17-2")
    assert (observed.tokens, observed.cut, observed.cut_early) == (300, True, False)
    del profile.uncalibrated_probabilities[:]
    plain = decode_observation("20-1", Observation(profile=profile).SerializeToString())
    assert plain is not None
    assert plain.raw == issued


@pytest.mark.parametrize(
    "profile",
    [
        ResourceProfile(),
        ResourceProfile(output_length=log_normal(5, 1, 9).to_proto(), calibration_version="new"),
        ResourceProfile(output_length=log_normal(5, 1, 9).to_proto(), uncalibrated_probabilities=[0.5, 0.5, 0]),
        ResourceProfile(output_length=log_normal(5, 1, 9).to_proto(), uncalibrated_probabilities=[math.nan] * 10),
        ResourceProfile(output_length=log_normal(5, 1, 9).to_proto(), uncalibrated_probabilities=[0.0] * 10),
    ],
)
def test_an_observation_without_a_prediction_is_none(profile: ResourceProfile) -> None:
    assert decode_observation("1-0", Observation(profile=profile, output_tokens=4).SerializeToString()) is None
    assert decode_observation("1-0", b"\xff\xff") is None


def test_a_state_of_another_schema_or_with_other_knots_is_refused() -> None:
    state = encode_state(
        folded(CalibrationState(), [Observed("", "a", "", *(log_normal(9, 1, 64),) * 2, 5, cut=False)])
    )
    for spoil in (lambda m: m.predictors[0].events.pop(), lambda m: setattr(m, "schema_version", 2)):
        message = type(state).FromString(state.SerializeToString())
        spoil(message)
        with pytest.raises(ValueError, match=r"knots|schema"):
            decode_state(message.SerializeToString())


def test_a_description_of_nothing_has_only_its_model() -> None:
    message = describe("m", None, 1.5)
    assert (message.model, message.version, message.observations) == ("m", "", 0)
    assert message.lag.ToMilliseconds() == 1_500


@PROPERTY
@given(distributions(), st.integers(1, 4096), st.integers(1, 4096))
def test_levels_increase_strictly(raw: LengthDistribution, one: int, other: int) -> None:
    low, high = sorted((one, other))
    if low < high:
        assert 0 < level_of(raw, low) < level_of(raw, high) < 1
