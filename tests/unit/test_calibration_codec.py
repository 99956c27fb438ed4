"""What a calibration reads and writes."""

from __future__ import annotations

import math

import pytest
from uellm_profiler.adapters.calibration_codec import decode_observation, decode_state, describe, encode_state
from uellm_profiler.domain.calibration import (
    CalibrationState,
    Observed,
)

from tests.support.answer_streams import (
    folded,
    log_normal,
)
from uellm.v1.query_pb2 import ResourceProfile
from uellm.v1.stream_pb2 import Observation


def entry(observation: Observation, profile: ResourceProfile) -> dict[bytes, bytes]:
    """An entry of the stream, as the scheduler's script writes it."""
    return {b"o": observation.SerializeToString(), b"p": profile.SerializeToString()}


def test_observations_are_decoded_with_what_was_predicted_before_calibration() -> None:
    raw, issued = log_normal(50, 0.5, 300), log_normal(80, 0.5, 300)
    profile = ResourceProfile(
        output_length=issued.to_proto(),
        predictor_version="lora/3",
        calibration_version="17-2",
        uncalibrated_probabilities=[*raw.probabilities, raw.limit_probability],
    )
    observation = Observation(output_tokens=300, censored=True)
    observed = decode_observation("20-1", entry(observation, profile))
    assert observed is not None
    assert observed.issued == issued
    assert observed.raw.probabilities == pytest.approx(raw.probabilities, abs=1e-6)
    assert observed.raw.limit_probability == pytest.approx(raw.limit_probability, abs=1e-6)
    assert (observed.entry_id, observed.predictor_version, observed.calibration_version) == ("20-1", "lora/3", "17-2")
    assert (observed.tokens, observed.cut, observed.cut_early) == (300, True, False)
    del profile.uncalibrated_probabilities[:]
    plain = decode_observation("20-1", entry(Observation(), profile))
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
    assert decode_observation("1-0", entry(Observation(output_tokens=4), profile)) is None
    assert decode_observation("1-0", {b"o": b"\xff\xff"}) is None


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
