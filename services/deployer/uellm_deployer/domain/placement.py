"""Which device gets the layers. The interface, and the planner for one device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from uellm.cost.memory import ELEMENT_BYTES, PeakMemory
from uellm.rpc.errors import FieldViolation, InvalidArgumentError, ResourceExhaustedError
from uellm_deployer.domain.engines import ENGINES, EngineKind, able_devices
from uellm_deployer.domain.facts import ModelFacts, ModelShape
from uellm_deployer.domain.plan import DeploymentPlan, DeploymentSpec, Objective, Stage
from uellm_deployer.domain.roofline import step_time
from uellm_deployer.domain.topology import Device, DeviceKind, Topology

DEFAULT_MAX_OUTPUT_TOKENS = 1024
PROBE_PROMPT_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Placed:
    """The best plan, and what lost with the reason, best first."""

    plan: DeploymentPlan
    alternatives: tuple[tuple[DeploymentPlan, str], ...]


class Planner(Protocol):
    """Places a model on the devices of a machine."""

    def place(self, spec: DeploymentSpec, shape: ModelShape, topology: Topology) -> Placed:
        """Plan.

        Raises:
            InvalidArgumentError: the spec asks for what the model or the machine does not have.
            ResourceExhaustedError: the model does not fit; the message has the numbers.
        """


class OneDevicePlanner:
    """Puts the whole model on one device. Deterministic: ties go to the lower device id."""

    def place(self, spec: DeploymentSpec, shape: ModelShape, topology: Topology) -> Placed:
        """Plan on the best device that has the room."""
        plans = {
            device.id: _plan_on(device, topology.framework_name(device.id), spec, shape)
            for device in able_devices(spec.backend, shape.quantisation, _candidates(spec, topology))
        }
        fitting: list[DeploymentPlan] = []
        short: list[tuple[DeploymentPlan, int]] = []
        for device_id, plan in plans.items():
            missing = plan.needs[device_id] - _free(topology, device_id)
            if missing > 0:
                short.append((plan, missing))
            else:
                fitting.append(plan)
        if not fitting:
            raise _does_not_fit(spec, short, topology)
        ranked = sorted(fitting, key=lambda plan: _rank(plan, topology))
        bound = min(plan.objective_seconds for plan in plans.values())
        best = replace(
            ranked[0], lower_bound_seconds=bound, explanation=_explain(ranked[0], len(fitting), short, topology)
        )
        return Placed(best, tuple((replace(plan, lower_bound_seconds=bound), _lost(plan, best)) for plan in ranked[1:]))


def _candidates(spec: DeploymentSpec, topology: Topology) -> list[Device]:
    holders = [device for device in topology.devices if device.kind is not DeviceKind.NIC]
    unknown = sorted(set(spec.device_ids) - {device.id for device in holders})
    if unknown:
        known = ", ".join(device.id for device in holders)
        raise InvalidArgumentError(
            [FieldViolation("spec.device_ids", f"no device {', '.join(unknown)} here; there are: {known}")]
        )
    wanted = [device for device in holders if device.id in (spec.device_ids or (device.id,))]
    if not wanted:
        raise ResourceExhaustedError("devices", "the topology has no device that can hold layers")
    return wanted


def _free(topology: Topology, device_id: str) -> int:
    device = topology.device(device_id)
    return device.free_memory_bytes if device else 0


def _plan_on(device: Device, engine_name: str, spec: DeploymentSpec, shape: ModelShape) -> DeploymentPlan:
    engine = ENGINES[spec.backend]
    dtype = spec.dtype or engine.default_dtype[device.kind]
    copies = engine.head_copies_on_cpu[shape.tied_head] if device.kind is DeviceKind.CPU else 0
    facts = shape.facts(ELEMENT_BYTES[dtype], head_copies=copies, cache_form=engine.cache_form)
    resolved = _resolve(replace(spec, dtype=dtype), facts)
    memory = _memory_of(device, resolved, shape, facts)
    times = step_time(facts, device)
    output_token = times.step(1, PROBE_PROMPT_TOKENS)
    return DeploymentPlan(
        spec=resolved,
        stages=(_stage(device, facts, memory),),
        facts=facts,
        fingerprint=shape.fingerprint,
        devices=(engine_name,),
        kv_budget_bytes=_kv_budget(resolved, facts),
        step_time=times,
        first_token_seconds=times.first_token(PROBE_PROMPT_TOKENS),
        output_token_seconds=output_token,
        lower_bound_seconds=output_token,
        objective_seconds=output_token,
        explanation="",
    ).hashed()


def _resolve(spec: DeploymentSpec, facts: ModelFacts) -> DeploymentSpec:
    """Fill in what was left open; refuse what the model cannot do."""
    limit = facts.context_limit_tokens
    context = spec.context_tokens or limit
    output = spec.max_output_tokens or min(DEFAULT_MAX_OUTPUT_TOKENS, context - 1)
    violations = []
    if context > limit:
        violations.append(FieldViolation("spec.context_tokens", f"must be at most the model's limit, {limit}"))
    if context < 2:
        violations.append(FieldViolation("spec.context_tokens", "must hold a prompt and an answer: at least 2"))
    elif not 1 <= output < context:
        violations.append(FieldViolation("spec.max_output_tokens", f"must leave room for a prompt: below {context}"))
    if violations:
        raise InvalidArgumentError(violations)
    return replace(spec, context_tokens=context, max_output_tokens=output)


def _kv_budget(spec: DeploymentSpec, facts: ModelFacts) -> int:
    """Of a full batch whose rows all take the whole context, in whole pages if the cache has them."""
    page = ENGINES[spec.backend].page_tokens
    context = math.ceil(spec.context_tokens / page) * page if page else spec.context_tokens
    return facts.kv_cache.padded_bytes(spec.max_batch_rows, context)


def _memory_of(device: Device, spec: DeploymentSpec, shape: ModelShape, facts: ModelFacts) -> PeakMemory:
    """Of a full batch whose rows all take the whole context; prompts are computed in passes of a bounded size."""
    engine, rows, context = ENGINES[spec.backend], spec.max_batch_rows, spec.context_tokens
    if engine.kind is EngineKind.CONTINUOUS:  # takes its whole cache at the start, and computes prompts one by one
        kv_cache = _kv_budget(spec, facts) + engine.page_tokens * facts.kv_bytes_per_token
        pass_rows, new_tokens = 1, max(context, engine.prompt_tokens_at_once)
    else:
        kv_cache = facts.kv_cache.buffered_bytes(rows, context)
        pass_rows, new_tokens = rows, min(context, max(1, engine.prompt_tokens_at_once // rows))
    return PeakMemory(
        weights=facts.weight_bytes,
        kv_cache=kv_cache,
        activations=shape.activations.bytes_of(pass_rows, new_tokens, context, ELEMENT_BYTES[spec.dtype]),
        reserve=engine.reserve_bytes[device.kind],
    )


def _stage(device: Device, facts: ModelFacts, memory: PeakMemory) -> Stage:
    return Stage(
        device_ids=(device.id,),
        first_layer=0,
        layer_count=facts.layers,
        embedding=True,
        head=True,
        weight_bytes=memory.weights,
        kv_bytes=memory.kv_cache,
        reserve_bytes=memory.activations + memory.reserve,
    )


def _misses(plan: DeploymentPlan) -> list[str]:
    """The objectives for time that the plan is predicted to miss."""
    pairs = (
        ("first token", plan.first_token_seconds, plan.spec.first_token_slo_seconds),
        ("output token", plan.output_token_seconds, plan.spec.output_token_slo_seconds),
    )
    return [f"{what} {is_:.4g} s instead of {wanted:.4g} s" for what, is_, wanted in pairs if 0 < wanted < is_]


def _rank(plan: DeploymentPlan, topology: Topology) -> tuple[int, float, float, str]:
    """Objectives kept first; then the spec's objective; then the id."""
    device_id = plan.stages[0].device_ids[0]
    spare = _free(topology, device_id) - plan.needs[device_id] if plan.spec.objective is Objective.HE else 0
    return len(_misses(plan)), spare, plan.objective_seconds, device_id


