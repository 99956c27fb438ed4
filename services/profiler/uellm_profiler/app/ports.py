"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from uellm.messaging.queries import Accepted, Conflict, Full, Submission
from uellm.v1.query_pb2 import Query
from uellm.v1.stream_pb2 import Backlog, DeploymentRecord, PredictorInstallation
from uellm_profiler.domain.predictor import LengthPredictor


class PromptError(ValueError):
    """A prompt that the served model's tokenizer or template can't take.

    Attributes:
        field: path in the query, e.g. `chat`.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(description)
        self.field = field
        self.description = description


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the served model reads it, and what of it the user wrote."""

    content: str
    """Without the chat template; see `PredictorInput`."""
    token_ids: Sequence[int]


class Tokenizer(Protocol):
    """The tokenizers of the served models."""

    async def encode(self, folder: str, query: Query) -> EncodedPrompt:
        """Encode a query's input with the tokenizer in `folder`; the chat template is applied unless `raw_prompt`.

        Raises:
            PromptError: the model can't take this prompt.
            UnavailableError: the tokenizer can't be read.
        """


class PredictorError(RuntimeError):
    """A predictor that can't be loaded; the message says why, and what to do."""


class PredictorLoader(Protocol):
    """Loads predictors."""

    async def load(self, path: str) -> LengthPredictor:
        """Load the adapter in a folder and try it; an empty path stands for what the process was started with.

        Raises:
            PredictorError: it can't be used.
        """


class Installations(Protocol):
    """Which predictor all replicas are to use."""

    async def read(self) -> PredictorInstallation:
        """What is wanted now; generation 0 if nothing ever was installed."""

    async def replace(self, generation: int, installation: PredictorInstallation) -> bool:
        """Write what is wanted from now on; False, and nothing is written, if `generation` is not the newest."""


class Deployments(Protocol):
    """What is deployed."""

    def ready(self, model: str) -> list[DeploymentRecord]:
        """The deployments of a model that take queries."""

    def of_model(self, model: str) -> list[DeploymentRecord]:
        """All deployments of a model."""


class Queue(Protocol):
    """The queues of all models."""

    async def submit(self, submission: Submission, depth_limit: int) -> Accepted | Conflict | Full:
        """Write record and queue entry together, or find the query that is there already.

        At a `depth_limit` of 0 nothing is ever written.
        """


class Backlogs(Protocol):
    """Predicted backlogs, as the owners of the queues publish them."""

    async def read(self, queue: str) -> Backlog | None:
        """The queue's last; None if there is none."""
