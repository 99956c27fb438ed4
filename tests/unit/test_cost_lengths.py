"""The discrete length distribution against what defines it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm.cost.lengths import LengthDistribution, log_normal_cdf, log_spaced_edges

limits = st.integers(1, 200_000)


@st.composite
def distributions(draw: st.DrawFn) -> LengthDistribution:
    edges = sorted(draw(st.sets(st.integers(1, 5_000), min_size=1, max_size=24)))
    weights = [draw(st.one_of(st.just(0.0), st.floats(0.01, 1))) for _ in edges]
    atom = draw(st.one_of(st.just(0.0), st.floats(0.01, 1)))
    if not sum(weights) + atom:
        atom = 1.0
    total = sum(weights) + atom
    probabilities = [weight / total for weight in weights]
    probabilities[-1] += atom / total
    return LengthDistribution(tuple(edges), tuple(probabilities), atom / total)


@given(limits, st.integers(2, 64))
def test_edges_ascend_to_the_limit(limit: int, buckets: int) -> None:
    edges = log_spaced_edges(limit, buckets)
    assert len(edges) == min(limit, buckets)
    assert edges[0] >= 1
    assert edges[-1] == limit
    assert all(low < high for low, high in pairwise(edges))


def test_edges_are_evenly_spaced_in_the_logarithm() -> None:
    edges = log_spaced_edges(8_192)
    steps = [math.log(high / low) for low, high in pairwise(edges) if low > 50]
    assert max(steps) - min(steps) < 0.03


@given(distributions(), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_are_monotone_and_within_the_limit(length: LengthDistribution, p: float, q: float) -> None:
    low, high = sorted((p, q))
    assert 0 <= length.quantile(low) <= length.quantile(high) <= length.limit


@given(distributions(), st.floats(0, 1))
def test_quantile_inverts_the_distribution_function(length: LengthDistribution, probability: float) -> None:
    tokens = length.quantile(probability)
    assert length.cdf(tokens) >= probability - 1e-9
    if tokens > 1e-6:
        assert length.cdf(tokens - 1e-6 * max(1.0, tokens)) <= probability + 1e-6


@given(distributions(), st.integers(1, 6_000))
def test_truncation_changes_nothing_below_the_limit(length: LengthDistribution, limit: int) -> None:
    cut = length.truncate(limit)
    assert cut.limit == min(limit, length.limit)
    for tokens in [*length.edges, limit, limit / 2, limit / 3]:
        if tokens < cut.limit:
            assert cut.cdf(tokens) == pytest.approx(length.cdf(tokens), abs=1e-9)
    assert cut.cdf(cut.limit) == 1
    assert sum(cut.probabilities) == pytest.approx(1)


@given(distributions(), st.integers(1, 6_000))
def test_truncation_moves_the_mass_beyond_to_the_limit(length: LengthDistribution, limit: int) -> None:
    cut = length.truncate(limit)
    beyond = 1 - length.cdf(limit) if limit < length.limit else length.limit_probability
    assert cut.limit_probability == pytest.approx(beyond, abs=1e-9)


@given(distributions(), st.integers(1, 6_000), st.integers(1, 6_000))
def test_truncating_twice_is_truncating_at_the_smaller(length: LengthDistribution, first: int, second: int) -> None:
    twice, once = length.truncate(first).truncate(second), length.truncate(min(first, second))
    assert twice.edges == once.edges
    assert twice.probabilities == pytest.approx(once.probabilities, abs=1e-9)
    assert twice.limit_probability == pytest.approx(once.limit_probability, abs=1e-9)


@given(distributions())
def test_mean_is_the_integral_of_the_quantiles(length: LengthDistribution) -> None:
    points = 4_000
    integral = sum(length.quantile((i + 0.5) / points) for i in range(points)) / points
    assert length.mean == pytest.approx(integral, rel=5e-3, abs=length.limit / points)


@given(distributions())
def test_message_keeps_everything(length: LengthDistribution) -> None:
    message = length.to_proto()
    assert LengthDistribution.from_proto(message) == length
    assert message.p50_tokens <= message.p90_tokens <= message.p99_tokens <= message.limit_tokens == length.limit


@given(st.floats(2, 9), st.floats(0.3, 1.5), st.integers(200, 100_000))
def test_discretised_log_normal_keeps_its_quantiles(mu: float, sigma: float, limit: int) -> None:
    cdf = log_normal_cdf(mu, sigma)
    length = LengthDistribution.from_cdf(cdf, limit)
    assert length.limit_probability == pytest.approx(1 - cdf(limit), abs=1e-12)
    for probability, z in ((0.5, 0.0), (0.9, 1.2815516)):
        exact = math.exp(mu + z * sigma)
        if 32 < exact < limit:
            assert length.quantile(probability) == pytest.approx(exact, rel=0.1)


def test_all_mass_at_the_limit() -> None:
    length = LengthDistribution((10,), (1.0,), 1.0)
    assert [length.quantile(p) for p in (0.01, 0.5, 1)] == [10, 10, 10]
    assert length.mean == 10
    assert length.cdf(9.9) == 0


@pytest.mark.parametrize(
    ("edges", "probabilities", "limit_probability"),
    [
        ((), (), 0),
        ((1, 2), (1.0,), 0),
        ((2, 2), (0.5, 0.5), 0),
        ((0, 2), (0.5, 0.5), 0),
        ((1, 2), (0.5, 0.6), 0),
        ((1, 2), (1.5, -0.5), 0),
        ((1, 2), (math.nan, 1.0), 0),
        ((1, 2), (0.9, 0.1), 0.2),
        ((1, 2), (0.9, 0.1), -0.1),
    ],
)
def test_what_is_no_distribution_is_refused(
    edges: tuple[int, ...], probabilities: tuple[float, ...], limit_probability: float
) -> None:
    with pytest.raises(ValueError, match=r"edges|probabilit"):
        LengthDistribution(edges, probabilities, limit_probability)


def test_arguments_out_of_range_are_refused() -> None:
    length = LengthDistribution((10,), (1.0,), 0.0)
    with pytest.raises(ValueError, match="limit"):
        length.truncate(0)
    with pytest.raises(ValueError, match="probability"):
        length.quantile(1.01)
    with pytest.raises(ValueError, match="limit"):
        log_spaced_edges(0)


def test_probabilities_may_be_off_by_rounding() -> None:
    rounded = LengthDistribution((1,), (1.0000000000000002,), 0.2)
    assert 0.5 < rounded.mean < 1
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        LengthDistribution((1, 2), (1.1, -0.1), 0.0)
