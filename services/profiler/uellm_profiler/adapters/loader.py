"""Loads predictors in a thread, beside the one that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from uellm.v1.query_pb2 import GenerationParameters
from uellm_profiler.adapters.micro_batch import BatchedModel, MicroBatcher
from uellm_profiler.app.ports import PredictorError
from uellm_profiler.domain.predictor import LengthModel, LengthPredictor, PredictorInput
from uellm_profiler.domain.prior import StatisticalPrior

ReadAdapter = Callable[[Path, Path | None], LengthModel]
"""Reads an adapter folder; the second path is the base model's folder, if one is configured. Raises PredictorError."""

_GREEDY = GenerationParameters(temperature=0.0, top_p=1.0, repetition_penalty=1.0, seed=0)
_TRIALS = (("Hi", 1, 1), ("Write a long story about the sea.", 8, 4_096), ("word " * 2_000, 2_000, 100))
"""Content, tokens and limit of the prompts on which a predictor is tried."""


def shipped_adapter(kind: str) -> Path:
    """Folder of the adapter that the package carries for a kind, `lora` or `fast`; raises PredictorError."""
    folder = Path(__file__).resolve().parents[1] / "neural" / "shipped" / kind
    if not folder.is_dir():
        raise PredictorError(
            f"no adapter of kind {kind} comes with this version: train one (`uellm predictor train`) and name its "
            "folder with --predictor-adapter, or start with --predictor prior and `uellm predictor install` it"
        )
    return folder


def neural_reader(threads: int) -> ReadAdapter:
    """Reads adapters of `uellm_profiler.neural`; torch, imported with the first one, computes with so many threads."""

    def read(folder: Path, base: Path | None) -> LengthModel:
        try:
            import torch

            from uellm_profiler.neural.errors import AdapterError
            from uellm_profiler.neural.predictor import NeuralPredictor, has_fast_half
        except ImportError as error:
            message = f"this predictor needs torch, transformers and peft ({error}): install them"
            raise PredictorError(f"{message}, or choose --predictor prior") from error
        torch.set_num_threads(threads)
        try:
            return NeuralPredictor.load(folder, base, half=has_fast_half())
        except AdapterError as error:
            raise PredictorError(str(error)) from error

    return read


@dataclass(frozen=True, slots=True)
class AdapterLoader:
    """See `uellm_profiler.app.ports.PredictorLoader`."""

    batcher: MicroBatcher
    read: ReadAdapter
    kind: str
    """Kind of the predictor that the process was started with."""
    adapter: Path | None
    """Its adapter; not used for the prior."""
    base: Path | None

    async def load(self, path: str) -> LengthPredictor:
        """See `PredictorLoader`."""
        if path:
            return await self._load(Path(path))
        if self.kind == StatisticalPrior.kind or self.adapter is None:
            return StatisticalPrior()
        loaded = await self._load(self.adapter)
        if loaded.kind != self.kind:
            message = f"{self.adapter} holds a predictor of kind {loaded.kind}, not {self.kind}: change --predictor"
            raise PredictorError(f"{message} or --predictor-adapter")
        return loaded

    async def _load(self, folder: Path) -> LengthPredictor:
        return BatchedModel(self.batcher, await asyncio.to_thread(self._read_and_try, folder))

    def _read_and_try(self, folder: Path) -> LengthModel:
        if not folder.is_dir():
            raise PredictorError(f"{folder} is no folder, or can't be read from here")
        model = self.read(folder, self.base)
        _try(model)
        return model


def _try(model: LengthModel) -> None:
    """Raises PredictorError if a model that was read does not predict."""
    name = f"{model.kind}/{model.version}"
    prompts = [PredictorInput("trial", content, tokens, _GREEDY, limit) for content, tokens, limit in _TRIALS]
    try:
        limits = [length.limit for length in model.predict(prompts)]
    except Exception as error:
        raise PredictorError(f"{name} fails on a trial prompt ({error}): train or install another one") from error
    if limits != [prompt.limit_tokens for prompt in prompts]:
        raise PredictorError(f"{name} does not keep to the limits of the trial prompts: train or install another one")
