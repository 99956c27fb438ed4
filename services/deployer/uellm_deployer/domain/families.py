"""Families of decoder-only models whose weights follow from `config.json`: transformers' own architectures.

Sizes are counted as transformers 5 builds the models; names are those of published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uellm.cost.kv_config import HIDDEN, AttentionShape, CacheForm, attention_shape, optional, whole
from uellm_deployer.domain.blocks import (
    Attention,
    FeedForward,
    Sizes,
    deepseek_feed_forward,
    flag,
    fused,
    gated,
    latent,
    mixtral_feed_forward,
    phi3_feed_forward,
    plain,
    qwen_feed_forward,
    separate,
)
from uellm_deployer.domain.storage import Linear

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Block:
    """The weights of a decoder layer: its matrices, and how many numbers its norms hold."""

    linears: tuple[Linear, ...]
    norms: int


@dataclass(frozen=True, slots=True)
class Blueprint:
    """The weights of a model. The output head has one column for each of the vocabulary."""

    prefix: str
    """Of a layer's name, as in `model.layers.`."""
    embedding: int
    """Numbers looked up: of tokens, and of positions where they are learnt."""
    embedding_row: int
    """Of them, those that one token takes."""
    blocks: tuple[Block, ...]
    final: int
    """Numbers between the last layer and the head."""
    head: Linear
    tied: bool


Norms = Callable[[Config, Sizes], int]


@dataclass(frozen=True, slots=True)
class _Style:
    """How a family differs from the others."""

    attention: Attention
    feed_forward: FeedForward
    norms: Norms
    """Numbers in the norms of a layer."""
    norm_bias: bool = False
    """Whether norms have one: of the last norm."""
    tied: bool = False
    """If the config does not say."""
    prefix: str = "model.layers."
    positions: str = ""
    """Key of the number of learnt positions."""
    head_bias: bool = False


def blueprint(config: Config) -> Blueprint | None:
    """The weights of a model; None for a family that is not known.

    Raises:
        UnknownCacheError: the config is incomplete, or of a variant that is not understood.
    """
    kind = str(config.get("model_type") or "")
    if kind not in _STYLES:
        return None
    style = _STYLES[kind]
    sizes = _sizes(config, attention_shape(config, CacheForm.COMPACT))
    hidden, vocabulary = sizes.hidden, whole(config, "vocab_size")
    norms = style.norms(config, sizes)
    blocks = tuple(
        Block(tuple(style.attention(config, sizes) + style.feed_forward(config, sizes, layer)), norms)
        for layer in range(sizes.layers)
    )
    positions = (whole(config, *style.positions.split()) if style.positions else 0) * hidden
    plan = Blueprint(
        prefix=style.prefix,
        embedding=vocabulary * hidden + positions,
        embedding_row=hidden + (hidden if positions else 0),
        blocks=blocks,
        final=2 * hidden if style.norm_bias else hidden,
        head=Linear("lm_head", hidden, vocabulary, style.head_bias),
        tied=is_tied(config),
    )
    return _opt(config, plan) if kind == "opt" else plan


def is_tied(config: Config) -> bool:
    """Whether the output head is the embedding; the family's habit where the config does not say."""
    said = config.get("tie_word_embeddings")
    style = _STYLES.get(str(config.get("model_type") or ""))
    return said if isinstance(said, bool) else style is not None and style.tied


def context_limit(config: Config) -> int:
    """Longest context, in tokens; raises UnknownCacheError."""
    falcon = {"max_position_embeddings": 2048} if config.get("model_type") == "falcon" else {}  # its files leave it out
    return whole(falcon | dict(config), "max_position_embeddings", "n_positions", "n_ctx")


def _sizes(config: Config, attention: AttentionShape) -> Sizes:
    return Sizes(
        whole(config, *HIDDEN), attention.heads, attention.kv_heads, attention.head_size, len(attention.windows)
    )


def _rms(count: int, *, heads: bool = False) -> Norms:
    """So many norms as wide as the model; if `heads` one each for queries and keys, as wide as a head."""
    return lambda _, sizes: count * sizes.hidden + (2 * sizes.head if heads else 0)


def _with_bias(_: Config, sizes: Sizes) -> int:
    """Two layer norms."""
    return 4 * sizes.hidden


def _latent_norms(config: Config, sizes: Sizes) -> int:
    return 2 * sizes.hidden + whole(config, "kv_lora_rank") + optional(config, "q_lora_rank", 0)


