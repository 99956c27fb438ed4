"""The dynamic program: least cost of placing the first layers on the devices of a state, for all states at once.

    F[s][u + e, e][j] = min over i, d of F[s - 1][u, d][i] + hop(d, e) + cost_e(i, j)

over the ranges [i, j) that fit e, whose decode time and hop are within a limit. The ranges that end at j begin in a
window whose left end grows with j, so the minimum over i is one of a sliding window (a sparse table): with the sums
P_e of cost_e it is P_e[j] + min of (F - P_e)[i]. O(ways * layers + states * layers * log layers).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm_deployer.domain.helr.cost import INFINITE, LONGEST, Array
from uellm_deployer.domain.helr.graph import Graph, Level, State


@dataclass(frozen=True, slots=True)
class Weights:
    """What is summed: so many times the decode time, and so many times the prefill time."""

    decode: int = 1
    prefill: int = 0


DECODE, PREFILL = Weights(), Weights(0, 1)


@dataclass(frozen=True, slots=True)
class Steps:
    """Ways into a state, one row each: a last stage from layer `first` on, after state `source` of the level before.

    In order of preference, last first: among equals the first stages get the lowest devices.
    """

    first: Array
    source: Array
    decode_hop: Array
    prefill_hop: Array


@dataclass(frozen=True, slots=True)
class Placed:
    """Layers `[first, last)` on the kind of a state."""

    state: State
    takes: tuple[int, ...]
    """Devices of each class of the state's node."""
    unit: int
    first: int
    last: int


class Sweep:
    """Runs the program on one graph."""

    def __init__(self, graph: Graph, min_layers: int, max_layers: int | None = None) -> None:
        self.graph, self._min_layers = graph, min_layers
        curves = [kind.curves for kind in graph.kinds]
        self._decode = np.stack([c.decode for c in curves])
        self._prefill = np.stack([c.prefill for c in curves])
        self._layers = self._decode.shape[1] - 1
        # One stage with both ends of a tied head saves bytes: only there does 0 begin a range that 1 could not.
        self._fit = np.stack([_left_ends(c.size, c.capacity) for c in curves])
        for row, c in enumerate(curves):
            if c.bytes_of(0, self._layers) <= c.capacity:
                self._fit[row, -1] = 0
        if max_layers is not None:
            self._fit = np.maximum(self._fit, np.arange(self._layers + 1) - max_layers)

    def left_ends(self, limit: int) -> Array:
        """First layer that a range may begin with, shape (kinds, layers + 1): it fits, and takes at most the limit."""
        if limit >= LONGEST:
            return self._fit
        return np.maximum(self._fit, np.stack([_left_ends(row, limit) for row in self._decode]))

    def costs(self, weights: Weights) -> Array:
        """Sums of what is to be least, shape (kinds, layers + 1)."""
        return weights.decode * self._decode + weights.prefill * self._prefill

    def run(self, limit: int = INFINITE, weights: Weights = DECODE) -> list[Array]:
        """Least costs by level, each of shape (states, layers + 1); `INFINITE` where there is no way."""
        sums, left = self.costs(weights), self.left_ends(limit)
        right = np.arange(self._layers + 1) - self._min_layers
        window = _Windows(left, right)
        levels: list[Array] = []
        for level in self.graph.levels:
            if levels:
                before = self.before(level, levels[-1], limit, weights)
                cost = sums[level.kind] + window.least(before - sums[level.kind], level.kind)
            else:
                cost = np.where((left == 0) & (right >= 0), sums, INFINITE)[level.kind]
            cost[cost >= LONGEST] = INFINITE
            levels.append(cost)
        return levels

    @staticmethod
    def hops(level: Level, limit: int, weights: Weights) -> Array:
        """Cost of each way into the level's states."""
        cost = np.minimum(weights.decode * level.decode_hop + weights.prefill * level.prefill_hop, INFINITE)
        return np.where(level.decode_hop > min(limit, LONGEST), INFINITE, cost)

    def before(self, level: Level, earlier: Array, limit: int, weights: Weights) -> Array:
        """Least cost up to the hop into each state, shape (states, layers + 1)."""
        ways = earlier[level.source] + self.hops(level, limit, weights)[:, None]
        return np.minimum(np.minimum.reduceat(ways, level.start, axis=0), INFINITE)

    def steps(self, number: int, state: int, last: int, limit: int) -> Steps:
        """Ways to end the stage of a state at layer `last` (not included), whatever they cost."""
        level = self.graph.levels[number]
        low, high = int(self.left_ends(limit)[level.kind[state], last]), last - self._min_layers
        if number == 0:
            none = np.zeros(int(low == 0 <= high), dtype=np.int64)
            return Steps(none, none - 1, none, none)
        end = int(level.start[state + 1]) if state + 1 < len(level.start) else len(level.source)
        ways = np.arange(int(level.start[state]), end)
        ways = ways[level.decode_hop[ways] <= min(limit, LONGEST)]
        firsts = np.arange(max(low, 1), high + 1)
        way, first = np.repeat(ways, len(firsts)), np.tile(firsts, len(ways))
        return Steps(first, level.source[way], level.decode_hop[way], level.prefill_hop[way])

    def placed(self, number: int, state: int, first: int, last: int) -> Placed:
        """The stage of a state."""
        reached = self.graph.levels[number].states[state]
        kind = self.graph.kinds[reached.kind]
        return Placed(reached, kind.takes, kind.unit, first, last)

    def trace(self, levels: list[Array], number: int, state: int, limit: int) -> list[Placed]:
        """The stages behind the least cost of having all layers in a state, by decode time."""
        last, stages = self._layers, list[Placed]()
        while number >= 0:
            steps = self.steps(number, state, last, limit)
            kind = int(self.graph.levels[number].kind[state])
            cost = self._decode[kind, last] - self._decode[kind, steps.first] + steps.decode_hop
            if number:
                cost = cost + levels[number - 1][steps.source, steps.first]
            best = int(np.flatnonzero(cost == levels[number][state, last])[-1])
            first = int(steps.first[best])
            stages.append(self.placed(number, state, first, last))
            number, state, last = number - 1, int(steps.source[best]), first
        return stages[::-1]


def _left_ends(sums: Array, limit: int) -> Array:
    """For each right end j the first i with sums[j] - sums[i] <= limit; beyond j if there is none."""
    ends: Array = np.searchsorted(sums, sums - limit, side="left")
    return ends


class _Windows:
    """Minima over the windows [left, right] of the rows of a table, by kind."""

    def __init__(self, left: Array, right: Array) -> None:
        length = right - left + 1
        self._empty = length <= 0
        self._power = np.log2(np.maximum(length, 1)).astype(np.int64)
        self._left = np.minimum(left, left.shape[1] - 1)
        self._right = np.maximum(right - (1 << self._power) + 1, 0)
        self._powers = int(self._power.max()) + 1

    def least(self, table: Array, kind: Array) -> Array:
        """Shape (states, layers + 1); `INFINITE` where the window is empty."""
        powers = np.empty((self._powers, *table.shape), dtype=np.int64)
        powers[0] = table
        for power in range(1, self._powers):
            half = 1 << (power - 1)
            powers[power] = powers[power - 1]
            np.minimum(powers[power - 1, :, :-half], powers[power - 1, :, half:], out=powers[power, :, :-half])
        rows, power = np.arange(len(table))[:, None], self._power[kind]
        found = np.minimum(powers[power, rows, self._left[kind]], powers[power, rows, self._right[kind]])
        found[self._empty[kind]] = INFINITE
        result: Array = found
        return result
