"""Which devices get which layers: HELR for what an engine can realise on the machine that is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm_deployer.domain.engines import able_devices
from uellm_deployer.domain.explaining import change_told, does_not_fit, explain, lost_by
from uellm_deployer.domain.facts import BuiltEngine, ModelShape
from uellm_deployer.domain.fixed_split import as_built, folded, unfolded
from uellm_deployer.domain.helr.errors import DoesNotFitError, SloUnreachableError
from uellm_deployer.domain.helr.problem import Constraints, Goal, Problem, Slo
from uellm_deployer.domain.helr.result import Placement, Plan
from uellm_deployer.domain.helr.solve import solve
from uellm_deployer.domain.helr.stated import stated
from uellm_deployer.domain.helr.what_if import sensitivities
from uellm_deployer.domain.placing import PROBE_PROMPT_TOKENS, problem_of, stages_of, times_of
from uellm_deployer.domain.plan import DeploymentPlan, DeploymentSpec
from uellm_deployer.domain.sizing import Sizing
from uellm_deployer.domain.topology import Device, DeviceKind, Topology

KINDS = (DeviceKind.GPU, DeviceKind.CPU)
"""Of devices that hold layers. A copy of a model keeps to one kind."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The best placement on the devices of one kind."""

    sizing: Sizing
    problem: Problem
    placement: Placement


@dataclass(frozen=True, slots=True)
class Placed:
    """The best plan, and what lost with the reason, best first."""

    plan: DeploymentPlan
    alternatives: tuple[tuple[DeploymentPlan, str], ...]
    answer: Answer
    """The search's, from which more can be asked."""


class Planner(Protocol):
    """Places a model on the devices of a machine."""

    def place(self, spec: DeploymentSpec, shape: ModelShape, topology: Topology) -> Placed:
        """Plan.

        Raises:
            InvalidArgumentError: the spec asks for what the model or the machine does not have.
            ResourceExhaustedError: the model does not fit, or no plan keeps the promised times; the message has the
                numbers.
        """

    def what_if(self, placed: Placed) -> tuple[str, ...]:
        """In words: what one more device of each sort, or faster links, would give beside this."""


class HelrPlanner:
    """Searches for the best placement (docs/placement.md). Deterministic: ties go to the device listed first."""

    def place(self, spec: DeploymentSpec, shape: ModelShape, topology: Topology) -> Placed:
        """Plan."""
        able, tried, answers = self._answers(spec, shape, topology)
        return _placed(answers, able, tried, topology)

    def what_if(self, placed: Placed) -> tuple[str, ...]:
        """Solve for some other machines. No question for one CPU, or for stages that the spec states."""
        best, spec = placed.answer, placed.plan.spec
        if spec.stage_layers or (best.sizing.kind is DeviceKind.CPU and len(best.problem.devices) == 1):
            return ()
        goal, slo = Goal(spec.objective.value), slo_of(spec)
        return tuple(change_told(one) for one in sensitivities(best.problem, best.placement, goal, slo=slo))

    def _answers(
        self, spec: DeploymentSpec, shape: ModelShape, topology: Topology
    ) -> tuple[list[Device], list[Sizing], list[Answer]]:
        """The devices and kinds that were tried, and the best placement on each kind, best first."""
        able, asked = problems(spec, shape, topology)
        tried = [sizing for sizing, _ in asked]
        answers: list[Answer] = []
        refused: list[DoesNotFitError | SloUnreachableError] = []
        for sizing, problem in asked:
            try:
                answers.append(Answer(sizing, problem, placed_on(sizing.spec, problem, shape.built)))
            except (DoesNotFitError, SloUnreachableError) as error:
                refused.append(error)
        if not answers:
            raise _refusal(refused, tried, able)
        answers.sort(key=lambda answer: answer.placement.objective_seconds)
        return able, tried, answers


def problems(
    spec: DeploymentSpec, shape: ModelShape, topology: Topology
) -> tuple[list[Device], list[tuple[Sizing, Problem]]]:
    """The devices that can serve the model, and what is to be solved on those of each kind."""
    able = able_devices(spec.backend, shape.quantisation, _candidates(spec, topology))
    if shape.built and any(device.parent_id for device in topology.devices):
        unnamed = f"{spec.backend} takes GPUs by number, which do not name them on a machine with MIG devices"
        raise InvalidArgumentError([FieldViolation("spec.backend", unnamed)])
    tried = [Sizing.of(spec, shape, kind) for kind in KINDS if any(device.kind is kind for device in able)]
    return able, [
        (sizing, as_built(problem_of(sizing, [one for one in able if one.kind is sizing.kind], topology), shape.built))
        for sizing in tried
    ]


