"""How many copies fit side by side, on the fewest devices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from uellm_deployer.domain.helr.cost import Array
from uellm_deployer.domain.helr.graph import Footprint
from uellm_deployer.domain.helr.layout import Unit

NONE = 1 << 40
"""Devices of what cannot be packed."""

Allowed = npt.NDArray[np.bool_]
"""Which footprints may be used, by number."""

Together = tuple[int, ...]
"""Footprints that share a node; or one, that has several nodes for itself."""


class _Box:
    """Packs vectors into every vector up to a limit: `W[point, copies]` is the least number of devices."""

    def __init__(self, limits: Sequence[int], options: Sequence[Sequence[int]]) -> None:
        weights = np.cumprod([1, *(limit + 1 for limit in limits)])
        points = np.array([point[::-1] for point in product(*(range(limit + 1) for limit in reversed(limits)))])
        vectors = np.array(options, dtype=np.int64).reshape(len(options), len(limits))
        fits = (vectors[:, None, :] <= points[None, :, :]).all(axis=2)
        # The last row of a table is for what does not fit.
        self.rest = np.where(fits, np.arange(len(points)) - (vectors @ weights[:-1])[:, None], len(points))
        self.full = len(points) - 1
        self._within = (vectors[None, :, :] <= vectors[:, None, :]).all(axis=2) & ~np.eye(len(options), dtype=bool)

    def least(self, allowed: Allowed) -> Allowed:
        """The allowed options that contain no other allowed one: no more are needed."""
        return np.asarray(allowed & ~(self._within & allowed).any(axis=1))

    def table(self, options: Array, copies: Array, devices: Array, most: int) -> Array:
        """Pack any of the options, each of so many copies and devices; shape (points + 1, most + 1)."""
        table = np.full((self.full + 2, most + 1), NONE, dtype=np.int64)
        table[:-1, 0] = 0
        if not len(options):
            return table
        reachable = np.flatnonzero((self.rest[options] <= self.full).any(axis=0))
        by_copies = [(int(count), options[copies == count], devices[copies == count]) for count in np.unique(copies)]
        for point in reachable[reachable <= self.full]:
            for count, of_count, size in by_copies:
                ways = table[self.rest[of_count, point], : most + 1 - count] + size[:, None]
                np.minimum(table[point, count:], ways.min(axis=0), out=table[point, count:])
        return np.minimum(table, NONE)

    def chosen(self, table: Array, options: Array, copies: Array, devices: Array, count: int) -> list[int]:
        """Places in `options` of those that make up the best way to pack so many copies, the lowest first."""
        found, point = [], self.full
        while count:
            ways = np.array(
                [
                    table[self.rest[option, point], count - some] + size if some <= count else NONE
                    for option, some, size in zip(options, copies, devices, strict=True)
                ]
            )
            place = int(ways.argmin())
            found.append(place)
            point, count = int(self.rest[options[place], point]), count - int(copies[place])
        return found


class Space:
    """The devices, to be shared out among footprints."""

    def __init__(self, units: Sequence[Unit], footprints: Sequence[Footprint], max_copies: int | None) -> None:
        nodes = [len(unit.nodes) for unit in units]
        total = sum(sum(unit.sizes) * count for unit, count in zip(units, nodes, strict=True))
        self.most = min(total, max_copies or total)
        self._units = units
        self._tables: dict[tuple[int, bytes], Array] = {}
        self._devices = np.array([footprint.devices for footprint in footprints], dtype=np.int64)
        single = np.array([bool(footprint.takes) for footprint in footprints], dtype=bool)
        self._wide = np.flatnonzero(~single)
        self._inside = [
            np.array([n for n in np.flatnonzero(single) if footprints[n].unit == unit], dtype=np.int64)
            for unit in range(len(units))
        ]
        self._boxes = [
            _Box(unit.sizes, [footprints[n].takes for n in inside])
            for unit, inside in zip(units, self._inside, strict=True)
        ]
        self._only = nodes == [1]
        own = np.eye(len(units), dtype=np.int64).tolist()
        self._outer = _Box(nodes, [*own, *(footprints[n].nodes for n in self._wide)])

    def most_copies(self, allowed: Allowed) -> int:
        """How many copies with allowed footprints fit."""
        return int(np.flatnonzero(self.devices(allowed) < NONE)[-1])

    def devices(self, allowed: Allowed) -> Array:
        """Fewest devices for each number of copies, shape (most + 1,); `NONE` where they do not fit."""
        inner = [self._inner(unit, allowed)[1][box.full] for unit, box in enumerate(self._boxes)]
        if self._only:
            return np.asarray(inner[0])
        options = self._options(inner, allowed)
        result: Array = self._outer.table(*options, self.most)[self._outer.full]
        return result

    def choose(self, allowed: Allowed, copies: int) -> list[Together]:
        """Footprints of that many copies, on the fewest devices."""
        tables = [self._inner(unit, allowed) for unit in range(len(self._boxes))]
        options = self._options([table[box.full] for (_, table), box in zip(tables, self._boxes, strict=True)], allowed)
        outer = self._outer.table(*options, self.most)
        found: list[Together] = []
        for place in self._outer.chosen(outer, *options, copies):
            option, count = int(options[0][place]), int(options[1][place])
            if option >= len(self._boxes):
                found.append((int(self._wide[option - len(self._boxes)]),))
                continue
            least, table = tables[option]
            inside = self._inside[option][least]
            picked = self._boxes[option].chosen(table, least, np.ones_like(least), self._devices[inside], count)
            found.append(tuple(int(inside[n]) for n in picked))
        return found

    def _inner(self, unit: int, allowed: Allowed) -> tuple[Array, Array]:
        """Options in one node, and their table: the same for many limits."""
        box, inside = self._boxes[unit], self._inside[unit]
        least = np.flatnonzero(box.least(allowed[inside]))
        key = (unit, least.tobytes())
        if key not in self._tables:
            devices = self._devices[inside[least]]
            most = min(self.most, sum(self._units[unit].sizes) // int(devices.min(initial=self.most)))
            table = np.full((box.full + 2, self.most + 1), NONE, dtype=np.int64)
            table[:, : most + 1] = box.table(least, np.ones_like(least), devices, most)
            self._tables[key] = table
        return least, self._tables[key]

    def _options(self, inner: Sequence[Array], allowed: Allowed) -> tuple[Array, Array, Array]:
        """Of the nodes: one node with some copies, or several with one. Options, copies, devices."""
        options = [
            (unit, copies, int(devices[copies]))
            for unit, devices in enumerate(inner)
            for copies in range(1, len(devices))
            if devices[copies] < NONE
        ]
        options += [
            (len(inner) + place, 1, int(self._devices[number]))
            for place, number in enumerate(self._wide)
            if allowed[number]
        ]
        columns = np.array(options, dtype=np.int64).reshape(-1, 3)
        return columns[:, 0], columns[:, 1], columns[:, 2]
