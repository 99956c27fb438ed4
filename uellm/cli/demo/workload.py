"""Which prompts arrive when, and by when they want their answers."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

SLO_SECONDS = {"interactive": 30.0, "standard": 60.0, "batch": 120.0}
"""Completion objective of each class."""


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """One line of `examples/prompts.jsonl`."""

    id: str
    service_class: str
    prompt: str
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of the demo."""

    at_seconds: float
    """After the beginning."""
    id: str
    prompt: DemoPrompt

    @property
    def slo_seconds(self) -> float:
        """The whole answer is wanted within this."""
        return SLO_SECONDS[self.prompt.service_class]


def read_prompts() -> list[DemoPrompt]:
    """The prompts that ship with the package."""
    lines = files(__package__).joinpath("prompts.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [DemoPrompt(one["id"], one["class"], one["prompt"], one["max_output_tokens"]) for one in records]


def plan_arrivals(prompts: Sequence[DemoPrompt], count: int, seed: int, rate: float) -> list[Arrival]:
    """`count` prompts in a random order, each once before one comes again; a Poisson process, `rate` a second."""
    draw = random.Random(seed)  # noqa: S311  (reproducible, not secret)
    arrivals: list[Arrival] = []
    now = 0.0
    while len(arrivals) < count:
        turn = len(arrivals) // len(prompts) + 1
        for prompt in draw.sample(prompts, min(len(prompts), count - len(arrivals))):
            arrivals.append(Arrival(now, prompt.id if turn == 1 else f"{prompt.id}-{turn}", prompt))
            now += draw.expovariate(rate)
    return arrivals
