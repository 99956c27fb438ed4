"""The likelihood that the network learns from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_profiler.domain.hazard import distribution, first_edges
from uellm_profiler.learning.network_data import Targets, hazard_loss

BUCKETS = 18
rows = st.lists(st.floats(0.01, 0.9), min_size=BUCKETS, max_size=BUCKETS)


def targets(bucket: int, ended: float, passed: float = 0.0) -> Targets:
    return Targets(torch.tensor([bucket]), torch.tensor([ended]), torch.tensor([passed]))


def loss(hazards: list[float], target: Targets) -> float:
    return hazard_loss(torch.logit(torch.tensor([hazards], dtype=torch.float64)), target).item()


@given(rows, st.integers(0, BUCKETS - 1))
@settings(max_examples=60)
def test_an_ended_answer_has_the_probability_of_its_bucket(hazards: list[float], bucket: int) -> None:
    length = distribution(hazards, first_edges(BUCKETS)[-1])
    low = length.edges[bucket - 1] if bucket else 0
    # The atom at the limit is no part of what ended in the last bucket.
    ended = length.cdf(length.edges[bucket] - 1e-9) - length.cdf(low)
    assert loss(hazards, targets(bucket, 1.0)) == pytest.approx(-math.log(ended), abs=1e-4)


@given(rows, st.integers(0, BUCKETS - 2), st.floats(0.0, 1.0))
@settings(max_examples=60)
def test_a_cut_answer_has_the_probability_of_all_that_is_longer(
    hazards: list[float], bucket: int, passed: float
) -> None:
    length = distribution(hazards, 10_000)
    low, high = (length.edges[bucket - 1] if bucket else 0), length.edges[bucket]
    alive = 1 - length.cdf(low + passed * (high - low))
    assert loss(hazards, targets(bucket, 0.0, passed)) == pytest.approx(-math.log(alive), abs=1e-4)


def test_the_gradient_pulls_a_cut_answer_to_longer_lengths() -> None:
    logits = torch.zeros(1, BUCKETS, requires_grad=True)
    hazard_loss(logits, targets(5, 0.0, 1.0)).sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad[0, :6] > 0).all())
    assert bool((logits.grad[0, 6:] == 0).all())
