"""A TensorRT-LLM engine: its config says what the build has fixed, the sizes of its files what each rank holds.

The fields are those of `config.json` as `trtllm-build` writes it: `pretrained_config` and `build_config`. Ranks count
through the tensor-parallel group first; of layers that do not divide evenly, the first stages get one more each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from uellm.cost.memory import ELEMENT_BYTES
from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm_deployer.domain.facts import BuiltEngine, ModelShape, model_shape, refusal
from uellm_deployer.domain.layers import ModelLayers, PartShape, Weights
from uellm_deployer.domain.plan import DeploymentSpec

BACKEND = "tensorrtllm"

_FAMILIES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2"}
"""Of engines that can be planned, by architecture: the family whose layers are of those sizes."""

_COPIED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
_NARROW_CACHES = {"INT8", "FP8"}
"""Of `kv_cache_quant_algo`: a byte a number."""

DEFAULT_PAGE_TOKENS = 64


def is_built(config: Mapping[str, Any]) -> bool:
    """Whether this is the config of an engine."""
    return "pretrained_config" in config and "build_config" in config


def rank_count(config: Mapping[str, Any]) -> int:
    """How many files `rank{n}.engine` belong to it; InvalidArgumentError if it does not say."""
    return _split(config)[0] * _split(config)[1]


def built_shape(config: Mapping[str, Any], rank_bytes: Sequence[int], fingerprint: str) -> ModelShape:
    """The shape of an engine.

    Args:
        config: its `config.json`.
        rank_bytes: sizes of its files, by rank.
        fingerprint: of both.

    Raises:
        InvalidArgumentError: it is of a kind that cannot be planned; the message says which ones can.
    """
    pretrained, build = config["pretrained_config"], config["build_config"]
    tensor_size, stages = _split(config)
    shape = _as_family(pretrained, fingerprint)
    limit = _count(build, "max_seq_len")
    built = BuiltEngine(
        dtype=_dtype(pretrained),
        tensor_size=tensor_size,
        stage_layers=even_split(len(shape.layers.layers), stages),
        rank_bytes=tuple(rank_bytes),
        max_batch_rows=_count(build, "max_batch_size"),
        max_step_tokens=_count(build, "max_num_tokens", limit),
        page_tokens=_count(build.get("plugin_config") or {}, "tokens_per_block", DEFAULT_PAGE_TOKENS),
    )
    narrow = _cache_bytes(pretrained), ELEMENT_BYTES[built.dtype]
    return replace(
        shape,
        context_limit_tokens=min(limit, shape.context_limit_tokens),
        layers=_measured(shape.layers, built, narrow),
        tied_head=False,
        has_weights=True,
        built=built,
    )


def even_split(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage."""
    each, more = divmod(layers, stages)
    return tuple(each + (stage < more) for stage in range(stages))


def _as_family(pretrained: Mapping[str, Any], fingerprint: str) -> ModelShape:
    architecture = pretrained.get("architecture")
    if architecture == "QWenForCausalLM" and pretrained.get("qwen_type") == "qwen2":
        architecture = "Qwen2ForCausalLM"
    if architecture not in _FAMILIES or (pretrained.get("moe") or {}).get("num_experts"):
        raise refusal(
            f"config.json: a TensorRT-LLM engine of a {architecture} cannot be planned in this version; known are "
            f"{', '.join(_FAMILIES)} without experts"
        )
    family = {key: pretrained[key] for key in _COPIED if key in pretrained}
    if pretrained.get("head_size"):
        family["head_dim"] = pretrained["head_size"]
    return model_shape(
        {"architectures": [architecture], "model_type": _FAMILIES[architecture], **family}, (), fingerprint
    )


def _split(config: Mapping[str, Any]) -> tuple[int, int]:
    """Devices of a tensor-parallel group, and stages."""
    mapping = config["pretrained_config"].get("mapping") or {}
    tensor_size, stages = _count(mapping, "tp_size", 1), _count(mapping, "pp_size", 1)
    if _count(mapping, "world_size", 1) != tensor_size * stages:
        raise refusal("config.json: world_size is not tp_size times pp_size; context parallelism is not supported")
    return tensor_size, stages


