"""How long a predictor takes, by batch and by prompt length. Kept apart from the card: timings do not reproduce."""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uellm.v1.query_pb2 import GenerationParameters, Query
from uellm_profiler.adapters.tokenizer import ServedTokenizer
from uellm_profiler.domain.predictor import LengthModel, PredictorInput

BATCHES = (1, 32)
PROMPT_TOKENS = (64, 256, 1_024)
LIMIT_TOKENS = 1_024
_WORDS = (
    "people",
    "write",
    "letters",
    "about",
    "how",
    "to",
    "plan",
    "their",
    "day",
    "in",
    "a",
    "town",
    "by",
    "the",
    "sea",
)
_WARM_UP = 2
_MOST_CALLS = 200
_FEWEST_CALLS = 7


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one batch and prompt length; `p99_ms` of few calls is near their maximum."""

    state: str
    """What the machine did meanwhile, e.g. `idle`."""
    batch: int
    prompt_tokens: int
    calls: int
    p50_ms: float
    p99_ms: float
    prompts_per_second: float
    """From the mean."""


def make_prompts(tokenizer: ServedTokenizer, model: str, tokens: int, count: int) -> list[PredictorInput]:
    """Different prompts of exactly so many tokens each, the chat template not counted."""
    generation = GenerationParameters(
        max_output_tokens=LIMIT_TOKENS, temperature=0.0, top_p=1.0, repetition_penalty=1.15
    )
    texts = [_text(tokenizer, tokens, start) for start in range(count)]
    return [PredictorInput(model, text, tokens, generation, LIMIT_TOKENS) for text in texts]


def measure(
    model: LengthModel,
    prompts_of: Callable[[int, int], Sequence[PredictorInput]],
    state: str,
    *,
    seconds: float = 5.0,
    batches: Sequence[int] = BATCHES,
    prompt_tokens: Sequence[int] = PROMPT_TOKENS,
) -> list[Timing]:
    """Time `predict` for about `seconds` in each setting; `prompts_of(tokens, count)` gives what to predict for."""
    return [
        _time(model, prompts_of(tokens, batch), state, tokens, seconds)
        for batch, tokens in itertools.product(batches, prompt_tokens)
    ]


def machine() -> str:
    """Processor and cores."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def report(measured: Sequence[tuple[str, int | None, Sequence[Timing]]], conditions: str) -> dict[str, Any]:
    """As it is written: per predictor its name, number of parameters and timings."""
    return {
        "machine": machine(),
        "conditions": conditions,
        "models": [
            {"name": name, "parameters": parameters, "timings": [asdict(timing) for timing in timings]}
            for name, parameters, timings in measured
        ],
    }


def _time(model: LengthModel, prompts: Sequence[PredictorInput], state: str, tokens: int, seconds: float) -> Timing:
    for _ in range(_WARM_UP):
        model.predict(prompts)
    took: list[float] = []
    end = time.perf_counter() + seconds
    while len(took) < _FEWEST_CALLS or (time.perf_counter() < end and len(took) < _MOST_CALLS):
        before = time.perf_counter()
        model.predict(prompts)
        took.append(time.perf_counter() - before)
    middle, high = (1_000 * float(value) for value in np.quantile(took, [0.5, 0.99]))
    rate = len(prompts) * len(took) / sum(took)
    return Timing(state, len(prompts), tokens, len(took), round(middle, 3), round(high, 3), round(rate, 1))


def _text(tokenizer: ServedTokenizer, tokens: int, start: int) -> str:
    def count(words: int) -> int:
        return len(tokenizer.encode(Query(prompt=_join(start, words), raw_prompt=True)).token_ids)

    words = tokens
    while count(words) > tokens:
        words -= 1
    while count(words) < tokens:
        words += 1
    return _join(start, words)


def _join(start: int, words: int) -> str:
    return " ".join(_WORDS[(start + i) % len(_WORDS)] for i in range(words))
