"""Calibrations as messages, and observations as the calibration reads them."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from uellm.cost.lengths import LengthDistribution
from uellm.v1 import stream_pb2 as pb
from uellm.v1.profiler_pb2 import ModelCalibration
from uellm.v1.query_pb2 import ResourceProfile
from uellm_profiler.domain.calibration import CalibrationState, Observed, PredictorCalibration, entry_order
from uellm_profiler.domain.drift import DriftTest
from uellm_profiler.domain.quality import P90, P90_GIVEN_UNCUT, P99, P99_GIVEN_UNCUT, Quality
from uellm_profiler.domain.recalibration import CELLS, LEVELS, Feedback, HazardRatios

SCHEMA_VERSION = 1


def decode_observation(entry_id: str, fields: Mapping[bytes, bytes]) -> Observed | None:
    """One entry of an observation stream; None if it says nothing about a prediction."""
    try:
        observation = pb.Observation.FromString(fields.get(b"o", b""))
        profile = ResourceProfile.FromString(fields.get(b"p", b""))
        issued = LengthDistribution.from_proto(profile.output_length)
        entry_order(profile.calibration_version)
        raw = _uncalibrated(profile, issued)
    except (DecodeError, ValueError):
        return None
    return Observed(
        entry_id=entry_id,
        predictor_version=profile.predictor_version,
        calibration_version=profile.calibration_version,
        raw=raw,
        issued=issued,
        tokens=observation.output_tokens,
        cut=observation.censored,
    )


def encode_state(state: CalibrationState) -> pb.CalibrationState:
    """As a message."""
    return pb.CalibrationState(
        schema_version=SCHEMA_VERSION,
        last_entry_id=state.last_entry_id,
        predictors=[_encode_predictor(one) for one in state.predictors],
        gaps=state.gaps,
        unreadable=state.unreadable,
    )


def decode_state(value: bytes) -> CalibrationState:
    """From a serialised message; raises DecodeError or ValueError."""
    message = pb.CalibrationState.FromString(value)
    if message.schema_version != SCHEMA_VERSION:
        raise ValueError(f"schema version {message.schema_version}, not {SCHEMA_VERSION}")
    return CalibrationState(
        last_entry_id=message.last_entry_id,
        predictors=tuple(_decode_predictor(one) for one in message.predictors),
        gaps=message.gaps,
        unreadable=message.unreadable,
    )


def describe(model: str, known: PredictorCalibration | None, lag_seconds: float) -> ModelCalibration:
    """How well a predictor's calibration has done lately."""
    message = ModelCalibration(model=model)
    message.lag.FromNanoseconds(round(lag_seconds * 1e9))
    if known is None:
        return message
    quality = known.quality
    message.version = known.version
    message.observations = known.observations
    message.coverage_p90 = quality.coverage(P90_GIVEN_UNCUT)
    message.coverage_p99 = quality.coverage(P99_GIVEN_UNCUT)
    message.issued_coverage_p90 = quality.coverage(P90)
    message.issued_coverage_p99 = quality.coverage(P99)
    message.pinball_loss_tokens = quality.pinball_loss
    message.scored_answers = len(quality.within)
    message.cut_share = quality.cut_share
    message.predicted_cut_share = quality.predicted_cut_share
    message.drift_detected = known.drift_detected
    message.drift_statistic = known.test.statistic
    message.drifts = known.drifts
    return message


def _uncalibrated(profile: ResourceProfile, issued: LengthDistribution) -> LengthDistribution:
    """The prediction before calibration; raises ValueError if it is no distribution."""
    if not profile.uncalibrated_probabilities:
        return issued
    *probabilities, cut = profile.uncalibrated_probabilities
    total = sum(probabilities)  # single precision does not sum to 1
    if not 0.99 < total < 1.01:
        raise ValueError("probabilities must sum to 1")
    return LengthDistribution(issued.edges, tuple(one / total for one in probabilities), cut / total)


def _encode_predictor(known: PredictorCalibration) -> pb.PredictorCalibration:
    quality = known.quality
    return pb.PredictorCalibration(
        predictor_version=known.predictor_version,
        version=known.version,
        observations=known.observations,
        events=known.ratios.events,
        exposure=known.ratios.exposure,
        rows=known.ratios.rows,
        feedback_levels=known.feedback.levels,
        feedback_cut_log_odds=known.feedback.cut_log_odds,
        drift_sums=known.test.sums,
        learning_until=known.learning_until,
        trusted_from=known.trusted_from,
        drifts=known.drifts,
        within=quality.within,
        pinball_tokens=quality.pinball,
        scored_rows=quality.rows,
        cuts=quality.cuts,
        predicted_cuts=quality.predicted_cuts,
    )


def _decode_predictor(message: pb.PredictorCalibration) -> PredictorCalibration:
    if (len(message.events), len(message.exposure), len(message.feedback_levels)) != (CELLS, CELLS, len(LEVELS)):
        raise ValueError("made with other knots")
    return PredictorCalibration(
        predictor_version=message.predictor_version,
        version=message.version,
        observations=message.observations,
        ratios=HazardRatios(tuple(message.events), tuple(message.exposure), message.rows),
        feedback=Feedback(tuple(message.feedback_levels), message.feedback_cut_log_odds),
        test=DriftTest(tuple(message.drift_sums)),
        learning_until=message.learning_until,
        trusted_from=message.trusted_from,
        drifts=message.drifts,
        quality=Quality(
            message.within,
            tuple(message.pinball_tokens),
            message.scored_rows,
            message.cuts,
            message.predicted_cuts,
        ),
    )
