"""Labelled prompts as tensors."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uellm_profiler.domain.hazard import first_edges
from uellm_profiler.learning.dataset import LabelledPrompt
from uellm_profiler.learning.examples import to_input
from uellm_profiler.neural.inputs import PromptEncoder, numbers
from uellm_profiler.neural.network import HazardHead, pad


@dataclass(frozen=True, slots=True)
class Targets:
    """What was seen of each label."""

    bucket: Tensor
    """(labels,) the bucket in which the answer ended or was cut."""
    ended: Tensor
    """(labels,) 1 where it ended by itself, 0 where it was cut."""
    passed: Tensor
    """(labels,) the share of that bucket that it had passed when it was cut."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts and their labels."""

    ids: Tensor
    mask: Tensor
    """(prompts, tokens)."""
    rows: Tensor
    """(labels,) the prompt of each label."""
    numbers: Tensor
    models: Tensor
    targets: Targets
    weights: Tensor
    """(labels,) so that a prompt with n labels weighs sqrt(n)."""


def hazard_loss(logits: Tensor, targets: Targets) -> Tensor:
    """Negative log-likelihood of each label under its hazards, (labels,).

    A label in bucket k survived the buckets before it; it ended in k with hazard h, or, cut after a share s of k, it
    survived that share: 1 - s h, lengths being spread evenly within a bucket.
    """
    survived = torch.nn.functional.logsigmoid(-logits).cumsum(1)
    before = torch.cat([torch.zeros_like(survived[:, :1]), survived[:, :-1]], dim=1)
    at = targets.bucket.unsqueeze(1)
    hazard_logit = logits.gather(1, at).squeeze(1)
    ended = torch.nn.functional.logsigmoid(hazard_logit)
    cut = torch.log1p(-targets.passed * hazard_logit.sigmoid() * (1 - 1e-6))
    return -(before.gather(1, at).squeeze(1) + torch.where(targets.ended > 0, ended, cut))


class TensorSet:
    """Encodes once, gives batches of prompts of similar length."""

    def __init__(self, labelled: Sequence[LabelledPrompt], encoder: PromptEncoder, head: HazardHead) -> None:
        self._ids = encoder.encode([one.prompt.text for one in labelled])
        self._edges = first_edges(head.shape.buckets)
        self._labelled = labelled
        self._head = head

    def batches(self, size: int, shuffle: random.Random | None = None) -> Iterator[Batch]:
        """All prompts in batches of at most `size`; in another order each time if `shuffle` is given."""
        order = sorted(range(len(self._ids)), key=lambda i: len(self._ids[i]))
        if shuffle is not None:
            # Sorted within pools of some batches only, so that batches differ from epoch to epoch.
            shuffle.shuffle(order)
            pool = 16 * size
            order = [
                i
                for start in range(0, len(order), pool)
                for i in sorted(order[start : start + pool], key=lambda i: len(self._ids[i]))
            ]
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        if shuffle is not None:
            shuffle.shuffle(batches)
        return (self._batch(indices) for indices in batches)

    def hazards(self) -> Tensor:
        """Share of the answers in each bucket that ended there, (buckets,), drawn a little towards 0.1."""
        seen = [(label.output_tokens, label.censored) for one in self._labelled for label in one.labels]
        targets = self._targets(seen)
        buckets = torch.arange(len(self._edges))
        at_risk = (targets.bucket.unsqueeze(1) >= buckets).float().sum(0)
        ended = ((targets.bucket.unsqueeze(1) == buckets) * targets.ended.unsqueeze(1)).sum(0)
        return (ended + 0.5) / (at_risk + 5)

    def _batch(self, indices: Sequence[int]) -> Batch:
        ids, mask = pad([self._ids[i] for i in indices])
        examples = [(row, e) for row, i in enumerate(indices) for e in self._labelled[i].examples]
        inputs = [to_input(example) for _, example in examples]
        counts = [len(self._labelled[indices[row]].labels) for row, _ in examples]
        return Batch(
            ids,
            mask,
            torch.tensor([row for row, _ in examples]),
            torch.tensor([numbers(one) for one in inputs]),
            self._head.model_indices([one.model for one in inputs]),
            self._targets([(e.label.output_tokens, e.label.censored) for _, e in examples]),
            torch.tensor([count**-0.5 for count in counts]),
        )

    def _targets(self, seen: Sequence[tuple[int, bool]]) -> Targets:
        buckets, passed = [], []
        for tokens, _ in seen:
            bucket = bisect_left(self._edges, tokens)
            low = self._edges[bucket - 1] if bucket else 0
            buckets.append(bucket)
            passed.append((tokens - low) / (self._edges[bucket] - low))
        ended = [float(not censored) for _, censored in seen]
        return Targets(torch.tensor(buckets), torch.tensor(ended), torch.tensor(passed))
