"""Labelled prompts whose answers' lengths follow a law that a predictor can know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from uellm_profiler.learning.examples import Example
from uellm_profiler.learning.labels import Label
from uellm_profiler.learning.prompts import Prompt
from uellm_profiler.learning.report.entrants import Entrant

from uellm.cost.lengths import LengthDistribution, log_normal_cdf

LIMIT = 400
SIGMA = 0.6
TOPICS = {"fact": 3.4, "list": 4.6, "story": 5.8}
"""Median logarithm of the length, by the word that the prompt holds."""


def make_label(number: int, tokens: int, *, cut: bool = False, limit: int = LIMIT, **changed: object) -> Label:
    """A greedy label of prompt `number`."""
    fields: dict[str, object] = {
        "model": "m",
        "source": "s",
        "id": str(number),
        "prompt_tokens": 10,
        "temperature": 0.0,
        "top_p": 1.0,
        "repetition_penalty": 1.15,
        "sample": 0,
        "max_tokens": limit,
        "output_tokens": tokens,
        "censored": cut,
    }
    return Label(**(fields | changed))  # type: ignore[arg-type]


def make_examples(count: int, *, first: int = 0, samples: int = 0, seed: int = 0) -> list[Example]:
    """Prompts of three topics with a greedy answer each, and so many sampled ones."""
    draw = np.random.RandomState(seed)
    examples = []
    for number in range(first, first + count):
        topic = list(TOPICS)[draw.randint(len(TOPICS))]
        filler = " ".join(f"w{draw.randint(40)}" for _ in range(draw.randint(3, 30)))
        prompt = Prompt("s", str(number), topic, f"a {topic} about {filler}?")
        for sample in range(1 + samples):
            length = round(float(np.exp(draw.normal(TOPICS[topic], SIGMA)))) + 1
            decoding = {"temperature": 0.7, "sample": sample - 1} if sample else {}
            label = make_label(number, min(length, LIMIT), cut=length > LIMIT, **decoding)
            examples.append(Example(prompt, label))
    return examples


def make_entrant(name: str, examples: Sequence[Example], *, error: float = 0.0, baseline: bool = False) -> Entrant:
    """Knows the law, `error` being added to the logarithm at even prompts and taken away at odd ones."""
    distributions = [
        LengthDistribution.from_cdf(
            log_normal_cdf(TOPICS[one.prompt.family] + (error if int(one.prompt.id) % 2 else -error), SIGMA),
            one.label.max_tokens,
        )
        for one in examples
    ]
    return Entrant(name, f"the law, off by {error}", distributions, 3, baseline)
