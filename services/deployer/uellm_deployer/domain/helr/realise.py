"""From footprints to devices and layer ranges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uellm_deployer.domain.helr.cost import Span
from uellm_deployer.domain.helr.goals import Found
from uellm_deployer.domain.helr.layout import Classes, Unit, representatives
from uellm_deployer.domain.helr.search import Search
from uellm_deployer.domain.helr.sweep import Placed

Copy = tuple[Span, ...]
Path = Sequence[Placed]


class _Node:
    """A node, whose devices are handed out from the lowest on."""

    def __init__(self, classes: Classes) -> None:
        self._classes, self._used = classes, tuple(0 for _ in classes)

    def take(self, takes: tuple[int, ...]) -> tuple[int, ...]:
        """So many devices of each class."""
        devices = representatives(self._classes, takes, self._used)
        self._used = tuple(a + b for a, b in zip(self._used, takes, strict=True))
        return devices


def copies_of(search: Search, found: Found) -> tuple[Copy, ...]:
    """The copies that were found."""
    groups = sorted(found.together)
    return copies_on([[path_of(search, number, found.limit) for number in group] for group in groups], search.units)


def copies_on(groups: Sequence[Sequence[Path]], units: Sequence[Unit]) -> tuple[Copy, ...]:
    """Copies along the paths, on the lowest devices that they can have; paths of one group share their first node."""
    left = [list(unit.nodes) for unit in units]
    made: list[Copy] = []
    for paths in groups:
        shared = _Node(left[paths[0][0].unit].pop(0))
        made += [_on_devices(path, shared, left) for path in paths]
    return tuple(sorted(made, key=lambda copy: copy[0].devices))


def path_of(search: Search, footprint: int, limit: int) -> list[Placed]:
    """Stages of the copy with the least LR on a footprint, with stages and hops within the limit."""
    target, key = search.latencies(limit)[footprint], search.effective(limit)
    for sweep in search.sweeps:
        tables = sweep.run(key)
        for number, (level, table) in enumerate(zip(sweep.graph.levels, tables, strict=True)):
            states = np.flatnonzero((level.footprint == footprint) & (table[:, -1] == target))
            if len(states):
                return sweep.trace(tables, number, int(states[-1]), key)
    raise AssertionError("a footprint without a path")


def _on_devices(stages: Path, node: _Node, left: list[list[Classes]]) -> Copy:
    spans, nodes = [], stages[0].state.nodes
    for stage in stages:
        if stage.state.nodes != nodes:
            node, nodes = _Node(left[stage.unit].pop(0)), stage.state.nodes
        spans.append(Span(node.take(stage.takes), stage.first, stage.last))
    return tuple(spans)
