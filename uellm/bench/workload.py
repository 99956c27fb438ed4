"""Who asks what, when, and by when the answer is wanted: all of it known before the first query is sent."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uellm_profiler
from uellm_profiler.learning.dataset import part_of
from uellm_profiler.learning.prompts import read_prompts
from uellm_simulator.runs import Source
from uellm_simulator.workload import rate_of, scaled

from uellm.bench.errors import BenchError

PROMPTS_FILE = Path(uellm_profiler.__path__[0]) / "learning" / "data" / "prompts_own.jsonl"
CONFIDENCE = 0.9


@dataclass(frozen=True, slots=True)
class ServiceClass:
    """How urgent a share of the queries is."""

    name: str
    share: float
    completion_seconds: float = 0.0
    """The whole answer is wanted within this; 0: no objective."""
    first_token_seconds: float = 0.0


CLASSES = (
    ServiceClass("interactive", 0.3, 12.0),
    ServiceClass("standard", 0.4, 30.0),
    ServiceClass("relaxed", 0.2, 90.0),
    ServiceClass("best-effort", 0.1),
)
BEST_EFFORT = ServiceClass("best-effort", 1.0)


@dataclass(frozen=True, slots=True)
class Planned:
    """One query of a workload. Objectives count from the planned send."""

    seconds: float
    """When it is to be sent, from the begin of the run."""
    service: ServiceClass
    prompt: str
    max_output_tokens: int
    tenant: str = "bench"


@dataclass(frozen=True, slots=True)
class Workload:
    """Rules by which arrivals become queries. A trace gives times and tenants, the prompts give the text."""

    source: Source
    prompts: Sequence[str]
    classes: tuple[ServiceClass, ...] = CLASSES
    max_output_tokens: int = 192

    def take(self, count: int, rate: float, seed: int) -> list[Planned]:
        """So many queries, the first at once, at this mean rate a second.

        Class and prompt of each depend on seed and number only.

        Raises ValueError if the trace is too short, BenchError if it has no rate.
        """
        arrivals = self.source.window(count, seed)
        if arrivals[-1].seconds <= arrivals[0].seconds:
            raise BenchError(f"{count} requests of the trace come all at once, so that there is no rate to scale")
        arrivals = scaled(arrivals, rate / rate_of(arrivals))
        shares = [one.share for one in self.classes]
        planned = []
        for number, arrival in enumerate(arrivals):
            draw = random.Random(f"{seed}/{number}")
            (service,) = draw.choices(self.classes, shares)
            prompt = draw.choice(self.prompts)
            at = arrival.seconds - arrivals[0].seconds
            planned.append(Planned(at, service, prompt, self.max_output_tokens, arrival.tenant))
        return planned

    def burst(self, count: int, seed: int, max_output_tokens: int = 0) -> list[Planned]:
        """So many at once, without objectives; their answers are cut at so many tokens, 0: as all others."""
        draw = random.Random(f"burst/{seed}")
        limit = max_output_tokens or self.max_output_tokens
        return [Planned(0.0, BEST_EFFORT, draw.choice(self.prompts), limit) for _ in range(count)]


def held_out_prompts() -> list[str]:
    """Prompts that the shipped predictor did not learn from."""
    return [prompt.text for prompt in read_prompts(PROMPTS_FILE) if part_of(prompt.key) == "test"]


def prompts_of(file: Path) -> list[str]:
    """The prompts of a file of JSON lines; raises DataError for a line that is none."""
    return [prompt.text for prompt in read_prompts(file)]
