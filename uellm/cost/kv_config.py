"""The cache layout of a decoder-only model, read from its Hugging Face `config.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from uellm.cost.kv_cache import KvCacheGroup, KvCacheLayout

Config = Mapping[str, Any]


class CacheForm(StrEnum):
    """What an engine keeps of a token where the architecture leaves a choice."""

    TRANSFORMERS = "transformers"
    """As transformers 5: the compressed vector of latent attention; Falcon's new decoder repeated for every head."""
    COMPACT = "compact"
    """The least that attention needs, as vLLM: the compressed vector, the shared heads once."""
    EXPANDED = "expanded"
    """Keys and values of every head, as earlier releases of transformers for latent attention."""


class UnknownCacheError(ValueError):
    """A config whose cache is not understood; the message says why and begins with the key."""


# Keys that, when set, mean a cache of another kind.
_UNKNOWN_KEYS = {
    "is_encoder_decoder": "an encoder beside the decoder",
    "add_cross_attention": "cross-attention",
    "state_size": "a state-space model",
    "ssm_cfg": "a state-space model",
    "mamba_d_state": "a hybrid with state-space layers",
    "attn_layer_period": "a hybrid with state-space layers",
    "hybrid_override_pattern": "a hybrid with state-space layers",
    "linear_num_value_heads": "a hybrid with linear attention",
    "linear_attn_config": "a hybrid with linear attention",
    "conv_L_cache": "a hybrid with convolutions",
    "lru_width": "a recurrent model",
    "index_topk": "sparse attention with an index of its own",
    "num_kv_shared_layers": "layers that share a cache",
    "attention_k_eq_v": "keys that serve as values",
    "per_layer_config": "layers of different shapes",
    "block_configs": "layers of different shapes",
    "global_head_dim": "layers of different shapes",
    "swa_num_key_value_heads": "layers of different shapes",
}
_UNKNOWN_TYPES = {"rwkv", "mamba", "mamba2", "falcon_mamba", "xlstm", "recurrent_gemma", "minimax", "zaya"}
_LATENT_TYPES = {"deepseek_v2", "deepseek_v3"}

# What a key that is left out stands for, where that is neither "none" nor derived from another.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "falcon": {"multi_query": True},
    "gemma": {"head_dim": 256, "num_key_value_heads": 16},
    "gemma2": {"head_dim": 256, "num_key_value_heads": 4, "num_attention_heads": 8, "sliding_window": 4096},
    "gemma3_text": {"head_dim": 256, "num_key_value_heads": 4, "num_attention_heads": 8, "sliding_window": 4096},
    "gpt_bigcode": {"multi_query": True},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {"num_key_value_heads": 8},
    "qwen3": {"head_dim": 128},
}
_WINDOW_SWITCHED = {"qwen2", "qwen2_moe", "qwen3", "qwen3_moe"}  # `use_sliding_window` turns the window on
_WINDOW_EVERYWHERE = {"mistral", "mixtral", "phi3", "phimoe", "starcoder2", "qwen3_moe"}

# Names of the same in different families.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
MAX_LAYERS = 4096
"""More are a slip of the pen, and would take memory for each."""
HEADS = ("num_attention_heads", "n_head")
HIDDEN = ("hidden_size", "n_embd", "n_embed")


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What is cached of a token, by layer. Widths are counts of numbers."""

    heads: int
    kv_heads: int
    """Heads whose keys and values are kept."""
    head_size: int
    cached_width: int
    """Numbers that one layer keeps of one token."""
    windows: tuple[int, ...]
    """Of each layer, in tokens; 0: none."""

    def layout(self, bytes_per_element: int) -> KvCacheLayout:
        """The layout, with so many bytes for each number kept."""
        layer_bytes = self.cached_width * bytes_per_element
        groups = Counter(self.windows)
        return KvCacheLayout(tuple(KvCacheGroup(layers, layer_bytes, window) for window, layers in groups.items()))


def attention_shape(config: Config, form: CacheForm = CacheForm.TRANSFORMERS) -> AttentionShape:
    """Read what the cache depends on.

    Raises:
        UnknownCacheError: the config is incomplete, or of a kind whose cache is not understood here.
    """
    text, kind = _with_defaults(config)
    _check_known(text, kind)
    if (layers := whole(text, *LAYERS)) > MAX_LAYERS:
        raise UnknownCacheError(f"`{LAYERS[0]}` {layers} is more than {MAX_LAYERS:,}, which no model has")
    heads, width = whole(text, *HEADS), _head_size(text, kind)
    kv_heads = _kv_heads(text, kind, form, heads)
    return AttentionShape(
        heads=heads,
        kv_heads=kv_heads,
        head_size=width,
        cached_width=_latent_elements(text, form) if kind in _LATENT_TYPES else 2 * kv_heads * width,
        windows=tuple(_windows(text, kind, layers)),
    )


def layout_from_config(
    config: Config, bytes_per_element: int, form: CacheForm = CacheForm.TRANSFORMERS
) -> KvCacheLayout:
    """The layout, with so many bytes for each number kept; raises UnknownCacheError as `attention_shape`."""
    return attention_shape(config, form).layout(bytes_per_element)


def text_part(config: Config) -> Config:
    """The language model's part of a config."""
    part = config.get("text_config")
    return part if isinstance(part, Mapping) and part else config


