"""An engine whose stages were fixed when it was built: the search only finds their devices.

Each stage becomes one layer of the problem, and no device takes two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import reduce
from itertools import accumulate

from uellm_deployer.domain.facts import BuiltEngine
from uellm_deployer.domain.helr import problem as helr
from uellm_deployer.domain.helr.result import Plan, StagePlan


def as_built(problem: helr.Problem, built: BuiltEngine | None) -> helr.Problem:
    """The problem with a layer for each stage that was built."""
    if built is None:
        return problem
    model, ends = problem.model, list(accumulate(built.stage_layers))
    layers = tuple(reduce(_sum, model.layers[first:last]) for first, last in zip([0, *ends], ends, strict=False))
    rules = replace(problem.constraints, tensor_sizes=(built.tensor_size,), max_layers=1, max_stages=None)
    return replace(problem, model=replace(model, layers=layers), constraints=rules)


def folded(stage_layers: Sequence[int], built: BuiltEngine | None) -> Sequence[int]:
    """Layers of stages as the problem counts them; raises ValueError if the engine was built otherwise."""
    if built is None:
        return stage_layers
    if tuple(stage_layers) != tuple(built.stage_layers):
        raise ValueError(f"must be {', '.join(map(str, built.stage_layers))}: so the engine was built")
    return (1,) * len(stage_layers)


def unfolded(plan: Plan, built: BuiltEngine | None) -> Plan:
    """The plan in the model's own layers."""
    if built is None:
        return plan
    firsts = [0, *accumulate(built.stage_layers)]

    def real(stage: StagePlan) -> StagePlan:
        return replace(stage, first_layer=firsts[stage.first_layer], layer_count=built.stage_layers[stage.first_layer])

    copies = tuple(replace(copy, stages=tuple(map(real, copy.stages))) for copy in plan.copies)
    return replace(plan, copies=copies)


def _sum(one: helr.Part, other: helr.Part) -> helr.Part:
    return helr.Part(*(getattr(one, field.name) + getattr(other, field.name) for field in fields(helr.Part)))
