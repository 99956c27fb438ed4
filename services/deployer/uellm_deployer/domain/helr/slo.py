"""The cheapest copy that keeps promises on two times at once: fewest devices, then least LR."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from uellm_deployer.domain.helr.cost import LONGEST, PER_SECOND, Array
from uellm_deployer.domain.helr.problem import Slo
from uellm_deployer.domain.helr.search import Search, first_of
from uellm_deployer.domain.helr.sweep import DECODE, PREFILL, Placed, Sweep, Weights

LONGEST_PROMISE = LONGEST >> 6
"""Over an hour: nobody waits longer for a token."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A copy that keeps the promises."""

    devices: int
    latency: int
    path: tuple[Placed, ...]


@dataclass(frozen=True, slots=True)
class _Budget:
    """Most picoseconds, and weights under which both together are tight."""

    decode: int
    prefill: int

    @property
    def both(self) -> Weights:
        """Small whole numbers that weigh the two budgets about the same."""
        ratio = (self.prefill + 1) / (self.decode + 1)
        return Weights(max(1, min(16, round(ratio))), max(1, min(16, round(1 / ratio))))

    def allows(self, decode: Array, prefill: Array, both: Array) -> Array:
        """Whether all three sums are within."""
        most = self.both.decode * self.decode + self.both.prefill * self.prefill
        return np.asarray((decode <= self.decode) & (prefill <= self.prefill) & (both <= most))


def _budget(seconds: float | None) -> int:
    return LONGEST_PROMISE if seconds is None else min(int(seconds * PER_SECOND), LONGEST_PROMISE)


def cheapest(search: Search, slo: Slo) -> Kept | None:
    """The copy on the fewest devices that keeps both, of those the one with the least LR, then bottleneck."""
    budget = _Budget(_budget(slo.output_token_seconds), _budget(slo.first_token_seconds))
    most = search.effective(budget.decode // search.in_flight)
    kept = _within(search, budget, most)
    if kept is None:
        return None
    same = (kept.devices, kept.latency)

    def still(limit: int) -> bool:
        other = _within(search, budget, limit)
        return other is not None and (other.devices, other.latency) == same

    return _within(search, budget, first_of(search.limits[search.limits <= most], still))


def _within(search: Search, budget: _Budget, limit: int) -> Kept | None:
    programs = [_Program(sweep, budget, limit) for sweep in search.sweeps]
    ends = [(devices, number, end) for number, program in enumerate(programs) for devices, end in program.ends()]
    for devices in sorted({devices for devices, _, _ in ends}):
        found = [
            kept
            for number, program in enumerate(programs)
            if (kept := program.best([end for d, n, end in ends if (d, n) == (devices, number)], devices)) is not None
        ]
        if found:
            return min(found, key=lambda kept: kept.latency)
    return None


@dataclass(frozen=True, slots=True, order=True)
class _Label:
    """The last stages of a copy, which end before layer `last`; first the least LR that it can have, for a heap."""

    bound: int
    order: int
    level: int
    state: int
    last: int
    decode: int
    prefill: int
    after: tuple[Placed, ...]


class _Program:
    """Best first from the end, with the exact least sums of what lies before as bounds: the first that ends is best."""

    def __init__(self, sweep: Sweep, budget: _Budget, limit: int) -> None:
        self._sweep, self._budget, self._limit = sweep, budget, limit
        self._sums = [sweep.run(limit, weights) for weights in (DECODE, PREFILL, budget.both)]

    def ends(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """Last states that single sums do not rule out, with their number of devices."""
        for number, level in enumerate(self._sweep.graph.levels):
            columns = [tables[number][:, -1] for tables in self._sums]
            for state in np.flatnonzero(self._budget.allows(*columns)):
                yield level.states[state].devices, (number, int(state))

    def best(self, ends: list[tuple[int, int]], devices: int) -> Kept | None:
        """The copy with the least LR that ends in one of the states."""
        order, layers = count(), self._sums[0][0].shape[1] - 1
        heap = [
            _Label(int(self._sums[0][level][state, -1]), next(order), level, state, layers, 0, 0, ())
            for level, state in sorted(ends, reverse=True)
        ]
        heapq.heapify(heap)
        least: dict[tuple[int, int, int], int] = {}
        while heap:
            label = heapq.heappop(heap)
            if label.level < 0:
                return Kept(devices, label.decode, label.after)
            place = (label.level, label.state, label.last)
            # Popped later with no less prefill: the earlier one, with no more decode time, does all that it can.
            if label.prefill < least.get(place, LONGEST):
                least[place] = label.prefill
                for longer in self._longer(label, order):
                    heapq.heappush(heap, longer)
        return None

    def _longer(self, label: _Label, order: Iterator[int]) -> Iterator[_Label]:
        """The label with one more stage in front."""
        steps = self._sweep.steps(label.level, label.state, label.last, self._limit)
        decode, prefill = (
            sums[label.last] - sums[steps.first] + hop
            for sums, hop in (
                (self._sweep.costs(weights)[self._sweep.graph.levels[label.level].kind[label.state]], hop)
                for weights, hop in ((DECODE, steps.decode_hop), (PREFILL, steps.prefill_hop))
            )
        )
        decode, prefill, both = decode + label.decode, prefill + label.prefill, self._budget.both
        before = [
            tables[label.level - 1][steps.source, steps.first] if label.level else 0 * decode for tables in self._sums
        ]
        total = before[0] + decode
        within = self._budget.allows(
            total, before[1] + prefill, before[2] + both.decode * decode + both.prefill * prefill
        )
        for n in np.flatnonzero(within)[::-1]:
            placed = self._sweep.placed(label.level, label.state, int(steps.first[n]), label.last)
            yield _Label(
                int(total[n]),
                next(order),
                label.level - 1,
                int(steps.source[n]),
                int(steps.first[n]),
                int(decode[n]),
                int(prefill[n]),
                (placed, *label.after),
            )
