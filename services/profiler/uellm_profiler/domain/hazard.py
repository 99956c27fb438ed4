"""Answer lengths as a discrete-time hazard over log-spaced buckets. Lengths are tokens.

The hazard of bucket i is the probability that an answer ends in (edge[i-1], edge[i]] if it is longer than edge[i-1].
Answers that were cut say something about every bucket that they passed, which is why a hazard can learn from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from uellm.cost.lengths import LengthDistribution

FIRST_EDGE = 4
PER_OCTAVE = 3
"""Buckets from a length to its double."""


def edges_up_to(tokens: int) -> tuple[int, ...]:
    """Edges from 4 on, three an octave, the last one at or beyond `tokens`."""
    return first_edges(next(n for n in count(1) if _edge(n - 1) >= tokens))


def first_edges(buckets: int) -> tuple[int, ...]:
    """The first edges."""
    return tuple(map(_edge, range(buckets)))


def _edge(index: int) -> int:
    return round(FIRST_EDGE * 2 ** (index / PER_OCTAVE))


def distribution(hazards: Sequence[float], limit: int) -> LengthDistribution:
    """The distribution that ends at `limit`; `hazards` are those of the first edges of `edges_up_to`.

    Beyond them nothing was seen: the mean hazard of the last octave goes on, which makes a power-law tail.
    """
    edges = edges_up_to(limit)
    last = hazards[-PER_OCTAVE:]
    beyond = sum(last) / len(last)
    alive, probabilities = 1.0, []
    for i in range(len(edges)):
        hazard = hazards[i] if i < len(hazards) else beyond
        probabilities.append(alive * hazard)
        alive *= 1 - hazard
    probabilities[-1] += alive
    return LengthDistribution(edges, tuple(probabilities), alive).truncate(limit)