def _candidates(spec: DeploymentSpec, topology: Topology) -> list[Device]:
    holders = [device for device in topology.devices if device.kind in KINDS]
    unknown = sorted(set(spec.device_ids) - {device.id for device in holders})
    if unknown or not holders:
        known = ", ".join(device.id for device in holders) or "none that can hold layers"
        missing = f"no device {', '.join(unknown)} here; there are: {known}"
        raise InvalidArgumentError([FieldViolation("spec.device_ids", missing)])
    return [device for device in holders if device.id in (spec.device_ids or (device.id,))]


def placed_on(
    spec: DeploymentSpec, problem: Problem, built: BuiltEngine | None = None, *, with_alternatives: bool = True
) -> Placement:
    """The best placement, or the one that the spec states; errors as of `Planner.place`."""
    goal, slo = Goal(spec.objective.value), slo_of(spec)
    if not spec.stage_layers:
        return solve(problem, goal, slo=slo, with_alternatives=with_alternatives)
    try:
        return stated(problem, goal, spec.device_ids, folded(spec.stage_layers, built), slo)
    except ValueError as error:
        raise InvalidArgumentError([FieldViolation("spec.stage_layers", str(error))]) from None


def slo_of(spec: DeploymentSpec) -> Slo | None:
    """The objectives for time, if there are any."""
    if not (spec.first_token_slo_seconds or spec.output_token_slo_seconds):
        return None
    return Slo(spec.first_token_slo_seconds or None, spec.output_token_slo_seconds or None)


def _refusal(
    refused: Sequence[DoesNotFitError | SloUnreachableError], tried: Sequence[Sizing], devices: Sequence[Device]
) -> Exception:
    slow = next((error for error in refused if isinstance(error, SloUnreachableError)), None)
    return slow or does_not_fit([error for error in refused if isinstance(error, DoesNotFitError)], tried, devices)


def _placed(
    answers: Sequence[Answer], devices: Sequence[Device], tried: Sequence[Sizing], topology: Topology
) -> Placed:
    best = answers[0]
    plan = _deployment_plan(best, best.placement.plan, topology)
    plan = replace(plan, explanation=explain(plan, best.sizing, best.placement, devices, tried))
    taken = _devices(best.placement.plan)
    others = [(best.sizing, one.plan) for one in best.placement.alternatives if _devices(one.plan) != taken]
    others += [(best.sizing, elsewhere) for elsewhere in _elsewhere(best)]
    others += [(answer.sizing, answer.placement.plan) for answer in answers[1:]]
    losers = [_deployment_plan(replace(best, sizing=sizing), other, topology) for sizing, other in others]
    return Placed(plan, tuple((loser, lost_by(loser, plan)) for loser in losers), best)


def _devices(plan: Plan) -> frozenset[str]:
    return frozenset(device for copy in plan.copies for stage in copy.stages for device in stage.device_ids)


def _elsewhere(answer: Answer) -> Iterable[Plan]:
    """The best plan without the devices that the best one takes, if there is one."""
    rules: Constraints = answer.problem.constraints
    left = frozenset(device.id for device in answer.problem.devices) - _devices(answer.placement.plan)
    if left:
        problem = replace(answer.problem, constraints=replace(rules, device_ids=left))
        try:
            yield solve(problem, answer.placement.goal, with_alternatives=False).plan
        except DoesNotFitError:
            return


def _deployment_plan(answer: Answer, plan: Plan, topology: Topology) -> DeploymentPlan:
    (copy,) = unfolded(plan, answer.sizing.shape.built).copies
    sizing, times, stages = answer.sizing, times_of(copy, answer.sizing, topology), stages_of(copy, answer.sizing)
    memory = {device.id: device.memory_bytes for device in topology.devices}
    return DeploymentPlan(
        spec=sizing.spec,
        stages=stages,
        facts=sizing.facts,
        fingerprint=sizing.shape.fingerprint,
        devices=tuple(topology.framework_name(device) for stage in copy.stages for device in stage.device_ids),
        kv_budget_bytes=sizing.kv_budget,
        step_time=times,
        first_token_seconds=times.first_token(PROBE_PROMPT_TOKENS),
        output_token_seconds=times.step(1, PROBE_PROMPT_TOKENS),
        lower_bound_seconds=answer.placement.bounds.latency_seconds,
        objective_seconds=plan.latency_seconds,
        explanation="",
        memory_share=max(stage.total_bytes / memory[device] for stage in stages for device in stage.device_ids),
    ).hashed()
