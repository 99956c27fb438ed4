"""The network: a backbone with LoRA, and a head that gives the hazards of the length buckets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uellm_profiler.neural.inputs import NUMBERS

_MODEL_WIDTH = 8


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Sizes of the head."""

    hidden_size: int
    """Of the backbone."""
    served_models: tuple[str, ...]
    """Models with labels; others share one more row of the table."""
    buckets: int
    width: int = 192
    dropout: float = 0.1


class HazardHead(nn.Module):
    """Hazards from what the backbone makes of a prompt, the query's numbers, and the served model."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        self._indices = {name: index for index, name in enumerate(shape.served_models, 1)}
        self.norm = nn.LayerNorm(2 * shape.hidden_size)
        self.models = nn.Embedding(1 + len(shape.served_models), _MODEL_WIDTH)
        self.inner = nn.Linear(2 * shape.hidden_size + NUMBERS + _MODEL_WIDTH, shape.width)
        self.drop = nn.Dropout(shape.dropout)
        self.outer = nn.Linear(shape.width, shape.buckets)

    def start_at(self, hazards: Tensor) -> None:
        """Give these hazards, (buckets,), for every query, as long as nothing is learnt."""
        with torch.no_grad():
            self.outer.weight.mul_(0.1)
            self.outer.bias.copy_(torch.logit(hazards))

    def model_indices(self, models: Sequence[str]) -> Tensor:
        """Row of the table for each served model; 0 for one without labels."""
        return torch.tensor([self._indices.get(model, 0) for model in models])

    def forward(self, pooled: Tensor, numbers: Tensor, models: Tensor) -> Tensor:
        """Logits of the hazards, (queries, buckets).

        Args:
            pooled: (queries, 2 * hidden size), of `pool`.
            numbers: (queries, NUMBERS).
            models: (queries,), of `model_indices`.
        """
        features = torch.cat([self.norm(pooled), numbers, self.models(models)], dim=1)
        logits: Tensor = self.outer(self.drop(nn.functional.silu(self.inner(self.drop(features)))))
        return logits


def pool(backbone: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean over the prompt and the state at its last token, (prompts, 2 * hidden size), in single precision.

    Args:
        backbone: gives `last_hidden_state`.
        ids: (prompts, tokens), padded on the right.
        mask: of the same shape, 1 where there is a token.
    """
    states = backbone(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    weights = mask.unsqueeze(-1).float()
    mean = (states * weights).sum(1) / weights.sum(1)
    last = states[torch.arange(len(ids)), mask.sum(1) - 1]
    return torch.cat([mean, last], dim=1)


def pad(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask of a batch, each (prompts, longest)."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        mask[row, : len(prompt)] = 1
    return ids, mask
