"""vLLM's engine in this process. Everything happens in the thread that made it."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.llm_engine import LLMEngine

from .options import EngineOptions
from .steps import ScheduledRow

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RowNews:
    """What a step brought for a row."""

    key: str
    tokens: tuple[int, ...]
    ended: str
    """Why vLLM has ended the row; empty: it has not."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the engine."""

    news: tuple[RowNews, ...]
    rows: tuple[ScheduledRow, ...]


class ObservedScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, which keeps what it scheduled last."""

    last: SchedulerOutput | None = None

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """As vLLM's."""
        self.last = super().schedule(*args, **kwargs)
        return self.last


class Core:
    """Rows come and go between steps."""

    def __init__(self, options: EngineOptions) -> None:
        """Load the model."""
        if options.on_cpu and len(options.devices) == 1:
            torch.set_num_threads(options.threads)
        arguments = EngineArgs(**options.arguments(), scheduler_cls=ObservedScheduler)
        self._engine = LLMEngine.from_engine_args(arguments)
        core, executor = self._engine.engine_core.engine_core, self._engine.model_executor
        core.step_fn = core.step  # one batch at a time, in a pipeline too: a step's time is its own
        if options.on_cpu and len(options.stages) > 1:
            executor.execute_dummy_batch()  # makes what later stages receive into: on a CPU no warm-up has done so
        executor.register_failure_callback(_end)
        self._scheduler: ObservedScheduler = core.scheduler
        self._internal: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        self.facts = self._facts(options)

    def add(self, key: str, tokens: Sequence[int], sampling: dict[str, Any]) -> None:
        """Let a row join at the next step; raises ValueError if vLLM refuses it."""
        try:
            parameters = SamplingParams(**sampling, output_kind=RequestOutputKind.DELTA)
            name = self._engine.add_request(key, {"prompt_token_ids": list(tokens)}, parameters)
        except VLLMClientError as error:
            raise ValueError(str(error)) from None
        self._internal[key], self._keys[name] = name, key

    def abort(self, keys: Collection[str]) -> None:
        """Let rows leave."""
        self._engine.abort_request([self._internal[key] for key in keys], internal=True)
        self._forget(keys)

    def step(self) -> Step:
        """One step of all rows that are there."""
        outputs = self._engine.step()
        news = tuple(
            RowNews(output.request_id, tuple(output.outputs[0].token_ids), _ending(output)) for output in outputs
        )
        rows = self._scheduled_rows()
        self._forget([row.key for row in news if row.ended])
        return Step(news, rows)

    def close(self) -> None:
        """Free what it holds."""
        self._engine.engine_core.shutdown()

    def _scheduled_rows(self) -> tuple[ScheduledRow, ...]:
        output, self._scheduler.last = self._scheduler.last, None
        if output is None:
            return ()
        cached = output.scheduled_cached_reqs
        before = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        reading = set(before) | set(cached.resumed_req_ids)
        before |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        return tuple(
            ScheduledRow(self._keys[name], count, before[name] + count, name in reading)
            for name, count in output.num_scheduled_tokens.items()
        )

    def _forget(self, keys: Collection[str]) -> None:
        for key in keys:
            self._keys.pop(self._internal.pop(key, ""), None)

    def _facts(self, options: EngineOptions) -> dict[str, Any]:
        """What the loaded model takes: weights on all devices, and of the cache what it is without repetitions."""
        config, cache = self._engine.model_config, self._engine.vllm_config.cache_config
        held: list[Held] = self._engine.model_executor.collective_rpc(held_by, args=(config.dtype.itemsize,))
        # A group that is larger than the heads of keys and values are many repeats them.
        repeated = max(1, len(options.stages[0].devices) // (1 if config.use_mla else config.get_total_num_kv_heads()))
        page_bytes = sum(one.cache_bytes for one in held) // repeated // cache.num_gpu_blocks
        slot_bytes = sum(one.slot_bytes for one in held) // repeated // cache.num_gpu_blocks
        return {
            "kv_bytes_per_token": slot_bytes // cache.block_size,
            "kv_page_tokens": cache.block_size,
            "kv_budget_bytes": page_bytes * (cache.num_gpu_blocks - 1),  # vLLM keeps one page for itself
            "weight_bytes": sum(one.weight_bytes for one in held),
            "context_limit_tokens": config.max_model_len,
            "vocabulary": config.get_vocab_size(),
            "device": ", ".join(options.devices),
            "dtype": str(config.dtype).removeprefix("torch."),
        }


def _end() -> None:
    """Without its workers the engine can't go on. To callers and the deployer it is gone then, and is loaded again."""
    LOG.critical("a worker process has died")
    os._exit(1)


@dataclass(frozen=True, slots=True)
class Held:
    """What a worker's device holds."""

    weight_bytes: int
    cache_bytes: int
    slot_bytes: int
    """Of the cache as its layers see it: those with and without a window share their memory, but a token takes a slot
    in each of them."""


def held_by(worker: Any, element_bytes: int) -> Held:
    """Asked of every worker, in its own process."""
    runner = worker.model_runner
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in runner.kv_caches}
    return Held(
        _weight_bytes(runner.model, element_bytes),
        sum(storage.nbytes() for storage in storages.values()),
        sum(tensor.nbytes for tensor in runner.kv_caches),
    )


def _weight_bytes(model: torch.nn.Module, element_bytes: int) -> int:
    """Of all parameters and buffers, and of the weights that the CPU's kernels have packed, which are neither."""
    parts = {id(part): part for part in [*model.parameters(), *model.buffers()]}
    plain = sum(part.numel() * part.element_size() for part in parts.values())
    return plain + element_bytes * sum(map(_packed_numbers, model.modules()))


def _packed_numbers(module: Any) -> int:
    if not getattr(getattr(module, "cpu_linear", None), "__closure__", None):
        return 0  # what is packed lies in the closure of the function that multiplies with it
    if hasattr(module, "num_embeddings_per_partition"):
        return int(module.num_embeddings_per_partition * module.embedding_dim)
    return int(module.output_size_per_partition * module.input_size_per_partition)


def _ending(output: Any) -> str:
    return (output.outputs[0].finish_reason or "unknown") if output.finished else ""
