"""An engine whose stages were fixed when it was built: the search only finds their devices.

Each stage becomes one layer of the problem, and no device takes two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import accumulate

from uellm_deployer.domain.engines import Engine
from uellm_deployer.domain.facts import BuiltEngine
from uellm_deployer.domain.helr import problem as helr
from uellm_deployer.domain.helr.result import Plan, StagePlan


def realisable(engine: Engine, built: BuiltEngine | None, max_copies: int | None) -> helr.Constraints:
    """What the engine can do."""
    if built is None:
        return helr.Constraints(max_stages=engine.max_stages, max_copies=max_copies)
    return helr.Constraints(tensor_sizes=(built.tensor_size,), max_layers=1, max_copies=max_copies)


def folded(model: helr.Model, built: BuiltEngine | None) -> helr.Model:
    """The model with a layer for each stage that was built."""
    if built is None:
        return model
    ends = list(accumulate(built.stage_layers))
    stages = zip([0, *ends], ends, strict=False)
    return replace(model, layers=tuple(_together(model.layers[first:last]) for first, last in stages))


def unfolded(plan: Plan, built: BuiltEngine | None) -> Plan:
    """The plan in the model's own layers."""
    if built is None:
        return plan
    firsts = [0, *accumulate(built.stage_layers)]

    def real(stage: StagePlan) -> StagePlan:
        return replace(stage, first_layer=firsts[stage.first_layer], layer_count=built.stage_layers[stage.first_layer])

    copies = tuple(replace(copy, stages=tuple(map(real, copy.stages))) for copy in plan.copies)
    return replace(plan, copies=copies)


def _together(parts: Sequence[helr.Part]) -> helr.Part:
    return reduce(_sum, parts)


def _sum(one: helr.Part, other: helr.Part) -> helr.Part:
    return helr.Part(
        weight_bytes=one.weight_bytes + other.weight_bytes,
        kv_bytes=one.kv_bytes + other.kv_bytes,
        read_bytes=one.read_bytes + other.read_bytes,
        kv_read_bytes=one.kv_read_bytes + other.kv_read_bytes,
        flops_per_token=one.flops_per_token + other.flops_per_token,
        all_reduces=one.all_reduces + other.all_reduces,
    )
