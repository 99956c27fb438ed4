"""Drawing of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper
from uellm_deployer.backends.common.request import Row, SamplingParameters
from uellm_deployer.backends.hf.sampling import Sampler, noise

VOCABULARY = 2500  # above the number of candidates that top-p looks at first


def row(prompt: tuple[int, ...] = (1,), **sampling: Any) -> Row:
    return Row("r", prompt, (), SamplingParameters(max_tokens=9, **sampling))


def logits(rows: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread


def test_greedy_takes_the_largest() -> None:
    values = logits(3)
    assert Sampler([row()] * 3, VOCABULARY).draw(values, [0, 0, 0]).tolist() == values.argmax(-1).tolist()


def test_a_token_depends_on_seed_index_and_logits_only() -> None:
    values = logits(4)
    rows = [row(temperature=1.0, seed=seed) for seed in (5, -6, 2**63 - 1, 8)]
    together = Sampler(rows, VOCABULARY).draw(values, [3, 0, 9, 1]).tolist()
    alone = [
        Sampler([r], VOCABULARY).draw(values[i : i + 1], [index]).item()
        for i, (r, index) in enumerate(zip(rows, [3, 0, 9, 1], strict=True))
    ]
    assert together == alone
    assert len({float(noise(seed, index, 3)[2]) for seed in range(20) for index in range(20)}) == 400


def test_kept_rows_keep_their_parameters() -> None:
    values = logits(3)
    rows = [row(), row(temperature=2.0, seed=1, repetition_penalty=1.5, prompt=(4, 5)), row(temperature=0.5, top_k=3)]
    sampler = Sampler(rows, VOCABULARY)
    sampler.keep(torch.tensor([2, 1]))
    expected = Sampler([rows[2], rows[1]], VOCABULARY).draw(values[:2], [7, 7])
    assert sampler.draw(values[:2], [7, 7]).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("top_k", "top_p", "spread"), [(0, 0.9, 3.0), (5, 1.0, 3.0), (40, 0.5, 3.0), (1500, 0.99, 0.1), (0, 0.999, 0.01)]
)
def test_restricted_rows_draw_from_what_transformers_keeps(top_k: int, top_p: float, spread: float) -> None:
    values = logits(1, spread=spread)
    kept = TopKLogitsWarper(top_k)(None, values.clone()) if top_k else values.clone()  # type: ignore[arg-type]
    kept = TopPLogitsWarper(top_p)(None, kept) if top_p < 1 else kept  # type: ignore[arg-type]
    allowed = set(kept.isfinite().nonzero()[:, 1].tolist())
    sampler = Sampler([row(temperature=1.0, top_k=top_k, top_p=top_p, seed=3)], VOCABULARY)
    drawn = {int(sampler.draw(values, [index])) for index in range(200)}
    assert drawn <= allowed
    assert len(drawn) > min(len(allowed), 100) / 2


def test_tokens_are_drawn_with_their_probabilities() -> None:
    values = torch.tensor([[0.0, 1.0, -1.0, 2.0, 0.5]])
    sampler = Sampler([row(prompt=(0,), temperature=1.5, seed=12)], 5)
    draws = 4000
    counts = torch.bincount(torch.cat([sampler.draw(values, [index]) for index in range(draws)]), minlength=5)
    expected = (values[0] / 1.5).softmax(-1)
    deviations = (counts / draws - expected) / (expected * (1 - expected) / draws).sqrt()
    assert deviations.abs().max() < 4


def test_rounding_of_the_logits_hardly_ever_changes_a_token() -> None:
    # Another batch shape moves float32 logits of a real model by about 5e-5; tails as long as a real model's.
    values = logits(1, spread=2.0)
    moved = values + 5e-5 * torch.randn(values.shape, generator=torch.Generator().manual_seed(9))
    sampler = Sampler([row(temperature=0.8, seed=4)], VOCABULARY)
    changed = [int(sampler.draw(values, [i])) != int(sampler.draw(moved, [i])) for i in range(2000)]
    assert sum(changed) <= 3


def test_repetition_penalty_is_that_of_transformers() -> None:
    values = logits(1)
    best = values.topk(4).indices[0].tolist()
    sampler = Sampler([row(prompt=(best[0],), repetition_penalty=1.9)], VOCABULARY)
    seen = [best[0]]
    for index in range(6):
        expected = RepetitionPenaltyLogitsProcessor(1.9)(torch.tensor([seen]), values.clone()).argmax(-1)
        token = sampler.draw(values, [index])
        assert token.tolist() == expected.tolist()
        seen += token.tolist()


def test_broken_logits_break_their_row_only() -> None:
    values = logits(3)
    values[1, 7] = torch.nan
    values[2, 7] = torch.inf
    drawn = Sampler([row(temperature=0.7)] * 3, VOCABULARY).draw(values, [0, 0, 0]).tolist()
    assert drawn[0] >= 0
    assert drawn[1:] == [-1, -1]


def test_extreme_parameters_draw_a_token_of_the_vocabulary() -> None:
    values = logits(2)
    rows = [row(temperature=1e-30), row(temperature=1e6, top_p=1e-9)]
    assert Sampler(rows, VOCABULARY).draw(values, [0, 0]).tolist() == values.argmax(-1).tolist()
