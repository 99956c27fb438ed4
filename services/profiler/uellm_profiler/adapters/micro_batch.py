"""Predictions off the event loop: one worker thread, and batches of what waits whenever it is free."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from uellm.cost.lengths import LengthDistribution
from uellm_profiler.adapters import metrics
from uellm_profiler.domain import refusals
from uellm_profiler.domain.micro_batch import BatchLimits, Call, PromptQueue, Throughput, WaitingPrompt
from uellm_profiler.domain.predictor import LengthModel, Prediction, PredictorInput, Urgency

Result = LengthDistribution | Exception

log = structlog.get_logger(__name__)


class MicroBatcher:
    """Computes for all models and callers, one batch after the other. To be used from one event loop.

    There is no artificial wait: a batch is what has come up while the one before was computed.
    """

    def __init__(self, limits: BatchLimits | None = None) -> None:
        self._limits = limits or BatchLimits()
        self._queue = PromptQueue(self._limits)
        self._throughput = Throughput()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._calls: dict[Call, asyncio.Future[None]] = {}
        self._busy = False

    async def predict(self, model: LengthModel, prompts: Sequence[PredictorInput], urgency: Urgency) -> Prediction:
        """Predict for the prompts of one call, all with this model. Cancelled, what still waits is not computed.

        Raises:
            RefusedError: PREDICTOR_OVERLOADED; as many prompts wait as may. Nothing of the call is computed.
        """
        excess = self._queue.excess(urgency, len(prompts))
        if excess:
            metrics.PREDICTOR_OVERLOADS.labels(urgency.value).inc()
            raise self._overloaded(urgency, excess)
        call = Call(model, prompts, urgency, time.monotonic())
        if prompts:
            await self._answer(call)
        return Prediction(f"{model.kind}/{model.version}", [call.lengths[index] for index in range(len(prompts))])

    def close(self) -> None:
        """End the thread; a batch that is being computed is waited for."""
        self._worker.shutdown(cancel_futures=True)

    async def _answer(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        done = self._calls[call] = loop.create_future()
        self._queue.add(call)
        self._show_waiting()
        # Not at once: calls that the loop is about to run come along.
        loop.call_soon(self._next)
        try:
            await done
        finally:
            del self._calls[call]
            if not call.complete:
                self._queue.remove(call)
                self._show_waiting()

    def _overloaded(self, urgency: Urgency, excess: int) -> Exception:
        # Bulk prompts wait for the interactive ones, too.
        before = self._queue.waiting(Urgency.INTERACTIVE) if urgency is Urgency.BULK else 0
        seconds = self._throughput.seconds_for(before + excess)
        waiting, limit = self._queue.waiting(urgency), self._limits.waiting(urgency)
        return refusals.predictor_overloaded(waiting, limit, seconds)

    def _next(self) -> None:
        """Give the worker a batch, if it is free and something waits."""
        if self._busy:
            return
        now = time.monotonic()
        batch = self._queue.take(now)
        if not batch:
            return
        self._busy = True
        self._show_waiting()
        urgency = batch[0].call.urgency.value
        metrics.PREDICTOR_BATCH_PROMPTS.labels(urgency).observe(len(batch))
        for one in batch:
            metrics.PREDICTOR_WAIT_SECONDS.labels(urgency).observe(now - one.call.arrival)
        computing = asyncio.get_running_loop().run_in_executor(self._worker, _compute, batch)
        computing.add_done_callback(lambda computed: self._finish(batch, computed))

    def _finish(self, batch: Sequence[WaitingPrompt], computed: asyncio.Future[_Computed]) -> None:
        self._busy = False
        if computed.cancelled():  # the event loop ends
            return
        result = computed.result()
        self._throughput.observe(len(batch), result.seconds)
        metrics.PREDICTOR_COMPUTE_SECONDS.observe(result.seconds)
        for one, length in zip(batch, result.lengths, strict=True):
            self._deliver(one, length)
        self._next()

    def _deliver(self, one: WaitingPrompt, result: Result) -> None:
        done = self._calls.get(one.call)
        if done is None or done.done():  # its caller has gone, or another of its prompts failed
            return
        if isinstance(result, Exception):
            done.set_exception(result)
            return
        one.call.lengths[one.index] = result
        if one.call.complete:
            done.set_result(None)

    def _show_waiting(self) -> None:
        for urgency in Urgency:
            metrics.PREDICTOR_WAITING.labels(urgency.value).set(self._queue.waiting(urgency))


@dataclass(frozen=True, slots=True)
class BatchedModel:
    """A model whose predictions come from the batches of all callers. See `LengthPredictor`."""

    batcher: MicroBatcher
    model: LengthModel

    @property
    def kind(self) -> str:
        """See `LengthPredictor`."""
        return self.model.kind

    @property
    def version(self) -> str:
        """See `LengthPredictor`."""
        return self.model.version

    @property
    def description(self) -> str:
        """See `LengthPredictor`."""
        return self.model.description

    async def predict(self, prompts: Sequence[PredictorInput], urgency: Urgency = Urgency.INTERACTIVE) -> Prediction:
        """See `LengthPredictor`."""
        return await self.batcher.predict(self.model, prompts, urgency)


@dataclass(frozen=True, slots=True)
class _Computed:
    lengths: Sequence[Result]
    seconds: float


def _compute(batch: Sequence[WaitingPrompt]) -> _Computed:
    """What the worker does. A prompt on which the model fails is found, so that the others get their answers."""
    begin = time.perf_counter()
    model, prompts = batch[0].call.model, [one.input for one in batch]
    lengths = _attempt(model, prompts)
    if len(batch) > 1 and isinstance(lengths[0], Exception):
        log.warning("a batch failed; its prompts are computed one by one", error=type(lengths[0]).__name__)
        lengths = [length for prompt in prompts for length in _attempt(model, [prompt])]
    return _Computed(lengths, time.perf_counter() - begin)


def _attempt(model: LengthModel, prompts: Sequence[PredictorInput]) -> Sequence[Result]:
    try:
        lengths = model.predict(prompts)
    except Exception as error:  # noqa: BLE001  (it is its callers' to hear)
        return [error] * len(prompts)
    if len(lengths) != len(prompts):
        wrong = f"{model.kind}/{model.version} gave {len(lengths)} lengths for {len(prompts)} prompts"
        return [RuntimeError(wrong)] * len(prompts)
    return lengths
