"""A prompt together with a length that the served model gave it: what predictors learn from and are judged by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from uellm.v1.query_pb2 import GenerationParameters
from uellm_profiler.domain.predictor import PredictorInput
from uellm_profiler.learning.labels import Label
from uellm_profiler.learning.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled prompt."""

    prompt: Prompt
    label: Label

    def __post_init__(self) -> None:
        """Raises ValueError for the label of another prompt."""
        if self.prompt.key != self.label.prompt:
            raise ValueError(f"the label of {self.label.prompt} does not belong to the prompt {self.prompt.key}")


def join(prompts: Iterable[Prompt], labels: Iterable[Label]) -> list[Example]:
    """The labels in order with their prompts; those whose prompt is not there are left out."""
    by_key = {prompt.key: prompt for prompt in prompts}
    return [Example(by_key[label.prompt], label) for label in labels if label.prompt in by_key]


def to_input(example: Example) -> PredictorInput:
    """What a predictor would have known of it."""
    label = example.label
    generation = GenerationParameters(
        max_output_tokens=label.max_tokens,
        temperature=label.temperature,
        top_p=label.top_p,
        repetition_penalty=label.repetition_penalty,
    )
    return PredictorInput(label.model, example.prompt.text, label.prompt_tokens, generation, label.max_tokens)
