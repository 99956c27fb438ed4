"""Prometheus metrics, and ports that are measured."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from uellm.v1.query_pb2 import Query
from uellm_profiler.app.ports import EncodedPrompt, Tokenizer
from uellm_profiler.domain.predictor import LengthPredictor, Prediction, PredictorInput, Urgency

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TURN = 64
"""Lengths that are observed before other calls get their turn on the event loop."""
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
PREDICTOR_BATCH_PROMPTS = Histogram(
    "uellm_profiler_predictor_batch_prompts",
    "Prompts that were computed together.",
    ("urgency",),
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
PREDICTOR_WAIT_SECONDS = Histogram(
    "uellm_profiler_predictor_wait_seconds",
    "Time that a prompt waited for the predictor's worker.",
    ("urgency",),
    buckets=(*_SECONDS, 5, 10, 30, 60),
)
PREDICTOR_COMPUTE_SECONDS = Histogram(
    "uellm_profiler_predictor_compute_seconds", "Time to compute one batch.", buckets=_SECONDS
)
PREDICTOR_WAITING = Gauge("uellm_profiler_predictor_waiting", "Prompts that wait for the predictor.", ("urgency",))
PREDICTOR_OVERLOADS = Counter(
    "uellm_profiler_predictor_overloads_total", "Calls for which the predictor's queue had no room.", ("urgency",)
)
PREDICTIONS = Counter("uellm_profiler_predictions_total", "Queries that were predicted, by predictor.", ("predictor",))
PREDICTOR_INFO = Gauge("uellm_profiler_predictor_info", "1 for the predictor in force.", ("kind", "version"))
PREDICTOR_PROBLEM = Gauge(
    "uellm_profiler_predictor_problem", "1 if the predictor that was installed last can't be used here."
)


def show_predictor(predictor: LengthPredictor, problem: str) -> None:
    """Show the predictor in force, and whether there is a problem with the one that is installed."""
    PREDICTOR_INFO.clear()
    PREDICTOR_INFO.labels(predictor.kind, predictor.version).set(1)
    PREDICTOR_PROBLEM.set(bool(problem))


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

    async def predict(self, prompts: Sequence[PredictorInput], urgency: Urgency = Urgency.INTERACTIVE) -> Prediction:
        """See `LengthPredictor`."""
        with PREDICT_SECONDS.time():
            prediction = await self.inner.predict(prompts, urgency)
        PREDICTIONS.labels(prediction.version).inc(len(prediction.lengths))
        for number, length in enumerate(prediction.lengths, 1):
            PREDICTED_TOKENS.observe(length.quantile(0.5))
            if number % _TURN == 0:
                await asyncio.sleep(0)
        return prediction
