"""What is recommended, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from uellm_deployer.domain.advice import STILL_WORTH, WORTH, Candidate, Cause, Situation
from uellm_deployer.domain.deployment import Strategy
from uellm_deployer.domain.plan import DeploymentPlan


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A change that would be better, with the reason in words."""

    candidate: Candidate
    causes: frozenset[Cause]
    gain: float
    """Rate over the present one when it was made."""
    reason: str

    def says(self, other: Recommendation) -> bool:
        """Whether the other one is no news beside it: the same change for the same causes, and about the same gain."""
        near = 1 / STILL_WORTH <= other.gain / self.gain <= STILL_WORTH
        return near and self.causes == other.causes and self.candidate.same_change(other.candidate)

    @property
    def plan(self) -> DeploymentPlan:
        """The plan to be carried out."""
        return self.candidate.plan


def recommend(situation: Situation, chosen: Candidate, beside: Iterable[str] = ()) -> Recommendation:
    """A candidate with the reason; `beside` are other deployments on its devices."""
    spec, own = chosen.plan.spec, situation.performance.plan.spec
    what = [
        f"{'a copy on' if chosen.strategy is Strategy.BESIDE else 'on'} {_where(chosen.plan)}",
        f"{spec.max_batch_rows} rows instead of {own.max_batch_rows}" * (spec.max_batch_rows != own.max_batch_rows),
        f"objective {spec.objective.value}" * (spec.objective is not own.objective),
        *(f"beside {name}" for name in sorted(beside)),
    ]
    enough = situation.set_right_by(chosen)
    short = "" if enough else f", {chosen.rate / situation.wanted_rate:.0%} of what would set it right"
    reason = (
        f"{trouble(situation)}. Better, if devices that were not measured do what they say: "
        f"{', '.join(filter(None, what))}: {chosen.step_seconds:.3g} s a step, {chosen.rate:,.3g} tokens/s of full "
        f"batches instead of {situation.rate:,.3g}{short}. {_carry_out(situation, chosen)}"
    )
    return Recommendation(chosen, situation.causes, chosen.rate / situation.rate, reason)


def nothing_better(situation: Situation, candidates: Sequence[Candidate], obstacles: Sequence[str]) -> str:
    """Why there is no recommendation, in words."""
    parts = [trouble(situation), "no plan is better by enough"]
    if candidates:
        best = max(candidates, key=lambda one: one.rate)
        gain = best.rate / situation.rate
        what = f"{best.plan.spec.max_batch_rows} rows on {_where(best.plan)}"
        parts.append(
            f"the best other one, {what}, would serve {gain:.3g} times as much, and {WORTH:g} is worth a change"
            if gain > 1
            else f"it is where it should be, on {_where(situation.performance.plan)}: elsewhere is no room or no gain"
        )
    return "; ".join([*parts, *obstacles])


def trouble(situation: Situation) -> str:
    """What is wrong, in words with the numbers."""
    performance, parts = situation.performance, []
    name, spec = performance.deployment.name, performance.plan.spec
    if Cause.STEP_TIME in situation.causes:
        batches = performance.measurement.batches if performance.measurement else 0
        slo = spec.output_token_slo_seconds
        parts.append(
            f"a step of {spec.max_batch_rows} rows half way through their context takes {name} "
            f"{performance.seconds:.3g} s, {performance.ratio:.3g} times the {performance.predicted_seconds:.3g} s of "
            f"its plan (learnt from {batches} batches)" + (f", promised were {slo:.3g} s" if slo else "")
        )
    if Cause.LOAD in situation.causes and situation.load is not None:
        load = situation.load
        offered = "" if load.offered is None else f"{load.offered:.0%} of what can be served comes in, "
        parts.append(
            f"the load has outgrown {' and '.join(one.deployment.name for one in (performance, *situation.others))}: "
            f"{offered}{load.waiting:,} queries wait, {load.work_seconds:.3g} s of work"
        )
    return "; ".join(parts)


def _where(plan: DeploymentPlan) -> str:
    return " then ".join(" and ".join(stage.device_ids) for stage in plan.stages)


def _carry_out(situation: Situation, chosen: Candidate) -> str:
    create = f"CreateDeployment with this plan's spec and strategy {chosen.strategy.value}"
    name = situation.performance.deployment.name
    if chosen.strategy is Strategy.RECREATE:
        return f"{create}: the memory is not enough for both, so that nothing serves for a while."
    if chosen.strategy is not Strategy.BESIDE:
        return f"{create}."
    if Cause.LOAD in situation.causes:
        share = 1 - situation.rate / chosen.rate
        return f"{create}, then SetTraffic with {share:.0%} for the new one."
    return f"{create}, then SetTraffic with what {name} has, and DeleteDeployment of {name}."
