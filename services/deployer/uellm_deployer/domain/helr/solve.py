"""Place a model: exactly where the devices are few or alike, node by node with bounds where they are not."""

from __future__ import annotations

from fractions import Fraction

from uellm_deployer.domain.helr import goals
from uellm_deployer.domain.helr.alternatives import alternatives
from uellm_deployer.domain.helr.coarse import allowed
from uellm_deployer.domain.helr.cost import INFINITE, LONGEST, PER_SECOND, Pricing
from uellm_deployer.domain.helr.effort import STATES, bounding, search_of
from uellm_deployer.domain.helr.errors import SloUnreachableError
from uellm_deployer.domain.helr.problem import Goal, Problem, Slo
from uellm_deployer.domain.helr.realise import Copy, copies_of, copies_on
from uellm_deployer.domain.helr.result import Bounds, Placement, Plan, describe, seconds
from uellm_deployer.domain.helr.search import Search
from uellm_deployer.domain.helr.shortage import does_not_fit
from uellm_deployer.domain.helr.slo import cheapest
from uellm_deployer.domain.helr.sweep import PREFILL
from uellm_deployer.domain.helr.topup import topped_up

SLACK = 0.05
"""By how much HELR lets the bottleneck exceed the least."""


def solve(
    problem: Problem,
    goal: Goal = Goal.HELR,
    *,
    slack: float = SLACK,
    slo: Slo | None = None,
    with_alternatives: bool = True,
    states: int = STATES,
) -> Placement:
    """The best plan for the goal; with an SLO, the cheapest that keeps it. `states` bounds the exact search.

    Raises:
        DoesNotFitError: no allowed plan fits the devices.
        SloUnreachableError: none keeps the SLO.
    """
    problem = allowed(problem)
    search, exact = search_of(problem, states)
    if search.latencies().min(initial=INFINITE) >= LONGEST:
        raise does_not_fit(problem, states)
    true, looser = Pricing(problem), search if exact else bounding(problem)
    if slo is not None:
        copies = _cheapest(search, slo)
    elif goal is Goal.HELR:
        copies = _copies(search, goals.helr(search, Fraction(slack)))
        if not exact:
            copies = topped_up(true, copies, (1 + Fraction(slack)) * Fraction(*looser.least_bottleneck()), states)
    else:
        copies = _copies(search, goals.lr(search) if goal is Goal.LR else goals.he(search))
    plan = describe(true, copies)
    bounds = _bounds(looser, goal, slack, plan, bottleneck=goal is Goal.HELR and slo is None, exact=exact)
    return Placement(goal, plan, exact, bounds, alternatives(true, search, goal, plan) if with_alternatives else ())


def _copies(search: Search, found: goals.Found | None) -> tuple[Copy, ...]:
    if found is None:
        raise AssertionError("one copy fits, so there is a best plan")
    return copies_of(search, found)


def _cheapest(search: Search, slo: Slo) -> tuple[Copy, ...]:
    kept = cheapest(search, slo)
    if kept is not None:
        return copies_on([[kept.path]], search.units)
    first = min(int(table[:, -1].min()) for sweep in search.sweeps for table in sweep.run(weights=PREFILL))
    # The least of max(LR, micro-batches times bottleneck) is as many times the least interval of one copy.
    output = search.in_flight * search.least_interval(1, LONGEST, LONGEST - 1)
    raise SloUnreachableError(seconds(first), seconds(output))


def _bounds(search: Search, goal: Goal, slack: float, plan: Plan, *, bottleneck: bool, exact: bool) -> Bounds:
    """What no plan falls below; the plan is the best of the searched problem, or was found in a harder one."""
    latency = search.latencies()
    fewest = int(search.devices[latency < LONGEST].min())
    if not bottleneck:
        # What is best for HE or an SLO has no more devices than what was found.
        admitted = latency if goal is Goal.LR else latency[search.devices <= plan.device_count]
        return Bounds(plan.latency_seconds if exact else seconds(int(admitted.min())), None, fewest)
    interval, copies = search.least_bottleneck()
    if exact:
        return Bounds(plan.latency_seconds, seconds(interval) / copies, fewest)
    # The bottleneck that was found is at least the least there is: this admits at least what HELR admits.
    within = (1 + Fraction(slack)) * (Fraction(plan.bottleneck_seconds) * PER_SECOND + 1)
    found = goals.within(search, within)
    return Bounds(seconds(found.latency if found else 0), seconds(interval) / copies, fewest)
