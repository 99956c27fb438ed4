"""How hard to search: all devices as one set where the states are few, else node by node, with bounds."""

from __future__ import annotations

import math
from collections import Counter

from uellm_deployer.domain.helr.coarse import by_switch, hardened, relaxed
from uellm_deployer.domain.helr.cost import Pricing
from uellm_deployer.domain.helr.layout import Unit, flat, kinds, nested
from uellm_deployer.domain.helr.problem import Problem
from uellm_deployer.domain.helr.search import Search

STATES = 40_000
"""States (counts of used devices times kinds) of an exact search: enough for 8 different devices in any groups."""


WALKS = 2_000
"""States of a search node by node, on one level, above which nodes are first made more alike."""


def search_of(problem: Problem, states: int = STATES) -> tuple[Search, bool]:
    """What finds plans for the problem, and whether it finds the best."""
    pricing = Pricing(problem)
    if _states(pricing, units := flat(pricing)) <= states:
        return Search(pricing, units), True
    problem = by_switch(problem)
    for how in ({}, {"rounded": True}, {"rounded": True, "far_alike": True}):
        pricing = Pricing(hardened(problem, **how))
        if _states(pricing, units := flat(pricing)) <= states or _walks(pricing, units := nested(pricing)) <= WALKS:
            break
    return Search(pricing, units, _worthwhile_stages(problem)), False


def _worthwhile_stages(problem: Problem) -> int:
    """Most stages that a search node by node considers: twice what memory asks for, or what is in flight besides."""
    model = problem.model
    needed = sum(part.weight_bytes + part.kv_bytes for part in (*model.layers, model.embedding, model.head))
    room = max((device.room_bytes - model.activation_bytes for device in problem.devices), default=0)
    least = -(-needed // max(1, room))
    return max(2 * least, least + problem.workload.micro_batches)


def bounding(problem: Problem) -> Search:
    """Finds what no plan falls below: devices of one speed are alike, and the quickest link is everywhere."""
    pricing = Pricing(relaxed(problem, one_class=False))
    if _states(pricing, units := flat(pricing)) > STATES:
        pricing = Pricing(relaxed(problem, one_class=True))
        units = flat(pricing)
    return Search(pricing, units)


def _walks(pricing: Pricing, units: tuple[Unit, ...]) -> int:
    inside = [math.prod(size + 1 for size in unit.sizes) for unit in units]
    found = Counter(kind.unit for kind in kinds(pricing, units, pricing.problem.constraints.tensor_sizes))
    visits = math.prod(len(unit.nodes) + 1 for unit in units)
    return visits * sum(points * found[unit] for unit, points in enumerate(inside))


def _states(pricing: Pricing, units: tuple[Unit, ...]) -> int:
    points = math.prod(size + 1 for size in units[0].sizes)
    sizes = pricing.problem.constraints.tensor_sizes
    # Groups of many classes are not counted one by one where the devices alone are too many.
    return points * len(kinds(pricing, units, sizes if points <= STATES else (1,)))
