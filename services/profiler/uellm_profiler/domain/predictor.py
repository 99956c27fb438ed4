"""What every predictor of answer lengths offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from uellm.cost.lengths import LengthDistribution
from uellm.v1.query_pb2 import GenerationParameters


@dataclass(frozen=True, slots=True)
class PredictorInput:
    """What a predictor knows of a query."""

    model: str
    """Logical model that will answer."""
    text: str
    """The prompt as the served model reads it, chat template included."""
    prompt_tokens: int
    """Its length in tokens of the served model."""
    generation: GenerationParameters
    """How the answer is generated; every parameter is set."""
    limit_tokens: int
    """Longest answer, in tokens."""


class LengthPredictor(Protocol):
    """Predicts the length of answers."""

    @property
    def kind(self) -> str:
        """Kind of predictor, e.g. `prior`."""

    @property
    def version(self) -> str:
        """Version within its kind."""

    @property
    def description(self) -> str:
        """What it is, in a sentence."""

    async def predict(self, prompts: Sequence[PredictorInput]) -> Sequence[LengthDistribution]:
        """One distribution a prompt, in the same order, each ending at its prompt's limit.

        Raises:
            RefusedError: PREDICTOR_OVERLOADED; the queue of prompts to predict for is full.
        """