def _with_defaults(config: Config) -> tuple[dict[str, Any], str]:
    """The language model's part of a config, with what it leaves to the model's defaults, and its type."""
    text = text_part(config)
    kind = str(text.get("model_type") or "")
    return _DEFAULTS.get(kind, {}) | dict(text), kind


def _check_known(config: Config, kind: str) -> None:
    if kind in _UNKNOWN_TYPES:
        raise UnknownCacheError(f"`model_type` {kind} (a recurrent model, or a hybrid with one) is not supported")
    for key, what in _UNKNOWN_KEYS.items():
        if config.get(key):
            raise UnknownCacheError(f"`{key}` ({what}) is not supported")
    latent = config.get("kv_lora_rank") or config.get("v_head_dim")
    if latent and kind not in _LATENT_TYPES:
        known = ", ".join(sorted(_LATENT_TYPES))
        raise UnknownCacheError(f"`kv_lora_rank` (latent attention) is supported for model_type {known}, not {kind!r}")


def _latent_elements(config: Config, form: CacheForm) -> int:
    rope = whole(config, "qk_rope_head_dim")
    if form is CacheForm.EXPANDED:
        return whole(config, *HEADS) * (whole(config, "qk_nope_head_dim") + rope + whole(config, "v_head_dim"))
    return whole(config, "kv_lora_rank") + rope


def _head_size(config: Config, kind: str) -> int:
    if kind in _LATENT_TYPES:
        return whole(config, "qk_nope_head_dim") + whole(config, "qk_rope_head_dim")
    name = "kv_channels" if kind == "chatglm" else "head_dim"
    if config.get(name) is not None:
        return whole(config, name)
    hidden, heads = whole(config, *HIDDEN), whole(config, *HEADS)
    if hidden % heads:
        raise UnknownCacheError(f"`hidden_size` {hidden} is not divisible by {heads} attention heads")
    return hidden // heads


def _kv_heads(config: Config, kind: str, form: CacheForm, heads: int) -> int:
    if kind == "chatglm":
        return whole(config, "multi_query_group_num") if config.get("multi_query_attention") else heads
    if kind == "falcon" and config.get("new_decoder_architecture"):
        return optional(config, "num_kv_heads", heads) if form is CacheForm.COMPACT else heads
    if kind in ("falcon", "gpt_bigcode") and config.get("multi_query"):
        return 1
    return optional(config, "num_kv_heads" if kind == "falcon" else "num_key_value_heads", heads)


def _windows(config: Config, kind: str, layers: int) -> list[int]:
    """The window of each layer, 0 where there is none."""
    types = config.get("layer_types") or _layer_types(config, kind, layers)
    if not isinstance(types, list | tuple):
        raise UnknownCacheError(f"`layer_types` must be a list, not {types!r:.40}")
    strange = sorted({str(kind) for kind in types} - {"full_attention", "sliding_attention"})
    if strange:
        raise UnknownCacheError(f"`layer_types`: {', '.join(strange)} is not supported")
    if len(types) != layers:
        raise UnknownCacheError(f"`layer_types` names {len(types)} layers, there are {layers}")
    window = _window(config) if "sliding_attention" in types else 0
    return [window if kind == "sliding_attention" else 0 for kind in types]


def _layer_types(config: Config, kind: str, layers: int) -> list[str]:
    """What transformers derives when the config does not say it."""
    switched_off = kind in _WINDOW_SWITCHED and not config.get("use_sliding_window")
    if config.get("attention_chunk_size"):
        raise UnknownCacheError("`attention_chunk_size` (attention in chunks) is not supported")
    if config.get("sliding_window") is None or switched_off:
        return ["full_attention"] * layers
    first = optional(config, "max_window_layers", 28, least=0)
    if kind in ("qwen2", "qwen3"):
        full = set(range(min(first, layers)))
    elif kind == "qwen2_moe":
        full = {i for i in range(layers) if i % 2 or i >= first}
    elif kind in ("gemma2", "gemma3_text"):
        period = 2 if kind == "gemma2" else optional(config, "sliding_window_pattern", 6)
        full = set(range(period - 1, layers, period))
    elif kind in _WINDOW_EVERYWHERE:
        full = set()
    else:
        raise UnknownCacheError(
            f"`sliding_window` without `layer_types` is not understood for model_type {kind!r}: which layers have it?"
        )
    return ["full_attention" if i in full else "sliding_attention" for i in range(layers)]


def _window(config: Config) -> int:
    window = whole(config, "sliding_window")
    if window < 2:
        raise UnknownCacheError("`sliding_window` must be at least 2")
    return window // 2 + 1 if config.get("use_bidirectional_attention") else window


def whole(config: Config, *names: str) -> int:
    """The first of these keys that is set, a positive integer; raises UnknownCacheError."""
    value = next((config[name] for name in names if config.get(name) is not None), None)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnknownCacheError(f"`{names[0]}` must be a positive integer, not {value!r:.40}")
    return value


def optional(config: Config, name: str, default: int, least: int = 1) -> int:
    """An integer that may be left out; raises UnknownCacheError if it is something else."""
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UnknownCacheError(f"`{name}` must be an integer of at least {least}, not {value!r:.40}")
    return value
