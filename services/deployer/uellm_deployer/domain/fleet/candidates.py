"""Ways to place one copy of a model on the whole machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from uellm_deployer.domain.facts import ModelShape
from uellm_deployer.domain.fleet.choice import Candidate
from uellm_deployer.domain.fleet.spreads import spreads
from uellm_deployer.domain.helr.cost import PER_SECOND, Pricing, Span
from uellm_deployer.domain.helr.errors import DoesNotFitError, SloUnreachableError
from uellm_deployer.domain.helr.problem import Problem
from uellm_deployer.domain.helr.result import CopyPlan, seconds
from uellm_deployer.domain.helr.stated import keeps
from uellm_deployer.domain.placement import placed_on, problems, slo_of
from uellm_deployer.domain.plan import DeploymentSpec, Objective
from uellm_deployer.domain.sizing import Sizing
from uellm_deployer.domain.topology import Topology


def candidates_of(spec: DeploymentSpec, shape: ModelShape, topology: Topology, most: int) -> list[Candidate]:
    """Those that fit the machine alone and keep the spec's objectives for time, about so many at most of each kind.

    What HELR answers is among them. Raises
    InvalidArgumentError as `Planner.place`.
    """
    found: dict[DeploymentSpec, Candidate] = {}
    for sizing, problem in problems(spec, shape, topology)[1]:
        try:
            copies = list(_copies(sizing, problem, most))
        except (DoesNotFitError, SloUnreachableError):
            continue
        pricing = Pricing(problem)
        found |= {(one := _priced(pricing, copy, sizing)).spec: one for copy in copies if _keeps(pricing, copy, spec)}
    if spec.objective is Objective.HE and found:
        fewest = min(len(one.needs) for one in found.values())
        return [one for one in found.values() if len(one.needs) == fewest]
    return list(found.values())


def _copies(sizing: Sizing, problem: Problem, most: int) -> Iterator[tuple[Span, ...]]:
    """What HELR finds for least latency and on the fewest devices; then in up to one stage more than the latter."""
    spec, built = sizing.spec, sizing.shape.built
    best, few = (
        placed_on(replace(spec, objective=objective), problem, built, with_alternatives=False).plan.copies[0]
        for objective in (Objective.LR, Objective.HE)
    )
    index = {device.id: position for position, device in enumerate(problem.devices)}
    yield _spans(best, index)
    yield _spans(few, index)
    if spec.stage_layers:
        return
    pricing, rules = Pricing(problem), problem.constraints
    widest = rules.max_layers or len(problem.model.layers)
    for stages in range(1, min(len(few.stages) + 1, rules.max_stages or len(index)) + 1):
        for copy in spreads(pricing, stages, most):
            if all(span.last - span.first <= widest for span in copy):
                yield copy


def _spans(copy: CopyPlan, index: dict[str, int]) -> tuple[Span, ...]:
    return tuple(
        Span(tuple(index[one] for one in stage.device_ids), stage.first_layer, stage.first_layer + stage.layer_count)
        for stage in copy.stages
    )


def _keeps(pricing: Pricing, copy: Sequence[Span], spec: DeploymentSpec) -> bool:
    slo, price = slo_of(spec), pricing.price(copy)
    return slo is None or keeps(slo, seconds(price.prefill), seconds(price.output_token))


def _priced(pricing: Pricing, copy: Sequence[Span], sizing: Sizing) -> Candidate:
    spec, built = sizing.spec, sizing.shape.built
    problem, price = pricing.problem, pricing.price(copy)
    tokens = problem.workload.rows * PER_SECOND
    needs, busy = dict[str, int](), dict[str, float]()
    for span, time in zip(copy, price.stages, strict=True):
        members = [problem.devices[one] for one in span.devices]
        size = pricing.curves(span.devices).bytes_of(span.first, span.last) + problem.model.activation_bytes
        reserve = max(member.reserve_bytes for member in members)
        needs |= {member.id: size + reserve for member in members}
        busy |= {member.id: time / tokens for member in members}
    pinned = tuple(needs)
    layers = built.stage_layers if built else tuple(span.last - span.first for span in copy)
    return Candidate(
        spec=replace(spec, device_ids=pinned, stage_layers=layers if len(pinned) > 1 else ()),
        needs=needs,
        busy=busy,
        interval=price.interval / tokens,
        latency=seconds(price.latency),
    )
