"""Hazards over log-spaced buckets and the distributions that they make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_profiler.domain.hazard import distribution, edges_up_to, first_edges

hazards = st.lists(st.floats(0.001, 0.9), min_size=16, max_size=24)


@given(st.integers(1, 200_000))
def test_the_last_edge_is_the_first_at_or_beyond_the_length(tokens: int) -> None:
    edges = edges_up_to(tokens)
    assert edges[-1] >= tokens
    assert len(edges) == 1 or edges[-2] < tokens
    assert list(edges) == sorted(set(edges))
    assert edges == first_edges(len(edges))


def test_an_octave_has_three_buckets() -> None:
    edges = edges_up_to(8192)
    assert edges[-1] == 8192
    assert edges[-4] == 4096
    assert len(edges) >= 16


@given(hazards, st.integers(1, 8_000))
def test_hazards_are_what_is_left_of_the_distribution(values: list[float], limit: int) -> None:
    length = distribution(values, limit)
    assert length.limit == limit
    assert sum(length.probabilities) == pytest.approx(1)
    for edge, following, hazard in zip(length.edges, length.edges[1:-1], values[1:], strict=False):
        alive = 1 - length.cdf(edge)
        if alive > 1e-6:  # where few are left, what is subtracted is nearly 1
            assert (length.cdf(following) - length.cdf(edge)) / alive == pytest.approx(hazard, rel=1e-5)


@given(hazards, st.integers(2, 4_000), st.integers(2, 4_000))
def test_a_lower_limit_only_cuts(values: list[float], first: int, second: int) -> None:
    low, high = sorted((first, second))
    cut, whole = distribution(values, low), distribution(values, high)
    for tokens in range(1, low, max(1, low // 50)):
        assert cut.cdf(tokens) == pytest.approx(whole.cdf(tokens), abs=1e-9)


def test_beyond_what_was_seen_the_last_octave_goes_on() -> None:
    length = distribution([0.1] * 13 + [0.2] * 3, 100_000)
    edges = length.edges
    for i in range(16, 25):
        alive = 1 - length.cdf(edges[i - 1])
        assert (length.cdf(edges[i]) - length.cdf(edges[i - 1])) / alive == pytest.approx(0.2)
