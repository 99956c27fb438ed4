"""The calibration of one served model: a fold of its observation stream.

Each predictor version has a calibration of its own, learnt from its own predictions only: another predictor errs in
another way. A rollback finds the old one again, and replicas may use different predictors for a while.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from uellm.cost.lengths import LengthDistribution
from uellm_profiler.domain.drift import DriftTest, draw_of, pit_of
from uellm_profiler.domain.quality import Quality
from uellm_profiler.domain.recalibration import Calibration, Feedback, HazardRatios, level_of

LEARNING_ROWS = 100
"""Observations from the start, or from a drift, until feedback and drift test listen."""
ROWS_KEPT_AT_DRIFT = 20.0
PREDICTORS_KEPT = 4


@dataclass(frozen=True, slots=True)
class Observed:
    """One completed answer and what was predicted for it."""

    entry_id: str
    """Of the stream: `{milliseconds}-{sequence}`."""
    predictor_version: str
    """`{kind}/{version}`."""
    calibration_version: str
    """Id of the last observation behind the calibration; empty if none was applied."""
    raw: LengthDistribution
    """Before calibration."""
    issued: LengthDistribution
    """After it: what the caller was told."""
    tokens: int
    cut: bool
    """Whether the answer is longer than its tokens: cut at the limit, or earlier."""

    @property
    def cut_early(self) -> bool:
        """Whether something else than the limit cut it."""
        return self.cut and self.tokens < self.issued.limit


@dataclass(frozen=True, slots=True)
class PredictorCalibration:
    """What was learnt about one predictor."""

    predictor_version: str
    version: str = ""
    """Id of the last observation."""
    observations: int = 0
    ratios: HazardRatios = field(default_factory=HazardRatios)
    feedback: Feedback = field(default_factory=Feedback)
    test: DriftTest = field(default_factory=DriftTest)
    learning_until: int = LEARNING_ROWS
    """Number of the observation that ends the learning."""
    trusted_from: str = ""
    """Oldest version whose rows feedback and test listen to: older ones say nothing new. Empty while it learns."""
    drifts: int = 0
    quality: Quality = field(default_factory=Quality)

    @property
    def drift_detected(self) -> bool:
        """Whether drift was found and the new lengths are still being learnt."""
        return self.drifts > 0 and not self.trusted_from

    def calibration(self) -> Calibration:
        """What corrects the predictor's next predictions."""
        return Calibration(self.version, self.ratios.levels(), self.feedback)

    def learn(self, observed: Observed) -> PredictorCalibration:
        """With one more observation of this predictor."""
        tokens = max(1, min(observed.tokens, observed.issued.limit))
        learnt = replace(
            self,
            version=observed.entry_id,
            observations=self.observations + 1,
            ratios=self.ratios.learn(_raw_level(observed, tokens), cut=observed.cut),
        )
        if observed.cut_early:  # whether it would have reached its limit is not known
            return learnt
        learnt = replace(learnt, quality=self.quality.learn(observed.issued, tokens, cut=observed.cut))
        if not self.trusted_from:
            ended = learnt.observations >= self.learning_until
            return replace(learnt, trusted_from=observed.entry_id) if ended else learnt
        if entry_order(observed.calibration_version) < entry_order(self.trusted_from):
            return learnt
        return _listen(learnt, observed, tokens)


@dataclass(frozen=True, slots=True)
class CalibrationState:
    """What was learnt from a model's stream up to an entry."""

    last_entry_id: str = ""
    """Empty: nothing was read yet."""
    predictors: tuple[PredictorCalibration, ...] = ()
    """The one observed last at the end."""
    gaps: int = 0
    """How often entries were gone before they were read."""
    unreadable: int = 0
    """Entries that say nothing about a prediction."""

    def of(self, predictor_version: str) -> PredictorCalibration | None:
        """What is known about a predictor."""
        return next((one for one in self.predictors if one.predictor_version == predictor_version), None)


def fold(state: CalibrationState, observed: Observed) -> CalibrationState:
    """The state after one more observation. Nothing but the two decides it."""
    known = state.of(observed.predictor_version) or PredictorCalibration(observed.predictor_version)
    others = [one for one in state.predictors if one.predictor_version != observed.predictor_version]
    kept = (*others, known.learn(observed))[-PREDICTORS_KEPT:]
    return replace(state, last_entry_id=observed.entry_id, predictors=kept)


def skip(state: CalibrationState, entry_id: str) -> CalibrationState:
    """The state after an entry that can't be read."""
    return replace(state, last_entry_id=entry_id, unreadable=state.unreadable + 1)


def entry_order(entry_id: str) -> tuple[int, int]:
    """Sorts ids of stream entries; an empty one comes first."""
    if not entry_id:
        return (-1, 0)
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def _raw_level(observed: Observed, tokens: int) -> float:
    """The level of the answer under the raw prediction; where it ended at a whole number, drawn within it."""
    high = level_of(observed.raw, tokens)
    if observed.cut:
        return high
    low = level_of(observed.raw, tokens - 1)
    return low + draw_of(observed.entry_id) * (high - low)


def _listen(known: PredictorCalibration, observed: Observed, tokens: int) -> PredictorCalibration:
    """Feedback and drift test, for an answer whose prediction was corrected by what is still believed."""
    pit = pit_of(observed.issued, tokens, draw_of(observed.entry_id), cut=observed.cut)
    test = known.test.learn(pit)
    if test.statistic < 1:
        return replace(known, test=test, feedback=known.feedback.learn(observed.issued, pit, cut=observed.cut))
    return replace(
        known,
        ratios=known.ratios.reduced(ROWS_KEPT_AT_DRIFT),
        feedback=Feedback(),
        test=DriftTest(),
        learning_until=known.observations + LEARNING_ROWS,
        trusted_from="",
        drifts=known.drifts + 1,
    )