def _falcon_norms(config: Config, sizes: Sizes) -> int:
    if not flag(config, "parallel_attn", default=True):
        return 4 * sizes.hidden
    together = optional(config, "num_ln_in_parallel_attn", 2 if config.get("new_decoder_architecture") else 1)
    return 2 * sizes.hidden * together


def _phi_norms(config: Config, sizes: Sizes) -> int:
    return 2 * sizes.hidden + (4 * sizes.head if config.get("qk_layernorm") else 0)


def _opt_norms(config: Config, sizes: Sizes) -> int:
    return 4 * sizes.hidden if flag(config, "layer_norm_elementwise_affine", default=True) else 0


def _opt(config: Config, plan: Blueprint) -> Blueprint:
    """Positions begin behind two that stand for padding; small models embed in a narrower space."""
    hidden, vocabulary = whole(config, *HIDDEN), whole(config, "vocab_size")
    width = optional(config, "word_embed_proj_dim", hidden)
    project = width * hidden if width != hidden else 0
    affine = flag(config, "layer_norm_elementwise_affine", default=True)
    ends = flag(config, "do_layer_norm_before", default=True) and not config.get("_remove_final_layer_norm")
    return Blueprint(
        prefix=plan.prefix,
        embedding=vocabulary * width + (whole(config, "max_position_embeddings") + 2) * hidden + project,
        embedding_row=width + hidden + project,
        blocks=plan.blocks,
        final=(2 * hidden if ends and affine else 0) + project,
        head=Linear("lm_head", width, vocabulary),
        tied=plan.tied,
    )


_LLAMA = _Style(separate(), gated("mlp_bias"), _rms(2))
_GPT2 = _Style(
    fused("attn.c_attn", "attn.c_proj"),
    plain("mlp.c_fc", "mlp.c_proj", "n_inner"),
    _with_bias,
    norm_bias=True,
    tied=True,
    prefix="transformer.h.",
    positions="n_positions max_position_embeddings",
)
_DEEPSEEK = _Style(latent, deepseek_feed_forward, _latent_norms)

_STYLES: dict[str, _Style] = {
    "llama": _LLAMA,
    "granite": _LLAMA,
    "mistral": _Style(separate(""), gated(), _rms(2)),
    "qwen2": _Style(separate("", default=True, out=False), gated(), _rms(2)),
    "qwen3": _Style(separate(), gated(), _rms(2, heads=True)),
    "gemma": _Style(separate(), gated(), _rms(2), tied=True),
    "gemma2": _Style(separate(), gated(), _rms(4), tied=True),
    "gemma3_text": _Style(separate(), gated(), _rms(4, heads=True), tied=True),
    "phi": _Style(
        separate("", default=True),
        plain("mlp.fc1", "mlp.fc2", "intermediate_size"),
        _phi_norms,
        norm_bias=True,
        head_bias=True,
    ),
    "phi3": _Style(fused("self_attn.qkv_proj", "self_attn.o_proj", default=False), phi3_feed_forward, _rms(2)),
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": _Style(
        fused("attention.query_key_value", "attention.dense", "attention_bias"),
        plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "intermediate_size"),
        _with_bias,
        norm_bias=True,
        prefix="gpt_neox.layers.",
    ),
    "opt": _Style(
        separate("enable_bias", default=True),
        plain("fc1", "fc2", "ffn_dim", "enable_bias"),
        _opt_norms,
        norm_bias=True,
        tied=True,
        prefix="model.decoder.layers.",
    ),
    "falcon": _Style(
        fused("self_attention.query_key_value", "self_attention.dense", "bias", default=False),
        plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "ffn_hidden_size", "bias", default=False),
        _falcon_norms,
        norm_bias=True,
        tied=True,
        prefix="transformer.h.",
    ),
    "starcoder2": _Style(
        separate("use_bias", default=True),
        plain("mlp.c_fc", "mlp.c_proj", "intermediate_size", "use_bias"),
        _with_bias,
        norm_bias=True,
        tied=True,
    ),
    "mixtral": _Style(separate(""), mixtral_feed_forward, _rms(2)),
    "qwen2_moe": _Style(separate("qkv_bias", default=True, out=False), qwen_feed_forward, _rms(2)),
    "qwen3_moe": _Style(separate(), qwen_feed_forward, _rms(2, heads=True)),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
}
KNOWN = tuple(sorted(_STYLES))
"""Their `model_type`."""
