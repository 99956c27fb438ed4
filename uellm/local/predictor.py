"""Which predictor the local stack's profiler is started with."""

from __future__ import annotations

from enum import StrEnum


class PredictorKind(StrEnum):
    """`--predictor` of the profiler."""

    LORA = "lora"
    FAST = "fast"
    PRIOR = "prior"


DEFAULT_PREDICTOR = PredictorKind.LORA
