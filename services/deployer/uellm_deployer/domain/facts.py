"""What is known of a model from its config and the headers of its weights, without loading it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from uellm.cost.kv_cache import KvCacheLayout
from uellm.cost.kv_config import HIDDEN, AttentionShape, UnknownCacheError, attention_shape, whole
from uellm.cost.memory import ActivationShape, activation_shape
from uellm.rpc.errors import FieldViolation, InvalidArgumentError

FIELD = "spec.weights_path"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model is, in the number format in which it is loaded. Sizes in bytes."""

    architecture: str
    layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int
    head_size: int
    vocabulary_size: int
    context_limit_tokens: int
    weight_bytes: int
    kv_bytes_per_token: int
    parameter_count: int
    kv_cache: KvCacheLayout = field(default_factory=KvCacheLayout)
    """Empty in entries of a journal that is older than this field."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model is, whatever its number format."""

    architecture: str
    hidden_size: int
    vocabulary_size: int
    context_limit_tokens: int
    attention: AttentionShape
    activations: ActivationShape
    parameter_count: int
    fingerprint: str
    """Of config and weights: changes when they do."""
    tied_head: bool = False
    """Whether the output head is the embedding."""

    def facts(self, bytes_per_element: int, *, head_copies: int = 0) -> ModelFacts:
        """The facts when every parameter and cache element takes so many bytes.

        `head_copies`: how many more matrices of the size of the output head the engine holds, in a layout of its own.
        """
        head = self.vocabulary_size * self.hidden_size * head_copies
        kv_cache = self.attention.layout(bytes_per_element)
        return ModelFacts(
            architecture=self.architecture,
            layers=len(self.attention.windows),
            hidden_size=self.hidden_size,
            attention_heads=self.attention.heads,
            kv_heads=self.attention.kv_heads,
            head_size=self.attention.head_size,
            vocabulary_size=self.vocabulary_size,
            context_limit_tokens=self.context_limit_tokens,
            weight_bytes=(self.parameter_count + head) * bytes_per_element,
            kv_bytes_per_token=kv_cache.bytes_per_token,
            parameter_count=self.parameter_count,
            kv_cache=kv_cache,
        )


def refusal(description: str) -> InvalidArgumentError:
    """The error for a model that cannot be deployed."""
    return InvalidArgumentError([FieldViolation(FIELD, description)])


def model_shape(config: Mapping[str, Any], tensors: Iterable[TensorInfo], fingerprint: str) -> ModelShape:
    """Read a decoder-only model's shape from its `config.json` and tensors.

    Raises InvalidArgumentError for a config that is incomplete or of a kind whose memory is not understood here.
    """
    _check_supported(config)
    try:
        return _shape(config, tensors, fingerprint)
    except UnknownCacheError as error:
        raise refusal(f"config.json: {error}") from None


def _shape(config: Mapping[str, Any], tensors: Iterable[TensorInfo], fingerprint: str) -> ModelShape:
    return ModelShape(
        architecture=config["architectures"][0],
        hidden_size=whole(config, *HIDDEN),
        vocabulary_size=whole(config, "vocab_size"),
        context_limit_tokens=whole(config, "max_position_embeddings", "n_positions", "n_ctx"),
        attention=attention_shape(config),
        activations=activation_shape(config),
        parameter_count=_parameter_count(tensors, tied=config.get("tie_word_embeddings") is True),
        fingerprint=fingerprint,
        tied_head=config.get("tie_word_embeddings") is True,
    )


def _check_supported(config: Mapping[str, Any]) -> None:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        raise refusal("config.json: `architectures` must name one architecture")
    if config.get("is_encoder_decoder") or not architectures[0].endswith(("ForCausalLM", "LMHeadModel")):
        raise refusal(f"config.json: {architectures[0]} is not supported: only decoder-only causal language models are")
    if config.get("quantization_config"):
        raise refusal("config.json: `quantization_config` (quantised weights) is not supported")


def _parameter_count(tensors: Iterable[TensorInfo], *, tied: bool) -> int:
    """Numbers of all tensors; a tied output head that is stored again is loaded once."""
    by_name = {tensor.name: tensor for tensor in tensors}
    strange = sorted(
        {tensor.dtype for tensor in by_name.values()} - {"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL", "U8"}
    )
    if strange:
        raise refusal(f"the weights hold numbers of format {', '.join(strange)}, which is not supported")
    embedding = any(name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")) for name in by_name)
    if tied and embedding:
        by_name.pop("lm_head.weight", None)
    count = sum(prod(tensor.shape) for tensor in by_name.values() if tensor.dtype[0] in "FB" and tensor.dtype != "BOOL")
    if count < 1:
        raise refusal("the weights hold no parameter")
    return count
