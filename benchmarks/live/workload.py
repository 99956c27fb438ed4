"""Open-loop workloads of held-out prompts: who asks what, when, and by when the answer is wanted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uellm_profiler
from uellm_profiler.learning.dataset import part_of
from uellm_profiler.learning.prompts import read_prompts

DATA = Path(uellm_profiler.__path__[0]) / "learning" / "data"
CLASSES = (("interactive", 0.3, 12.0), ("standard", 0.4, 30.0), ("relaxed", 0.2, 90.0), ("best-effort", 0.1, None))
"""Class, its share of the queries, and the seconds in which the whole answer is wanted."""
MAX_OUTPUT_TOKENS = 192


@dataclass(frozen=True, slots=True)
class Arrival:
    """One query of a workload."""

    at: float
    """Seconds from the begin."""
    kind: str
    slo_seconds: float | None
    prompt: str
    max_output_tokens: int = MAX_OUTPUT_TOKENS


def held_out_prompts() -> list[str]:
    """Prompts that the shipped predictor did not learn from."""
    return [prompt.text for prompt in read_prompts(DATA / "prompts_own.jsonl") if part_of(prompt.key) == "test"]


def workload(seed: int, count: int, rate: float, prompts: Sequence[str]) -> list[Arrival]:
    """Poisson arrivals, `rate` a second; classes and prompts drawn at random, the same for the same seed."""
    draw = random.Random(seed)
    arrivals, at = [], 0.0
    for _ in range(count):
        at += draw.expovariate(rate)
        ((kind, _, slo),) = draw.choices(CLASSES, [share for _, share, _ in CLASSES])
        arrivals.append(Arrival(at, kind, slo, draw.choice(prompts)))
    return arrivals


def burst(seed: int, count: int, prompts: Sequence[str]) -> list[Arrival]:
    """All at once, without deadlines: what the engine can do."""
    draw = random.Random(seed)
    return [Arrival(0.0, "best-effort", None, draw.choice(prompts)) for _ in range(count)]
