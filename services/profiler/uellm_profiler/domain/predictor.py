"""What every predictor of answer lengths offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from uellm.cost.lengths import LengthDistribution
from uellm.v1.query_pb2 import GenerationParameters


@dataclass(frozen=True, slots=True)
class PredictorInput:
    """What a predictor knows of a query."""

    model: str
    """Logical model that will answer."""
    content: str
    """What the user wrote, without the served model's chat template."""
    prompt_tokens: int
    """Its length in tokens of the served model."""
    generation: GenerationParameters
    """How the answer is generated; every parameter is set."""
    limit_tokens: int
    """Longest answer, in tokens."""


class LengthModel(Protocol):
    """A predictor as it is loaded: computes at once, in the thread that calls it, one call at a time."""

    @property
    def kind(self) -> str:
        """Kind of predictor: `lora` or `fast`."""

    @property
    def version(self) -> str:
        """Version within its kind."""

    @property
    def description(self) -> str:
        """What it is, in a sentence."""

    def predict(self, prompts: Sequence[PredictorInput]) -> list[LengthDistribution]:
        """One distribution a prompt, in the same order, each ending at its prompt's limit."""


class Urgency(Enum):
    """Who waits for a prediction."""

    INTERACTIVE = "interactive"
    """Somebody who wants one query profiled or submitted: goes first."""
    BULK = "bulk"
    """A batch of queries to profile."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was predicted for the prompts of one call."""

    version: str
    """The predictor that computed all of it, `{kind}/{version}`."""
    lengths: Sequence[LengthDistribution]
    """One distribution a prompt, in the same order, each ending at its prompt's limit."""


class LengthPredictor(Protocol):
    """Predicts the length of answers without blocking the event loop."""

    @property
    def kind(self) -> str:
        """Kind of predictor, e.g. `prior`."""

    @property
    def version(self) -> str:
        """Version within its kind."""

    @property
    def description(self) -> str:
        """What it is, in a sentence."""

    async def predict(self, prompts: Sequence[PredictorInput], urgency: Urgency = Urgency.INTERACTIVE) -> Prediction:
        """Predict for the prompts of one call.

        Raises:
            RefusedError: PREDICTOR_OVERLOADED; the queue of prompts to predict for is full.
        """
