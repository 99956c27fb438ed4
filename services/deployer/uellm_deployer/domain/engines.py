"""What the planner knows of the engines behind the backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from uellm.cost.kv_config import CacheForm
from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm_deployer.domain.quantisation import Quantisation
from uellm_deployer.domain.topology import Device, DeviceKind


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
    embedding_copies_on_cpu: int = 0
    """Of the copies of the head, how many lie with the embedding."""
    tensor_sizes: tuple[int, ...] = (1,)
    """Devices that may share each layer, as far as they divide the model (`Division`): a copy's stages all alike."""
    without_stages: frozenset[str] = frozenset()
    """Architectures that it cannot spread over several stages."""
    cache_form: CacheForm = CacheForm.TRANSFORMERS
    """What it keeps of a token where the architecture leaves a choice."""
    quantised: Mapping[DeviceKind, frozenset[str]] = field(default_factory=dict)
    """Quantisations (`Quantisation.label`) that it computes with, by device."""


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
        embedding_copies_on_cpu=1,
        reserve_bytes={DeviceKind.GPU: 2 << 30, DeviceKind.CPU: 1 << 30},
        tensor_sizes=(1, 2, 4, 8),
        # Release 0.32: of its text models those that are not `SupportsPP`.
        without_stages=frozenset(
            f"{name}ForCausalLM" for name in ("Gemma3n", "HrmText", "IQuestLoopCoder", "Mamba2", "Zamba2")
        ),
        cache_form=CacheForm.COMPACT,
        # Release 0.32, its registers of methods and kernels. On a CPU FP8 needs AMX, and only words of 4 bits are read.
        quantised={
            DeviceKind.GPU: frozenset(
                {"gptq int4", "gptq int8", "awq int4", "fp8 float8"}
                | {f"compressed-tensors {number}" for number in ("int4", "int8", "float8")}
            ),
            DeviceKind.CPU: frozenset({"gptq int4", "awq int4", "compressed-tensors int4", "compressed-tensors int8"}),
        },
    ),
    # What the build has fixed comes from the engine's own config.
    "tensorrtllm": Engine(
        kind=EngineKind.CONTINUOUS,
        default_dtype={DeviceKind.GPU: ""},
        page_tokens=64,
        prompt_tokens_at_once=8_192,
        head_copies_on_cpu={},
        reserve_bytes={DeviceKind.GPU: 2 << 30},
        cache_form=CacheForm.COMPACT,
    ),
}
ENGINES["nvidia_vllm"] = replace(
    ENGINES["vllm"],
    default_dtype={DeviceKind.GPU: "bfloat16"},
    head_copies_on_cpu={},
    embedding_copies_on_cpu=0,
    reserve_bytes={DeviceKind.GPU: ENGINES["vllm"].reserve_bytes[DeviceKind.GPU]},
    quantised={DeviceKind.GPU: ENGINES["vllm"].quantised[DeviceKind.GPU]},
)
"""By backend. The environment of `hf` has none of the libraries that transformers needs for quantised weights."""


def able_devices(backend: str, scheme: Quantisation | None, devices: Sequence[Device]) -> list[Device]:
    """Those on which the backend computes with such weights; InvalidArgumentError if there is none."""
    kinds = ENGINES[backend].default_dtype
    if devices and not (devices := [device for device in devices if device.kind in kinds]):
        only = f"{backend} serves on a {' or '.join(kinds)} only, and there is none here"
        raise InvalidArgumentError([FieldViolation("spec.backend", only)])
    if scheme is None:
        return list(devices)
    able = [device for device in devices if scheme.label in ENGINES[backend].quantised.get(device.kind, frozenset())]
    if devices and not able:
        raise InvalidArgumentError([FieldViolation("spec.backend", _cannot_serve(backend, scheme, devices))])
    return able


def _cannot_serve(backend: str, scheme: Quantisation, devices: Sequence[Device]) -> str:
    kinds = sorted({device.kind for device in devices})
    others = [
        f"{name} on a {kind}"
        for name, engine in ENGINES.items()
        for kind, labels in engine.quantised.items()
        if scheme.label in labels
    ]
    advice = f"use {' or '.join(others)}" if others else "deploy the model unquantised"
    return f"{backend} cannot serve {scheme.label} weights on a {' or '.join(kinds)}: {advice}"
