"""How long one query is served, from dispatch to its own end: alone, or in a full batch of queries like it."""

from __future__ import annotations

import math

from uellm.cost.lengths import LengthDistribution
from uellm.cost.model import CostModel
from uellm.cost.times import TimeDistribution


def service_time(cost: CostModel, prompt_tokens: int, length: LengthDistribution, *, rows: int = 1) -> TimeDistribution:
    """Joint distribution over the query's own length, the coefficients, noise and the other rows' lengths.

    The other `rows - 1` have prompts as long and independent lengths of the same distribution, and begin with it; a row
    leaves the batch when it ends. Their number at each step enters with its mean, their total with its variance. With
    equal prompts it makes no difference whether the engine pads.
    """
    others = rows - 1
    steps = cost.step_time
    seconds, deviations = [], []
    alive = weighted = 0.0
    """Sums of P(length > k), and of k P(length > k), over the steps k from 0 to below the knot."""
    edges, below = (0, *length.edges), length.below
    for i, edge in enumerate(edges):
        if i:
            more = _sums(edges[i - 1], edge, 1 - below[i - 1], 1 - below[i])
            alive, weighted = alive + more[0], weighted + more[1]
        tokens = max(1, edge)
        row_steps = tokens - 1 + others * max(0.0, alive - 1)
        context = prompt_tokens * row_steps + tokens * (tokens - 1) / 2 + others * weighted
        mean, variance = cost.moments(tokens - 1, row_steps, context, rows * prompt_tokens, 1.0)
        if others:
            # Of the steps that another row takes part in.
            spread = max(0.0, 2 * weighted + alive - alive**2)
            row = steps.per_row + steps.per_context_token * (prompt_tokens + tokens / 2)
            variance += others * row**2 * spread
        seconds.append(mean)
        deviations.append(math.sqrt(variance))
    return TimeDistribution(seconds, deviations, below, length.limit_probability)


def _sums(first: int, end: int, at_first: float, at_end: float) -> tuple[float, float]:
    """Sums of s(k) and k s(k) over `first <= k < end`, for s that runs evenly between its values at both."""
    count = end - first
    slope = (at_end - at_first) / count
    plain = count * at_first + slope * count * (count - 1) / 2
    steps = at_first * count * (count - 1) / 2 + slope * (count - 1) * count * (2 * count - 1) / 6
    return plain, first * plain + steps
