"""Ways to spread one copy over devices: on which, in which order, and where the layers divide."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, permutations
from typing import TypeVar

import numpy as np

from uellm_deployer.domain.helr.coarse import connected
from uellm_deployer.domain.helr.cost import LONGEST, Curves, Pricing, Span

Group = tuple[int, ...]
"""Devices that share layers, by index; mostly one."""
Ends = tuple[int, ...]
"""Where each stage begins, and the number of layers."""
T = TypeVar("T")

ORDERED = 4
"""Stages up to which every order is tried for the least hops."""
BETWEEN = (1 / 2, 1 / 4, 3 / 4, 1 / 8, 3 / 8, 5 / 8, 7 / 8)
"""Of the ways between two extremes, the most different first."""


def spreads(pricing: Pricing, stages: int, most: int) -> Iterator[tuple[Span, ...]]:
    """Copies in so many stages that fit the devices, at most about so many, spread over all devices alike."""
    for size in pricing.problem.constraints.tensor_sizes:
        chains = _chains(pricing, _groups(pricing, size, most), stages, most)
        for chain in chains:
            curves = [pricing.curves(group) for group in chain]
            for ends in _splits(curves, pricing.problem.constraints.min_layers)[: max(1, most // len(chains))]:
                yield tuple(Span(group, *ends_) for group, ends_ in zip(chain, pairwise(ends), strict=True))


def _groups(pricing: Pricing, size: int, most: int) -> list[Group]:
    """Those that can share layers; where there are too many, neighbours of an island."""
    islands = defaultdict[int, list[int]](list)
    homes = connected(pricing.problem)
    for index, device in enumerate(pricing.problem.devices):
        islands[homes[device.id] if size > 1 else 0].append(index)
    found = [group for members in islands.values() for group in _some(members, size, most)]
    return [group for group in found if pricing.can_group(group)]


def _chains(pricing: Pricing, groups: Sequence[Group], stages: int, most: int) -> list[tuple[Group, ...]]:
    """Groups that are linked one after the other, each set in the order with the least hops."""
    found = []
    if math.comb(len(groups), stages) > most:
        groups = _disjoint(groups)
    for chain in _some(groups, stages, most):
        if len({device for group in chain for device in group}) == sum(map(len, chain)):
            best = min(_orders(pricing, chain), key=lambda order: _hops(pricing, order))
            if _hops(pricing, best) < LONGEST:
                found.append(best)
    return found


def _disjoint(groups: Sequence[Group]) -> list[Group]:
    """Of those, such as have no device in common; the first ones."""
    taken: set[int] = set()
    found = []
    for group in groups:
        if taken.isdisjoint(group):
            taken.update(group)
            found.append(group)
    return found


def _some(items: Sequence[T], count: int, most: int) -> list[tuple[T, ...]]:
    """All ways to take so many; where there are too many, runs of neighbours."""
    if math.comb(len(items), count) <= most:
        return list(combinations(items, count))
    return [tuple(items[first : first + count]) for first in range(len(items) - count + 1)]


def _orders(pricing: Pricing, chain: tuple[Group, ...]) -> Iterator[tuple[Group, ...]]:
    many = len(chain) > ORDERED or not pricing.problem.constraints.order_is_free
    return iter([chain]) if many else permutations(chain)


def _hops(pricing: Pricing, chain: Sequence[Group]) -> int:
    return sum(pricing.hop(a, b)[0] for a, b in pairwise(chain))


def _splits(curves: Sequence[Curves], least: int) -> list[Ends]:
    """Divisions of the layers that fit: evenly by time, each stage with the least that it can have, and between."""
    layers = len(curves[0].size) - 1
    if least * len(curves) > layers:
        return []
    extremes = [_filled(curves, stage, least) for stage in range(len(curves))]
    between = [
        tuple(round(a + (b - a) * part) for a, b in zip(one, other, strict=True))
        for part in BETWEEN
        for one, other in combinations(extremes, 2)
    ]
    # Filled to different ends, extremes are often the most that can be had: what lies between is found from them.
    return [
        ends
        for ends in dict.fromkeys([_even(curves, least), *extremes, *between])
        if all(
            b - a >= least and c.bytes_of(a, b) <= c.capacity for c, (a, b) in zip(curves, pairwise(ends), strict=True)
        )
    ]


def _even(curves: Sequence[Curves], least: int) -> Ends:
    """All stages take the same time, as far as layers allow."""
    layers = len(curves[0].size) - 1
    speeds = [1 / max(1, int(c.decode[-1])) for c in curves]
    ends = [0]
    for number in range(1, len(curves)):
        target = sum(speeds[:number]) / sum(speeds) * int(curves[0].decode[-1])
        nearest = int(np.abs(curves[0].decode - target).argmin())
        ends.append(min(max(nearest, ends[-1] + least), layers - least * (len(curves) - number)))
    return (*ends, layers)


def _filled(curves: Sequence[Curves], stage: int, least: int) -> Ends:
    """All stages but one take as much as they can, those at the ends first."""
    layers, count = len(curves[0].size) - 1, len(curves)
    starts = [0]
    for number in range(stage):
        c = curves[number]
        fits = int(np.searchsorted(c.size, c.size[starts[-1]] + c.capacity, side="right")) - 1
        starts.append(max(starts[-1], min(fits, layers - least * (count - number - 1))))
    tail = [layers]
    for number in range(count - 1, stage, -1):
        c = curves[number]
        fits = int(np.searchsorted(c.size, c.size[tail[-1]] - c.capacity, side="left"))
        tail.append(max(fits, starts[-1] + least * (number - stage)))
    return (*starts, *reversed(tail))
