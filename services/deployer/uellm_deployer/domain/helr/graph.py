"""The states of the dynamic program, without layers: which devices are used, and the last of them, by number of stages.

A pipeline never comes back to a node that it left. With all devices in one node (`layout.flat`) this restricts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from uellm_deployer.domain.helr.cost import Array, Pricing
from uellm_deployer.domain.helr.layout import Kind, Unit, kinds, representatives

Takes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a copy occupies: devices of one node, by class, or several nodes, each as a whole."""

    nodes: Takes
    """Of each unit."""
    takes: Takes
    """Devices of each class of the node; empty: more than one node."""
    devices: int
    """In number."""

    @property
    def unit(self) -> int:
        """Of its node."""
        return self.nodes.index(1)


@dataclass(frozen=True, slots=True)
class State:
    """Devices used up to a stage, and the kind that the stage is on."""

    nodes: Takes
    takes: Takes
    """In the node of the last stage."""
    kind: int
    devices: int


@dataclass(frozen=True, slots=True)
class Level:
    """States after so many stages, and the ways there from the level before, ordered by the state they lead to."""

    states: tuple[State, ...]
    kind: Array
    footprint: Array
    source: Array
    """Of each way, the state it comes from."""
    decode_hop: Array
    prefill_hop: Array
    start: Array
    """First way of each state."""


@dataclass(frozen=True, slots=True)
class Graph:
    """All levels, for groups of the given sizes."""

    units: tuple[Unit, ...]
    kinds: tuple[Kind, ...]
    levels: tuple[Level, ...]
    tensor_sizes: tuple[int, ...]


@dataclass(slots=True)
class Footprints:
    """Footprints of all graphs of a search, numbered as they are met."""

    numbers: dict[Footprint, int] = field(default_factory=dict)

    def number(self, state: State) -> int:
        """Of the footprint of a copy that ends in that state."""
        takes = state.takes if sum(state.nodes) == 1 else ()
        return self.numbers.setdefault(Footprint(state.nodes, takes, state.devices), len(self.numbers))


class _Growth:
    """Which states follow a state."""

    def __init__(self, pricing: Pricing, units: tuple[Unit, ...], found: list[Kind]) -> None:
        self._units, self._kinds = units, found
        self._free = pricing.problem.constraints.order_is_free
        self._of_unit = [[n for n, kind in enumerate(found) if kind.unit == unit] for unit in range(len(units))]
        self._pricing = pricing
        self.hop = cache(self._hop)

    def first(self) -> Iterator[State]:
        """States after one stage."""
        for number, kind in enumerate(self._kinds):
            nodes = tuple(int(unit == kind.unit) for unit in range(len(self._units)))
            yield State(nodes, kind.takes, number, kind.size)

    def after(self, state: State) -> Iterator[tuple[State, tuple[int, int]]]:
        """The following states, and the hop there."""
        last = self._kinds[state.kind]
        sizes = self._units[last.unit].sizes
        for number in self._of_unit[last.unit]:
            kind = self._kinds[number]
            takes = tuple(map(int.__add__, state.takes, kind.takes))
            if all(map(int.__le__, takes, sizes)) and (self._free or _ascends(last.takes, kind.takes)):
                yield (
                    State(state.nodes, takes, number, state.devices + kind.size),
                    self.hop(state.kind, number, same_node=True),
                )
        for unit in range(0 if self._free else last.unit, len(self._units)):
            if state.nodes[unit] < len(self._units[unit].nodes):
                nodes = tuple(count + (place == unit) for place, count in enumerate(state.nodes))
                for number in self._of_unit[unit]:
                    kind = self._kinds[number]
                    following = State(nodes, kind.takes, number, state.devices + kind.size)
                    yield following, self.hop(state.kind, number, same_node=False)

    def _hop(self, source: int, target: int, *, same_node: bool) -> tuple[int, int]:
        a, b = self._kinds[source], self._kinds[target]
        nodes = self._units[b.unit].nodes
        if same_node:
            return self._pricing.hop(
                representatives(nodes[0], a.takes), representatives(nodes[0], b.takes, used=a.takes)
            )
        other = nodes[1] if a.unit == b.unit else nodes[0]
        return self._pricing.hop(representatives(self._units[a.unit].classes, a.takes), representatives(other, b.takes))


def _ascends(first: Takes, second: Takes) -> bool:
    """Whether all devices of the second can come after those of the first."""
    last = max(place for place, count in enumerate(first) if count)
    return last <= min(place for place, count in enumerate(second) if count)


def build(
    pricing: Pricing, units: tuple[Unit, ...], sizes: tuple[int, ...], footprints: Footprints, stages: int
) -> Graph:
    """All states that plans with groups of these sizes, and at most so many stages, go through."""
    found = kinds(pricing, units, sizes)
    growth = _Growth(pricing, units, found)
    levels: list[Level] = []
    ways: dict[State, list[tuple[int, tuple[int, int]]]] = {state: [] for state in growth.first()}
    while ways and len(levels) < stages:
        level = _level(ways, footprints)
        levels.append(level)
        ways = {}
        for place, state in enumerate(level.states):
            for following, hop in growth.after(state):
                ways.setdefault(following, []).append((place, hop))
    return Graph(units, tuple(found), tuple(levels), sizes)


def _level(ways: dict[State, list[tuple[int, tuple[int, int]]]], footprints: Footprints) -> Level:
    edges = [edge for found in ways.values() for edge in found]
    counts = [len(found) for found in ways.values()]
    return Level(
        states=tuple(ways),
        kind=np.array([state.kind for state in ways], dtype=np.int64),
        footprint=np.array([footprints.number(state) for state in ways], dtype=np.int64),
        source=np.array([source for source, _ in edges], dtype=np.int64),
        decode_hop=np.array([hop[0] for _, hop in edges], dtype=np.int64),
        prefill_hop=np.array([hop[1] for _, hop in edges], dtype=np.int64),
        start=np.cumsum([0, *counts[:-1]], dtype=np.int64),
    )
