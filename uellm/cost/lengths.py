"""The predicted length of an answer as a discrete distribution over log-spaced buckets. Lengths are tokens.

Bucket i holds the lengths in (edge[i-1], edge[i]], edge[-1] being 0, with its probability spread evenly over it. The
last edge is the limit. What is cut there is an atom at the limit, part of the last bucket's probability.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise

from uellm.v1 import query_pb2

BUCKETS = 32
"""Buckets of a new distribution, where the limit leaves room for as many whole numbers."""
FIRST_EDGE = 4
"""Upper edge of the first bucket: below it, costs hardly differ."""
_TOLERANCE = 1e-6


@lru_cache(maxsize=4096)
def log_spaced_edges(limit: int, buckets: int = BUCKETS) -> tuple[int, ...]:
    """Ascending whole edges that end with `limit`, evenly spaced in the logarithm where rounding lets them.

    There are `min(limit, buckets)` of them.
    """
    if limit < 1 or buckets < 2:
        raise ValueError(f"limit must be at least 1, buckets at least 2; got {limit} and {buckets}")
    if limit <= buckets:
        return tuple(range(1, limit + 1))
    first = min(FIRST_EDGE, limit - buckets + 1)
    edges = [first]
    for left in range(buckets - 1, 0, -1):
        # Spread what is left evenly, but by one token at least, and leave one token for each edge to come.
        ideal = round(edges[-1] * (limit / edges[-1]) ** (1 / left))
        edges.append(min(max(ideal, edges[-1] + 1), limit - left + 1))
    return tuple(edges)


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """Distribution of an answer's length that ends at a limit."""

    edges: tuple[int, ...]
    """Upper edges of the buckets, ascending, the first at least 1; the last is the limit."""
    probabilities: tuple[float, ...]
    """Of the buckets; sum to 1."""
    limit_probability: float
    """That the answer is cut at the limit; part of the last bucket's probability."""
    _below: tuple[float, ...] = field(init=False, repr=False, compare=False)
    """Distribution function at 0 and at each edge, the atom at the limit left out."""

    def __post_init__(self) -> None:
        """Check the invariants; raises ValueError."""
        if not self.edges or len(self.edges) != len(self.probabilities):
            raise ValueError(f"{len(self.edges)} edges do not fit {len(self.probabilities)} probabilities")
        if self.edges[0] < 1 or any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges must ascend from at least 1")
        # Written so that NaN fails, too. A single probability may be above 1 by rounding, as their sum may.
        if (
            not all(0 <= p <= 1 + _TOLERANCE for p in self.probabilities)
            or not abs(sum(self.probabilities) - 1) <= _TOLERANCE
        ):
            raise ValueError("probabilities must lie in [0, 1] and sum to 1")
        if not 0 <= self.limit_probability <= self.probabilities[-1] + _TOLERANCE:
            raise ValueError("limit_probability must be part of the last bucket's probability")
        masses = (*self.probabilities[:-1], max(0.0, self.probabilities[-1] - self.limit_probability))
        object.__setattr__(self, "_below", tuple(accumulate(masses, initial=0.0)))

    @classmethod
    def from_cdf(cls, cdf: Callable[[float], float], limit: int, buckets: int = BUCKETS) -> LengthDistribution:
        """Discretise a distribution function of positive lengths; what lies beyond `limit` is cut there."""
        edges = log_spaced_edges(limit, buckets)
        values = [0.0, *(cdf(edge) for edge in edges)]
        masses = [high - low for low, high in pairwise(values)]
        beyond = max(0.0, 1.0 - values[-1])
        masses[-1] += beyond
        return cls(edges, tuple(masses), beyond)

    @property
    def limit(self) -> int:
        """Longest answer, in tokens."""
        return self.edges[-1]

    @property
    def below(self) -> tuple[float, ...]:
        """Distribution function at 0 and at each edge, the atom at the limit left out."""
        return self._below

    @property
    def mean(self) -> float:
        """Expected length, in tokens."""
        lows = (0, *self.edges[:-1])
        inner = sum(
            (self._below[i + 1] - self._below[i]) * (low + high) / 2
            for i, (low, high) in enumerate(zip(lows, self.edges, strict=True))
        )
        return inner + self.limit_probability * self.limit

    def cdf(self, tokens: float) -> float:
        """Probability that the answer has at most `tokens` tokens."""
        return 1.0 if tokens >= self.limit else self.ended_by(tokens)

    def quantile(self, probability: float) -> float:
        """Smallest length, in tokens, that the answer stays within with this probability (0 to 1)."""
        if not 0 <= probability <= 1:
            raise ValueError(f"a probability lies in [0, 1]; got {probability}")
        if probability > self._below[-1] and self.limit_probability:
            return float(self.limit)
        index = bisect_left(self._below, min(probability, self._below[-1]))
        if index == 0:
            return 0.0
        low, high = self.edges[index - 2] if index > 1 else 0, self.edges[index - 1]
        start, end = self._below[index - 1], self._below[index]
        share = (probability - start) / (end - start) if end > start else 0.0
        return low + share * (high - low)

    def truncate(self, limit: int) -> LengthDistribution:
        """Cut at `limit`: the mass beyond it becomes the atom there; below it nothing changes.

        A limit at or beyond the own one changes nothing: what lies behind a cut is not known.
        """
        if limit < 1:
            raise ValueError(f"a limit is at least 1; got {limit}")
        if limit >= self.limit:
            return self
        kept = bisect_left(self.edges, limit)
        at_limit = self.ended_by(limit)
        last = max(0.0, 1.0 - self._below[kept])
        masses = (*self.probabilities[:kept], last)
        return LengthDistribution((*self.edges[:kept], limit), masses, min(max(0.0, 1.0 - at_limit), last))

    def to_proto(self) -> query_pb2.LengthDistribution:
        """As a message, with its quantiles."""
        return query_pb2.LengthDistribution(
            p50_tokens=self.quantile(0.5),
            p90_tokens=self.quantile(0.9),
            p99_tokens=self.quantile(0.99),
            bucket_edges_tokens=self.edges,
            bucket_probabilities=self.probabilities,
            limit_probability=self.limit_probability,
            limit_tokens=self.limit,
        )

    @classmethod
    def from_proto(cls, message: query_pb2.LengthDistribution) -> LengthDistribution:
        """From a message; raises ValueError if it is no distribution."""
        return cls(tuple(message.bucket_edges_tokens), tuple(message.bucket_probabilities), message.limit_probability)

    def ended_by(self, tokens: float) -> float:
        """Probability that the answer ends by itself with at most `tokens` tokens: continuous, without the atom."""
        if tokens <= 0:
            return 0.0
        index = bisect_left(self.edges, tokens)
        if index == len(self.edges):
            return self._below[-1]
        low, high = self.edges[index - 1] if index else 0, self.edges[index]
        share = (tokens - low) / (high - low)
        return self._below[index] + share * (self._below[index + 1] - self._below[index])


def log_normal_cdf(mu: float, sigma: float) -> Callable[[float], float]:
    """Distribution function of a log-normal; `mu` and `sigma` are those of the logarithm of the length in tokens."""

    def cdf(tokens: float) -> float:
        if tokens <= 0:
            return 0.0
        return 0.5 * math.erfc((mu - math.log(tokens)) / (sigma * math.sqrt(2)))

    return cdf
