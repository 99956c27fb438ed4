"""The best copies for each goal; definitions in docs/placement.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from uellm_deployer.domain.helr.cost import LONGEST, Array
from uellm_deployer.domain.helr.graph import Footprint
from uellm_deployer.domain.helr.packing import NONE, Together
from uellm_deployer.domain.helr.search import Search, first_of


@dataclass(frozen=True, slots=True)
class Found:
    """Footprints of the best copies, and the limits that they keep. Picoseconds."""

    together: tuple[Together, ...]
    limit: int
    """Of stages and hops."""
    latency: int
    """Of the slowest copy."""


def helr(search: Search, slack: Fraction) -> Found | None:
    """Least LR whose bottleneck is at most (1 + slack) times the least; then the least bottleneck, then devices."""
    interval, number = search.least_bottleneck()
    if not number:
        return None
    return within(search, (1 + slack) * Fraction(interval, number))


def within(search: Search, bottleneck: Fraction) -> Found | None:
    """Least LR of copies whose bottleneck is at most that; then the least bottleneck, then the fewest devices."""
    latency, copies = LONGEST, search.space.most
    while copies:
        interval = int(bottleneck * copies)
        fitting = search.most_copies(interval, latency - 1)
        if fitting < copies:
            copies = fitting
            continue
        known = np.unique(search.latencies(search.stage_limit(interval)))
        latency = _least_latency(search, known[known < latency], interval, copies)
        copies -= 1
    if latency == LONGEST:
        return None
    interval, number = _fewest_devices(search, latency)
    together = tuple(search.space.choose(search.allowed(interval, latency), number))
    return evened(search, together, search.stage_limit(interval))


def _fewest_devices(search: Search, latency: int) -> tuple[int, int]:
    """Interval and number of copies with the least bottleneck; of those the fewest devices, then the most copies."""
    interval, copies = search.least_bottleneck(latency)
    least, choices = Fraction(interval, copies), list[tuple[int, int, int]]()
    while copies:
        interval = int(least * copies)
        devices = search.space.devices(search.allowed(interval, latency))
        fitting = int(np.flatnonzero(devices < NONE)[-1])
        if fitting < copies:
            copies = fitting
            continue
        choices.append((int(devices[copies]), -copies, interval))
        copies -= 1
    _, negative, interval = min(choices)
    return interval, -negative


def _least_latency(search: Search, choices: Array, interval: int, copies: int) -> int:
    return first_of(choices, lambda latency: search.most_copies(interval, latency) >= copies)


def lr(search: Search) -> Found | None:
    """Least LR of one copy; then the fewest devices."""
    return one(search, lambda latency: (latency, search.devices))


def he(search: Search) -> Found | None:
    """Fewest devices; of those the least free memory, which is filled most; then LR."""
    free = np.array([_free_bytes(search, footprint) for footprint in search.footprints], dtype=np.int64)
    return one(search, lambda latency: (search.devices, free, latency))


def one(search: Search, rank: Callable[[Array], tuple[Array, ...]]) -> Found | None:
    """The copy on the footprint whose columns are least, the first column first; of equals the least bottleneck."""
    latency = search.latencies()
    possible = np.flatnonzero(latency < LONGEST)
    if not len(possible):
        return None
    columns = np.stack([column[possible] for column in rank(latency)])
    best = columns[:, np.lexsort(columns[::-1])[0]]
    equals = possible[(columns == best[:, None]).all(axis=0)]

    def keeping(limit: int) -> Array:
        return np.asarray(equals[search.latencies(limit)[equals] == latency[equals]])

    limit = first_of(search.limits, lambda value: bool(len(keeping(value))))
    return Found(((int(keeping(limit)[0]),),), limit, int(latency[equals[0]]))


def _free_bytes(search: Search, footprint: Footprint) -> int:
    if not footprint.takes:
        return 0
    classes, devices = search.units[footprint.unit].classes, search.pricing.problem.devices
    return sum(devices[c[0]].free_bytes * count for c, count in zip(classes, footprint.takes, strict=True))


def evened(search: Search, together: tuple[Together, ...], limit: int) -> Found:
    """With the least limit that leaves every copy its LR: of equal splits the one with the least bottleneck."""
    chosen = np.array([number for footprints in together for number in footprints])
    target = search.latencies(limit)[chosen]
    best = first_of(
        search.limits[search.limits <= limit],
        lambda value: bool((search.latencies(value)[chosen] == target).all()),
    )
    return Found(together, best, int(target.max()))
