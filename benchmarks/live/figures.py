"""What is said of runs: goodput, attainment over submitted, latencies, and paired differences with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from runs import Run

RESAMPLES = 10_000


def figures_of(run: Run) -> dict[str, Any]:
    """One run. Useful tokens are those of answers in time."""
    answers = run.answers
    due = [answer for answer in answers if answer.arrival.slo_seconds is not None]
    done = [answer for answer in answers if answer.completed]
    rejected = [answer for answer in due if answer.rejected]
    return {
        "seconds": run.seconds,
        "goodput_per_s": sum(answer.kept for answer in due) / run.seconds,
        "attainment": _share([answer.kept for answer in due]),
        "attainment_by_class": {
            kind: _share([answer.kept for answer in answers if answer.arrival.kind == kind])
            for kind in sorted({answer.arrival.kind for answer in answers})
        },
        "late": _share([answer.completed and not answer.kept for answer in due]),
        "rejected": _share([answer.rejected for answer in due]),
        "rejected_after_share_of_slo": _mean(
            [(answer.end or 0.0) / (answer.arrival.slo_seconds or 1.0) for answer in rejected]
        ),
        "errors": sum(bool(answer.error) for answer in answers),
        "useful_tokens_per_s": sum(answer.tokens for answer in answers if answer.kept) / run.seconds,
        "tokens_per_s": sum(answer.tokens for answer in answers) / run.seconds,
        "latency_p50_s": _quantile([answer.end for answer in done], 0.5),
        "latency_p95_s": _quantile([answer.end for answer in done], 0.95),
        "first_token_p50_s": _quantile([answer.first_token for answer in done], 0.5),
        "first_token_p95_s": _quantile([answer.first_token for answer in done], 0.95),
    }


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Mean of `first - second` over paired runs, with a 95 % bootstrap interval, and the ratio of their means."""
    differences = np.array(first) - np.array(second)
    draws = np.random.default_rng(0).choice(differences, (RESAMPLES, len(differences))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    ratio = float(np.mean(first) / np.mean(second)) if np.mean(second) else float("inf")
    return {"mean": float(differences.mean()), "low": float(low), "high": float(high), "ratio": ratio}


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _quantile(values: Sequence[float | None], level: float) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.quantile(known, level)) if known else None
