"""Synthetic batches of a static engine whose coefficients are known."""

from __future__ import annotations

import random
from collections.abc import Sequence

from uellm.cost.steps import StepTime, Work
from uellm.v1.stream_pb2 import ENGINE_KIND_STATIC, DeploymentRecord, EngineKind, StepAggregates

TRUTH = StepTime(base=0.08, per_row=0.0067, per_context_token=2e-6, prefill_per_token=0.0035, startup=0.05)
PRIOR = StepTime(base=0.03, per_row=0.003, per_context_token=1e-6, prefill_per_token=0.003, startup=0.0)


def times(factor: float, steps: StepTime = TRUTH) -> StepTime:
    """All coefficients, so many times as large."""
    return StepTime(
        factor * steps.base,
        factor * steps.per_row,
        factor * steps.per_context_token,
        factor * steps.prefill_per_token,
        factor * steps.startup,
    )


def measured_deployment(
    prior: StepTime = PRIOR, *, name: str = "deployments/a", plan: str = "plan-1", kind: EngineKind = ENGINE_KIND_STATIC
) -> DeploymentRecord:
    """A deployment with a prior."""
    return DeploymentRecord(name=name, plan_hash=plan, engine_kind=kind, step_time_prior=prior.to_prior("roofline"))


def measure(
    prompts: Sequence[int],
    outputs: Sequence[int],
    choice: random.Random,
    *,
    truth: StepTime = TRUTH,
    noise: float = 0.03,
    padded: bool = True,
    pause_seconds: float = 0.0,
) -> StepAggregates:
    """What a batch would report, each run of equal rows with noise of its own. A pause falls into the first run."""
    widest = len(prompts) * max(prompts)
    prefill = truth.prefill_per_token * (widest if padded else sum(prompts)) * (1 + choice.gauss(0, noise))
    made = StepAggregates(total_seconds=prefill + truth.startup)
    made.prefill.add(rows=len(prompts), tokens=sum(prompts), padded_tokens=widest, seconds=prefill)
    done = 1
    for end in sorted(set(outputs) - {1}):
        alive = [prompt for prompt, output in zip(prompts, outputs, strict=True) if output >= end]
        steps = range(done, end)
        context = len(steps) * sum(alive) + len(alive) * sum(steps)
        counted = len(alive) * (len(steps) * max(alive) + sum(steps)) if padded else context
        seconds = truth.seconds(Work(len(steps), len(steps) * len(alive), counted)) * (1 + choice.gauss(0, noise))
        seconds += pause_seconds if done == 1 else 0.0
        made.decode.add(
            rows=len(alive),
            first_context=max(alive) + done,
            steps=len(steps),
            context_tokens=context,
            seconds=seconds,
        )
        made.total_seconds += seconds
        done = end
    return made


def random_batch(choice: random.Random, rows: int | None = None, **how: object) -> StepAggregates:
    """A batch of 1 to 16 rows with prompts of 10 to 300 tokens and log-normal answers up to 400."""
    count = rows or choice.randint(1, 16)
    prompts = [choice.randint(10, 300) for _ in range(count)]
    outputs = [min(400, 2 + int(choice.lognormvariate(4.0, 0.8))) for _ in range(count)]
    return measure(prompts, outputs, choice, **how)  # type: ignore[arg-type]
