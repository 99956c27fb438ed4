"""What the planner knows of the engines behind the backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from uellm_deployer.domain.topology import DeviceKind


class EngineKind(StrEnum):
    """How an engine batches; the names of `EngineKind`."""

    STATIC = "STATIC"
    CONTINUOUS = "CONTINUOUS"


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that a backend puts on Triton."""

    kind: EngineKind
    default_dtype: Mapping[DeviceKind, str]
    page_tokens: int
    """Tokens of one page of its key-value cache; 0: the cache is not paged."""
    prompt_tokens_at_once: int
    """Prompt tokens that one pass computes at most, unless a single prompt is longer."""
    head_copies_on_cpu: Mapping[bool, int]
    """How many matrices of the size of the output head it holds on a CPU besides the checkpoint's, by whether the head
    is the embedding: linear layers are packed for the kernels, the head too, while the embedding stays plain."""
    reserve_bytes: Mapping[DeviceKind, int]
    """What the framework takes besides tensors."""


ENGINES: dict[str, Engine] = {
    "hf": Engine(
        kind=EngineKind.STATIC,
        default_dtype={DeviceKind.GPU: "float16", DeviceKind.CPU: "float32"},
        page_tokens=0,
        prompt_tokens_at_once=16_384,
        head_copies_on_cpu={False: 0, True: 1},
        # Libraries (measured on a CPU: 370 MB), and on a GPU the CUDA context.
        reserve_bytes={DeviceKind.GPU: 1 << 30, DeviceKind.CPU: 512 << 20},
    ),
    "vllm": Engine(
        kind=EngineKind.CONTINUOUS,
        default_dtype={DeviceKind.GPU: "bfloat16", DeviceKind.CPU: "bfloat16"},
        page_tokens=32,
        prompt_tokens_at_once=4_096,
        head_copies_on_cpu={False: 2, True: 2},  # packs the embedding as well, and keeps both plain
        reserve_bytes={DeviceKind.GPU: 2 << 30, DeviceKind.CPU: 1 << 30},
    ),
}
"""By backend."""
