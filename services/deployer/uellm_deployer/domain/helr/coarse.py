"""A problem made simpler: never better than it is (a plan stays a plan), or never worse (its optimum is a bound)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from uellm_deployer.domain.helr.problem import Device, Link, Problem


def allowed(problem: Problem) -> Problem:
    """Without the devices that may not be used."""
    ids = problem.constraints.device_ids
    if ids is None:
        return problem
    return replace(
        problem,
        devices=tuple(device for device in problem.devices if device.id in ids),
        links=tuple(link for link in problem.links if link.device_a in ids and link.device_b in ids),
        constraints=replace(problem.constraints, device_ids=None),
    )


def by_switch(problem: Problem) -> Problem:
    """With the groups that links for tensor parallelism connect as nodes, where all devices are in one node."""
    if len({device.node for device in problem.devices}) > 1:
        return problem
    number = connected(problem)
    return replace(problem, devices=tuple(replace(device, node=number[device.id]) for device in problem.devices))


def connected(problem: Problem) -> dict[str, int]:
    """The devices' islands, numbered: sets that links for tensor parallelism connect."""
    home = {device.id: device.id for device in problem.devices}

    def root(device: str) -> str:
        while home[device] != device:
            device = home[device]
        return device

    for link in problem.links:
        if link.groups:
            home[root(link.device_b)] = root(link.device_a)
    number = {name: count for count, name in enumerate(dict.fromkeys(root(device.id) for device in problem.devices))}
    return {device.id: number[root(device.id)] for device in problem.devices}


@dataclass(frozen=True, slots=True)
class Hardening:
    """How devices are made alike, always for the worse."""

    rooms: int | None = None
    """Into so many sizes is room rounded down, and only devices of one size are alike; None: all get the least."""
    far_alike: bool = False
    """All links between nodes are as slow as the slowest."""
    one_node: bool = False
    """What node a device is in does not count: links are as slow as the slowest between devices of those sorts."""
    one_speed: bool = False
    """All devices are as slow as the slowest."""


def hardened(problem: Problem, how: Hardening) -> Problem:
    """Devices of the same speed in one node get the least room, and links between two such groups the slowest.

    No cost falls and no room grows: a plan for it is a plan for the problem, at no higher cost.
    """
    largest = max(device.room_bytes for device in problem.devices)
    devices = [
        replace(
            device,
            free_bytes=_rounded(device.room_bytes, largest, how.rooms) if how.rooms else device.room_bytes,
            reserve_bytes=0,
            node=0 if how.one_node else device.node,
        )
        for device in problem.devices
    ]
    if how.one_speed:
        devices = _as_fast(devices, min)

    def alike(device: Device) -> Hashable:
        return device.node, device.speed, how.rooms and device.room_bytes

    merged = _merged(replace(problem, devices=tuple(devices)), alike, worst=True)
    return _far_alike(merged) if how.far_alike else merged


def _rounded(room: int, largest: int, sizes: int) -> int:
    """Down to a multiple of the largest room's share; the largest goes with those just below it."""
    share = max(1, largest // sizes)
    return min(room // share, sizes - 1) * share


def _as_fast(devices: Sequence[Device], choose: Callable[[Iterable[float]], float]) -> list[Device]:
    bandwidth, flops = (choose(device.speed[rate] for device in devices) for rate in (0, 1))
    return [
        replace(device, bandwidth=bandwidth, flops=flops, bandwidth_efficiency=1.0, flops_efficiency=1.0)
        for device in devices
    ]


def _far_alike(problem: Problem) -> Problem:
    node = {device.id: device.node for device in problem.devices}
    pairs = [(a.id, b.id) for a, b in combinations(problem.devices, 2) if a.node != b.node]
    near = [link for link in problem.links if node[link.device_a] == node[link.device_b]]
    far = [link for link in problem.links if node[link.device_a] != node[link.device_b]]
    joined = _joined(far, len(pairs), worst=True) if far else None
    links = [replace(joined, device_a=a, device_b=b) for a, b in pairs] if joined is not None else []
    return replace(problem, links=(*near, *links))


def relaxed(problem: Problem, *, one_class: bool) -> Problem:
    """Devices of the same speed, wherever they are, get the most room, and links between such groups the quickest.

    No cost grows and no room falls: its optimum is a lower bound. With `one_class` all devices are made the best.
    """
    if one_class:
        problem = replace(problem, devices=tuple(_as_fast(problem.devices, max)))
    largest = max(Counter(connected(problem).values()).values(), default=0)
    sizes = tuple(size for size in problem.constraints.tensor_sizes if size <= largest)
    rules = replace(problem.constraints, order_is_free=True, tensor_sizes=sizes or problem.constraints.tensor_sizes)
    return _merged(replace(problem, constraints=rules), lambda device: device.speed, worst=False)


def _merged(problem: Problem, key: Callable[[Device], Hashable], *, worst: bool) -> Problem:
    groups: dict[Hashable, list[Device]] = defaultdict(list)
    for device in problem.devices:
        groups[key(device)].append(device)
    choose = min if worst else max
    room = {name: choose(device.room_bytes for device in members) for name, members in groups.items()}
    kind = {device.id: number for number, members in enumerate(groups.values()) for device in members}
    between: dict[tuple[int, int], list[Link]] = defaultdict(list)
    for link in problem.links:
        between[_pair(kind[link.device_a], kind[link.device_b])].append(link)
    pairs = [((a.id, b.id), _pair(kind[a.id], kind[b.id])) for a, b in combinations(problem.devices, 2)]
    count: dict[tuple[int, int], int] = defaultdict(int)
    for _, pair in pairs:
        count[pair] += 1
    links = {pair: _joined(found, count[pair], worst=worst) for pair, found in between.items()}
    return replace(
        problem,
        devices=tuple(replace(device, free_bytes=room[key(device)], reserve_bytes=0) for device in problem.devices),
        links=tuple(
            replace(joined, device_a=a, device_b=b) for (a, b), pair in pairs if (joined := links.get(pair)) is not None
        ),
    )


def _pair(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a <= b else (b, a)


def _joined(links: list[Link], pairs: int, *, worst: bool) -> Link | None:
    """One link in place of all; in the worst case none, if any two devices have none."""
    if not worst:
        return replace(
            links[0],
            bandwidth=max(link.bandwidth for link in links),
            latency_seconds=min(link.latency_seconds for link in links),
            groups=any(link.groups for link in links),
        )
    if len(links) < pairs:
        return None
    return replace(
        links[0],
        bandwidth=min(link.bandwidth for link in links),
        latency_seconds=max(link.latency_seconds for link in links),
        groups=all(link.groups for link in links),
    )
