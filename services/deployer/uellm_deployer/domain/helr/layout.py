"""Devices that can stand for each other, collapsed: counts replace sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from uellm_deployer.domain.helr.cost import Curves, Pricing
from uellm_deployer.domain.helr.problem import Link

Classes = tuple[tuple[int, ...], ...]
"""Devices by class. Classes, and the devices of each, in ascending order."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A device, or a tensor-parallel group, up to exchange of equal ones."""

    unit: int
    takes: tuple[int, ...]
    """Devices of each class of the unit."""
    curves: Curves

    @property
    def size(self) -> int:
        """Devices in it."""
        return sum(self.takes)


@dataclass(frozen=True, slots=True)
class Unit:
    """Nodes that can stand for each other; just one if all devices are searched as one set."""

    nodes: tuple[Classes, ...]

    @property
    def classes(self) -> Classes:
        """Of the node that stands for them."""
        return self.nodes[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Devices in each class."""
        return tuple(len(members) for members in self.classes)


def device_classes(pricing: Pricing, devices: list[int]) -> Classes:
    """Classes of devices with the same figures and the same link to everyone else (then it is the same within, too).

    Where stages must take devices in order, only neighbours in it may stand for each other.
    """
    free = pricing.problem.constraints.order_is_free
    classes: list[list[int]] = []
    for device in devices:
        known = classes if free else classes[-1:]
        home = next((members for members in known if _twins(pricing, members[0], device)), None)
        if home is None:
            classes.append([device])
        else:
            home.append(device)
    return tuple(tuple(members) for members in classes)


def _twins(pricing: Pricing, a: int, b: int) -> bool:
    first, second = pricing.problem.devices[a], pricing.problem.devices[b]
    if (first.speed, first.room_bytes, first.free_bytes) != (second.speed, second.room_bytes, second.free_bytes):
        return False
    others = (x for x in range(len(pricing.problem.devices)) if x not in (a, b))
    return all(_quality(pricing.link(a, x)) == _quality(pricing.link(b, x)) for x in others)


def _quality(link: Link | None) -> tuple[float, float, bool] | None:
    return None if link is None else (link.bandwidth, link.latency_seconds, link.groups)


def flat(pricing: Pricing) -> tuple[Unit, ...]:
    """All devices as one set."""
    return (Unit((device_classes(pricing, list(range(len(pricing.problem.devices)))),)),)


def nested(pricing: Pricing) -> tuple[Unit, ...]:
    """Node by node, equal nodes collapsed."""
    devices = pricing.problem.devices
    free = pricing.problem.constraints.order_is_free
    units: list[list[Classes]] = []
    for node in dict.fromkeys(device.node for device in devices):
        classes = device_classes(pricing, [i for i, device in enumerate(devices) if device.node == node])
        known = units if free else units[-1:]
        home = next((nodes for nodes in known if _same_node(pricing, nodes[0], classes)), None)
        if home is None:
            units.append([classes])
        else:
            home.append(classes)
    return tuple(Unit(tuple(nodes)) for nodes in units)


def _same_node(pricing: Pricing, a: Classes, b: Classes) -> bool:
    """Whether exchanging two nodes, class by class, changes nothing."""
    if [len(members) for members in a] != [len(members) for members in b]:
        return False
    figures = [
        [(pricing.problem.devices[m[0]].speed, pricing.problem.devices[m[0]].room_bytes) for m in c] for c in (a, b)
    ]
    inside = {device for members in (*a, *b) for device in members}
    others = [x for x in range(len(pricing.problem.devices)) if x not in inside]

    def links(first: Classes, second: Classes) -> list[object]:
        return [_quality(pricing.link(p[0], q[-1])) for p, q in product(first, second)]

    def outside(classes: Classes) -> list[object]:
        return [_quality(pricing.link(members[0], x)) for members in classes for x in others]

    same_inside = figures[0] == figures[1] and links(a, a) == links(b, b)
    return same_inside and outside(a) == outside(b) and links(a, b) == links(b, a)


def kinds(pricing: Pricing, units: tuple[Unit, ...], sizes: tuple[int, ...]) -> list[Kind]:
    """Devices and groups of these sizes, those with the lowest devices first."""
    found = []
    for number, unit in enumerate(units):
        for size in sorted(sizes):
            for takes in _selections(unit.sizes, size):
                devices = representatives(unit.classes, takes)
                if size == 1 or pricing.can_group(devices):
                    found.append(Kind(number, takes, pricing.curves(devices)))
    return found


def representatives(classes: Classes, takes: tuple[int, ...], used: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The lowest devices of each class, after those used."""
    used = used or (0,) * len(classes)
    return tuple(
        sorted(
            device
            for members, skip, count in zip(classes, used, takes, strict=True)
            for device in members[skip : skip + count]
        )
    )


def _selections(sizes: tuple[int, ...], total: int) -> Iterator[tuple[int, ...]]:
    """Ways to take so many devices, from low classes first."""
    if not sizes:
        if total == 0:
            yield ()
        return
    for count in range(min(sizes[0], total), -1, -1):
        for rest in _selections(sizes[1:], total - count):
            yield (count, *rest)
