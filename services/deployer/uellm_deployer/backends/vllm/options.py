"""What a continuous engine is started with."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from ..common import contract as common
from ..common.visible import visible_to_stub
from . import contract
from .stages import CPU, Stage, parse_stages

BATCHED_TOKENS = 4096
"""Prompt tokens of one step, at least: a prompt is never divided, so a step takes the longest one whole."""

DEFAULTS = {
    # The engine is in this process: steps are seen and timed from here. With several devices each has a worker process,
    # which ends when this one does; forked from a process with threads, as CUDA's default is, it might hang.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that wait for each other by spinning take the processor from whom they wait for: on two busy cores a step
    # of SmolLM2 with 8 rows took 120 to 910 ms instead of 40 to 48.
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The model's config parameters (contract.py)."""

    weights: str
    dtype: str
    threads: int
    stages: tuple[Stage, ...]
    rows: int
    context_tokens: int
    kv_bytes: int
    page_tokens: int
    memory_share: float = 1.0

    @staticmethod
    def from_parameters(parameters: Mapping[str, str]) -> EngineOptions:
        """Parse the strings of the model config; raises ValueError naming the parameter."""
        if not parameters.get(common.WEIGHTS):
            raise ValueError("model config parameter weights is missing: the folder of the model")
        threads = parameters.get(common.THREADS)
        return EngineOptions(
            weights=parameters[common.WEIGHTS],
            dtype=parameters.get(common.DTYPE) or "float32",
            threads=_positive(parameters, common.THREADS) if threads else os.cpu_count() or 1,
            stages=parse_stages(parameters.get(contract.STAGES) or ""),
            rows=_positive(parameters, contract.ROWS),
            context_tokens=_positive(parameters, contract.CONTEXT_TOKENS),
            kv_bytes=_positive(parameters, contract.KV_BYTES),
            page_tokens=_positive(parameters, contract.PAGE_TOKENS),
            memory_share=_share(parameters.get(contract.MEMORY_SHARE) or "1"),
        )

    @property
    def devices(self) -> tuple[str, ...]:
        """Of all workers, in their order."""
        return tuple(device for stage in self.stages for device in stage.devices)

    @property
    def on_cpu(self) -> bool:
        """Whether it computes on the processor."""
        return self.devices[0] == CPU

    def arguments(self) -> dict[str, Any]:
        """Arguments of vLLM's `EngineArgs`."""
        return {
            "model": self.weights,
            "dtype": self.dtype,
            "load_format": "safetensors",
            "skip_tokenizer_init": True,  # token ids go in and come out
            "max_model_len": self.context_tokens,
            "max_num_seqs": self.rows,
            "max_num_batched_tokens": max(self.context_tokens, self.rows, BATCHED_TOKENS),
            "kv_cache_memory_bytes": self.kv_bytes,
            "block_size": self.page_tokens,
            # A prompt that is read in parts rewinds its random numbers, which vLLM can't on a CPU; and a part of a
            # prompt among decode steps is neither a prefill nor a decode step, which nothing could be learnt from.
            "enable_chunked_prefill": False,
            "async_scheduling": False,  # a step's time is its own
            "enforce_eager": self.on_cpu,
            "disable_log_stats": True,
            "tensor_parallel_size": len(self.stages[0].devices),
            "pipeline_parallel_size": len(self.stages),
            "distributed_executor_backend": "mp" if len(self.devices) > 1 else "uni",
            # The cache is as large as planned; the share is only what must be free when vLLM starts.
            **({} if self.on_cpu else {"gpu_memory_utilization": self.memory_share}),
        }


def prepare(environment: MutableMapping[str, str], options: EngineOptions) -> None:
    """Set what vLLM and torch read from the environment when they are imported."""
    for name, value in DEFAULTS.items():
        environment.setdefault(name, value)
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override the plan
    environment.pop("VLLM_PP_LAYER_PARTITION", None)
    if len(options.stages) > 1:
        environment["VLLM_PP_LAYER_PARTITION"] = ",".join(str(stage.layers) for stage in options.stages)
    if options.on_cpu:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, options.threads // len(options.devices))))
        if len(options.devices) > 1:  # else every worker wants a NUMA node of its own
            environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    else:
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the driver library counts, and so the plan
        environment["CUDA_VISIBLE_DEVICES"] = visible_to_stub(environment, options.devices)


def _positive(parameters: Mapping[str, str], name: str) -> int:
    text = parameters.get(name, "")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"model config parameter {name} must be a whole number of at least 1, not {text!r}")
    return int(text)


def _share(text: str) -> float:
    share = float(text) if text.replace(".", "", 1).isdecimal() else 0.0
    if not 0 < share <= 1:
        raise ValueError(f"model config parameter {contract.MEMORY_SHARE} must be above 0 and at most 1; got {text!r}")
    return share
