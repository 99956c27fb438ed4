"""Synthetic streams of answers, and what a calibration makes of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache

from hypothesis import settings
from hypothesis import strategies as st
from uellm_profiler.domain.calibration import (
    CalibrationState,
    Observed,
    PredictorCalibration,
    fold,
)
from uellm_profiler.domain.quality import P90_GIVEN_UNCUT, Quality
from uellm_profiler.domain.recalibration import Calibration

from uellm.cost.lengths import LengthDistribution, log_normal_cdf

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
