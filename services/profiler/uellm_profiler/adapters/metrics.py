"""Prometheus metrics, and ports that are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import Counter, Histogram

from uellm.cost.lengths import LengthDistribution
from uellm.v1.query_pb2 import Query
from uellm_profiler.app.ports import EncodedPrompt, Tokenizer
from uellm_profiler.domain.predictor import LengthPredictor, PredictorInput

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

SUBMISSIONS = Counter(
    "uellm_profiler_submissions_total",
    "Submissions by result (accepted, repeated, refused) and, where refused, reason.",
    ("result", "reason"),
)
PREDICTED_TOKENS = Histogram(
    "uellm_profiler_predicted_tokens", "Predicted median length of answers, in tokens.", buckets=_TOKENS
)
TOKENIZE_SECONDS = Histogram(
    "uellm_profiler_tokenize_seconds", "Time to render and encode a prompt, waiting included.", buckets=_SECONDS
)
PREDICT_SECONDS = Histogram(
    "uellm_profiler_predict_seconds", "Time to predict for the prompts of one call, waiting included.", buckets=_SECONDS
)


@dataclass(frozen=True, slots=True)
class MeasuredTokenizer:
    """A tokenizer whose time is measured."""

    inner: Tokenizer

    async def encode(self, folder: str, query: Query) -> EncodedPrompt:
        """See `Tokenizer`."""
        with TOKENIZE_SECONDS.time():
            return await self.inner.encode(folder, query)


@dataclass(frozen=True, slots=True)
class MeasuredPredictor:
    """A predictor whose time and predictions are measured."""

    inner: LengthPredictor

    @property
    def kind(self) -> str:
        """See `LengthPredictor`."""
        return self.inner.kind

    @property
    def version(self) -> str:
        """See `LengthPredictor`."""
        return self.inner.version

    @property
    def description(self) -> str:
        """See `LengthPredictor`."""
        return self.inner.description

    async def predict(self, prompts: Sequence[PredictorInput]) -> Sequence[LengthDistribution]:
        """See `LengthPredictor`."""
        with PREDICT_SECONDS.time():
            lengths = await self.inner.predict(prompts)
        for length in lengths:
            PREDICTED_TOKENS.observe(length.quantile(0.5))
        return lengths
