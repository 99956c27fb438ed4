"""The matrices of a decoder layer, family by family: attention and feed-forward parts of transformers' models.

Names are those of published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uellm.cost.kv_config import UnknownCacheError, optional, whole
from uellm_deployer.domain.storage import Linear

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths that the parts have in common."""

    hidden: int
    heads: int
    kv_heads: int
    head: int
    """Width of one."""
    layers: int

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head


Attention = Callable[[Config, Sizes], list[Linear]]
FeedForward = Callable[[Config, Sizes, int], list[Linear]]
"""The last argument is the layer's index."""


def flag(config: Config, name: str, *, default: bool = False) -> bool:
    """A key that is true or false, or left out."""
    value = config.get(name)
    return default if value is None else bool(value)


def separate(bias: str = "attention_bias", *, default: bool = False, out: bool = True) -> Attention:
    """Queries, keys, values and output apart; `bias` is the key that gives them one, the output too if `out`."""

    def linears(config: Config, sizes: Sizes) -> list[Linear]:
        has = flag(config, bias, default=default)
        return [
            Linear("self_attn.q_proj", sizes.hidden, sizes.queries, has),
            Linear("self_attn.k_proj", sizes.hidden, sizes.keys, has),
            Linear("self_attn.v_proj", sizes.hidden, sizes.keys, has),
            Linear("self_attn.o_proj", sizes.queries, sizes.hidden, has and out),
        ]

    return linears


def fused(into: str, out: str, bias: str = "", *, default: bool = True) -> Attention:
    """Queries, keys and values in one matrix."""

    def linears(config: Config, sizes: Sizes) -> list[Linear]:
        has = flag(config, bias, default=default)
        return [
            Linear(into, sizes.hidden, sizes.queries + 2 * sizes.keys, has),
            Linear(out, sizes.queries, sizes.hidden, has),
        ]

    return linears


def latent(config: Config, sizes: Sizes) -> list[Linear]:
    """Multi-head latent attention; the heads of `sizes` are as wide as queries."""
    rank, rope = whole(config, "kv_lora_rank"), whole(config, "qk_rope_head_dim")
    values, has = whole(config, "v_head_dim"), flag(config, "attention_bias")
    queries = [Linear("self_attn.q_proj", sizes.hidden, sizes.queries)]
    if low := optional(config, "q_lora_rank", 0):
        queries = [
            Linear("self_attn.q_a_proj", sizes.hidden, low, has),
            Linear("self_attn.q_b_proj", low, sizes.queries),
        ]
    unpacked = sizes.heads * (whole(config, "qk_nope_head_dim") + values)
    return [
        *queries,
        Linear("self_attn.kv_a_proj_with_mqa", sizes.hidden, rank + rope, has),
        Linear("self_attn.kv_b_proj", rank, unpacked),
        Linear("self_attn.o_proj", sizes.heads * values, sizes.hidden, has),
    ]


def gated(bias: str = "") -> FeedForward:
    """Gate, up and down."""

    def linears(config: Config, sizes: Sizes, _: int) -> list[Linear]:
        return _gate_up_down("mlp", sizes.hidden, whole(config, "intermediate_size"), bias=flag(config, bias))

    return linears


def _gate_up_down(
    name: str, hidden: int, width: int, copies: int = 1, chosen: int = 1, *, bias: bool = False
) -> list[Linear]:
    return [
        Linear(f"{name}.gate_proj", hidden, width, bias, copies, chosen),
        Linear(f"{name}.up_proj", hidden, width, bias, copies, chosen),
        Linear(f"{name}.down_proj", width, hidden, bias, copies, chosen),
    ]


def plain(into: str, out: str, width: str, bias: str = "", *, default: bool = True) -> FeedForward:
    """Up and down; `width` are the names of the inner width, four times the hidden one if none is set."""

    def linears(config: Config, sizes: Sizes, _: int) -> list[Linear]:
        names = width.split()
        given = any(config.get(name) is not None for name in names)
        inner = whole(config, *names) if given else 4 * sizes.hidden
        has = flag(config, bias, default=default)
        return [Linear(into, sizes.hidden, inner, has), Linear(out, inner, sizes.hidden, has)]

    return linears


def phi3_feed_forward(config: Config, sizes: Sizes, _: int) -> list[Linear]:
    """Gate and up in one matrix."""
    width = whole(config, "intermediate_size")
    return [
        Linear("mlp.gate_up_proj", sizes.hidden, 2 * width),
        Linear("mlp.down_proj", width, sizes.hidden),
    ]


def _experts(name: str, config: Config, sizes: Sizes, width: int) -> list[Linear]:
    """Experts and what chooses among them."""
    copies = whole(config, "num_experts", "num_local_experts", "n_routed_experts")
    chosen = whole(config, "num_experts_per_tok")
    return [
        Linear(f"{name}.gate", sizes.hidden, copies, router=True),
        *_gate_up_down(f"{name}.experts.0", sizes.hidden, width, copies, min(chosen, copies)),
    ]


def mixtral_feed_forward(config: Config, sizes: Sizes, _: int) -> list[Linear]:
    """Experts in every layer."""
    return _experts("block_sparse_moe", config, sizes, whole(config, "intermediate_size"))


def qwen_feed_forward(config: Config, sizes: Sizes, layer: int) -> list[Linear]:
    """Experts, in Qwen2 beside a shared one; some layers are dense."""
    dense_layers = config.get("mlp_only_layers") or ()
    if not isinstance(dense_layers, list | tuple):
        raise UnknownCacheError(f"`mlp_only_layers` must be a list, not {dense_layers!r:.40}")
    if layer in dense_layers or (layer + 1) % optional(config, "decoder_sparse_step", 1):
        return _gate_up_down("mlp", sizes.hidden, whole(config, "intermediate_size"))
    linears = _experts("mlp", config, sizes, whole(config, "moe_intermediate_size"))
    if config.get("model_type") == "qwen2_moe":
        shared = whole(config, "shared_expert_intermediate_size")
        linears += _gate_up_down("mlp.shared_expert", sizes.hidden, shared)
        linears += [Linear("mlp.shared_expert_gate", sizes.hidden, 1, router=True)]
    return linears


def deepseek_feed_forward(config: Config, sizes: Sizes, layer: int) -> list[Linear]:
    """Routed and shared experts; the first layers are dense."""
    if layer < optional(config, "first_k_dense_replace", 0, least=0):
        dense = whole(config, "intermediate_size")
        return _gate_up_down("mlp", sizes.hidden, dense, bias=flag(config, "mlp_bias"))
    width = whole(config, "moe_intermediate_size")
    shared = width * whole(config, "n_shared_experts")
    return [
        *_experts("mlp", config, sizes, width),
        *_gate_up_down("mlp.shared_experts", sizes.hidden, shared, bias=flag(config, "mlp_bias")),
    ]
