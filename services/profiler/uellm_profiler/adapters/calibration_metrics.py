"""Prometheus metrics of the calibrations."""

from __future__ import annotations

from prometheus_client import Gauge

from uellm.v1.profiler_pb2 import ModelCalibration
from uellm_profiler.adapters.calibration import CalibrationDirectory

_LABELS = ("model", "predictor")


def _gauge(name: str, text: str) -> Gauge:
    return Gauge(f"uellm_profiler_calibration_{name}", text, _LABELS)


_FIELDS = {
    "observations": _gauge("observations", "Observations behind the calibration."),
    "scored_answers": _gauge("scored_answers", "Uncut answers behind the coverages, at most 500."),
    "coverage_p90": _gauge("coverage_p90", "Share of the last uncut answers within the p90 given no cut."),
    "coverage_p99": _gauge("coverage_p99", "Share of the last uncut answers within the p99 given no cut."),
    "issued_coverage_p90": _gauge("issued_coverage_p90", "Share of the last uncut answers within the p90 as issued."),
    "issued_coverage_p99": _gauge("issued_coverage_p99", "Share of the last uncut answers within the p99 as issued."),
    "pinball_loss_tokens": _gauge("pinball_loss_tokens", "Mean pinball loss of p50, p90 and p99, in tokens."),
    "cut_share": _gauge("cut_share", "Share of the last answers that were cut at their limit."),
    "predicted_cut_share": _gauge("predicted_cut_share", "Mean predicted probability of a cut, same answers."),
    "drift_statistic": _gauge("drift_statistic", "Statistic of the drift test; drift from 1 on."),
    "drift_detected": _gauge("drift_detected", "1 while lengths that moved away are being learnt."),
    "drifts": _gauge("drifts", "How often drift was detected."),
}
_LAG = Gauge("uellm_profiler_calibration_lag_seconds", "How far the calibration is behind.", ("model",))
_GAPS = Gauge("uellm_profiler_calibration_gaps", "How often observations were gone unread.", ("model",))
_UNREADABLE = Gauge("uellm_profiler_calibration_unreadable", "Observations of no use.", ("model",))


class CalibrationMetrics:
    """Shows what a directory knows."""

    def __init__(self) -> None:
        self._shown: set[tuple[str, str]] = set()

    def show(self, directory: CalibrationDirectory) -> None:
        """Set all gauges; those of calibrations that are gone vanish."""
        shown = set()
        for model, state in directory.states.items():
            _LAG.labels(model).set(directory.lag_seconds(model))
            _GAPS.labels(model).set(state.gaps)
            _UNREADABLE.labels(model).set(state.unreadable)
            for known in state.predictors:
                shown.add((model, known.predictor_version))
                _show(directory.describe(model, known.predictor_version), known.predictor_version)
        for model, predictor in self._shown - shown:
            for gauge in _FIELDS.values():
                gauge.remove(model, predictor)
        for model in {model for model, _ in self._shown} - directory.states.keys():
            for gauge in (_LAG, _GAPS, _UNREADABLE):
                gauge.remove(model)
        self._shown = shown


def _show(calibration: ModelCalibration, predictor: str) -> None:
    for name, gauge in _FIELDS.items():
        gauge.labels(calibration.model, predictor).set(getattr(calibration, name))
