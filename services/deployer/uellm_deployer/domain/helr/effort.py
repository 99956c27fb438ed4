"""How hard to search: all devices as one set where the states are few, else node by node, with bounds."""

from __future__ import annotations

import math
from collections import Counter

from uellm_deployer.domain.helr.coarse import Hardening, by_switch, hardened, relaxed
from uellm_deployer.domain.helr.cost import Pricing
from uellm_deployer.domain.helr.layout import Unit, flat, kinds, nested
from uellm_deployer.domain.helr.problem import Problem
from uellm_deployer.domain.helr.search import Search

STATES = 11_000
"""States (used devices, and a kind among them) of an exact search: enough for 9 different devices in any groups."""

POINTS = 4_000
"""Counts of used devices in an exact search: its packing takes the square."""

WALKS = 2_000
"""States of a search node by node, on one level, above which nodes are first made more alike."""

HARDER = (
    Hardening(),
    Hardening(rooms=16),
    Hardening(rooms=16, far_alike=True),
    Hardening(rooms=4, far_alike=True),
    Hardening(rooms=4, one_node=True),
    Hardening(rooms=2, one_node=True, one_speed=True),
)
"""The last needs no node: it is always searchable."""


def search_of(problem: Problem, states: int = STATES) -> tuple[Search, bool]:
    """What finds plans for the problem, and whether it finds the best."""
    pricing = Pricing(problem)
    if _few(pricing, units := flat(pricing), states):
        return Search(pricing, units), True
    pricing, units = _harder(by_switch(problem), states)
    return Search(pricing, units, _worthwhile_stages(pricing.problem)), False


def _harder(problem: Problem, states: int) -> tuple[Pricing, tuple[Unit, ...]]:
    """Of the harder problems that can be searched the one with the largest groups, then room; the first of equals."""
    best, most = None, (0, -1)
    for how in HARDER:
        pricing = Pricing(hardened(problem, how))
        if (units := _searchable(pricing, states, always=how is HARDER[-1])) is None:
            continue
        room = sum(_rooms(pricing.problem))
        groups = max((kind.size for kind in kinds(pricing, units, pricing.problem.constraints.tensor_sizes)), default=0)
        if (groups, room) > most:
            best, most = (pricing, units), (groups, room)
        if room >= sum(_rooms(problem)):
            break
    if best is None:
        raise AssertionError("the last hardening is always searchable")
    return best


def _searchable(pricing: Pricing, states: int, *, always: bool) -> tuple[Unit, ...] | None:
    """Units with few enough states."""
    if _few(pricing, units := flat(pricing), states):
        return units
    by_node = nested(pricing)
    return by_node if always or _walks(pricing, by_node) <= WALKS else None


def _rooms(problem: Problem) -> list[int]:
    """Bytes for weights and cache on the devices that have any."""
    rooms = (device.room_bytes - problem.model.activation_bytes for device in problem.devices)
    return [room for room in rooms if room > 0]


def _worthwhile_stages(problem: Problem) -> int:
    """Most stages that a search node by node considers: twice what memory asks for, or what is in flight besides."""
    model = problem.model
    needed = sum(part.weight_bytes + part.kv_bytes for part in (*model.layers, model.embedding, model.head))
    rooms = _rooms(problem)
    least = -(-needed * len(rooms) // max(1, sum(rooms)))
    return max(2 * least, least + problem.workload.micro_batches)


def bounding(problem: Problem) -> Search:
    """Finds what no plan falls below: devices of one speed are alike, and the quickest link is everywhere."""
    pricing = Pricing(relaxed(problem, one_class=False))
    if not _few(pricing, units := flat(pricing), STATES):
        pricing = Pricing(relaxed(problem, one_class=True))
        units = flat(pricing)
    return Search(pricing, units)


def _walks(pricing: Pricing, units: tuple[Unit, ...]) -> int:
    inside = [math.prod(size + 1 for size in unit.sizes) for unit in units]
    visits = math.prod(len(unit.nodes) + 1 for unit in units)
    if visits * sum(inside) > WALKS:  # too many kinds to count, too
        return visits * sum(inside)
    found = Counter(kind.unit for kind in kinds(pricing, units, pricing.problem.constraints.tensor_sizes))
    return visits * sum(points * found[unit] for unit, points in enumerate(inside))


def _few(pricing: Pricing, units: tuple[Unit, ...], states: int) -> bool:
    """Whether all devices can be searched as one set."""
    points = math.prod(size + 1 for size in units[0].sizes)
    if points > min(states, POINTS):
        return False
    found = kinds(pricing, units, pricing.problem.constraints.tensor_sizes)
    ways = (math.prod(n - took + 1 for n, took in zip(units[0].sizes, kind.takes, strict=True)) for kind in found)
    return sum(ways) <= states
