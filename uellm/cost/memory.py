"""What a model occupies on its devices: weights, key-value cache, activations, framework. All results are bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uellm.cost.kv_config import HEADS, HIDDEN, Config, attention_shape, optional, text_part, whole

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one number, by format."""

_SINGLE = 4


@dataclass(frozen=True, slots=True)
class ActivationShape:
    """Numbers that are alive at once while one layer computes: the attention or the feed-forward part."""

    feed_forward_width: int
    """Of each token of the pass."""
    attention_width: int
    """Of each token of the pass."""
    context_width: int
    """Of each token of the context: keys and values repeated, or unpacked from their compressed form, for all heads."""
    masks: int
    """Kinds of attention masks."""
    score_heads: int
    """Heads whose scores become a tensor; 0 with a fused kernel."""
    vocabulary: int

    def bytes_of(self, rows: int, new_tokens: int, context_tokens: int, bytes_per_element: int) -> int:
        """Most that is alive in a pass of `new_tokens` of each of `rows` rows, the last of `context_tokens`.

        The logits are those of each row's last token, in single precision.
        """
        tokens, pairs = rows * new_tokens, rows * new_tokens * context_tokens
        attention = (tokens * self.attention_width + rows * context_tokens * self.context_width) * bytes_per_element
        attention += 2 * pairs * self.score_heads * _SINGLE
        feed_forward = tokens * self.feed_forward_width * bytes_per_element
        masks = pairs * self.masks * (bytes_per_element if self.score_heads else 1)
        return max(attention, feed_forward) + masks + rows * self.vocabulary * _SINGLE


def activation_shape(config: Config) -> ActivationShape:
    """Read it from a `config.json`, for transformers on its default kernels; raises UnknownCacheError.

    Alive besides the part that computes: the embedded prompt and its positions, the layer's input, the residual, its
    norm, the rotary tables. A feed-forward part holds four tensors at most (gate and up, their activation, their
    product), a mixture of experts as much for each expert of a token, with the token going in and coming out, and the
    router's copy of it in single precision.
    """
    text: dict[str, Any] = dict(text_part(config))
    attention, hidden = attention_shape(config), whole(text, *HIDDEN)
    heads = whole(text, *HEADS) * attention.head_size
    kept = 2 * attention.kv_heads * attention.head_size
    repeated = 2 * heads if attention.kv_heads * attention.head_size < heads else 0
    if text.get("kv_lora_rank"):
        values = whole(text, *HEADS) * whole(text, "v_head_dim")
        kept, repeated = attention.cached_width, 2 * (heads + values)
    common = 5 * hidden + 4 * attention.head_size
    return ActivationShape(
        feed_forward_width=common + _feed_forward(text, hidden),
        attention_width=common + 3 * heads + kept,
        context_width=repeated,
        masks=2 if any(attention.windows) else 1,
        score_heads=whole(text, *HEADS) if text.get("attn_logit_softcapping") else 0,
        vocabulary=whole(text, "vocab_size", "padded_vocab_size"),
    )


def _feed_forward(config: Config, hidden: int) -> int:
    dense = 4 * _intermediate_size(config, hidden)
    experts = optional(config, "num_experts_per_tok", 0, least=0)
    if not experts:
        return dense
    width = optional(config, "moe_intermediate_size", _intermediate_size(config, hidden))
    shared = optional(config, "n_shared_experts", 0, least=0)
    return max(dense, 2 * hidden + experts * (2 * hidden + 4 * width) + 4 * shared * width)


def _intermediate_size(config: Config, hidden: int) -> int:
    """Of a dense feed-forward part: four times the residual stream if the config does not say."""
    names = ("intermediate_size", "ffn_hidden_size", "n_inner")
    return whole(config, *names) if any(config.get(name) is not None for name in names) else 4 * hidden


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Most that a batch has in use at once. Bytes."""

    weights: int
    kv_cache: int
    activations: int
    reserve: int
    """What the framework takes besides tensors."""

    @property
    def total(self) -> int:
        """All of it: an upper bound, for cache and activations need not peak together."""
        return self.weights + self.kv_cache + self.activations + self.reserve
