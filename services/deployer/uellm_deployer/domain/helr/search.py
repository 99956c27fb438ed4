"""Which copies and how many of them are possible within limits on stages, hops, intervals and LR."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from uellm_deployer.domain.helr.cost import INFINITE, LONGEST, Array, Pricing
from uellm_deployer.domain.helr.graph import Footprint, Footprints, build
from uellm_deployer.domain.helr.layout import Unit
from uellm_deployer.domain.helr.packing import Allowed, Space
from uellm_deployer.domain.helr.sweep import Sweep


class Search:
    """Searches one layout of the devices."""

    def __init__(self, pricing: Pricing, units: tuple[Unit, ...], stages: int | None = None) -> None:
        rules, layers = pricing.problem.constraints, len(pricing.problem.model.layers)
        most = min(n for n in (layers // rules.min_layers, rules.max_stages, stages) if n is not None)
        self.pricing, self.units = pricing, units
        self.in_flight = pricing.problem.workload.micro_batches
        sizes = tuple(sorted(set(rules.tensor_sizes)))
        found = Footprints()
        modes = [(size,) for size in sizes] if rules.uniform_tensor_size else [sizes]
        graphs = [build(pricing, units, mode, found, most) for mode in modes]
        self.sweeps = [Sweep(graph, rules.min_layers, rules.max_layers) for graph in graphs if graph.levels]
        self.footprints: tuple[Footprint, ...] = tuple(found.numbers)
        self.devices = np.array([footprint.devices for footprint in self.footprints], dtype=np.int64)
        self._latencies: dict[int, Array] = {}

    @cached_property
    def space(self) -> Space:
        """The devices, to be shared out."""
        return Space(self.units, self.footprints, self.pricing.problem.constraints.max_copies)

    @cached_property
    def limits(self) -> Array:
        """All times that a stage or a hop can take, ascending: between two of them a limit changes nothing."""
        curves = {id(kind.curves): kind.curves for sweep in self.sweeps for kind in sweep.graph.kinds}
        times = [np.zeros(1, dtype=np.int64)]
        times += [np.unique(c.decode[None, :] - c.decode[:, None]) for c in curves.values()]
        times += [level.decode_hop for sweep in self.sweeps for level in sweep.graph.levels]
        found = np.unique(np.concatenate(times))
        return np.asarray(found[(found >= 0) & (found < LONGEST)])

    def effective(self, limit: int) -> int:
        """The largest time within the limit: it lets through the same stages and hops; -1: there is none."""
        if limit >= LONGEST:
            return INFINITE
        place = int(np.searchsorted(self.limits, limit, side="right")) - 1
        return int(self.limits[place]) if place >= 0 else -1

    def latencies(self, limit: int = INFINITE) -> Array:
        """Least LR of a copy on each footprint, with stages and hops within the limit."""
        key = self.effective(limit)
        if key not in self._latencies:
            found = np.full(len(self.footprints), INFINITE, dtype=np.int64)
            for sweep in self.sweeps:
                for level, table in zip(sweep.graph.levels, sweep.run(key), strict=True):
                    np.minimum.at(found, level.footprint, table[:, -1])
            self._latencies[key] = found
        return self._latencies[key]

    # The intervals of copies, and how many copies keep one

    def allowed(self, interval: int, latency: int = INFINITE) -> Allowed:
        """Footprints of copies with at most this interval and LR."""
        most = min(latency, self.in_flight * interval, LONGEST - 1)
        return np.asarray(self.latencies(self.stage_limit(interval)) <= most)

    def stage_limit(self, interval: int) -> int:
        """Of stages and hops, given an interval: with one step in flight that is LR, which bounds them anyway."""
        return INFINITE if self.in_flight == 1 else interval

    def most_copies(self, interval: int, latency: int = INFINITE) -> int:
        """How many copies with at most this interval and LR fit side by side."""
        return self.space.most_copies(self.allowed(interval, latency))

    def least_interval(self, copies: int, latency: int, high: int) -> int:
        """Least interval at which so many copies fit; they do at `high`."""
        limits = self.limits if self.in_flight > 1 else self.limits[:1]
        low_place, high_place = 0, int(np.searchsorted(limits, high, side="right")) - 1

        def end(place: int) -> int:
            return min(high, int(limits[place + 1]) - 1) if place + 1 < len(limits) else high

        while low_place < high_place:
            middle = (low_place + high_place) // 2
            if self.most_copies(end(middle), latency) >= copies:
                high_place = middle
            else:
                low_place = middle + 1
        start = int(limits[low_place]) if self.in_flight > 1 else 0
        known = self.latencies(self.stage_limit(end(low_place)))
        steps = -(-known[known <= min(latency, LONGEST - 1)] // self.in_flight)
        choices = np.unique(np.clip(steps, start, end(low_place)))
        return first_of(choices, lambda interval: self.most_copies(interval, latency) >= copies)

    def least_bottleneck(self, latency: int = INFINITE) -> tuple[int, int]:
        """Interval and number of the copies that make interval / number the least; (0, 0) if none fits."""
        copies = self.most_copies(LONGEST - 1, latency)
        best, number, high = 0, 0, LONGEST - 1
        while copies:
            if number:
                high = -(-best * copies // number) - 1
            fitting = self.most_copies(high, latency)
            if fitting < copies:
                copies = fitting
                continue
            best, number = self.least_interval(copies, latency, high), copies
            copies -= 1
        return best, number


def first_of(choices: Array, holds: Callable[[int], bool]) -> int:
    """The least of ascending choices for which it holds; it holds for the last, and above any for which it does."""
    low, high = 0, len(choices) - 1
    while low < high:
        middle = (low + high) // 2
        if holds(int(choices[middle])):
            high = middle
        else:
            low = middle + 1
    return int(choices[low])
