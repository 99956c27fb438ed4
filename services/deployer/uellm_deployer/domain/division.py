"""What a tensor-parallel group must divide of a model, and the sizes of groups that an engine can form for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

from uellm.cost.kv_config import CacheForm, attention_shape, optional, text_part
from uellm_deployer.domain.quantisation import Quantisation

_INNER_WIDTHS = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "ffn_hidden_size",
    "ffn_dim",
    "n_inner",
)
"""Keys of the inner widths of feed-forward parts."""


@dataclass(frozen=True, slots=True)
class Division:
    """What of a model is shared out among the members of a group."""

    heads: int
    kv_heads: int
    """1 for latent attention too: its compressed vector serves all heads, so that every member keeps it."""
    head_size: int
    latent: bool
    inner_widths: tuple[int, ...]
    """Of feed-forward parts, as far as the config tells them."""

    def allows(self, size: int, scheme: Quantisation | None) -> bool:
        """Whether so many members can share each layer, as vLLM does.

        Whole heads for each; keys and values in whole heads, or a head repeated for the same number of members; equal
        parts of the inner widths, and of quantised ones in whole groups and blocks.
        """
        if size == 1:
            return True
        grain = (1, 1) if scheme is None else scheme.grain
        if grain is None or self.heads % size or (self.kv_heads % size and size % self.kv_heads):
            return False
        keys = max(1, self.kv_heads // size) * self.head_size
        widths = (*self.inner_widths, self.heads * self.head_size)
        return (self.latent or keys % grain[0] == 0) and all(width % (size * lcm(*grain)) == 0 for width in widths)


def division(config: Mapping[str, Any]) -> Division:
    """Read it from a `config.json`; raises UnknownCacheError."""
    text, shape = text_part(config), attention_shape(config, CacheForm.COMPACT)
    latent = bool(text.get("kv_lora_rank"))
    return Division(
        heads=shape.heads,
        kv_heads=1 if latent else shape.kv_heads,
        head_size=shape.head_size,
        latent=latent,
        inner_widths=tuple(width for key in _INNER_WIDTHS if (width := optional(text, key, 0, least=0))),
    )


def tensor_sizes(possible: Iterable[int], found: Division | None, scheme: Quantisation | None) -> tuple[int, ...]:
    """Those of the sizes that the model can be shared by; of a model whose shares are not known, 1 only."""
    return tuple(size for size in possible if size == 1 or (found is not None and found.allows(size, scheme)))
