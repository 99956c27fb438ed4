"""What another machine would give, by solving again; and the trade between LR and bottleneck."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from uellm_deployer.domain.helr.coarse import allowed
from uellm_deployer.domain.helr.cost import LONGEST, Pricing
from uellm_deployer.domain.helr.effort import search_of
from uellm_deployer.domain.helr.errors import DoesNotFitError, SloUnreachableError
from uellm_deployer.domain.helr.goals import within
from uellm_deployer.domain.helr.problem import Device, Goal, Link, Problem, Slo
from uellm_deployer.domain.helr.realise import copies_of
from uellm_deployer.domain.helr.result import Placement, Plan, describe
from uellm_deployer.domain.helr.solve import SLACK, solve


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The best plan on a changed machine."""

    change: str
    plan: Plan | None
    """None: there is none there either."""
    latency_ratio: float | None
    """Of LR to what it was; None where there was or is no plan."""
    bottleneck_ratio: float | None


def sensitivities(
    problem: Problem, before: Placement | None, goal: Goal = Goal.HELR, *, slack: float = SLACK, slo: Slo | None = None
) -> tuple[Sensitivity, ...]:
    """One more device of each speed, with as much memory as any of it has free; and links twice as fast.

    `before` is the answer for the problem itself.
    """
    return tuple(_compare(change, other, before, goal, slack, slo) for change, other in _changes(problem))


def _changes(problem: Problem) -> Iterator[tuple[str, Problem]]:
    emptiest: dict[tuple[float, float], Device] = {}
    for device in problem.devices:
        if (known := emptiest.get(device.speed)) is None or device.free_bytes > known.free_bytes:
            emptiest[device.speed] = device
    for device in emptiest.values():
        yield f"one more like {device.id}", with_twin(problem, device)
    if problem.links:
        links = tuple(
            replace(link, bandwidth=2 * link.bandwidth, latency_seconds=link.latency_seconds / 2)
            for link in problem.links
        )
        yield "links twice as fast", replace(problem, links=links)


def with_twin(problem: Problem, device: Device) -> Problem:
    """With one more device like one that is there: linked as it is, and to it by the best link that it has."""
    name = f"{device.id}+"
    while any(other.id == name for other in problem.devices):
        name += "+"
    own = [link for link in problem.links if device.id in (link.device_a, link.device_b)]
    links = [_moved(link, device.id, name) for link in own]
    if own:
        best = max(own, key=lambda link: (link.bandwidth, -link.latency_seconds, link.groups))
        links.append(replace(best, device_a=device.id, device_b=name))
    rules = problem.constraints
    ids = rules.device_ids if rules.device_ids is None else rules.device_ids | {name}
    return replace(
        problem,
        devices=(*problem.devices, replace(device, id=name)),
        links=(*problem.links, *links),
        constraints=replace(rules, device_ids=ids),
    )


def _moved(link: Link, device: str, name: str) -> Link:
    if link.device_a == device:
        return replace(link, device_a=name)
    return replace(link, device_b=name)


def _compare(
    change: str, problem: Problem, before: Placement | None, goal: Goal, slack: float, slo: Slo | None
) -> Sensitivity:
    try:
        after = solve(problem, goal, slack=slack, slo=slo, with_alternatives=False).plan
    except (DoesNotFitError, SloUnreachableError):
        return Sensitivity(change, None, None, None)
    if before is None:
        return Sensitivity(change, after, None, None)
    return Sensitivity(
        change,
        after,
        after.latency_seconds / before.plan.latency_seconds,
        after.bottleneck_seconds / before.plan.bottleneck_seconds,
    )


def pareto_front(problem: Problem, points: int = 32) -> tuple[Plan, ...]:
    """Plans of which none has both LR and bottleneck lower than another, from the lowest LR on; at most so many."""
    problem = allowed(problem)
    search, true = search_of(problem)[0], Pricing(problem)
    front: list[Plan] = []
    bottleneck = Fraction(LONGEST - 1)
    while len(front) < points:
        found = within(search, bottleneck)
        if found is None:
            break
        copies = copies_of(search, found)
        intervals = [true.price(copy).interval for copy in copies]
        front.append(describe(true, copies))
        bottleneck = Fraction(max(intervals), len(intervals)) - Fraction(1, LONGEST)
    return tuple(front)
