"""The padded static batch: prefill with left padding, steps, and rows that leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cache import is_trimmable, keep_rows
from .language_model import LanguageModel

PREFILL_TOKENS = 16384  # padded tokens of one prefill pass, which bounds its activations


class StaticBatch:
    """Rows that step together. Every row takes the place of the longest: `padded` columns."""

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
        """`prompts` holds the token ids of each row, at least one each."""
        self._model = model
        self._cache = model.new_cache()
        self._trimmable = is_trimmable(self._cache)
        self.contexts = [len(prompt) for prompt in prompts]
        self.padded = max(self.contexts)
        self._tokens = torch.zeros(len(prompts), self.padded, dtype=torch.long)
        self._mask = torch.zeros_like(self._tokens)
        for row, prompt in enumerate(prompts):
            self._tokens[row, self.padded - len(prompt) :] = torch.tensor(prompt)
            self._mask[row, self.padded - len(prompt) :] = 1

    @property
    def rows(self) -> int:
        """Rows in the batch."""
        return len(self.contexts)

    def prefill(self) -> Tensor:
        """Run the prompts; returns the logits [rows, vocabulary] of the first new token."""
        positions = (self._mask.cumsum(dim=-1) - 1).clamp(min=0)
        width = max(1, PREFILL_TOKENS // self.rows) if self._trimmable else self.padded
        for start in range(0, self.padded, width):
            part = slice(start, start + width)
            logits = self._forward(self._tokens[:, part], self._mask[:, : part.stop], positions[:, part])
        del self._tokens
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row, int64 [rows]; returns the logits [rows, vocabulary] of the next."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(self.rows, 1)], dim=1)
        positions = torch.tensor(self.contexts)[:, None]
        logits = self._forward(tokens[:, None], self._mask, positions)
        self.padded += 1
        self.contexts = [context + 1 for context in self.contexts]
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and the columns that are padding in every row that stays."""
        self.contexts = [self.contexts[row] for row in rows]
        trim = self.padded - max(self.contexts) if self._trimmable else 0
        index = torch.tensor(rows)
        self._mask = self._mask[index, trim:]
        self.padded -= trim
        keep_rows(self._cache, index, trim)

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return self._model.forward(tokens, None if bool(mask.all()) else mask, positions, self._cache)
