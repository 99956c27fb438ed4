"""How hard to search: all devices as one set where the states are few, else node by node, with bounds."""

from __future__ import annotations

import math

from uellm_deployer.domain.helr.coarse import by_switch, hardened, relaxed
from uellm_deployer.domain.helr.cost import Pricing
from uellm_deployer.domain.helr.layout import Unit, flat, kinds, nested
from uellm_deployer.domain.helr.problem import Problem
from uellm_deployer.domain.helr.search import Search

STATES = 40_000
"""States (counts of used devices times kinds) of an exact search: enough for 8 different devices in any groups."""


def search_of(problem: Problem, states: int = STATES) -> tuple[Search, bool]:
    """What finds plans for the problem, and whether it finds the best."""
    pricing = Pricing(problem)
    if _states(pricing, units := flat(pricing)) <= states:
        return Search(pricing, units), True
    pricing = Pricing(hardened(by_switch(problem)))
    if _states(pricing, units := flat(pricing)) <= states:
        return Search(pricing, units), False
    return Search(pricing, nested(pricing)), False


def bounding(problem: Problem) -> Search:
    """Finds what no plan falls below: devices of one speed are alike, and the quickest link is everywhere."""
    pricing = Pricing(relaxed(problem, one_class=False))
    if _states(pricing, units := flat(pricing)) > STATES:
        pricing = Pricing(relaxed(problem, one_class=True))
        units = flat(pricing)
    return Search(pricing, units)


def _states(pricing: Pricing, units: tuple[Unit, ...]) -> int:
    points = math.prod(size + 1 for size in units[0].sizes)
    sizes = pricing.problem.constraints.tensor_sizes
    # Groups of many classes are not counted one by one where the devices alone are too many.
    return points * len(kinds(pricing, units, sizes if points <= STATES else (1,)))
