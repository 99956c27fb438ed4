"""Place a model: exactly where the devices are few or alike, node by node with a bound where they are not."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from uellm_deployer.domain.helr import goals
from uellm_deployer.domain.helr.alternatives import alternatives
from uellm_deployer.domain.helr.coarse import allowed, by_switch, hardened, relaxed
from uellm_deployer.domain.helr.cost import INFINITE, LONGEST, Pricing
from uellm_deployer.domain.helr.errors import DoesNotFitError, SloUnreachableError
from uellm_deployer.domain.helr.layout import Unit, flat, kinds, nested
from uellm_deployer.domain.helr.problem import Goal, Problem, Slo
from uellm_deployer.domain.helr.realise import Copy, copies_of, copies_on
from uellm_deployer.domain.helr.result import Placement, Plan, describe, seconds
from uellm_deployer.domain.helr.search import Search, first_of
from uellm_deployer.domain.helr.slo import cheapest
from uellm_deployer.domain.helr.sweep import PREFILL

STATES = 40_000
"""States (device counts times last kinds) up to which the search is exact: 8 devices, all different, in any groups."""

SLACK = 0.05
"""By how much HELR lets the bottleneck exceed the least."""


def solve(
    problem: Problem, goal: Goal = Goal.HELR, *, slack: float = SLACK, slo: Slo | None = None, with_alternatives: bool = True
) -> Placement:
    """The best plan for the goal; with an SLO, the cheapest that keeps it.

    Raises:
        DoesNotFitError: no allowed plan fits the devices.
        SloUnreachableError: none keeps the SLO.
    """
    search, true, exact = search_of(problem)
    copies = _best(search, goal, slack, slo)
    plan = describe(true, copies)
    bound = plan.latency_seconds if exact else _bound(true.problem, goal, slack, plan)
    others = alternatives(true, search, goal, plan) if with_alternatives else ()
    return Placement(goal, plan, exact, bound, others)


def best_copies(
    problem: Problem, goal: Goal, *, slack: float = SLACK, slo: Slo | None = None
) -> tuple[Copy, ...]:
    """Only the copies of the best plan; raises as `solve` does."""
    return _best(search_of(problem)[0], goal, slack, slo)


def search_of(problem: Problem) -> tuple[Search, Pricing, bool]:
    """What searches the problem, its true prices, and whether the search is exact."""
    problem = allowed(problem)
    search, exact = _search(problem)
    return search, Pricing(problem), exact


def _search(problem: Problem) -> tuple[Search, bool]:
    pricing = Pricing(problem)
    if _states(pricing, units := flat(pricing)) <= STATES:
        return Search(pricing, units), True
    pricing = Pricing(hardened(by_switch(problem)))
    if _states(pricing, units := flat(pricing)) <= STATES:
        return Search(pricing, units), False
    return Search(pricing, nested(pricing)), False


def _states(pricing: Pricing, units: tuple[Unit, ...]) -> int:
    points = math.prod(size + 1 for size in units[0].sizes)
    return points * len(kinds(pricing, units, (1,))) if points > STATES else points * len(
        kinds(pricing, units, pricing.problem.constraints.tensor_sizes)
    )


def _best(search: Search, goal: Goal, slack: float, slo: Slo | None) -> tuple[Copy, ...]:
    if slo is not None:
        return _cheapest(search, slo)
    if goal is Goal.HELR:
        found = goals.helr(search, Fraction(slack))
    else:
        found = goals.lr(search) if goal is Goal.LR else goals.he(search)
    if found is None:
        raise _does_not_fit(search.pricing.problem)
    return copies_of(search, found)


def _cheapest(search: Search, slo: Slo) -> tuple[Copy, ...]:
    kept = cheapest(search, slo)
    if kept is not None:
        return copies_on([[kept.path]], search.units)
    latency = int(search.latencies().min(initial=INFINITE))
    if latency >= LONGEST:
        raise _does_not_fit(search.pricing.problem)
    first = min(int(table[:, -1].min()) for sweep in search.sweeps for table in sweep.run(weights=PREFILL))
    raise SloUnreachableError(seconds(first), seconds(_least_output_token(search)))


def _least_output_token(search: Search) -> int:
    """The least of max(LR, micro-batches times bottleneck): as many times the least interval of one copy."""
    return search.in_flight * search.least_interval(1, LONGEST, LONGEST - 1)


def _bound(problem: Problem, goal: Goal, slack: float, plan: Plan) -> float:
    """Lower bound of LR: the same search where devices of one speed are alike and the quickest link is everywhere."""
    pricing = Pricing(relaxed(problem, one_class=False))
    units = flat(pricing)
    if _states(pricing, units) > STATES:
        pricing = Pricing(relaxed(problem, one_class=True))
        units = flat(pricing)
    search = Search(pricing, units)
    found = goals.lr(search)
    if goal is Goal.HELR:
        # The plan's own bottleneck is at least the least there is, so this admits at least what HELR admits.
        within = Fraction(plan.bottleneck_seconds) * 10**12 * (1 + Fraction(slack))
        found = goals.within(search, within + 1)
    return seconds(found.latency) if found else plan.latency_seconds


def _does_not_fit(problem: Problem) -> DoesNotFitError:
    """By bisection over what every device would have to have more."""
    model = problem.model
    needed = sum(part.weight_bytes + part.kv_bytes for part in (*model.layers, model.embedding, model.head))
    free = sum(max(0, device.room_bytes - model.activation_bytes) for device in problem.devices)

    def fits(more: int) -> bool:
        devices = tuple(replace(device, free_bytes=device.free_bytes + more) for device in problem.devices)
        search, _ = _search(replace(problem, devices=devices))
        return bool(search.latencies().min(initial=INFINITE) < LONGEST)

    worst = needed + model.activation_bytes + max((-device.room_bytes for device in problem.devices), default=0)
    if not problem.devices or not fits(worst):
        return DoesNotFitError(None, needed, free)
    low, high = 0, worst
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return DoesNotFitError(high, needed, free)
