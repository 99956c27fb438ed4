"""More copies on the devices that a search node by node left over: in it a copy has its nodes for itself."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from uellm_deployer.domain.helr.coarse import allowed
from uellm_deployer.domain.helr.cost import Pricing, Span
from uellm_deployer.domain.helr.effort import search_of
from uellm_deployer.domain.helr.goals import evened
from uellm_deployer.domain.helr.realise import Copy, copies_of


def topped_up(pricing: Pricing, copies: tuple[Copy, ...], enough: Fraction, states: int) -> tuple[Copy, ...]:
    """With copies on what is left, as long as each lowers the bottleneck and it is above what is enough."""
    most = pricing.problem.constraints.max_copies or len(pricing.problem.devices)
    while len(copies) < most:
        slowest = max(pricing.price(copy).interval for copy in copies)
        # So slow may one more copy be at most, else all are slowed down by more than it adds.
        interval = -(-slowest * (len(copies) + 1) // len(copies)) - 1
        if Fraction(slowest, len(copies)) <= enough or not (more := _one_more(pricing, copies, interval, states)):
            break
        copies += more
    return tuple(sorted(copies, key=lambda copy: copy[0].devices))


def _one_more(pricing: Pricing, copies: tuple[Copy, ...], interval: int, states: int) -> tuple[Copy, ...]:
    """The copy with the least LR on devices that are not used, on the fewest; none if there is none."""
    problem = pricing.problem
    used = {device for copy in copies for span in copy for device in span.devices}
    left = [number for number in range(len(problem.devices)) if number not in used]
    ids = frozenset(problem.devices[number].id for number in left)
    rest = allowed(replace(problem, constraints=replace(problem.constraints, device_ids=ids)))
    search, _ = search_of(rest, states)
    choices = np.flatnonzero(search.allowed(interval))
    if not len(choices):
        return ()
    limit = search.stage_limit(interval)
    best = choices[np.lexsort((search.devices[choices], search.latencies(limit)[choices]))[0]]
    found = copies_of(search, evened(search, ((int(best),),), limit))
    return tuple(
        tuple(Span(tuple(left[device] for device in span.devices), span.first, span.last) for span in copy)
        for copy in found
    )