def _count(values: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = values.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refusal(f"config.json: {name} of the engine must be a whole number of at least 1, not {value!r:.40}")
    return value


def _dtype(pretrained: Mapping[str, Any]) -> str:
    dtype = pretrained.get("dtype")
    if dtype not in ELEMENT_BYTES:
        raise refusal(f"config.json: dtype of the engine is {dtype!r:.40}; known are {', '.join(ELEMENT_BYTES)}")
    return str(dtype)


def _cache_bytes(pretrained: Mapping[str, Any]) -> int:
    """Of a number of the key-value cache."""
    algorithm = (pretrained.get("quantization") or {}).get("kv_cache_quant_algo")
    if algorithm is None:
        return ELEMENT_BYTES[_dtype(pretrained)]
    if algorithm in _NARROW_CACHES:
        return 1
    raise refusal(f"config.json: kv_cache_quant_algo {algorithm!r:.40} is not known; known are INT8 and FP8")


def _measured(layers: ModelLayers, built: BuiltEngine, narrow: tuple[int, int]) -> ModelLayers:
    """The parts with the bytes of the files, shared out within each stage as the family's sizes are.

    A stage takes as much on each of its devices as its largest rank.
    """
    parts: list[PartShape] = []
    first = 0
    for stage, count in enumerate(built.stage_layers):
        here = list(layers.layers[first : first + count])
        here = [layers.embedding, *here] if stage == 0 else here
        here = [*here, layers.head] if stage == len(built.stage_layers) - 1 else here
        ranks = built.rank_bytes[stage * built.tensor_size : (stage + 1) * built.tensor_size]
        parts += _shared_out(here, max(ranks) * built.tensor_size)
        first += count
    embedding, *decoders, head = (_narrow(part, *narrow) for part in parts)
    return ModelLayers(embedding, tuple(decoders), head, tied=Weights())


def _shared_out(parts: Sequence[PartShape], size: int) -> Iterable[PartShape]:
    whole = sum(part.weights.parameters for part in parts)
    done = taken = 0
    for part in parts:
        done += part.weights.parameters
        mine = size * done // whole - taken
        taken += mine
        active = mine * part.active.parameters // max(1, part.weights.parameters)
        yield replace(
            part,
            weights=Weights(part.weights.parameters, 0, mine),
            active=Weights(part.active.parameters, 0, active),
            whole=Weights(),  # what ranks repeat is in the size of their files
        )


def _narrow(part: PartShape, cache_bytes: int, element_bytes: int) -> PartShape:
    """Widths are counted in numbers of the engine's format; those of the cache may be narrower."""
    return replace(
        part,
        kv_width=part.kv_width * cache_bytes // element_bytes,
        compact_kv_width=part.compact_kv_width * cache_bytes // element_bytes,
    )


def check_built(spec: DeploymentSpec, shape: ModelShape) -> None:
    """An engine is for its own backend, and nothing else is; what its build has fixed cannot be asked otherwise.

    Raises InvalidArgumentError.
    """
    built = shape.built
    if built is None:
        if spec.backend == BACKEND:
            raise refusal(
                f"{BACKEND} serves built engines: name the folder that trtllm-build has written, with config.json and "
                "rank0.engine, or choose another backend"
            )
        return
    violations = []
    if spec.backend != BACKEND:
        violations.append(FieldViolation("spec.backend", f"this is a TensorRT-LLM engine: its backend is {BACKEND}"))
    if spec.dtype not in ("", built.dtype):
        violations.append(FieldViolation("spec.dtype", f"the engine was built for {built.dtype}: leave it empty"))
    if spec.max_batch_rows > built.max_batch_rows:
        limit = f"the engine was built for at most {built.max_batch_rows} rows (max_batch_size): ask for fewer"
        violations.append(FieldViolation("spec.max_batch_rows", limit))
    if violations:
        raise InvalidArgumentError(violations)
