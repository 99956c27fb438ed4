"""What is known of a model from its config and the headers of its weights, without loading it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from uellm.cost.memory import kv_bytes_per_token
from uellm.rpc.errors import FieldViolation, InvalidArgumentError

FIELD = "spec.weights_path"

# Config keys whose models hold something else than keys and values of every head and layer, with what they stand for.
_UNSUPPORTED_KEYS = {
    "kv_lora_rank": "latent attention",
    "state_size": "a state-space model",
    "ssm_cfg": "a state-space model",
    "mamba_d_state": "a hybrid with state-space layers",
    "quantization_config": "quantised weights",
}
_FULL_CACHE_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

# Names in the config of transformers, the GPT-2 family's second.
_KEYS = {
    "layers": ("num_hidden_layers", "n_layer"),
    "hidden_size": ("hidden_size", "n_embd"),
    "attention_heads": ("num_attention_heads", "n_head"),
    "vocabulary_size": ("vocab_size",),
    "context_limit_tokens": ("max_position_embeddings", "n_positions", "n_ctx"),
}


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


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model is, whatever its number format."""

    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_size: int
    vocabulary_size: int
    context_limit_tokens: int
    parameter_count: int
    fingerprint: str
    """Of config and weights: changes when they do."""
    tied_head: bool = False
    """Whether the output head is the embedding."""

    def facts(self, bytes_per_element: int, *, head_apart: bool = False) -> ModelFacts:
        """The facts when every parameter and cache element takes so many bytes.

        `head_apart`: the engine holds a tied output head a second time, in a layout of its own.
        """
        head = self.vocabulary_size * self.hidden_size if self.tied_head and head_apart else 0
        return ModelFacts(
            architecture=self.architecture,
            layers=self.layers,
            hidden_size=self.hidden_size,
            attention_heads=self.attention_heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            vocabulary_size=self.vocabulary_size,
            context_limit_tokens=self.context_limit_tokens,
            weight_bytes=(self.parameter_count + head) * bytes_per_element,
            kv_bytes_per_token=kv_bytes_per_token(self.layers, self.kv_heads, self.head_size, bytes_per_element),
            parameter_count=self.parameter_count,
        )


def refusal(description: str) -> InvalidArgumentError:
    """The error for a model that cannot be deployed."""
    return InvalidArgumentError([FieldViolation(FIELD, description)])


def model_shape(config: Mapping[str, Any], tensors: Iterable[TensorInfo], fingerprint: str) -> ModelShape:
    """Read a decoder-only model's shape from its `config.json` and tensors.

    Raises InvalidArgumentError for a config that is incomplete or of a kind whose memory is not understood here.
    """
    _check_supported(config)
    sizes = {name: _size(config, keys) for name, keys in _KEYS.items()}
    heads, hidden = sizes["attention_heads"], sizes["hidden_size"]
    if not config.get("head_dim") and hidden % heads:
        raise refusal(f"config.json: hidden_size {hidden} is not divisible by {heads} attention heads")
    return ModelShape(
        architecture=config["architectures"][0],
        kv_heads=_size(config, ("num_key_value_heads",), heads),
        head_size=_size(config, ("head_dim",), hidden // heads),
        intermediate_size=_size(config, ("intermediate_size", "n_inner"), 4 * hidden),
        parameter_count=_parameter_count(tensors, tied=config.get("tie_word_embeddings") is True),
        fingerprint=fingerprint,
        tied_head=config.get("tie_word_embeddings") is True,
        **sizes,
    )


def _check_supported(config: Mapping[str, Any]) -> None:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        raise refusal("config.json: `architectures` must name one architecture")
    if config.get("is_encoder_decoder") or not architectures[0].endswith(("ForCausalLM", "LMHeadModel")):
        raise refusal(f"config.json: {architectures[0]} is not supported: only decoder-only causal language models are")
    for key, kind in _UNSUPPORTED_KEYS.items():
        if config.get(key):
            raise refusal(f"config.json: `{key}` ({kind}) is not supported")
    strange = sorted(set(config.get("layer_types") or ()) - _FULL_CACHE_LAYERS)
    if strange:
        raise refusal(f"config.json: layer type {', '.join(strange)} is not supported")


def _size(config: Mapping[str, Any], keys: tuple[str, ...], default: int | None = None) -> int:
    value = next((config[key] for key in keys if config.get(key) is not None), default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refusal(f"config.json: `{keys[0]}` must be a positive integer, not {value!r:.40}")
    return value


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
