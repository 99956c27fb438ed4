"""What is said of a plan, of what lost, and of what does not fit."""

from __future__ import annotations

from collections.abc import Sequence

from uellm.cost.memory import PeakMemory
from uellm.rpc.errors import ResourceExhaustedError
from uellm_deployer.domain.helr.errors import DoesNotFitError
from uellm_deployer.domain.helr.result import Placement
from uellm_deployer.domain.helr.what_if import Sensitivity
from uellm_deployer.domain.plan import DeploymentPlan, Stage
from uellm_deployer.domain.sizing import Sizing
from uellm_deployer.domain.topology import Device

NOTHING = 5e-4
"""A share of the time that is not worth telling."""


def explain(
    plan: DeploymentPlan, sizing: Sizing, placement: Placement, devices: Sequence[Device], tried: Sequence[Sizing]
) -> str:
    """Where everything is, what bounds it, how good it can be, and who has no room for the model alone."""
    spec, free = plan.spec, {device.id: device.free_memory_bytes for device in devices}
    (copy,) = placement.plan.copies
    where = " then ".join(_stage(stage, free, alone=len(plan.stages) == 1) for stage in plan.stages)
    step = (
        f"{placement.objective_seconds:.4g} s for a step of {spec.max_batch_rows} rows half way through their context"
    )
    alone = f"{plan.output_token_seconds:.4g} s per output token alone ({plan.step_time.source})"
    parts = [f"{spec.model} in {spec.dtype} on {where}", f"{step}, {alone}"]
    if len(copy.stages) > 1:
        parts.append(f"bounded by {copy.bottleneck}, {copy.bottleneck_seconds:.4g} s of it")
    same = [device for device in devices if device.kind is sizing.kind]
    if spec.stage_layers:
        parts.append("divided as the spec says")
    elif len(same) > 1:
        sure = "no placement is better" if placement.exact else f"within {placement.gap:.2%} of what any could be"
        parts.append(f"by {spec.objective.value} over {len(same)} devices: {sure}")
    whole = {one.kind: one.on_one_device.total for one in tried}
    parts += [
        f"{device.id} is short of {missing:,} bytes for all of it"
        for device in devices
        if (missing := whole[device.kind] - device.free_memory_bytes) > 0
    ]
    return "; ".join(parts)


def _stage(stage: Stage, free: dict[str, int], *, alone: bool) -> str:
    devices = " and ".join(stage.device_ids)
    layers = "" if alone else f" (layers {stage.first_layer} to {stage.first_layer + stage.layer_count - 1})"
    left = min(free[device] for device in stage.device_ids)
    memory = PeakMemory(stage.weight_bytes, stage.kv_bytes, stage.reserve_bytes, 0)
    return f"{devices}{layers}: {_memory(memory)}, {left:,} free"


def _memory(memory: PeakMemory) -> str:
    return (
        f"{memory.total:,} bytes needed (weights {memory.weights:,}, key-value cache {memory.kv_cache:,}, "
        f"activations and framework {memory.activations + memory.reserve:,})"
    )


def lost_by(plan: DeploymentPlan, best: DeploymentPlan) -> str:
    """Why a plan is not the best one."""
    ratio = plan.objective_seconds / best.objective_seconds
    where = " then ".join(" and ".join(stage.device_ids) for stage in plan.stages)
    more = len(plan.devices) - len(best.devices)
    if ratio < 1:
        price = f"{more} more of them" if more > 0 else "devices that are less full"
        return f"{where}: takes {1 - ratio:.2%} less time per step, on {price}"
    if ratio == 1:
        return f"{where}: just as quick, and listed behind"
    return (
        f"{where}: takes " + (f"{ratio:.3g} times as long" if ratio >= 1.1 else f"{ratio - 1:.2%} longer") + " per step"
    )


def change_told(one: Sensitivity) -> str:
    """What another machine would give."""
    if one.plan is None or one.latency_ratio is None:
        return f"{one.change}: there would be no plan"
    used = " then ".join(" and ".join(stage.device_ids) for stage in one.plan.copies[0].stages)
    if abs(one.latency_ratio - 1) < NOTHING:
        return f"{one.change}: no change"
    return f"{one.change}: {one.latency_ratio - 1:+.1%} of the time of a step, on {used}"


def does_not_fit(
    refused: Sequence[DoesNotFitError], tried: Sequence[Sizing], devices: Sequence[Device]
) -> ResourceExhaustedError:
    """The error for a model that no placement has room for; of each kind, one device alone and all of them together."""
    spec, details = tried[0].spec, []
    for sizing, error in zip(tried, refused, strict=True):
        memory, own = sizing.on_one_device, [device for device in devices if device.kind is sizing.kind]
        details.append(f"on one {sizing.kind} in {sizing.spec.dtype} {_memory(memory)}")
        roomiest = max(own, key=lambda device: device.free_memory_bytes)
        free = roomiest.free_memory_bytes
        details.append(f"{roomiest.id}, the roomiest, has {free:,} free, {memory.total - free:,} short")
        spread = error.missing_bytes
        if spread is not None and spread < memory.total - free:
            details.append(f"spread over the {len(own)} of them, each lacks {spread:,} bytes")
    return ResourceExhaustedError(
        "memory",
        f"{spec.model} with {spec.max_batch_rows} rows of {spec.context_tokens} tokens does not fit: "
        f"{'; '.join(details)}. Ask for fewer rows (max_batch_rows), a shorter context (context_tokens) or a smaller "
        "number format (dtype), or delete a deployment.",
        reason="OUT_OF_DEVICE_MEMORY",
    )