def _explain(
    plan: DeploymentPlan, fitting: int, short: Sequence[tuple[DeploymentPlan, int]], topology: Topology
) -> str:
    stage = plan.stages[0]
    first = (
        f"{plan.spec.model} on {stage.device_ids[0]} in {plan.spec.dtype}: {_memory(stage)}, "
        f"{_free(topology, stage.device_ids[0]):,} free; {plan.output_token_seconds:.4g} s per output token alone "
        f"({plan.step_time.source}), bound by memory bandwidth for small batches"
    )
    parts = [first]
    if fitting > 1:
        parts.append(f"best of {fitting} devices by {plan.spec.objective.value}")
    parts += [f"{other.stages[0].device_ids[0]} is short of {missing:,} bytes" for other, missing in short]
    parts += [f"misses the objective: {miss}" for miss in _misses(plan)]
    return "; ".join(parts)


def _memory(stage: Stage) -> str:
    return (
        f"{stage.total_bytes:,} bytes needed (weights {stage.weight_bytes:,}, key-value cache {stage.kv_bytes:,}, "
        f"activations and framework {stage.reserve_bytes:,})"
    )


def _lost(plan: DeploymentPlan, best: DeploymentPlan) -> str:
    if missed := set(_misses(plan)) - set(_misses(best)):
        return "misses the objective: " + "; ".join(sorted(missed))
    ratio = plan.objective_seconds / best.objective_seconds
    if ratio < 1:
        return f"faster ({ratio:.3g} of the time), but leaves the device less full"
    return f"takes {ratio:.3g} times as long per output token"


def _does_not_fit(
    spec: DeploymentSpec, short: Sequence[tuple[DeploymentPlan, int]], topology: Topology
) -> ResourceExhaustedError:
    details = "; ".join(
        f"{plan.stages[0].device_ids[0]}: {_memory(plan.stages[0])}, "
        f"{_free(topology, plan.stages[0].device_ids[0]):,} free, {missing:,} short"
        for plan, missing in short
    )
    return ResourceExhaustedError(
        "memory",
        f"{spec.model} with {short[0][0].spec.max_batch_rows} rows of {short[0][0].spec.context_tokens} tokens fits no "
        f"single device: {details}. Ask for fewer rows (max_batch_rows), a shorter context (context_tokens) or a "
        "smaller number format (dtype), or delete a deployment.",
        reason="OUT_OF_DEVICE_MEMORY",
    )
