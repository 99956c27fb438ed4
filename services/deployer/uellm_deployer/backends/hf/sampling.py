"""Drawing tokens: greedy, temperature, top-k, top-p and repetition penalty, for all rows of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.request import Row

CANDIDATES = 1024  # top-p looks at this many tokens first; the whole vocabulary only where their mass is too small


def noise(seed: int, index: int, vocabulary: int) -> NDArray[np.float64]:
    """Exponential variates, one a token of the vocabulary, that depend on seed and token index only.

    Counter-based: Philox (Salmon et al. 2011).
    """
    bits = np.random.Philox(key=seed % 2**64, counter=index << 64)
    return np.random.Generator(bits).standard_exponential(vocabulary)


class Sampler:
    """Sampling state of the rows of one batch; row order is the batch's."""

    def __init__(self, rows: Sequence[Row], vocabulary: int) -> None:
        """`rows` bring their prompt and resumed tokens, over which the repetition penalty counts."""
        sampling = [row.sampling for row in rows]
        self._seeds = [s.seed for s in sampling]
        self._temperature = torch.tensor([s.temperature for s in sampling], dtype=torch.float32)
        self._top_k = torch.tensor([min(s.top_k or vocabulary, vocabulary) for s in sampling])
        self._top_p = torch.tensor([s.top_p for s in sampling], dtype=torch.float32)
        self._penalty = torch.tensor([s.repetition_penalty for s in sampling], dtype=torch.float32)
        self._seen: Tensor | None = None
        if bool((self._penalty != 1).any()):
            self._seen = torch.zeros(len(rows), vocabulary, dtype=torch.bool)
            for i, row in enumerate(rows):
                self._seen[i, list(row.prompt + row.resume)] = True

    def keep(self, rows: Tensor) -> None:
        """Keep the rows of these positions, in this order."""
        self._seeds = [self._seeds[i] for i in rows.tolist()]
        for name in ("_temperature", "_top_k", "_top_p", "_penalty"):
            setattr(self, name, getattr(self, name)[rows])
        if self._seen is not None:
            self._seen = self._seen[rows]

    def draw(self, logits: Tensor, indices: Sequence[int]) -> Tensor:
        """The next token of every row.

        `logits` is [rows, vocabulary]; `indices` holds each row's token index in its answer. Returns int64 [rows];
        -1 for a row whose logits hold a NaN or infinity.
        """
        logits = self._penalized(logits.to("cpu", torch.float32))
        broken = ~logits.lt(torch.inf).all(dim=-1)
        tokens = logits.argmax(dim=-1)
        drawn = self._temperature.gt(0).logical_and(~broken).nonzero().flatten()
        if len(drawn):
            scaled = logits[drawn] - logits[drawn].amax(dim=-1, keepdim=True)  # no overflow at a low temperature
            scaled /= self._temperature[drawn, None]
            noises = np.stack([noise(self._seeds[i], indices[i], logits.shape[-1]) for i in drawn.tolist()])
            tokens[drawn] = _pick(scaled, self._top_k[drawn], self._top_p[drawn], torch.from_numpy(noises))
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], value=True)
        return tokens.masked_fill(broken, -1)

    def _penalized(self, logits: Tensor) -> Tensor:
        """Divide positive and multiply negative logits of tokens seen (Keskar et al. 2019, as transformers does)."""
        if self._seen is None:
            return logits
        factor = torch.where(logits > 0, 1 / self._penalty[:, None], self._penalty[:, None])
        return torch.where(self._seen, logits * factor, logits)


def _pick(logits: Tensor, top_k: Tensor, top_p: Tensor, noises: Tensor) -> Tensor:
    """Draw by an exponential race: the largest ratio of probability to noise wins, each with its probability.

    Where another batch shape changes the last bits of the logits the winner is nearly always the same; inverting the
    distribution function would go to a neighbour wherever it falls among improbable tokens.
    """
    restricted = top_k.lt(logits.shape[-1]).logical_or(top_p < 1).nonzero().flatten()
    if len(restricted):
        rows = logits[restricted]
        cutoff = _cutoff(rows, top_k[restricted], top_p[restricted])
        logits[restricted] = rows.masked_fill(rows < cutoff, -torch.inf)
    return (logits.softmax(dim=-1) / noises).argmax(dim=-1)


def _cutoff(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Smallest logit that top-k, then top-p over what top-k left, keep of each row: [rows, 1]."""
    vocabulary = logits.shape[-1]
    few = top_k.le(CANDIDATES).logical_or(top_k.eq(vocabulary)).all()
    size = min(CANDIDATES, vocabulary) if bool(few) else vocabulary
    while True:
        best = logits.topk(size, dim=-1).values
        outside = torch.arange(size) >= top_k[:, None]
        mass = torch.where(
            top_k < vocabulary,
            best.masked_fill(outside, -torch.inf).logsumexp(dim=-1),
            logits.logsumexp(dim=-1),
        )
        probability = (best - mass[:, None]).exp()
        before = probability.cumsum(dim=-1) - probability
        kept = (before < top_p[:, None]).logical_and(~outside).sum(dim=-1).clamp(min=1)
        if size == vocabulary or bool(kept.lt(size).all()):
            return best.gather(1, kept[:, None] - 1)
        size = vocabulary
